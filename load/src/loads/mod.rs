//! The loads.

mod block;
mod console;
mod tcp;
mod udp;

use std::time::Duration;

use hdrhistogram::Histogram;
use tripath_load::spec::{Load, LoadSpec};

use crate::error::LoadError;

/// A load that is open. It is used by the thread that has opened it.
pub trait Work {
    /// Does it for `time`, and ends with nothing left under way.
    fn run(&mut self, time: Duration) -> Result<Outcome, LoadError>;
}

/// What one run has come to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Completed operations.
    pub operations: u64,
    /// What they moved.
    pub bytes: u64,
    /// Datagrams that did not arrive.
    pub lost: u64,
    /// The time that all this took.
    pub elapsed: Duration,
    /// In nanoseconds.
    pub latency: Option<Histogram<u64>>,
}

/// Opens what the load needs.
pub fn open(spec: &LoadSpec) -> Result<Box<dyn Work>, LoadError> {
    Ok(match &spec.load {
        Load::Block { .. } => block::open(&spec.load, spec.seed)?,
        Load::UdpRoundTrip { peer, size_bytes } => {
            Box::new(udp::RoundTrip::open(*peer, *size_bytes)?)
        }
        Load::UdpSend { peer, size_bytes } => Box::new(udp::Sender::open(*peer, *size_bytes)?),
        Load::UdpReceive { peer, size_bytes } => Box::new(udp::Receiver::open(*peer, *size_bytes)?),
        Load::TcpSend { peer } => Box::new(tcp::Sender::open(*peer)?),
        Load::TcpReceive { peer } => Box::new(tcp::Receiver::open(*peer)?),
        Load::Console { path } => Box::new(console::Console::open(path)?),
    })
}

/// A duration as a number; 584 years at most.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What is sent: nothing that could be compressed on its way.
pub fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}
