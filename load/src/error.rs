//! What goes wrong in the load program.

use std::io;
use std::time::Duration;

use thiserror::Error;
use tripath_load::latency::LatencyError;

/// Why something could not be done; one line, told to whoever asked.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The command line makes no sense.
    #[error("{0}\n{usage}", usage = crate::USAGE)]
    Usage(String),
    /// A call has failed.
    #[error("cannot {what} {subject}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        subject: String,
        /// Why not.
        source: io::Error,
    },
    /// The load cannot be what it is said to be.
    #[error("a load that makes no sense: {0}")]
    Spec(String),
    /// A read or write that moved less than it should.
    #[error("an operation on {path} moved {moved} bytes instead of {expected}")]
    Short {
        /// The file.
        path: String,
        /// What it should.
        expected: u32,
        /// What it did.
        moved: u32,
    },
    /// There are fewer than two virtio consoles.
    #[error("there is no virtio console but the last, which is init's")]
    NoConsole,
    /// No interface has that address.
    #[error("no network interface has the MAC address {0}")]
    NoInterface(String),
    /// The interface stays without a link.
    #[error("the network interface {0} has no link")]
    NoCarrier(String),
    /// The peer refused, or is no peer.
    #[error("the peer: {0}")]
    Peer(String),
    /// No datagram, no byte.
    #[error("nothing has arrived in {0:?}")]
    NothingArrived(Duration),
    /// The load does not come to its end.
    #[error("the load is still not over after {0:?}")]
    Stuck(Duration),
    /// The request does not fit here.
    #[error("{0}")]
    Unexpected(&'static str),
    /// A request that is none.
    #[error("a request that is not understood: {0}")]
    Malformed(serde_json::Error),
    /// The filter of system calls.
    #[error("the sandbox cannot be made: {0}")]
    Sandbox(String),
    /// The latencies.
    #[error(transparent)]
    Latency(#[from] LatencyError),
}

/// What makes an error of a failed call.
pub fn io<E: Into<io::Error>>(
    what: &'static str,
    subject: impl Into<String>,
) -> impl FnOnce(E) -> LoadError {
    let subject = subject.into();
    move |error| LoadError::Io {
        what,
        subject,
        source: error.into(),
    }
}
