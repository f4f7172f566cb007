//! One test as data: what its author says, in options or in a suite, and what a process of a suite is given to run.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_core::config::MachineFile;

use crate::console::{Pattern, PatternError};
use crate::guest::{WrittenModules, WrittenRootfs};
use crate::judge::{Criteria, End, Step};

/// How long a test may take if nothing is said.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a guest may be reset in a test if nothing is said.
pub const DEFAULT_RESETS: u32 = 1;

/// A test.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct TestSpec {
    /// Its name, unique in its suite.
    pub name: String,
    /// The machine.
    pub machine: MachineFile,
    /// What is asked of the guest.
    pub asked: Asked,
    /// What runs in the guest.
    pub guest: GuestSpec,
}

/// What is asked of the guest; the keys are those of the options of `tripath test`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Asked {
    /// A dialogue: what is to appear, and what is typed then. Before `expect`.
    pub steps: Vec<StepSpec>,
    /// Regular expressions to appear one after the other.
    pub expect: Vec<String>,
    /// Regular expressions not to appear.
    pub reject: Vec<String>,
    /// Regular expressions: lines in which they appear are not taken for the guest's death.
    pub ignore: Vec<String>,
    /// How the guest is to end. When nothing is said it is to power off, unless there is an expectation and no command:
    /// then it need not end.
    pub end: Option<End>,
    /// How long the run may take.
    pub timeout: Option<Span>,
    /// How long the guest may print nothing.
    pub quiet_timeout: Option<Span>,
    /// How often the guest may be reset; once more is a reset loop.
    pub resets: Option<u32>,
}

/// One step of a dialogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StepSpec {
    /// A regular expression.
    pub expect: String,
    /// What is typed when it has appeared.
    #[serde(default)]
    pub send: Option<String>,
}

/// What runs in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct GuestSpec {
    /// A command for the shell.
    pub exec: Option<String>,
    /// A script of the host.
    pub script: Option<PathBuf>,
    /// The root file system. When nothing is said it is the user's initrd if there is one, and the host's own if not.
    pub rootfs: Option<WrittenRootfs>,
    /// Where the kernel's modules are.
    pub modules: Option<WrittenModules>,
}

impl GuestSpec {
    /// Whether a command runs in the guest.
    #[must_use]
    pub fn has_command(&self) -> bool {
        self.exec.is_some() || self.script.is_some()
    }

    /// Makes relative paths ones below `folder`.
    pub fn resolve_paths(&mut self, folder: &Path) {
        if let Some(script) = &mut self.script {
            *script = folder.join(&*script);
        }
        if let Some(rootfs) = &mut self.rootfs {
            rootfs.resolve_path(folder);
        }
        if let Some(modules) = &mut self.modules {
            modules.resolve_path(folder);
        }
    }
}

/// A time as a user writes it: `60s`, `1m 30s`, `500ms`; a number alone is seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct Span(pub Duration);

/// A time in a TOML file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Seconds(u64),
    Text(String),
}

/// A time that is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a time: write 60s, 500ms or 2m")]
pub struct SpanError(String);

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let seconds = text.parse().map(Duration::from_secs).ok();
        let time = seconds.or_else(|| humantime::parse_duration(text).ok());
        // Longer ones are no limits, and could not be added to a time.
        let limit = Duration::from_secs(365 * 86_400);
        time.filter(|time| !time.is_zero() && *time <= limit)
            .map(Self)
            .ok_or_else(|| SpanError(text.to_owned()))
    }
}

impl TryFrom<Written> for Span {
    type Error = SpanError;

    fn try_from(written: Written) -> Result<Self, SpanError> {
        match written {
            Written::Seconds(seconds) => seconds.to_string().parse(),
            Written::Text(text) => text.parse(),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl Asked {
    /// The criteria, ready for use.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn criteria(&self, has_command: bool) -> Result<Criteria, PatternError> {
        let patterns = |sources: &[String]| {
            let compiled = sources.iter().map(|source| Pattern::new(source));
            compiled.collect::<Result<Vec<_>, _>>()
        };
        let mut steps = Vec::new();
        for step in &self.steps {
            steps.push(Step {
                expect: Pattern::new(&step.expect)?,
                send: step.send.as_ref().map(|text| text.clone().into_bytes()),
            });
        }
        let expects = patterns(&self.expect)?.into_iter();
        steps.extend(expects.map(|expect| Step { expect, send: None }));
        let end = match (self.end, has_command, steps.is_empty()) {
            (Some(end), _, _) => end,
            (None, false, false) => End::None,
            (None, _, _) => End::PowerOff,
        };
        Ok(Criteria {
            steps,
            rejects: patterns(&self.reject)?,
            ignored: patterns(&self.ignore)?,
            end,
            timeout: self.timeout.map_or(DEFAULT_TIMEOUT, |span| span.0),
            quiet_timeout: self.quiet_timeout.map(|span| span.0),
            has_command,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, ms) in [
            ("60s", 60_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("7", 7000),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.0, Duration::from_millis(ms));
            assert_eq!(span.to_string().parse(), Ok(span));
        }
        for text in ["", "0", "0s", "x", "-1s", "1e9", "1000y", "5 apples"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_end_that_is_meant() {
        let end = |expect: &[&str], has_command| {
            let asked = Asked {
                expect: expect.iter().map(ToString::to_string).collect(),
                ..Asked::default()
            };
            asked.criteria(has_command).unwrap().end
        };
        assert_eq!(end(&["x"], false), End::None);
        assert_eq!(end(&[], false), End::PowerOff);
        assert_eq!(end(&["x"], true), End::PowerOff);
    }

    #[test]
    fn a_test_is_read_as_it_is_written() {
        let spec = TestSpec {
            name: "t".into(),
            machine: MachineFile {
                kernel: Some("/k".into()),
                serial: Some(vec![vmm_core::config::CharTarget::Stdio]),
                cpus: Some(vmm_core::config::CpuConfig {
                    count: 2,
                    affinity: Vec::new(),
                }),
                memory: Some(vmm_core::config::MemoryConfig::of_size(64 << 20)),
                ..MachineFile::default()
            },
            asked: Asked {
                steps: vec![StepSpec {
                    expect: "a".into(),
                    send: Some("b\n".into()),
                }],
                end: Some(End::PowerOff),
                timeout: Some(Span(Duration::from_secs(5))),
                ..Asked::default()
            },
            guest: GuestSpec::default(),
        };
        let text = toml::to_string(&spec).unwrap();
        assert_eq!(toml::from_str::<TestSpec>(&text).unwrap(), spec);
    }
}
