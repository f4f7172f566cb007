//! Virtio 1.3: the device trait, queues, the PCI transport, the devices.

mod device;
mod queue;

pub use device::{Activation, DeviceFailed, DeviceInfo, VirtioDevice};
pub use queue::{Chain, QueueInterrupt, VirtQueue};
