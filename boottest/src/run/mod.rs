//! One test, run in this process.
//!
//! The calling thread runs the machine. Another one hears its consoles, which are streams: what they hold is bounded, so
//! that a guest that floods them waits for us, and we do not wait for it. When there is a verdict that thread stops
//! the machine; when the machine has ended, its streams end.

mod guest;
mod hearing;
mod outcome;

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Instant;

use thiserror::Error;
use vmm_core::config::{CharTarget, ConfigError, MachineConfig, MachineFile, NoKernel, OnReboot};
use vmm_core::machine::{ConsolePort, Machine, MachineError, Options};

use crate::console::{ConsoleLog, PatternError};
use crate::judge::{Criteria, End, Judge};
use crate::report::TestResult;
use crate::spec::{DEFAULT_RESETS, TestSpec};

use crate::guest::GuestError;

use hearing::{Ear, Hearing, Outlets};

/// The console log's name in a folder of logs.
pub const CONSOLE_LOG: &str = "console.log";

/// Hears each line of the consoles.
pub type LineSink = Box<dyn FnMut(&str) + Send>;
/// Hears what the guest's command puts out; true for its standard error.
pub type CommandSink = Box<dyn FnMut(bool, &[u8]) + Send>;

/// Hears what the user has to know of the machine, a line each.
pub type NoteSink = Box<dyn Fn(&str)>;

/// How a test is run.
pub struct RunOptions {
    /// When this process started: the origin of all times.
    pub started: Instant,
    /// Where the logs go.
    pub logs: Option<PathBuf>,
    /// Hears where ports and network interfaces are whose places the user cannot know.
    pub on_note: NoteSink,
    /// Hears each line of the consoles.
    pub on_line: Option<LineSink>,
    /// Hears what the guest's command puts out; true for its standard error.
    pub on_command_output: Option<CommandSink>,
}

