//! The load program as a process on the host: the baselines, and the peer of network loads.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;
use tripath_load::spec::{Answer, LoadResult, LoadSpec, Request};

use super::process::{Interrupt, Start, Talk, TalkError};
use crate::plan::Runner;
use crate::program::LoadProgram;

/// How long the program has to start, and to do what takes no time.
const START: Duration = Duration::from_secs(30);
/// What opening, and taking stock at the end, may take beside the load's own time.
pub const SLACK: Duration = Duration::from_secs(60);

/// A load was not measured.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The program cannot be spoken to.
    #[error(transparent)]
    Talk(#[from] TalkError),
    /// It could not do it; it still serves.
    #[error("{0}")]
    Failed(String),
    /// It answered another question.
    #[error("the load program answers {0}, which was not asked for")]
    Unexpected(String),
}

impl AgentError {
    /// Whether all is to end.
    #[must_use]
    pub fn is_interrupt(&self) -> bool {
        matches!(self, Self::Talk(TalkError::Interrupted))
    }

    /// Whether the program is still there to be asked again.
    #[must_use]
    pub fn leaves_agent(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

/// The time limit for the end of a load that was started.
#[must_use]
pub fn limit_of(spec: &LoadSpec) -> Duration {
    Duration::from_millis(spec.warm_up_ms.saturating_add(spec.time_ms)).saturating_add(SLACK)
}

/// A load program that waits for what is to be done.
#[derive(Debug)]
pub struct Agent {
    talk: Talk,
}

impl Agent {
    /// Starts one for a baseline.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn start(
        program: &LoadProgram,
        runner: Runner,
        start: &Start<'_>,
        interrupt: &Interrupt,
    ) -> Result<Self, AgentError> {
        let mut command = Command::new(program.path());
        command.arg("agent");
        if matches!(runner, Runner::Container | Runner::Sandbox) {
            command.args(["--isolate", runner.name()]);
        }
        let name = format!("the load program ({})", runner.name());
        let mut talk = Talk::start(&name, command, start)?;
        match talk.receive(START, interrupt)? {
            Answer::Hello { .. } => Ok(Self { talk }),
            other => Err(trouble(&other)),
        }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.talk.pid()
    }

    /// Gives the interface with that Ethernet address an address.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn address(
        &mut self,
        mac: &str,
        address: &str,
        interrupt: &Interrupt,
    ) -> Result<(), AgentError> {
        self.talk.send(&address_request(mac, address))?;
        match self.talk.receive(START, interrupt)? {
            Answer::Addressed { .. } => Ok(()),
            other => Err(trouble(&other)),
        }
    }

    /// Measures one load.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn measure(
        &mut self,
        spec: &LoadSpec,
        interrupt: &Interrupt,
    ) -> Result<LoadResult, AgentError> {
        let limit = limit_of(spec);
        let spec = spec.clone();
        self.talk.send(&Request::Prepare { spec })?;
        match self.talk.receive(limit, interrupt)? {
            Answer::Ready => {}
            other => return Err(trouble(&other)),
        }
        self.talk.send(&Request::Go)?;
        match self.talk.receive(limit, interrupt)? {
            Answer::Over { .. } => {}
            other => return Err(trouble(&other)),
        }
        match self.talk.receive(limit, interrupt)? {
            Answer::Done { result } => Ok(result),
            other => Err(trouble(&other)),
        }
    }
}

/// The request that gives an interface an address.
#[must_use]
pub fn address_request(mac: &str, address: &str) -> Request {
    Request::Address {
        mac: mac.to_owned(),
        address: address.to_owned(),
        mtu: None,
    }
}

/// What stands in the way if this is the answer: the program could not do it, or it says what was not asked for.
fn trouble(answer: &Answer) -> AgentError {
    if let Answer::Failed { error } = answer {
        return AgentError::Failed(error.clone());
    }
    // An answer may be long: a histogram is in it.
    let text = format!("{answer:?}");
    AgentError::Unexpected(text.chars().take(100).collect())
}

/// What loads of networks speak with: the same program, on the host.
#[derive(Debug)]
pub struct Peer {
    address: SocketAddr,
    _talk: Talk,
}

/// What it says first.
#[derive(Deserialize)]
struct Listening {
    address: SocketAddr,
}

impl Peer {
    /// Starts one that listens on one of the host's addresses.
    ///
    /// # Errors
    /// [`TalkError`].
    pub fn start(
        program: &LoadProgram,
        address: Ipv4Addr,
        cpus: &[u32],
        interrupt: &Interrupt,
    ) -> Result<Self, TalkError> {
        let mut command = Command::new(program.path());
        command.args(["serve", &format!("{address}:0")]);
        let start = Start {
            cpus: cpus.to_vec(),
            ..Start::default()
        };
        let mut talk = Talk::start("the load program (peer)", command, &start)?;
        let Listening { address } = talk.receive(START, interrupt)?;
        Ok(Self {
            address,
            _talk: talk,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
