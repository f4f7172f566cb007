//! A guest from outside its process.

use std::os::fd::BorrowedFd;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use thiserror::Error;
use tripath_load::spec::{LoadResult, LoadSpec};

use super::protocol::{GuestAnswer, GuestRequest, GuestSpec};
use crate::host::agent::{SLACK, limit_of};
use crate::host::process::{Interrupt, Start, Talk, TalkError};
use crate::results::{CpuTime, GuestCost};

/// How long a guest may take to be up, its process's own limit included.
const BOOT: Duration = Duration::from_secs(240);
/// How long its process may take to end: functions go back to the host's drivers.
const FAREWELL: Duration = Duration::from_secs(30);

/// A request was not served.
#[derive(Debug, Error)]
pub enum GuestTrouble {
    /// The guest's load program could not do it.
    #[error("{0}")]
    Failed(String),
    /// There is no guest, or no longer.
    #[error("{0}")]
    Lost(String),
    /// All is to end.
    #[error("interrupted")]
    Interrupted,
}

impl From<TalkError> for GuestTrouble {
    fn from(error: TalkError) -> Self {
        match error {
            TalkError::Interrupted => Self::Interrupted,
            other => Self::Lost(other.to_string()),
        }
    }
}

/// A guest that is up. Dropping it ends it.
#[derive(Debug)]
pub struct Guest {
    talk: Talk,
    /// Its kernel's release.
    pub kernel: String,
    /// Its kernel's command line.
    pub cmdline: String,
    /// The names of the TAPs on the host, in the order of the network interfaces.
    pub taps: Vec<String>,
    /// Drivers that its kernel does not have.
    pub missing_drivers: Vec<String>,
}

impl Guest {
    /// Boots one in a process that `command` starts, and that inherits `files`. The calling thread must live as long as the guest is to.
    ///
    /// # Errors
    /// [`GuestTrouble`].
    pub fn start(
        command: Command,
        spec: &GuestSpec,
        files: Vec<BorrowedFd<'_>>,
        interrupt: &Interrupt,
    ) -> Result<Self, GuestTrouble> {
        let start = Start {
            inherited: files,
            // It has functions to give back.
            at_our_death: Some(Signal::TERM),
            farewell: Some(FAREWELL),
            ..Start::default()
        };
        let mut talk = Talk::start("the guest's process", command, &start)?;
        talk.send(spec)?;
        match talk.receive(BOOT, interrupt)? {
            GuestAnswer::Up {
                kernel,
                cmdline,
                taps,
                missing_drivers,
            } => Ok(Self {
                talk,
                kernel,
                cmdline,
                taps,
                missing_drivers,
            }),
            other => Err(trouble(&other)),
        }
    }

    /// Gives the guest's interface with that Ethernet address an address.
    ///
    /// # Errors
    /// [`GuestTrouble`].
    pub fn address(
        &mut self,
        mac: &str,
        address: &str,
        interrupt: &Interrupt,
    ) -> Result<(), GuestTrouble> {
        let (mac, address) = (mac.to_owned(), address.to_owned());
        self.talk.send(&GuestRequest::Address { mac, address })?;
        match self.talk.receive(SLACK + SLACK, interrupt)? {
            GuestAnswer::Addressed => Ok(()),
            other => Err(trouble(&other)),
        }
    }

    /// Measures one load.
    ///
    /// # Errors
    /// [`GuestTrouble`].
    pub fn measure(
        &mut self,
        spec: &LoadSpec,
        interrupt: &Interrupt,
    ) -> Result<(LoadResult, GuestCost, CpuTime), GuestTrouble> {
        // The process waits three times: until the load is ready, until it is over, and for its result.
        let limit = limit_of(spec).saturating_mul(3);
        let spec = spec.clone();
        self.talk.send(&GuestRequest::Measure { spec })?;
        match self.talk.receive(limit, interrupt)? {
            GuestAnswer::Measured { load, guest, cpu } => Ok((load, guest, cpu)),
            other => Err(trouble(&other)),
        }
    }

    /// Ends it, and waits for its end.
    pub fn quit(mut self) {
        // If it is gone already, so much the better.
        let _ = self.talk.send(&GuestRequest::Quit);
    }
}

fn trouble(answer: &GuestAnswer) -> GuestTrouble {
    match answer {
        GuestAnswer::Failed { error } => GuestTrouble::Failed(error.clone()),
        GuestAnswer::Lost { error } => GuestTrouble::Lost(error.clone()),
        _ => GuestTrouble::Lost("the guest's process answers what was not asked for".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A process that says these lines, and then reads to its end.
    fn start(lines: &str) -> Result<Guest, GuestTrouble> {
        let (near, _far) = UnixStream::pair().unwrap();
        let spec = GuestSpec {
            machine: serde_json::from_str(r#"{"kernel":"/k"}"#).unwrap(),
            modules: None,
            built_in: true,
            drivers: Vec::new(),
            io_cpus: Vec::new(),
        };
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "read spec; echo \"$1\"; exec cat >/dev/null",
            "sh",
            lines,
        ]);
        Guest::start(command, &spec, Vec::new(), &Interrupt::new(near))
    }

    const UP: &str = r#"{"answer":"up","kernel":"6.12","cmdline":"quiet","taps":["tripath0"],"missing_drivers":["e1000"]}"#;

    #[test]
    fn a_guest_tells_what_it_is() {
        let guest = start(UP).unwrap();
        assert_eq!(
            (guest.kernel.as_str(), &*guest.taps[0]),
            ("6.12", "tripath0")
        );
        assert_eq!(guest.missing_drivers, ["e1000"]);
        guest.quit();
    }

    #[test]
    fn a_failed_request_leaves_the_guest_and_a_loss_does_not() {
        let (near, _far) = UnixStream::pair().unwrap();
        let interrupt = Interrupt::new(near);
        let lines = [
            UP,
            r#"{"answer":"failed","error":"no interface"}"#,
            r#"{"answer":"addressed"}"#,
            r#"{"answer":"lost","error":"panic"}"#,
        ];
        let mut guest = start(&lines.join("\n")).unwrap();
        let mut address = || guest.address("m", "a", &interrupt);
        assert!(matches!(address(), Err(GuestTrouble::Failed(error)) if error == "no interface"));
        assert!(address().is_ok());
        assert!(matches!(address(), Err(GuestTrouble::Lost(error)) if error == "panic"));
    }

    #[test]
    fn a_guest_that_does_not_come_up_says_why() {
        let error = start(r#"{"answer":"lost","error":"no KVM"}"#).unwrap_err();
        assert_eq!(error.to_string(), "no KVM");
        assert!(matches!(start("nonsense"), Err(GuestTrouble::Lost(_))));
    }
}
