//! What a virtio device is, beyond its transport.

use std::os::fd::RawFd;

use thiserror::Error;
use vmm_sys_util::epoll::EventSet;

use super::queue::VirtQueue;
use crate::dma::DmaMem;

/// What a device is, fixed for its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Virtio device ID (virtio 1.3, 5).
    pub device_id: u16,
    /// A short name for logs and statistics (`virtio-blk0`).
    pub name: String,
    /// The device-specific feature bits offered. The transport adds those that are its own or the queues':
    /// `VERSION_1`, `EVENT_IDX`, `INDIRECT_DESC`.
    pub features: u64,
    /// The largest size of each queue, in descriptors; powers of two.
    pub queue_sizes: Vec<u16>,
    /// Length of the device-specific configuration space, in bytes.
    pub config_len: u16,
}

/// What a driver has set up when it sets `DRIVER_OK`.
pub struct Activation {
    /// Guest memory.
    pub dma: DmaMem,
    /// The queues, in order. One that the driver did not enable is not ready: popping from it yields nothing.
    pub queues: Vec<VirtQueue>,
    /// The negotiated features, the transport's included.
    pub features: u64,
}

/// The device can serve its driver no longer. The transport sets `DEVICE_NEEDS_RESET` (virtio 1.3, 2.1) and tells
/// the driver; the device stays idle until it is reset.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct DeviceFailed(pub String);

/// What a driver reads at `offset` of a device's configuration `config`: zeros beyond its end.
pub(super) fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..))
        .unwrap_or_default();
    let len = data.len().min(rest.len());
    data[..len].copy_from_slice(&rest[..len]);
}

/// A virtio device, below its transport. The transport owns the status machine, feature negotiation, queue set-up
/// and interrupts, and holds the device's lock during every call.
pub trait VirtioDevice: Send {
    /// Identity, features and queues. Any thread, any time.
    fn info(&self) -> DeviceInfo;

    /// Reads device-specific configuration at `offset`; the transport has checked that it lies within
    /// `config_len`. vCPU thread.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device-specific configuration, as [`VirtioDevice::read_config`]. A device with nothing writable
    /// ignores it.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// The driver is ready. vCPU thread.
    ///
    /// # Errors
    /// The device cannot work with what the driver set up. It then keeps nothing of it: `deactivate` is not called.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailed>;

    /// Reset by the driver or the machine, the end of the run, or the device has failed: forget the queues. After
    /// the return the device touches guest memory no more: what is in flight has been waited for. Called once for
    /// each `activate` that succeeded. vCPU thread or event loop.
    fn deactivate(&mut self);

    /// The driver notified queue `index`. Event loop; in tests, called directly. Not called unless activated.
    ///
    /// # Errors
    /// The driver broke the queue beyond use.
    fn process_queue(&mut self, index: u16) -> Result<(), DeviceFailed>;

    /// File descriptors to watch besides the queues, with their events (edge-triggered ones allowed). Asked once,
    /// when the device is added to the event loop.
    fn backend_events(&self) -> Vec<(RawFd, EventSet)>;

    /// One of [`VirtioDevice::backend_events`] is ready. Event loop; also called when not activated.
    ///
    /// # Errors
    /// As [`VirtioDevice::process_queue`].
    fn process_backend(&mut self, fd: RawFd, events: EventSet) -> Result<(), DeviceFailed>;
}
