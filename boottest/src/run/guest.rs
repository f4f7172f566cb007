//! What runs in the guest: the one place where `--exec`, `--script`, `--rootfs` and `--modules` change the machine.

use vmm_core::config::MachineConfig;

use crate::guest::{
    self, ChannelEvent, GuestCommand, GuestError, GuestPlan, Prepared, Rootfs, Stream,
};
use crate::judge::CommandEnd;
use crate::spec::GuestSpec;

/// What the guest's command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CommandEvent {
    /// It runs.
    Started,
    /// It put something out.
    Output {
        /// On its standard error.
        is_error: bool,
        /// What.
        bytes: Vec<u8>,
    },
    /// It is over.
    Ended(CommandEnd),
}

/// Reads what comes by the channel.
pub(super) type Channel = Box<dyn FnMut(&[u8]) -> Vec<CommandEvent> + Send>;

/// What was made for the guest.
pub(super) struct Attached {
    pub(super) channel: Channel,
    /// Files that live as long as the guest.
    pub(super) prepared: Prepared,
}

/// Makes ready what is to run in the guest, and changes the machine to suit. The machine has to get a virtio console for the
/// channel, as its last.
pub(super) fn attach(
    spec: &GuestSpec,
    config: &mut MachineConfig,
) -> Result<Option<Attached>, GuestError> {
    let command = match (&spec.exec, &spec.script) {
        (Some(text), _) => GuestCommand::Exec(text.clone()),
        (None, Some(path)) => GuestCommand::Script(path.clone()),
        (None, None) => return Ok(None),
    };
    if config.console.is_none() && has_virtio_console(&config.boot.cmdline) {
        return Err(GuestError::ConsoleIsChannel);
    }
    let rootfs = match &spec.rootfs {
        Some(written) => written.rootfs(),
        None if config.boot.initrd.is_some() => Rootfs::Initramfs,
        None => Rootfs::Host,
    };
    let modules = spec.modules.as_ref().map(|written| written.source());
    let plan = GuestPlan {
        modules: modules.unwrap_or_default(),
        rootfs,
        command,
        drivers: Vec::new(),
    };
    let prepared = guest::prepare(&plan, config)?;
    for driver in &prepared.missing_drivers {
        log::warn!("the kernel has no driver for {driver}: the guest does without");
    }
    config.boot.initrd = Some(prepared.initrd());
    for word in &prepared.cmdline {
        config.boot.cmdline.push(' ');
        config.boot.cmdline.push_str(word);
    }
    config.shares.extend(prepared.shares.iter().cloned());
    config.disks.extend(prepared.disks.iter().cloned());
    let mut channel = guest::Channel::default();
    let read = move |bytes: &[u8]| channel.feed(bytes).into_iter().map(event).collect();
    Ok(Some(Attached {
        channel: Box::new(read),
        prepared,
    }))
}

/// Whether the kernel is told to write to the first virtio console.
fn has_virtio_console(cmdline: &str) -> bool {
    let mut words = cmdline.split_ascii_whitespace();
    words.any(|word| word == "console=hvc0" || word.starts_with("console=hvc0,"))
}

fn event(event: ChannelEvent) -> CommandEvent {
    CommandEvent::Ended(match event {
        ChannelEvent::Started => return CommandEvent::Started,
        ChannelEvent::Output { stream, bytes } => {
            let is_error = stream == Stream::Stderr;
            return CommandEvent::Output { is_error, bytes };
        }
        ChannelEvent::Exited { code } => CommandEnd::Exited(code),
        ChannelEvent::Signalled { signal } => CommandEnd::Signalled(signal),
        ChannelEvent::Refused(why) => CommandEnd::Refused(why),
        ChannelEvent::Malformed => {
            CommandEnd::Refused("something else in the guest writes to its channel".to_owned())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_does_not_write_to_the_channel() {
        assert!(has_virtio_console("quiet console=hvc0"));
        assert!(has_virtio_console("console=hvc0,115200 root=/dev/vda"));
        assert!(!has_virtio_console("console=ttyS0 x=console=hvc0"));
    }
}
