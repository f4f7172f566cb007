//! Virtio 1.3: the device trait, queues, the PCI transport, the devices.

mod blk;
mod blk_request;
#[cfg(test)]
mod blk_tests;
mod buffers;
mod console;
mod device;
mod fs;
mod net;
mod pci;
mod pci_common;
#[cfg(test)]
mod pci_hostile_tests;
mod pci_interrupt;
mod pci_subscriber;
#[cfg(test)]
mod pci_test_guest;
#[cfg(test)]
mod pci_tests;
mod queue;
#[cfg(test)]
mod queue_tests;
mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod test_driver;

pub use blk::Blk;
pub use console::Console;
pub use device::{Activation, DeviceFailed, DeviceInfo, VirtioDevice};
pub use fs::{Fs, ShareError, SharedDirectory};
pub use net::Net;
pub use pci::{VirtioPci, VirtioPciError};
pub use pci_subscriber::VirtioSubscriber;
pub use queue::{Chain, QueueInterrupt, VirtQueue};
pub use rng::Rng;
