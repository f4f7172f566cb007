//! The driver's side of split virtqueues (virtio 1.3, 2.7), for tests: rings in test RAM, honest or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::queue::{QueueInterrupt, VirtQueue};
use crate::dma::{DmaMem, GuestRam};

/// `VIRTQ_DESC_F_NEXT` (2.7.5).
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub const INDIRECT: u16 = 4;

/// RAM that the parts of one queue take, a page each: enough for 256 descriptors.
pub const RING_BYTES: u64 = 0x3000;

const AVAIL_OFFSET: u64 = 0x1000;
const USED_OFFSET: u64 = 0x2000;
const DESC_BYTES: u64 = 16;

/// A buffer of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// A buffer that the device reads.
#[must_use]
pub const fn readable(addr: u64, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        writable: false,
    }
}

/// A buffer that the device writes.
#[must_use]
pub const fn writable(addr: u64, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        writable: true,
    }
}

/// Counts the interrupts of a device with at most eight queues.
#[derive(Debug, Default)]
pub struct FakeInterrupts {
    queues: [AtomicU32; 8],
    config: AtomicU32,
}

impl FakeInterrupts {
    /// Interrupts of queue `index` since the last call.
    ///
    /// # Panics
    /// When `index` is above 7.
    pub fn take(&self, index: u16) -> u32 {
        self.queues[usize::from(index)].swap(0, Ordering::SeqCst)
    }

    /// Configuration interrupts since the last call.
    pub fn take_config(&self) -> u32 {
        self.config.swap(0, Ordering::SeqCst)
    }
}

impl QueueInterrupt for FakeInterrupts {
    fn signal_queue(&self, index: u16) {
        self.queues[usize::from(index)].fetch_add(1, Ordering::SeqCst);
    }

    fn signal_config(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
}

/// A split virtqueue as its driver sees it. Descriptors are handed out round robin and never checked for being in
/// use. All methods panic when what they touch is not in RAM.
pub struct DriverQueue {
    ram: Arc<GuestRam>,
    base: u64,
    size: u16,
    next_desc: u16,
    avail_idx: u16,
    used_seen: u16,
}

impl DriverQueue {
    /// A queue of `size` descriptors, at most 256, with its parts in the [`RING_BYTES`] at `base`, a multiple of
    /// 16. They are expected to be zero.
    #[must_use]
    pub fn new(ram: &Arc<GuestRam>, base: u64, size: u16) -> Self {
        Self {
            ram: Arc::clone(ram),
            base,
            size,
            next_desc: 0,
            avail_idx: 0,
            used_seen: 0,
        }
    }

    /// Starts anew with zeroed parts, as a driver does after a reset.
    pub fn clear(&mut self) {
        let zeroes = vec![0; usize::try_from(RING_BYTES).expect("small")];
        self.ram
            .write_slice(&zeroes, GuestAddress(self.base))
            .expect("RAM");
        *self = Self::new(&self.ram, self.base, self.size);
    }

    /// Where the descriptor table is.
    #[must_use]
    pub fn desc(&self) -> u64 {
        self.base
    }

    /// Where the available ring is.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.base + AVAIL_OFFSET
    }

