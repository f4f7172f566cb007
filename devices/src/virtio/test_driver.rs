//! The driver's side of a queue, for tests: rings in test RAM, honest chains and broken ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::queue::{QueueInterrupt, VirtQueue};
use crate::dma::{DmaMem, GuestRam};

/// `VIRTQ_DESC_F_NEXT` (virtio 1.3, 2.7.5).
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub const INDIRECT: u16 = 4;

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
pub fn readable(addr: u64, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        writable: false,
    }
}

/// A buffer that the device writes.
#[must_use]
pub fn writable(addr: u64, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        writable: true,
    }
}

/// Counts interrupts.
#[derive(Debug, Default)]
pub struct FakeInterrupt {
    queue: AtomicU32,
    config: AtomicU32,
}

impl FakeInterrupt {
    /// Queue interrupts since the last call.
    pub fn take_queue(&self) -> u32 {
        self.queue.swap(0, Ordering::SeqCst)
    }

    /// Configuration interrupts since the last call.
    pub fn take_config(&self) -> u32 {
        self.config.swap(0, Ordering::SeqCst)
    }
}

impl QueueInterrupt for FakeInterrupt {
    fn signal_queue(&self, _index: u16) {
        self.queue.fetch_add(1, Ordering::SeqCst);
    }

    fn signal_config(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
}

/// A split virtqueue as its driver sees it. Descriptors are handed out round robin and never checked for being in
/// use.
pub struct DriverQueue {
    ram: Arc<GuestRam>,
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    next_desc: u16,
    avail_idx: u16,
    seen_used: u16,
    /// What the device raised.
    pub interrupt: Arc<FakeInterrupt>,
}

/// All methods panic when the rings are not in RAM.
#[allow(clippy::missing_panics_doc)]
impl DriverQueue {
    /// A queue of `size` descriptors whose rings start at `base`, a multiple of 16; they take 26 bytes for each
    /// descriptor and a little more.
    #[must_use]
    pub fn new(ram: Arc<GuestRam>, base: u64, size: u16) -> Self {
        let avail = base + DESC_BYTES * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Self {
            ram,
            size,
            desc: base,
            avail,
            used,
            next_desc: 0,
            avail_idx: 0,
            seen_used: 0,
            interrupt: Arc::new(FakeInterrupt::default()),
        }
    }

    /// What the transport would hand the device as queue `index`, working in `dma`.
    #[must_use]
    pub fn device_side(&self, index: u16, dma: DmaMem) -> VirtQueue {
        let mut queue = Queue::new(self.size).expect("size");
        queue
            .try_set_desc_table_address(GuestAddress(self.desc))
            .expect("aligned");
        queue
            .try_set_avail_ring_address(GuestAddress(self.avail))
            .expect("aligned");
        queue
            .try_set_used_ring_address(GuestAddress(self.used))
            .expect("aligned");
        queue.set_ready(true);
        let interrupt: Arc<dyn QueueInterrupt> = self.interrupt.clone();
        VirtQueue::new(index, queue, dma, interrupt)
    }

    fn store<T: vm_memory::ByteValued>(&self, addr: u64, value: T) {
        self.ram.write_obj(value, GuestAddress(addr)).expect("RAM");
    }

    fn load<T: vm_memory::ByteValued>(&self, addr: u64) -> T {
        self.ram.read_obj(GuestAddress(addr)).expect("RAM")
    }

    /// Writes a descriptor of the table at `table` as it stands.
    pub fn write_desc(&self, table: u64, index: u16, buffer: Buffer, flags: u16, next: u16) {
        let at = table + DESC_BYTES * u64::from(index);
        self.store(at, buffer.addr);
        self.store(at + 8, buffer.len);
        self.store(at + 12, flags);
        self.store(at + 14, next);
    }

    /// Where the queue's own descriptor table is.
    #[must_use]
    pub fn desc_table(&self) -> u64 {
        self.desc
    }

    /// Chains `buffers` and makes them available; returns the head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_desc;
        for (n, &buffer) in buffers.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (index + 1) % self.size;
            let last = n + 1 == buffers.len();
            let mut flags = if buffer.writable { WRITE } else { 0 };
            if !last {
                flags |= NEXT;
            }
            self.write_desc(self.desc, index, buffer, flags, self.next_desc);
        }
        self.make_available(head);
        head
    }

    /// As [`DriverQueue::add`], with the descriptors in an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        let mut next = 0;
        for &buffer in buffers {
            let index = next;
            next += 1;
            let mut flags = if buffer.writable { WRITE } else { 0 };
            if usize::from(next) < buffers.len() {
                flags |= NEXT;
            }
            self.write_desc(table, index, buffer, flags, next);
        }
        let head = self.next_desc;
        self.next_desc = (head + 1) % self.size;
        let len = 16 * u32::from(next);
        self.write_desc(self.desc, head, readable(table, len), INDIRECT, 0);
        self.make_available(head);
        head
    }

    /// Makes the chain at `head` available, whatever it is.
    pub fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        self.store(self.avail + 4 + 2 * slot, head);
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    /// Sets the available index, whatever the device makes of it.
    pub fn set_avail_idx(&mut self, index: u16) {
        self.avail_idx = index;
        self.store(self.avail + 2, index);
    }

    /// The used index: how many chains have come back, modulo 65536.
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        self.load(self.used + 2)
    }

    /// The next used element: the head and the length written.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used_idx() == self.seen_used {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.seen_used % self.size);
        self.seen_used = self.seen_used.wrapping_add(1);
        Some((self.load(at), self.load(at + 4)))
    }
}
