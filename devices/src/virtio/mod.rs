//! Virtio 1.3: the device trait, queues, the PCI transport, the devices.

mod blk;
mod blk_request;
#[cfg(test)]
mod blk_tests;
mod console;
mod device;
mod net;
#[cfg(test)]
mod net_test_driver;
mod queue;
mod rerun;
mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod test_driver;

pub use blk::Blk;
pub use console::Console;
pub use device::{Activation, DeviceFailed, DeviceInfo, VirtioDevice};
pub use net::Net;
pub use queue::{Chain, QueueInterrupt, VirtQueue};
pub use rng::Rng;
