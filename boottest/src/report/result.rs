//! The facts of a result, as they are written as JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm_core::config::MachineConfig;

use crate::judge::{Failure, FailureKind, Milestone, Verdict};

/// Of several tests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the suite.
    pub name: String,
    /// From the first start to the last end, in seconds.
    pub duration_s: f64,
    /// In the order of the suite.
    pub tests: Vec<TestResult>,
}

impl Report {
    /// How many passed.
    #[must_use]
    pub fn passed(&self) -> usize {
        self.tests.iter().filter(|test| test.passed).count()
    }

    /// 0 if all passed, else the first failure's.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let failed = self.tests.iter().find(|test| !test.passed);
        failed.map_or(0, |test| test.exit_code)
    }
}

/// Of one test.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TestResult {
    /// The test's name.
    pub name: String,
    /// The verdict.
    pub passed: bool,
    /// The exit code that goes with it.
    pub exit_code: u8,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// What became of the guest; follows on "the guest".
    pub guest_end: String,
    /// How often the guest was reset.
    pub resets: u32,
    /// What was reached when, in order of time.
    pub milestones: Vec<Moment>,
    /// From the start of the process to here, in seconds.
    pub duration_s: f64,
    /// What was printed.
    pub console: Console,
    /// What the guest ran on.
    pub machine: Option<MachineSummary>,
    /// What the guest's command put out.
    pub command: Option<CommandOutput>,
    /// What the guest cost.
    pub stats: Option<Stats>,
    /// The folder with its logs.
    pub logs: Option<PathBuf>,
    /// The command that runs this test again.
    pub rerun: Option<String>,
}

/// A moment of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// What was reached.
    pub name: String,
    /// Seconds since the start of the process.
    pub time_s: f64,
}

impl From<Milestone> for Moment {
    fn from(milestone: Milestone) -> Self {
        Self {
            name: milestone.name,
            time_s: milestone.time.as_secs_f64(),
        }
    }
}

/// What was printed on the consoles.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Console {
    /// Bytes.
    pub bytes: u64,
    /// Lines in the log, and left out of it.
    pub lines: u64,
    /// Lines left out of the log.
    pub left_out_lines: u64,
    /// The last of them.
    pub last_lines: Vec<String>,
}

/// What the guest ran on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSummary {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its command line.
    pub cmdline: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest RAM.
    pub memory_bytes: u64,
}

impl MachineSummary {
    /// Of a machine.
    #[must_use]
    pub fn of(config: &MachineConfig) -> Self {
        Self {
            kernel: config.boot.kernel.clone(),
            cmdline: config.boot.cmdline.clone(),
            cpus: config.cpus.count,
            memory_bytes: config.memory.size_bytes,
        }
    }
}

/// What the guest's command put out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandOutput {
    /// How it ended.
    pub end: Option<String>,
    /// The beginning of its standard output; what is not UTF-8 is replaced.
    pub stdout: String,
    /// The same of its standard error.
    pub stderr: String,
    /// Bytes of both that are not here.
    pub left_out_bytes: u64,
}

impl CommandOutput {
    /// Adds output, of each up to `limit` bytes.
    pub(crate) fn add(&mut self, is_error: bool, bytes: &[u8], limit: usize) {
        let text = if is_error {
            &mut self.stderr
        } else {
            &mut self.stdout
        };
        let room = limit.saturating_sub(text.len()).min(bytes.len());
        text.push_str(&String::from_utf8_lossy(&bytes[..room]));
        self.left_out_bytes += (bytes.len() - room) as u64;
    }
}

/// What a guest cost, of what was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Exits to user space.
    pub exits: Vec<ExitFigures>,
    /// Devices' shares of them, and events.
    pub devices: Vec<DeviceFigures>,
}

/// Exits for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitFigures {
    /// The reason.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// Time in user space, in nanoseconds.
    pub user_space_ns: u64,
}

/// One device on one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFigures {
    /// The device.
    pub device: String,
    /// How it was reached.
    pub path: String,
    /// Reads.
    pub reads: u64,
    /// Writes, or events.
    pub writes: u64,
    /// Time in the device, in nanoseconds.
    pub user_space_ns: u64,
}

impl From<&vmm_core::stats::Report> for Stats {
    fn from(report: &vmm_core::stats::Report) -> Self {
        let exits = report.exits.iter().map(|row| ExitFigures {
            reason: row.reason.clone(),
            count: row.count,
            user_space_ns: row.user_space_ns,
        });
        let devices = report.devices.iter().map(|row| DeviceFigures {
            device: row.device.clone(),
            path: row.path.to_string(),
            reads: row.reads,
            writes: row.writes,
            user_space_ns: row.user_space_ns,
        });
        Self {
            exits: exits.collect(),
            devices: devices.collect(),
        }
    }
}

impl TestResult {
    /// The result of a test with this verdict, with nothing else said.
    #[must_use]
    pub fn of_verdict(name: &str, verdict: Verdict) -> Self {
        Self {
            name: name.to_owned(),
            passed: verdict == Verdict::Passed,
            exit_code: verdict.exit_code(),
            failure: match verdict {
                Verdict::Passed => None,
                Verdict::Failed(failure) => Some(failure),
            },
            ..Self::default()
        }
    }

    /// The result of a test that could not be run, for `reason`.
    #[must_use]
    pub fn not_run(name: &str, reason: String) -> Self {
        Self::of_verdict(
            name,
            Verdict::Failed(Failure {
                kind: FailureKind::Ours,
                reason,
                quote: Vec::new(),
            }),
        )
    }

    /// The line that tells people.
    #[must_use]
    pub fn headline(&self) -> String {
        let seconds = self.duration_s;
        match &self.failure {
            None => format!("passed in {seconds:.1} s"),
            Some(failure) => format!("FAILED in {seconds:.1} s: {}", failure.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_gives_the_exit_code() {
        let result = |passed, exit_code| TestResult {
            passed,
            exit_code,
            ..TestResult::default()
        };
        let report = Report {
            tests: vec![result(true, 0), result(false, 21), result(false, 11)],
            ..Report::default()
        };
        assert_eq!((report.exit_code(), report.passed()), (21, 1));
        assert_eq!(Report::default().exit_code(), 0);
    }

    #[test]
    fn a_commands_output_is_bounded() {
        let mut output = CommandOutput::default();
        output.add(false, b"abc", 5);
        output.add(false, b"def\xff", 5);
        output.add(true, b"\xff", 5);
        assert_eq!(
            (output.stdout.as_str(), output.left_out_bytes),
            ("abcde", 2)
        );
        assert_eq!(output.stderr, "\u{fffd}");
    }
}
