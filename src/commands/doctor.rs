//! `tripath doctor`: says what this host can do for guests, and what to change.

mod checks;
mod host;

use std::fmt;
use std::io::{self, Write};

use crate::exit_code::Exit;
use host::Host;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    /// As it should be.
    Ok,
    /// A guest runs all the same, but without this.
    Warn,
    /// No stock guest can run.
    Fail,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// One line: what was looked at, what was found, what to change.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    mark: Mark,
    subject: &'static str,
    found: String,
    advice: String,
}

impl Finding {
    fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self {
            mark: Mark::Ok,
            subject,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn warn(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            mark: Mark::Warn,
            advice: advice.into(),
            ..Self::ok(subject, found)
        }
    }

    fn fail(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            mark: Mark::Fail,
            ..Self::warn(subject, found, advice)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:4}  {:14}  {}", self.mark, self.subject, self.found)?;
        if !self.advice.is_empty() {
            write!(f, ": {}", self.advice)?;
        }
        Ok(())
    }
}

/// Runs the command. The exit code says whether a stock guest can run.
///
/// # Errors
/// Standard output is gone.
pub fn run() -> anyhow::Result<Exit> {
    let (text, exit) = report(&checks::all(&Host::this()));
    io::stdout().write_all(text.as_bytes())?;
    Ok(exit)
}

/// What to tell a user before a guest starts and when it crashed, if the host's KVM is one that no stock kernel runs on.
pub fn software_kvm() -> Option<String> {
    let finding = checks::virtualisation(&Host::this());
    (finding.mark == Mark::Fail).then(|| format!("{}: {}", finding.found, finding.advice))
}

fn report(findings: &[Finding]) -> (String, Exit) {
    let mut text: String = findings
        .iter()
        .map(|finding| format!("{finding}\n"))
        .collect();
    let worst = findings.iter().map(|finding| finding.mark).max();
    let (verdict, exit) = match worst {
        Some(Mark::Fail) => (
            "A stock guest cannot run here: see the lines that fail.\n",
            Exit::Failure,
        ),
        Some(Mark::Warn) => (
            "A guest can run here, with the limits of the lines that warn.\n",
            Exit::Success,
        ),
        Some(Mark::Ok) | None => ("A guest can run here.\n", Exit::Success),
    };
    text.push_str(verdict);
    (text, exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_aligned_line_each_and_a_verdict() {
        let findings = [
            Finding::ok("kvm", "usable"),
            Finding::warn("tap", "not usable", "do this"),
            Finding::fail("virtualisation", "none", "do that"),
        ];
        let (text, exit) = report(&findings);
        assert_eq!(
            text,
            "ok    kvm             usable\n\
             warn  tap             not usable: do this\n\
             fail  virtualisation  none: do that\n\
             A stock guest cannot run here: see the lines that fail.\n"
        );
        assert_eq!(exit, Exit::Failure);
    }

    #[test]
    fn warnings_do_not_fail() {
        let (text, exit) = report(&[Finding::ok("a", "b"), Finding::warn("c", "d", "e")]);
        assert!(text.ends_with("A guest can run here, with the limits of the lines that warn.\n"));
        assert_eq!(exit, Exit::Success);
        let (text, exit) = report(&[Finding::ok("a", "b")]);
        assert!(text.ends_with("A guest can run here.\n"));
        assert_eq!(exit, Exit::Success);
    }

    #[test]
    fn this_host_is_looked_at_without_a_panic() {
        for finding in checks::all(&Host::this()) {
            let line = finding.to_string();
            assert!(!line.contains('\n') && !finding.found.is_empty(), "{line}");
            assert_eq!(
                finding.mark == Mark::Ok,
                finding.advice.is_empty(),
                "{line}"
            );
        }
    }
}
