//! The conversation between the benchmark and a load program: lines of JSON, one [`Request`] or [`Answer`] each.
//!
//! After [`Answer::Hello`], each [`Request::Prepare`] is answered by [`Answer::Ready`] when all is open and the warm-up
//! is over; then [`Request::Go`] starts the measured time, at whose end [`Answer::Over`] comes, and the result in
//! [`Answer::Done`] when it has been put together. What cannot be done is answered by [`Answer::Failed`], and the next
//! request may follow.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One thing to do for some time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadSpec {
    /// What.
    pub load: Load,
    /// How long it is done before it is measured, in milliseconds.
    pub warm_up_ms: u64,
    /// How long it is measured, in milliseconds.
    pub time_ms: u64,
    /// For the order of random offsets.
    pub seed: u64,
}

/// What a load does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Load {
    /// Reads or writes a disk or file.
    Block {
        /// The device or file.
        path: PathBuf,
        /// What is done.
        operation: BlockOperation,
        /// In which order.
        pattern: Pattern,
        /// Bytes an operation; a multiple of 512.
        size_bytes: u32,
        /// How many are under way at once.
        depth: u32,
        /// The part of the device that is used, from its start, in bytes.
        span_bytes: u64,
        /// Past the page cache (`O_DIRECT`).
        direct: bool,
    },
    /// Sends datagrams to the peer, each when the one before has come back.
    UdpRoundTrip {
        /// The peer's control address; see [`crate::spec`].
        peer: SocketAddr,
        /// Bytes of payload.
        size_bytes: u32,
    },
    /// Sends datagrams as fast as it can; counted are those that arrive.
    UdpSend {
        /// The peer's control address.
        peer: SocketAddr,
        /// Bytes of payload.
        size_bytes: u32,
    },
    /// Receives what the peer sends as fast as it can.
    UdpReceive {
        /// The peer's control address.
        peer: SocketAddr,
        /// Bytes of payload.
        size_bytes: u32,
    },
    /// Sends a stream; counted is what arrives, an operation for each [`STREAM_OPERATION_BYTES`].
    TcpSend {
        /// The peer's control address.
        peer: SocketAddr,
    },
    /// Receives a stream.
    TcpReceive {
        /// The peer's control address.
        peer: SocketAddr,
    },
    /// Writes to a terminal device, as fast as it takes it; an operation is one write of [`CONSOLE_WRITE_BYTES`].
    Console {
        /// The device, `/dev/ttyS1` for example.
        path: PathBuf,
    },
}

/// Bytes of a stream that count as one operation; the load writes as many at once.
pub const STREAM_OPERATION_BYTES: usize = 128 * 1024;

/// Bytes of one write to a console.
pub const CONSOLE_WRITE_BYTES: usize = 64;

/// What is done with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockOperation {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Write, then flush (`fdatasync`); the latency is that of the flush.
    Flush,
}

/// The order of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Anywhere in the span.
    Random,
    /// One after the other, from the start again at the end.
    Sequential,
}

/// What the load program is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum Request {
    /// Give a network interface, found by its MAC address, an IPv4 address, and take it up.
    Address {
        /// As in `52:54:00:00:00:01`.
        mac: String,
        /// As in `192.168.77.2/24`.
        address: String,
        /// Maximum transmission unit in bytes; as it is if absent.
        mtu: Option<u32>,
    },
    /// Open, warm up.
    Prepare {
        /// For what.
        spec: LoadSpec,
    },
    /// Measure.
    Go,
    /// End.
    Quit,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// It is there.
    Hello {
        /// The release of the kernel it runs on.
        kernel: String,
        /// That kernel's command line.
        cmdline: String,
    },
    /// Done what [`Request::Address`] asked for.
    Addressed {
        /// The interface's name.
        interface: String,
    },
    /// The warm-up is over.
    Ready,
    /// The measured time is over: what it cost can be read now. [`Done`](Self::Done) follows.
    Over {
        /// Interrupts that the load program's kernel served in that time, on all CPUs; absent where that kernel is not
        /// the load's alone.
        interrupts: Option<u64>,
    },
    /// What the load has done.
    Done {
        /// What was found.
        result: LoadResult,
    },
    /// It could not be done.
    Failed {
        /// Why, in one line.
        error: String,
    },
}

/// What a load found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadResult {
    /// Completed operations.
    pub operations: u64,
    /// Bytes moved by them.
    pub bytes: u64,
    /// The measured time, in nanoseconds.
    pub elapsed_ns: u64,
    /// Datagrams sent that did not arrive.
    pub lost: u64,
    /// Of each operation; absent where an operation has no latency of its own, as in a stream.
    pub latency: Option<Latency>,
    /// What the load program itself used, in nanoseconds of its CPU.
    pub cpu: LoadCpu,
}

/// CPU time of the load program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadCpu {
    /// In user space.
    pub user_ns: u64,
    /// In its kernel.
    pub kernel_ns: u64,
}

/// Latencies, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half are faster.
    pub p50_ns: u64,
    /// 90 % are faster.
    pub p90_ns: u64,
    /// 99 % are faster.
    pub p99_ns: u64,
    /// 99.9 % are faster.
    pub p999_ns: u64,
    /// The slowest.
    pub max_ns: u64,
    /// All of them: an HDR histogram, V2 compressed, in base64.
    pub histogram: String,
}