/// Why a test could not be run.
#[derive(Debug, Error)]
pub enum RunError {
    /// Nothing says what to boot.
    #[error(transparent)]
    NoKernel(#[from] NoKernel),
    /// The machine contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A regular expression.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// No port is left to hear.
    #[error(
        "no console is heard: send COM1 (--serial) or the virtio console (--console) to stdio, which is this test"
    )]
    Deaf,
    /// Nothing would ever end the run well.
    #[error(
        "with --end none the run is over when the last expectation is met, and there is none: give --expect or a command"
    )]
    Endless,
    /// What runs in the guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A log.
    #[error("cannot write {}: {source}", path.display())]
    Log {
        /// The file or folder.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The console's log, while the guest ran.
    #[error("cannot write {CONSOLE_LOG}: {0}")]
    LogLost(io::Error),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The host refused something else.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl RunError {
    /// Whether the user can change it; otherwise the failure is ours.
    #[must_use]
    pub fn is_users(&self) -> bool {
        match self {
            Self::NoKernel(_)
            | Self::Config(_)
            | Self::Pattern(_)
            | Self::Deaf
            | Self::Endless
            | Self::Log { .. } => true,
            Self::Guest(error) => error.is_users(),
            Self::Machine(error) => error.is_users(),
            Self::Host { .. } | Self::LogLost(_) => false,
        }
    }
}

/// A test that was run.
#[derive(Debug)]
pub struct Ran {
    /// What came of it.
    pub result: TestResult,
    /// As [`vmm_core::machine::Finished::cache_filler`].
    pub cache_filler: Option<JoinHandle<()>>,
}

/// The machine of a test, checked, and which of its ports are heard.
pub struct TestMachine {
    /// As it will be built.
    pub config: MachineConfig,
    heard: Vec<ConsolePort>,
}

impl TestMachine {
    /// The machine that `spec` asks for. Where a port goes to `stdio`, the test hears it. COM1 does so unless the user says
    /// otherwise, also beside a virtio console.
    ///
    /// # Errors
    /// [`RunError`], the user's every one.
    pub fn of(spec: &TestSpec) -> Result<Self, RunError> {
        let criteria = spec.asked.criteria(spec.guest.has_command())?;
        let mut file = spec.machine.clone();
        let is_users_cmdline = file.cmdline.is_some();
        let heard = take_heard(&mut file);
        if heard.is_empty() && !criteria.steps.is_empty() {
            return Err(RunError::Deaf);
        }
        if criteria.end == End::None && criteria.steps.is_empty() && !criteria.has_command {
            return Err(RunError::Endless);
        }
        let mut config = file.complete()?;
        if criteria.has_command && !is_users_cmdline {
            // The serial port would be a good part of the boot. Warnings, and what a kernel dies of, are printed
            // all the same.
            config.boot.cmdline.push_str(" quiet");
        }
        if criteria.end == End::Reboot {
            config.on_reboot = OnReboot::Exit;
        }
        config.validate()?;
        Ok(Self { config, heard })
    }
}

/// Takes out what the test hears.
fn take_heard(file: &mut MachineFile) -> Vec<ConsolePort> {
    let serials = file.serial.get_or_insert_with(|| vec![CharTarget::Stdio]);
    let mut heard = Vec::new();
    for (index, target) in serials.iter_mut().enumerate() {
        if *target == CharTarget::Stdio {
            *target = CharTarget::Null;
            heard.push(ConsolePort::Serial(index));
        }
    }
    let com1_is_heard = heard.first() == Some(&ConsolePort::Serial(0));
    if com1_is_heard && file.cmdline.is_none() {
        file.cmdline = Some(vmm_core::config::CMDLINE_FOR_SERIAL.to_owned());
    }
    if let Some(target) = &mut file.console
        && *target == CharTarget::Stdio
    {
        *target = CharTarget::Null;
        heard.push(ConsolePort::Virtio);
    }
    heard
}

/// Runs a test to its verdict.
///
/// # Errors
/// [`RunError`] if the test could not be run; how it went is in the result.
pub fn run(spec: &TestSpec, options: RunOptions) -> Result<Ran, RunError> {
    let criteria = spec.asked.criteria(spec.guest.has_command())?;
    let TestMachine { mut config, heard } = TestMachine::of(spec)?;
    let attached = guest::attach(&spec.guest, &mut config)?;
    let log = options.logs.as_deref().map(create_logs).transpose()?;

    let mut streams = Vec::new();
    let mut ears = Vec::new();
    for port in heard {
        let (near, far) = pair()?;
        streams.push((port, far));
        ears.push(Ear::console(near, name_of(port)));
    }
    let (channels, prepared) = match attached {
        Some(attached) => {
            let (near, far) = pair()?;
            ears.push(Ear::channel(near, attached.channel));
            (vec![far], Some(attached.prepared))
        }
        None => (Vec::new(), None),
    };
    let machine_options = Options {
        stats: options.logs.is_some(),
        control: None,
        streams,
        channels,
        restarts: Some(spec.asked.resets.unwrap_or(DEFAULT_RESETS)),
        triple_fault_ends: true,
        signals_end: true,
    };
    let machine = Machine::build(&config, machine_options)?;
    for (port, place) in machine.endpoints() {
        (options.on_note)(&format!("{port} is {place}"));
    }
    for (interface, name) in machine.taps() {
        (options.on_note)(&format!("{interface} is on TAP {name}"));
    }
    let outlets = Outlets {
        log,
        on_line: options.on_line,
        on_command_output: options.on_command_output,
    };
    let hearing = start_hearing(criteria, ears, outlets, &machine, options.started)?;
    let finished = machine.run();
    // The streams are closed: it ends by itself.
    let heard = hearing.join().map_err(|_| RunError::Host {
        what: "hear the consoles",
        source: io::Error::other("the thread panicked"),
    })?;
    // What was made for the guest, which is gone.
    drop(prepared);
    outcome::result_of(spec, &config, finished?, heard?, &options.started).map(
        |(result, cache_filler)| Ran {
            result,
            cache_filler,
        },
    )
}

fn start_hearing(
    criteria: Criteria,
    ears: Vec<Ear>,
    outlets: Outlets,
    machine: &Machine,
    started: Instant,
) -> Result<JoinHandle<Result<hearing::Heard, RunError>>, RunError> {
    let stop = machine.stop_handle();
    let entered = started.elapsed();
    let hear = move || {
        let judge = Judge::new(criteria, entered);
        let heard = Hearing::new(ears, judge, outlets, started).run(&|| stop.stop());
        if heard.is_err() {
            stop.stop();
        }
        heard
    };
    let thread = std::thread::Builder::new().name("consoles".into());
    thread.spawn(hear).map_err(|source| RunError::Host {
        what: "start a thread",
        source,
    })
}

fn pair() -> Result<(UnixStream, UnixStream), RunError> {
    UnixStream::pair().map_err(|source| RunError::Host {
        what: "create a socket",
        source,
    })
}

/// As the guest calls it.
fn name_of(port: ConsolePort) -> String {
    match port {
        ConsolePort::Serial(index) => format!("ttyS{index}"),
        ConsolePort::Virtio => "hvc0".to_owned(),
    }
}

fn create_logs(folder: &Path) -> Result<ConsoleLog, RunError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RunError::Log { path, source }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let path = folder.join(CONSOLE_LOG);
    ConsoleLog::create(&path).map_err(failed(&path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Asked;

    fn machine(serial: Option<&[CharTarget]>, console: Option<CharTarget>) -> TestMachine {
        let spec = TestSpec {
            machine: MachineFile {
                kernel: Some("/k".into()),
                serial: serial.map(<[_]>::to_vec),
                console,
                ..MachineFile::default()
            },
            ..TestSpec::default()
        };
        TestMachine::of(&spec).unwrap()
    }

    #[test]
    fn what_goes_to_stdio_is_heard() {
        use CharTarget::{Null, Stdio};
        let com1 = ConsolePort::Serial(0);
        assert_eq!(machine(None, None).heard, [com1]);
        let both = machine(None, Some(Stdio));
        assert_eq!(both.heard, [com1, ConsolePort::Virtio]);
        assert_eq!(both.config.boot.cmdline, "console=ttyS0");
        let console = machine(Some(&[Null]), Some(Stdio));
        assert_eq!(console.heard, [ConsolePort::Virtio]);
        assert_eq!(console.config.boot.cmdline, "console=hvc0");
        let com2 = machine(Some(&[Null, Stdio]), None);
        assert_eq!(com2.heard, [ConsolePort::Serial(1)]);
    }

    #[test]
    fn expectations_need_a_console() {
        let spec = TestSpec {
            machine: MachineFile {
                kernel: Some("/k".into()),
                serial: Some(vec![CharTarget::Null]),
                ..MachineFile::default()
            },
            asked: Asked {
                expect: vec!["x".into()],
                ..Asked::default()
            },
            ..TestSpec::default()
        };
        assert!(matches!(TestMachine::of(&spec), Err(RunError::Deaf)));
    }

    #[test]
    fn a_run_that_need_not_end_needs_something_to_wait_for() {
        let spec = TestSpec {
            asked: Asked {
                end: Some(End::None),
                ..Asked::default()
            },
            ..TestSpec::default()
        };
        assert!(matches!(TestMachine::of(&spec), Err(RunError::Endless)));
    }
}
