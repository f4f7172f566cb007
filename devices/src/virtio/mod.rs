//! Virtio 1.3: the device trait, queues, the PCI transport, the devices.

mod device;
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
#[cfg(test)]
mod test_ring;

pub use device::{Activation, DeviceFailed, DeviceInfo, VirtioDevice};
pub use pci::{VirtioPci, VirtioPciError};
pub use pci_subscriber::VirtioSubscriber;
pub use queue::{Chain, QueueInterrupt, VirtQueue};
