//! What is asked of a guest.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::console::Pattern;

/// How the guest is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// It powers off.
    PowerOff,
    /// It resets.
    Reboot,
    /// Its kernel panics.
    Panic,
    /// Not at all: the run is over when the last expectation is met.
    None,
}

impl fmt::Display for End {
    /// After "the guest was to".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "power off",
            Self::Reboot => "reboot",
            Self::Panic => "panic",
            Self::None => "run on",
        })
    }
}

/// One expectation, and what is typed when it is met.
#[derive(Debug, Clone)]
pub struct Step {
    /// What is to appear, within a line.
    pub expect: Pattern,
    /// What is typed into the console where it appeared.
    pub send: Option<Vec<u8>>,
}

/// What is asked of a guest.
#[derive(Debug, Clone)]
pub struct Criteria {
    /// To be met one after the other.
    pub steps: Vec<Step>,
    /// Not to be seen.
    pub rejects: Vec<Pattern>,
    /// Lines that contain one of these are not taken for a death.
    pub ignored: Vec<Pattern>,
    /// How the guest is to end.
    pub end: End,
    /// How long the run may take from the kernel's entry on.
    pub timeout: Duration,
    /// How long the guest may print nothing.
    pub quiet_timeout: Option<Duration>,
    /// Whether a command runs in the guest, whose end decides too.
    pub has_command: bool,
}
