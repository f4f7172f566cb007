//! `tripath run`: boots a guest and tells how it ended.

use std::io::{self, Write};

use vmm_core::config::{CharTarget, MachineConfig, MachineFile};
use vmm_core::stats::Report;

use super::doctor;
use crate::cli::RunArgs;
use crate::exit_code::{Exit, UserError};
use crate::{machine_file, stats_table, terminal};

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What the guest did.
    pub end: GuestEnd,
    /// What it cost, if [`LaunchOptions::stats`] asked for it.
    pub stats: Option<Report>,
}

/// What became of the guest.
#[cfg_attr(not(test), expect(dead_code, reason = "made by `launch`"))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEnd {
    /// It powered off.
    PoweredOff,
    /// It reset, with `--on-reboot exit`.
    Reset,
    /// Its user or a signal ended it.
    Ended,
    /// Its kernel panicked.
    Panicked,
    /// It cannot go on; the reason, the registers and the instruction's bytes, on several lines.
    Crashed(String),
}

/// What [`launch`] is told beside the machine.
#[expect(dead_code, reason = "read by `launch`")]
#[derive(Debug, Clone, Copy)]
pub struct LaunchOptions {
    /// Count exits and accesses.
    pub stats: bool,
    /// Called when the signals are handled and everything that can be the user's mistake is behind, right before the
    /// vCPUs start.
    pub on_guest_start: fn() -> io::Result<()>,
}

/// Runs the command.
///
/// # Errors
/// [`UserError`] for the user's mistakes; anything else is our failure.
pub fn run(arguments: RunArgs) -> anyhow::Result<Exit> {
    let (stats, dump) = (arguments.stats, arguments.dump_config);
    let config = machine(arguments)?;
    if dump {
        io::stdout().write_all(machine_file::dump(&config)?.as_bytes())?;
        return Ok(Exit::Success);
    }
    let options = LaunchOptions {
        stats,
        on_guest_start: if uses_stdio(&config) {
            terminal::make_raw
        } else {
            || Ok(())
        },
    };
    let outcome = {
        let _restore = terminal::RestoreOnDrop;
        launch(&config, options)?
    };
    if let Some(report) = &outcome.stats {
        eprint!("{}", stats_table::render(report));
    }
    for line in told(&outcome.end, doctor::software_kvm()) {
        eprintln!("tripath: {line}");
    }
    Ok(exit_of(&outcome.end))
}

/// Creates the machine and runs the guest to its end.
fn launch(config: &MachineConfig, options: LaunchOptions) -> anyhow::Result<Outcome> {
    log::debug!("{options:?} {config:?}");
    anyhow::bail!("this build cannot run guests")
}

/// The machine that the machine file and the options ask for, found to be consistent.
fn machine(arguments: RunArgs) -> Result<MachineConfig, UserError> {
    let file = match &arguments.config {
        Some(path) => machine_file::load(path)?,
        None => MachineFile::default(),
    };
    let said = file.overridden_by(arguments.into_machine());
    let config = said.complete().map_err(UserError::new)?;
    config.validate().map_err(UserError::new)?;
    Ok(config)
}

fn uses_stdio(config: &MachineConfig) -> bool {
    config
        .serials
        .iter()
        .chain(&config.console)
        .any(|target| *target == CharTarget::Stdio)
}

fn exit_of(end: &GuestEnd) -> Exit {
    match end {
        GuestEnd::PoweredOff | GuestEnd::Reset | GuestEnd::Ended => Exit::Success,
        GuestEnd::Panicked => Exit::GuestPanicked,
        GuestEnd::Crashed(_) => Exit::GuestCrashed,
    }
}

