//! Block backends: where the sectors of a disk are. virtio-blk and IDE use the same ones.

mod backend;
mod check;
#[cfg(any(test, feature = "testing"))]
mod memory;
mod raw;

pub use backend::{BlockBackend, BlockCompletion, BlockError, BlockInfo, BlockOp, BlockRequest};
#[cfg(any(test, feature = "testing"))]
pub use memory::{MemoryControl, MemoryDisk};
pub use raw::{DiskError, LockKind, RawFile, RawOptions};
