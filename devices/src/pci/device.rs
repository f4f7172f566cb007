//! What every PCI function is.

use std::ops::Range;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::mapping::BarMapping;
use crate::bus::AccessError;
use crate::posted::Space;

/// A BAR that moved, appeared or disappeared because of a write to configuration space. The root bus applies it
/// after the device has unlocked itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarChange {
    /// Index of the (first) BAR register, 0 to 5; 6 is the expansion ROM.
    pub bar: u8,
    /// Port I/O or memory.
    pub space: Space,
    /// Length in bytes.
    pub len: u64,
    /// Where it was decoded before; none when it was not.
    pub old: Option<u64>,
    /// Where it is decoded now; none when it no longer is.
    pub new: Option<u64>,
}

/// An offset in a BAR at which a guest's write is an event, not an exit.
pub struct DoorbellSpec {
    /// Offset in the BAR, in bytes.
    pub offset: u64,
    /// Signalled by the write.
    pub event: EventFd,
}

/// A byte at an offset in an I/O BAR whose write is an event, not an exit, if it has one value.
pub struct PortDoorbell {
    /// Offset in the BAR, in bytes.
    pub offset: u64,
    /// The value. Writes of others, and of other widths, are no events.
    pub value: u8,
    /// Signalled by the write.
    pub event: Arc<EventFd>,
}

/// A PCI function. Calls come on vCPU threads, several at once, with no lock of the bus held.
///
/// A device never calls back into the bus: what follows from a configuration write it returns.
pub trait PciDevice: Send + Sync {
    /// A short name for logs and statistics (`virtio-blk0`).
    fn name(&self) -> &str;

    /// Reads configuration space at byte `offset` (0 to 4095); `data` is 1, 2 or 4 bytes, not crossing a dword.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space, as [`PciDevice::config_read`]. Returns the BARs that moved because of it.
    fn config_write(&self, offset: u16, data: &[u8]) -> Vec<BarChange>;

    /// Reads from a BAR, any width.
    ///
    /// # Errors
    /// What the guest did wrong; it then reads ones.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), AccessError>;

    /// Writes to a BAR, any width.
    ///
    /// # Errors
    /// What the guest did wrong; the write is dropped.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), AccessError>;

    /// The doorbells in a BAR. The root bus binds them where the BAR is decoded and unbinds them when it moves.
    fn doorbells(&self, bar: u8) -> Vec<DoorbellSpec>;

    /// The doorbells in an I/O BAR, as [`PciDevice::doorbells`].
    fn port_doorbells(&self, _bar: u8) -> Vec<PortDoorbell> {
        Vec::new()
    }

    /// The ranges of offsets in a BAR where writes only store and may be posted ([`crate::posted`]). The root bus
    /// opens them where the BAR is decoded and closes them when it moves.
    fn posted(&self, _bar: u8) -> Vec<Range<u32>> {
        Vec::new()
    }

    /// The parts of a memory BAR that the guest reaches without an exit. The root bus maps them where the BAR is
    /// decoded and unmaps them when it moves; what is not mapped goes to [`PciDevice::bar_read`] and
    /// [`PciDevice::bar_write`].
    fn mappings(&self, _bar: u8) -> Vec<BarMapping> {
        Vec::new()
    }

    /// Back to the state after power-on, BARs included. Called by the root bus on a machine reset with all vCPUs
    /// stopped; the root bus has unmapped the BARs.
    fn reset(&self);
}
