//! Posted writes: a guest's writes that wait in a buffer instead of exiting.
//!
//! For registers whose writes only store. The hypervisor side keeps the order: what waits reaches its device before
//! any later access of any vCPU that exits, and before the event loop calls a device. When nothing of that happens,
//! it waits on: a register whose write must have an effect in time does not belong here, unless its device looks
//! after it with [`PostedWrites::deliver`].

use std::io;

/// An address space of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Port I/O.
    Io,
    /// MMIO.
    Memory,
}

/// A range of addresses in which writes may be posted; a write counts when all of it lies inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PostedZone {
    /// Port I/O or memory.
    pub space: Space,
    /// First address.
    pub start: u64,
    /// Length in bytes, not 0.
    pub len_bytes: u32,
}

/// The buffer. The bus delivers what waits as if it had been written in an exit.
pub trait PostedWrites: Send + Sync {
    /// From now on writes in `zone` may wait. vCPU threads, or while the machine is built. Zones do not overlap.
    ///
    /// # Errors
    /// What the hypervisor said; writes then exit as before.
    fn open(&self, zone: PostedZone) -> io::Result<()>;

    /// Undoes [`PostedWrites::open`]. Writes that wait are still delivered.
    ///
    /// # Errors
    /// What the hypervisor said.
    fn close(&self, zone: PostedZone) -> io::Result<()>;

    /// Delivers what waits, and says how many writes that were. Any thread that holds no lock of a device: writes
    /// to any device may be among them.
    fn deliver(&self) -> usize;
}
