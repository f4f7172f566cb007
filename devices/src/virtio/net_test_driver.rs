//! The driver's side of a split virtqueue (virtio 1.3, 2.7), honest or not, in test RAM.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::queue::{QueueInterrupt, VirtQueue};
use crate::dma::{DmaMem, GuestRam};

/// Where the rings lie, from the base that the test gives; all fit [`RING_BYTES`] for 256 descriptors.
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// RAM that one queue's rings take.
pub(crate) const RING_BYTES: u64 = 0x3000;

pub(crate) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(crate) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(crate) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Counts interrupts.
#[derive(Default)]
pub(crate) struct CountedInterrupts {
    queues: [AtomicU32; 4],
    config: AtomicU32,
}

impl CountedInterrupts {
    /// Interrupts of queue `index` since the last call.
    pub fn take(&self, index: u16) -> u32 {
        self.queues[usize::from(index)].swap(0, Ordering::SeqCst)
    }
}

impl QueueInterrupt for CountedInterrupts {
    fn signal_queue(&self, index: u16) {
        self.queues[usize::from(index)].fetch_add(1, Ordering::SeqCst);
    }
    fn signal_config(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy)]
pub(crate) struct Buf {
    pub addr: u64,
    pub len: u32,
    pub writable: bool,
}

/// Readable by the device.
pub(crate) fn readable(addr: u64, len: u32) -> Buf {
    let writable = false;
    Buf {
        addr,
        len,
        writable,
    }
}

/// Writable by the device.
pub(crate) fn writable(addr: u64, len: u32) -> Buf {
    let writable = true;
    Buf {
        addr,
        len,
        writable,
    }
}

/// A queue from the driver's side.
pub(crate) struct DriverQueue {
    ram: Arc<GuestRam>,
    base: u64,
    size: u16,
    next_desc: u16,
    avail_idx: u16,
    used_seen: u16,
}

impl DriverQueue {
    /// A queue of `size` descriptors with its rings at `base`.
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

    /// The device's side.
    pub fn device_side(
        &self,
        index: u16,
        dma: &DmaMem,
        interrupts: &Arc<CountedInterrupts>,
        event_idx: bool,
    ) -> VirtQueue {
        let low = |addr: u64| Some(u32::try_from(addr).unwrap());
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(low(self.base), None);
        queue.set_avail_ring_address(low(self.base + AVAIL), None);
        queue.set_used_ring_address(low(self.base + USED), None);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        let interrupts = Arc::clone(interrupts);
        VirtQueue::new(index, queue, dma.clone(), interrupts)
    }

    fn store<T: vm_memory::ByteValued>(&self, offset: u64, value: T) {
        let addr = GuestAddress(self.base + offset);
        self.ram.write_obj(value, addr).unwrap();
    }

    fn load<T: vm_memory::ByteValued>(&self, offset: u64) -> T {
        self.ram.read_obj(GuestAddress(self.base + offset)).unwrap()
    }

    /// Writes descriptor `index` of the table, whatever it says.
    pub fn raw_descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = u64::from(index) * 16;
        self.store(at, addr);
        self.store(at + 8, len);
        self.store(at + 12, flags);
        self.store(at + 14, next);
    }

    /// Makes the chain that begins at `head` available.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        self.store(AVAIL + 4 + 2 * slot, head);
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    /// Sets the available index, whatever it says.
    pub fn set_avail_idx(&mut self, index: u16) {
        self.avail_idx = index;
        self.store(AVAIL + 2, index);
    }

    /// Makes a chain of `buffers` available; returns its head. Descriptors are taken round and round.
    pub fn add(&mut self, buffers: &[Buf]) -> u16 {
        let head = self.next_desc;
        for (i, buffer) in buffers.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (index + 1) % self.size;
            let mut flags = if buffer.writable { WRITE } else { 0 };
            if i + 1 < buffers.len() {
                flags |= NEXT;
            }
            self.raw_descriptor(index, buffer.addr, buffer.len, flags, self.next_desc);
        }
        self.publish(head);
        head
    }

    /// As [`DriverQueue::add`], through an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buf]) -> u16 {
        for (i, buffer) in buffers.iter().enumerate() {
            let last = i + 1 == buffers.len();
            let flags = if buffer.writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let at = GuestAddress(table + 16 * i as u64);
            self.ram.write_obj(buffer.addr, at).unwrap();
            let rest = [
                buffer.len,
                u32::from(flags) | u32::try_from(i + 1).unwrap() << 16,
            ];
            self.ram.write_obj(rest, GuestAddress(at.0 + 8)).unwrap();
        }
        let head = self.next_desc;
        self.next_desc = (head + 1) % self.size;
        let len = u32::try_from(16 * buffers.len()).unwrap();
        self.raw_descriptor(head, table, len, INDIRECT, 0);
        self.publish(head);
        head
    }

    /// Chains used since the last call, `(head, bytes written)` each.
    pub fn take_used(&mut self) -> Vec<(u16, u32)> {
        let used_idx: u16 = self.load(USED + 2);
        let mut used = Vec::new();
        while self.used_seen != used_idx {
            let at = USED + 4 + 8 * u64::from(self.used_seen % self.size);
            let head: u32 = self.load(at);
            used.push((u16::try_from(head).unwrap(), self.load(at + 4)));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        used
    }

    /// With `EVENT_IDX`: interrupt me when the used index passes `index`.
    pub fn set_used_event(&self, index: u16) {
        self.store(AVAIL + 4 + 2 * u64::from(self.size), index);
    }

    /// With `EVENT_IDX`: the available index that the device wants to be notified of.
    pub fn avail_event(&self) -> u16 {
        self.load(USED + 4 + 8 * u64::from(self.size))
    }

    /// Without `EVENT_IDX`: the driver wants no interrupts.
    pub fn set_no_interrupt(&self) {
        self.store(AVAIL, 1_u16);
    }

    /// Without `EVENT_IDX`: the device wants no notifications.
    pub fn no_notify(&self) -> bool {
        self.load::<u16>(USED) & 1 != 0
    }
}
