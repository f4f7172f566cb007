//! `tripath run`: boots a guest and tells how it ended.

use std::io::{self, Write};
use std::sync::Arc;

use vmm_core::config::{CharTarget, MachineConfig, MachineFile};
use vmm_core::machine::{Finished, FunctionLoss, Machine, Options, Outcome};

use super::doctor;
use crate::cli::RunArgs;
use crate::exit_code::{Exit, UserError};
use crate::{logging, machine_file, startup, stats_table, terminal};

/// Runs the command.
///
/// # Errors
/// [`UserError`] for the user's mistakes; anything else is our failure.
pub fn run(arguments: RunArgs) -> anyhow::Result<Exit> {
    let (stats, dump) = (arguments.stats, arguments.dump_config);
    let control = arguments.control.clone();
    let config = machine(arguments)?;
    if dump {
        io::stdout().write_all(machine_file::dump(&config)?.as_bytes())?;
        return Ok(Exit::Success);
    }
    let options = Options {
        stats,
        control,
        ..Options::default()
    };
    let finished = launch(&config, options)?;
    if let Some(report) = finished.report.as_ref().filter(|_| stats) {
        // Where standard error is gone, the exit code still tells.
        let _ = io::stderr().write_all(stats_table::render(report).as_bytes());
    }
    for line in told(&finished.outcome, doctor::software_kvm()) {
        logging::tell(&line);
    }
    if let Some(thread) = finished.cache_filler {
        // It only saves time of later runs: how it ended is in the log.
        let _ = thread.join();
    }
    Ok(exit_of(&finished.outcome))
}

/// Creates the machine and runs the guest to its end. The terminal is raw while the guest owns it.
fn launch(config: &MachineConfig, options: Options) -> anyhow::Result<Finished> {
    // A file at the limit of `ulimit -f` is an error of the write, not the end of the guest.
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default())?;
    let machine = Machine::build(config, options).map_err(|error| match error.is_users() {
        true => UserError::new(error).into(),
        false => anyhow::Error::new(error),
    })?;
    for (port, place) in machine.endpoints() {
        logging::tell(&format!("{port} is {place}"));
    }
    for (interface, name) in machine.taps() {
        logging::tell(&format!("{interface} is on TAP {name}"));
    }
    if let Some(note) = doctor::software_kvm() {
        // Such a guest may fail after minutes, or never get anywhere.
        logging::tell(&format!("warning: {note}"));
    }
    startup::leave();
    let _restore = terminal::RestoreOnDrop;
    if uses_stdio(config) {
        terminal::make_raw()?;
    }
    Ok(machine.run()?)
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

fn exit_of(end: &Outcome) -> Exit {
    match end {
        Outcome::PoweredOff | Outcome::Reset | Outcome::Ended => Exit::Success,
        Outcome::Panicked => Exit::GuestPanicked,
        Outcome::Crashed(_) => Exit::GuestCrashed,
        Outcome::DeviceLost { .. } => Exit::Failure,
    }
}

/// What the user is told about the guest's end.
fn told(end: &Outcome, software_kvm: Option<String>) -> Vec<String> {
    match end {
        Outcome::PoweredOff | Outcome::Reset | Outcome::Ended => vec![],
        Outcome::Panicked => vec!["the guest panicked".into()],
        Outcome::Crashed(what) => {
            let crash = format!("the guest crashed: {what}");
            std::iter::once(crash).chain(software_kvm).collect()
        }
        Outcome::DeviceLost { device, loss } => vec![match loss {
            FunctionLoss::Error => format!(
                "device {device} reports an error that it could not correct: the guest was stopped"
            ),
            FunctionLoss::Requested => {
                format!("the host wants device {device} back: the guest was stopped")
            }
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use std::path::{Path, PathBuf};
    use vmm_core::machine::CrashReport;

    fn machine_of(options: &[&str]) -> Result<MachineConfig, String> {
        let cli = Cli::try_parse_from(["tripath", "run"].iter().chain(options)).unwrap();
        match cli.command {
            Command::Run(arguments) => machine(*arguments).map_err(|error| error.to_string()),
            _ => panic!("not run"),
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
            "--net=tap=auto,bridge=br0",
            "--net=user,hostfwd=tcp:8080-80,hostfwd=udp:[::1]:53-53",
            "--net=user",
            "--share=path=/d,,e,tag=t",
            "--serial=stdio",
            "--serial=socket=/s,1",
            "--serial=tcp=localhost:4444",
            "--console=pty",
            "--rng=off",
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
        let crash = || Outcome::Crashed(Box::new(CrashReport::without_state("triple fault")));
        let told = |end: &Outcome, note: Option<&str>| told(end, note.map(String::from)).join("|");
        for end in [Outcome::PoweredOff, Outcome::Reset, Outcome::Ended] {
            assert_eq!(exit_of(&end), Exit::Success);
            assert_eq!(told(&end, Some("software KVM")), "");
        }
        assert_eq!(exit_of(&Outcome::Panicked), Exit::GuestPanicked);
        assert_eq!(
            told(&Outcome::Panicked, Some("software KVM")),
            "the guest panicked"
        );
        assert_eq!(exit_of(&crash()), Exit::GuestCrashed);
        assert!(told(&crash(), None).starts_with("the guest crashed: triple fault on vCPU 0"));
        assert!(told(&crash(), Some("software KVM")).ends_with("|software KVM"));
    }
}
