//! Every exit code, and which failure gives which.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The guest powered off, was reset with `--on-reboot exit`, or was quit by its user.
    Success = 0,
    /// Our own failure, or the host's.
    Failure = 1,
    /// The user's mistake, found before anything was created.
    UserError = 2,
    /// The guest panicked.
    GuestPanicked = 11,
    /// The guest crashed: a triple fault with `--on-reboot exit`, or an internal error of KVM.
    GuestCrashed = 12,
    /// A test: an expectation was not met, or the guest ended otherwise than asked for.
    NotAsExpected = 20,
    /// A test: time ran out.
    TimedOut = 21,
    /// A test: a rejected pattern was seen.
    Rejected = 22,
    /// A test: the guest's command failed.
    CommandFailed = 23,
    /// A comparison of benchmarks: something got slower, or can no longer be measured.
    Slower = 24,
}

impl Exit {
    const ALL: [Self; 10] = [
        Self::Success,
        Self::Failure,
        Self::UserError,
        Self::GuestPanicked,
        Self::GuestCrashed,
        Self::NotAsExpected,
        Self::TimedOut,
        Self::Rejected,
        Self::CommandFailed,
        Self::Slower,
    ];

    /// The one with that code, if there is one.
    pub fn of_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| *exit as u8 == code)
    }

    /// The exit code for a command that failed: that of a user's mistake if there is a [`UserError`] in the chain.
    pub fn of_error(error: &anyhow::Error) -> Self {
        match error.downcast_ref::<UserError>() {
            Some(_) => Self::UserError,
            None => Self::Failure,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error with its causes, as the user reads it. A cause that is in the text already is not told again.
pub fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// A mistake of the user's, in one line that says what to change.
#[derive(Debug)]
pub struct UserError(String);

impl UserError {
    /// Makes one of an error, its sources included.
    pub fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self::from_text(told(&anyhow::Error::new(error)))
    }

    /// Makes one of a text; its lines are joined.
    pub fn from_text(text: impl AsRef<str>) -> Self {
        let lines = text
            .as_ref()
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty());
        Self(lines.collect::<Vec<_>>().join("; "))
    }
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for UserError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_mistake_is_known_behind_a_context() {
        let error =
            anyhow::Error::new(UserError::from_text("no such TAP")).context("network interface 1");
        assert_eq!(Exit::of_error(&error), Exit::UserError);
        assert_eq!(format!("{error:#}"), "network interface 1: no such TAP");
    }

    #[test]
    fn anything_else_is_our_failure() {
        assert_eq!(
            Exit::of_error(&anyhow::anyhow!("out of memory")),
            Exit::Failure
        );
    }

    #[test]
    fn a_users_mistake_is_one_line() {
        assert_eq!(UserError::from_text("a\n\n  b\n").to_string(), "a; b");
        let source = std::io::Error::other("why");
        assert_eq!(UserError::new(source).to_string(), "why");
    }

    #[test]
    fn codes() {
        let all = [0, 1, 2, 11, 12, 20, 21, 22, 23, 24];
        assert_eq!(Exit::ALL.map(|exit| exit as u8), all);
        assert_eq!(Exit::of_code(21), Some(Exit::TimedOut));
        assert_eq!(Exit::of_code(3), None);
    }

    #[test]
    fn a_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot write to f: {source}")]
        struct Repeats {
            source: std::io::Error,
        }
        let denied = || std::io::Error::other("denied");
        let error = anyhow::Error::new(Repeats { source: denied() });
        assert_eq!(told(&error), "cannot write to f: denied");
        let error = anyhow::Error::new(denied()).context("cannot start");
        assert_eq!(told(&error), "cannot start: denied");
    }
}