    /// Where the used ring is.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.base + USED_OFFSET
    }

    /// What the transport would hand the device as queue `index`, working in `dma`.
    ///
    /// # Panics
    /// When the size is not a power of two.
    #[must_use]
    pub fn device_side(
        &self,
        index: u16,
        dma: &DmaMem,
        interrupts: &Arc<FakeInterrupts>,
        event_idx: bool,
    ) -> VirtQueue {
        let mut queue = Queue::new(self.size).expect("size");
        queue
            .try_set_desc_table_address(GuestAddress(self.desc()))
            .expect("aligned");
        queue
            .try_set_avail_ring_address(GuestAddress(self.avail()))
            .expect("aligned");
        queue
            .try_set_used_ring_address(GuestAddress(self.used()))
            .expect("aligned");
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        let interrupts = Arc::clone(interrupts);
        VirtQueue::new(index, queue, dma.clone(), interrupts)
    }

    /// Writes descriptor `index` of the queue's table, whatever it says.
    pub fn write_desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.write_desc_of(self.desc(), index, addr, len, flags, next);
    }

    fn write_desc_of(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = table + DESC_BYTES * u64::from(index);
        self.store(at, addr);
        self.store(at + 8, len);
        self.store(at + 12, flags);
        self.store(at + 14, next);
    }

    /// Chains `buffers` and makes them available; returns the head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_desc;
        for (n, buffer) in buffers.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (index + 1) % self.size;
            let flags = flags(buffer, n + 1 == buffers.len());
            self.write_desc(index, buffer.addr, buffer.len, flags, self.next_desc);
        }
        self.make_available(head);
        head
    }

    /// As [`DriverQueue::add`], with the descriptors in an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        let mut entries = 0;
        for buffer in buffers {
            let index = entries;
            entries += 1;
            let flags = flags(buffer, usize::from(entries) == buffers.len());
            self.write_desc_of(table, index, buffer.addr, buffer.len, flags, entries);
        }
        let head = self.next_desc;
        self.next_desc = (head + 1) % self.size;
        self.write_desc(head, table, 16 * u32::from(entries), INDIRECT, 0);
        self.make_available(head);
        head
    }

    /// Makes the chain at `head` available, whatever it is.
    pub fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        self.store(self.avail() + 4 + 2 * slot, head);
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    /// Sets the available index, whatever the device makes of it.
    pub fn set_avail_idx(&mut self, index: u16) {
        self.avail_idx = index;
        self.store(self.avail() + 2, index);
    }

    /// Without `EVENT_IDX`: whether the driver wants no interrupts.
    pub fn set_no_interrupt(&self, no_interrupt: bool) {
        self.store(self.avail(), u16::from(no_interrupt));
    }

    /// With `EVENT_IDX`: the driver wants an interrupt when the used index passes `index`.
    pub fn set_used_event(&self, index: u16) {
        self.store(self.avail() + 4 + 2 * u64::from(self.size), index);
    }

    /// Without `EVENT_IDX`: whether the device wants no notifications.
    #[must_use]
    pub fn no_notify(&self) -> bool {
        self.load::<u16>(self.used()) & 1 != 0
    }

    /// With `EVENT_IDX`: the available index that the device wants to be notified of.
    #[must_use]
    pub fn avail_event(&self) -> u16 {
        self.load(self.used() + 4 + 8 * u64::from(self.size))
    }

    /// The used index: how many chains have come back, modulo 65536.
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        self.load(self.used() + 2)
    }

    /// The next chain that came back: its head and the bytes written.
    ///
    /// # Panics
    /// When the device made up a head.
    pub fn next_used(&mut self) -> Option<(u16, u32)> {
        if self.used_idx() == self.used_seen {
            return None;
        }
        let at = self.used() + 4 + 8 * u64::from(self.used_seen % self.size);
        self.used_seen = self.used_seen.wrapping_add(1);
        let head: u32 = self.load(at);
        Some((u16::try_from(head).expect("a head"), self.load(at + 4)))
    }

    /// All chains that came back since the last call, as [`DriverQueue::next_used`].
    pub fn take_used(&mut self) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| self.next_used()).collect()
    }

    fn store<T: ByteValued>(&self, addr: u64, value: T) {
        self.ram.write_obj(value, GuestAddress(addr)).expect("RAM");
    }

    fn load<T: ByteValued>(&self, addr: u64) -> T {
        self.ram.read_obj(GuestAddress(addr)).expect("RAM")
    }
}

fn flags(buffer: &Buffer, last: bool) -> u16 {
    (if buffer.writable { WRITE } else { 0 }) | (if last { 0 } else { NEXT })
}
