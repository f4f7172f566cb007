//! What runs in the guest: the one place where `--exec`, `--script`, `--rootfs` and `--modules` change the machine.

use thiserror::Error;
use vmm_core::config::MachineConfig;

use crate::judge::CommandEnd;
use crate::spec::GuestSpec;

/// What the guest's command did.
#[cfg_attr(not(test), allow(dead_code))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CommandEvent {
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
    pub(super) prepared: Box<dyn std::any::Any>,
}

/// What runs in the guest cannot be made ready.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct GuestError(String);

/// Makes ready what is to run in the guest, and changes the machine to suit: its initrd, command line, shares and disks.
/// The channel is given to the machine as its last virtio console by our caller.
pub(super) fn attach(
    guest: &GuestSpec,
    config: &mut MachineConfig,
) -> Result<Option<Attached>, GuestError> {
    if *guest == GuestSpec::default() {
        return Ok(None);
    }
    log::debug!("{} runs a command", config.boot.kernel.display());
    Err(GuestError(
        "commands in the guest are not supported by this build".to_owned(),
    ))
}
