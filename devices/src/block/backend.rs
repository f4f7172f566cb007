//! The block backend trait.

use std::os::fd::RawFd;
use std::sync::Arc;

use thiserror::Error;

use crate::dma::GuestRam;

/// What a backend is, fixed for its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockInfo {
    /// Capacity in bytes, a multiple of 512.
    pub size_bytes: u64,
    /// Smallest unit of I/O, in bytes: 512 or 4096.
    pub logical_block_bytes: u32,
    /// The unit that the medium writes whole, in bytes.
    pub physical_block_bytes: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Discard is supported.
    pub discard: bool,
    /// Write-zeroes is supported.
    pub write_zeroes: bool,
}

/// What a request does. Offsets and lengths are in bytes, multiples of [`BlockInfo::logical_block_bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockOp {
    /// Fill the segments from the medium.
    Read,
    /// Write the segments to the medium.
    Write,
    /// All writes completed before this one was submitted are on stable storage when it completes.
    Flush,
    /// `len_bytes` at the offset are no longer needed.
    Discard {
        /// How much.
        len_bytes: u64,
    },
    /// `len_bytes` at the offset read as zeroes from now on; they may be deallocated if `unmap`.
    WriteZeroes {
        /// How much.
        len_bytes: u64,
        /// May deallocate.
        unmap: bool,
    },
}

/// One request. The segments are guest-physical `(address, length)` pairs inside one RAM region each; the backend
/// checks them again and never touches anything else.
#[derive(Debug, Clone)]
pub struct BlockRequest {
    /// What to do.
    pub op: BlockOp,
    /// Where on the medium, in bytes.
    pub offset_bytes: u64,
    /// Guest buffers, in order.
    pub segments: Vec<(u64, u32)>,
    /// The RAM the segments are in; kept alive until the request completes.
    pub ram: Arc<GuestRam>,
    /// Comes back in the completion.
    pub token: u64,
}

/// Why a request failed.
#[derive(Debug, Error)]
pub enum BlockError {
    /// Beyond the end of the medium.
    #[error("{len_bytes} bytes at {offset_bytes} are not within the disk of {size_bytes} bytes")]
    OutOfRange {
        /// Offset asked for.
        offset_bytes: u64,
        /// Length asked for.
        len_bytes: u64,
        /// Capacity.
        size_bytes: u64,
    },
    /// Not whole blocks.
    #[error("{len_bytes} bytes at {offset_bytes} are not whole blocks of {block_bytes} bytes")]
    Misaligned {
        /// Offset asked for.
        offset_bytes: u64,
        /// Length asked for.
        len_bytes: u64,
        /// The disk's [`BlockInfo::logical_block_bytes`].
        block_bytes: u32,
    },
    /// A write to a read-only disk.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The backend cannot do it.
    #[error("not supported by this disk")]
    Unsupported,
    /// A guest buffer is not in RAM.
    #[error("a buffer is outside guest RAM")]
    BadBuffer,
    /// The host said no.
    #[error("host I/O error: {0}")]
    Io(#[from] std::io::Error),
}

/// A finished request.
#[derive(Debug)]
pub struct BlockCompletion {
    /// The request's token.
    pub token: u64,
    /// What became of it. Reads and writes that came short of their length are errors.
    pub result: Result<(), BlockError>,
}

/// The sectors of a disk. Every request that was submitted completes exactly once, in any order.
pub trait BlockBackend: Send {
    /// What it is. Any thread.
    fn info(&self) -> &BlockInfo;

    /// Carries out a read if that needs no waiting for the medium; says whether it has. If not, nothing is wrong: the
    /// request is to be submitted, and its segments may hold part of the data. Any thread.
    fn read_now(&mut self, _request: &BlockRequest) -> bool {
        false
    }

    /// Accepts a request; it starts only with the next [`BlockBackend::poll`]. A request that is refused
    /// completes with its error like any other. Any thread.
    fn submit(&mut self, request: BlockRequest);

    /// Starts what was submitted and appends what has finished. Event loop: after a batch of submissions, and when
    /// [`BlockBackend::completion_fd`] is readable. Never blocks on the medium if it has a completion fd.
    fn poll(&mut self, done: &mut Vec<BlockCompletion>);

    /// Readable when completions wait, one fd for life; none if every request completes in the next `poll`.
    fn completion_fd(&self) -> Option<RawFd>;

    /// Waits until nothing is in flight and appends what finished. For resets and the end of the run.
    fn drain(&mut self, done: &mut Vec<BlockCompletion>);
}
