//! Block backends: where the sectors of a disk are. virtio-blk and IDE use the same ones.

mod backend;

pub use backend::{BlockBackend, BlockCompletion, BlockError, BlockInfo, BlockOp, BlockRequest};
