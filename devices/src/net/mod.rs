//! Network backends: where the frames of a NIC go. virtio-net and e1000 use the same ones.

mod backend;
pub mod checksum;
mod header;
#[cfg(any(test, feature = "testing"))]
mod loopback;
mod mac;
mod netdev;
mod stream;
mod tap;

pub use backend::{NetBackend, NetOffloads, VNET_HEADER_BYTES};
pub use header::{PartialChecksum, Segmentation, VnetHeader};
#[cfg(any(test, feature = "testing"))]
pub use loopback::{PipeNet, PipePeer};
pub use mac::{MacAddr, MacError};
pub use stream::StreamNet;
pub use tap::{Tap, TapError};
