//! What a load and its peer say to each other on a TCP connection, the control connection: lines of JSON. There is one
//! connection for each load; the flow of data it asks for ends with it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What a load asks of its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum PeerRequest {
    /// The first of a connection: what it is for.
    Open {
        /// Which way data flows, and how.
        flow: Flow,
    },
    /// Count from 0 again, and send, if it is the peer that sends.
    Start {
        /// The peer stops by itself after that time, in milliseconds.
        at_most_ms: u64,
    },
    /// To a source: send no more. Answered when nothing more is sent.
    Stop,
    /// Say what has been counted since the last [`Start`](Self::Start).
    Count,
}

/// One way of data between a load and its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "flow")]
pub enum Flow {
    /// The peer sends back each datagram.
    UdpEcho {
        /// The load's port.
        port: u16,
    },
    /// The peer counts datagrams.
    UdpSink {
        /// The load's port.
        port: u16,
    },
    /// The peer sends datagrams.
    UdpSource {
        /// The load's port.
        port: u16,
        /// Bytes of payload.
        size_bytes: u32,
    },
    /// The peer counts a stream's bytes.
    TcpSink,
    /// The peer sends a stream.
    TcpSource,
}

/// What the peer answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum PeerAnswer {
    /// The only line that the program writes to its standard output: where control connections are taken.
    Listening {
        /// With the real port.
        address: SocketAddr,
    },
    /// To [`PeerRequest::Open`].
    Opened {
        /// The port for data, UDP or TCP, at the address of the control connection.
        port: u16,
    },
    /// To [`PeerRequest::Start`].
    Started,
    /// To [`PeerRequest::Stop`] and [`PeerRequest::Count`].
    Counted {
        /// What was received or, of a source, sent.
        count: Count,
    },
    /// It could not be done; the connection ends.
    Failed {
        /// Why, in one line.
        error: String,
    },
}

/// What the peer has received or, as a source, sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Datagrams; 0 of a stream.
    pub datagrams: u64,
    /// Bytes of payload.
    pub bytes: u64,
    /// From the start to the last of them, in nanoseconds.
    pub until_last_ns: u64,
}