/// What the user is told about the guest's end.
fn told(end: &GuestEnd, software_kvm: Option<String>) -> Vec<String> {
    match end {
        GuestEnd::PoweredOff | GuestEnd::Reset | GuestEnd::Ended => vec![],
        GuestEnd::Panicked => vec!["the guest panicked".into()],
        GuestEnd::Crashed(what) => {
            let crash = format!("the guest crashed: {}", what.trim_end());
            std::iter::once(crash).chain(software_kvm).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use std::path::{Path, PathBuf};

    fn machine_of(options: &[&str]) -> Result<MachineConfig, String> {
        let cli = Cli::try_parse_from(["tripath", "run"].iter().chain(options)).unwrap();
        match cli.command {
            Command::Run(arguments) => machine(*arguments).map_err(|error| error.to_string()),
            Command::Doctor => panic!("not run"),
        }
    }

    fn file(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("machine.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn options_win_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let text = "kernel = \"k\"\ncpus = 2\nmemory = \"1G\"\n[[disk]]\npath = \"a\"\n[[disk]]\npath = \"b\"\n";
        let path = file(folder.path(), text);
        let config = machine_of(&[
            "--config",
            path.to_str().unwrap(),
            "--cpus=3",
            "--disk=path=c",
        ])
        .unwrap();
        assert_eq!(config.boot.kernel, folder.path().join("k"));
        assert_eq!(config.cpus.count, 3);
        assert_eq!(config.memory.size_bytes, 1 << 30);
        assert_eq!(config.disks.len(), 1);
        assert_eq!(config.disks[0].path, Path::new("c"));
    }

    #[test]
    fn a_dumped_machine_is_the_same_machine() {
        let folder = tempfile::tempdir().unwrap();
        let options = [
            "--kernel=/k",
            "--initrd=/i",
            "--cmdline=console=ttyS0 \"quoted\" 'too'",
            "--cpus=4,affinity=0@0-1:3@2+5",
            "--memory=5G,memfd=on",
            "--disk=path=/a,,b,direct=on,serial=S",
            "--disk=path=/c,readonly=on",
            "--net=tap=t,mac=02:00:00:00:00:01",
            "--serial=stdio",
            "--serial=socket=/s,1",
            "--console=pty",
            "--on-reboot=exit",
            "--on-panic=hang",
            "--no-kernel-cache",
        ];
        for options in [&options[..], &options[..1]] {
            let config = machine_of(options).unwrap();
            let path = file(folder.path(), &machine_file::dump(&config).unwrap());
            assert_eq!(
                machine_of(&["--config", path.to_str().unwrap()]).unwrap(),
                config
            );
        }
    }

    #[test]
    fn mistakes_are_told() {
        for (options, message) in [
            (
                &[][..],
                "no kernel is given: give --kernel PATH, or kernel = \"PATH\" in the machine file",
            ),
            (
                &["--kernel=k", "--cpus=0"],
                "a guest with 0 CPUs cannot run: give it at least 1",
            ),
            (
                &["--config=/nowhere.toml"],
                "cannot read machine file /nowhere.toml: No such file or directory (os error 2)",
            ),
        ] {
            assert_eq!(machine_of(options).unwrap_err(), message);
        }
    }

    #[test]
    fn stdio_is_used_by_com1_or_the_console() {
        let uses = |options: &[&str]| {
            let options = [&["--kernel=k"], options].concat();
            uses_stdio(&machine_of(&options).unwrap())
        };
        assert!(uses(&[]));
        assert!(uses(&["--console=stdio"]));
        assert!(uses(&["--serial=null", "--serial=stdio"]));
        assert!(!uses(&["--serial=null", "--console=pty"]));
    }

    #[test]
    fn how_the_guest_ended_is_told_and_gives_the_exit_code() {
        let crash = GuestEnd::Crashed("triple fault\nrip 0\n".into());
        let note = || Some("software KVM".to_owned());
        for (end, software_kvm, exit, lines) in [
            (GuestEnd::PoweredOff, note(), Exit::Success, &[][..]),
            (GuestEnd::Reset, note(), Exit::Success, &[]),
            (GuestEnd::Ended, note(), Exit::Success, &[]),
            (
                GuestEnd::Panicked,
                note(),
                Exit::GuestPanicked,
                &["the guest panicked"],
            ),
            (
                crash.clone(),
                None,
                Exit::GuestCrashed,
                &["the guest crashed: triple fault\nrip 0"],
            ),
            (
                crash,
                note(),
                Exit::GuestCrashed,
                &["the guest crashed: triple fault\nrip 0", "software KVM"],
            ),
        ] {
            assert_eq!(exit_of(&end), exit);
            assert_eq!(told(&end, software_kvm), lines);
        }
    }
}
