//! Virtio 1.3: the device trait, queues, the PCI transport, the devices.

mod again;
mod console;
mod device;
mod net;
mod queue;
#[cfg(test)]
mod test_driver;

pub use console::Console;
pub use device::{Activation, DeviceFailed, DeviceInfo, VirtioDevice};
pub use net::Net;
pub use queue::{Chain, QueueInterrupt, VirtQueue};
