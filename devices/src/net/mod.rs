//! Network backends: where the frames of a NIC go. virtio-net and e1000 use the same ones.

mod backend;

pub use backend::{NetBackend, NetOffloads, VNET_HEADER_BYTES};
