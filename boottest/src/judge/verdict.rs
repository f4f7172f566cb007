//! How a run went.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a run went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All that was asked for was seen.
    Passed,
    /// Something else.
    Failed(Failure),
}

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of reason it is.
    pub kind: FailureKind,
    /// The reason, in a line.
    pub reason: String,
    /// The console's lines around it.
    pub quote: Vec<String>,
}

/// Kinds of reasons, each with its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// An expectation was not met, or the guest did not end as it should.
    Expectation,
    /// Time ran out.
    Timeout,
    /// A rejected pattern was seen.
    Rejected,
    /// The command in the guest failed.
    Command,
    /// The guest's kernel panicked, or reported a fault of its own, or found nothing to run.
    Panicked,
    /// The guest crashed, or was reset over and over.
    Crashed,
    /// The test could not be run, or not to its end.
    Ours,
}

impl FailureKind {
    /// The exit code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Ours => 1,
            Self::Panicked => 11,
            Self::Crashed => 12,
            Self::Expectation => 20,
            Self::Timeout => 21,
            Self::Rejected => 22,
            Self::Command => 23,
        }
    }
}

impl Verdict {
    /// The exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Failed(failure) => failure.kind.exit_code(),
        }
    }
}

/// How a guest's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEnd {
    /// It powered off.
    PoweredOff,
    /// It was reset, for the `resets`th time, and not started again.
    Reset {
        /// How often in all.
        resets: u32,
    },
    /// Its kernel panicked.
    Panicked,
    /// It crashed, as told.
    Crashed(String),
    /// We stopped it.
    Stopped,
    /// It lost a function of the host, as told.
    DeviceLost(String),
}

impl fmt::Display for GuestEnd {
    /// After "the guest".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("powered off"),
            Self::Reset { .. } => f.write_str("was reset"),
            Self::Panicked => f.write_str("panicked"),
            Self::Crashed(what) => write!(f, "crashed: {what}"),
            Self::Stopped => f.write_str("was stopped"),
            Self::DeviceLost(device) => write!(f, "lost its device: {device}"),
        }
    }
}

/// What the command in the guest came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandEnd {
    /// It exited with that status.
    Exited(u8),
    /// A signal ended it.
    Signalled(u8),
    /// It could not be run, as told.
    Refused(String),
}

impl fmt::Display for CommandEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "the guest's command exited with status {status}"),
            Self::Signalled(signal) => {
                write!(f, "the guest's command was ended by signal {signal}")
            }
            Self::Refused(why) => write!(f, "the guest could not run the command: {why}"),
        }
    }
}
