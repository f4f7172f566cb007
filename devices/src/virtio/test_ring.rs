//! The driver's side of a split virtqueue (virtio 1.3, 2.7), for tests.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::dma::GuestRam;

/// Descriptor flag: the chain goes on.
pub(super) const NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub(super) const WRITE: u16 = 2;

/// A queue in test RAM, its parts a page each from `base`.
pub(super) struct TestRing {
    pub(super) ram: Arc<GuestRam>,
    pub(super) size: u16,
    base: u64,
    avail_idx: u16,
    used_seen: u16,
}

impl TestRing {
    pub(super) fn new(ram: &Arc<GuestRam>, base: u64, size: u16) -> Self {
        Self {
            ram: Arc::clone(ram),
            size,
            base,
            avail_idx: 0,
            used_seen: 0,
        }
    }

    pub(super) fn desc(&self) -> u64 {
        self.base
    }

    pub(super) fn avail(&self) -> u64 {
        self.base + 0x1000
    }

    pub(super) fn used(&self) -> u64 {
        self.base + 0x2000
    }

    /// The device's view of it.
    pub(super) fn queue(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(self.desc()))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(self.avail()))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(self.used()))
            .unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }

    pub(super) fn write_desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.desc() + 16 * u64::from(index);
        self.put(at, addr);
        self.put(at + 8, len);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    /// Makes the chain at `head` available.
    pub(super) fn push(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        self.put(self.avail() + 4 + 2 * slot, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.set_avail_idx(self.avail_idx);
    }

    pub(super) fn set_avail_idx(&self, index: u16) {
        self.put(self.avail() + 2, index);
    }

    pub(super) fn set_avail_flags(&self, flags: u16) {
        self.put(self.avail(), flags);
    }

    pub(super) fn set_used_event(&self, index: u16) {
        self.put(self.avail() + 4 + 2 * u64::from(self.size), index);
    }

    pub(super) fn avail_event(&self) -> u16 {
        self.get(self.used() + 4 + 8 * u64::from(self.size))
    }

    pub(super) fn used_flags(&self) -> u16 {
        self.get(self.used())
    }

    pub(super) fn used_idx(&self) -> u16 {
        self.get(self.used() + 2)
    }

    /// Head and length of the next chain that the device has handed back.
    pub(super) fn pop_used(&mut self) -> Option<(u32, u32)> {
        if self.used_idx() == self.used_seen {
            return None;
        }
        let at = self.used() + 4 + 8 * u64::from(self.used_seen % self.size);
        self.used_seen = self.used_seen.wrapping_add(1);
        Some((self.get(at), self.get(at + 4)))
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.ram.write_obj(value, GuestAddress(at)).unwrap();
    }

    fn get<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.ram.read_obj(GuestAddress(at)).unwrap()
    }
}
