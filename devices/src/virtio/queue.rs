//! A split virtqueue as a device uses it (virtio 1.3, 2.7).

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::device::DeviceFailed;
use crate::dma::{DmaMem, GuestRam};

/// Where the elements of a used ring begin, and how long each is (virtio 1.3, 2.7.8).
const USED_RING_OFFSET: u64 = 4;
const USED_ELEMENT_BYTES: u64 = 8;

/// A chain of descriptors taken from a queue.
pub type Chain = DescriptorChain<Arc<GuestRam>>;

/// Tells the driver that a queue has used buffers. The transport implements it.
pub trait QueueInterrupt: Send + Sync {
    /// Raises the interrupt of queue `index`. Event loop or vCPU thread.
    fn signal_queue(&self, index: u16);
    /// Raises the configuration-change interrupt (virtio 1.3, 2.3).
    fn signal_config(&self);
}

/// A queue that the driver has set up.
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    dma: DmaMem,
    interrupt: Arc<dyn QueueInterrupt>,
    /// The used index when [`VirtQueue::notify`] was last asked.
    notified_used: Wrapping<u16>,
}

impl VirtQueue {
    /// Queue number `index`, working in `dma`. If it is ready, its rings lie in RAM.
    #[must_use]
    pub fn new(index: u16, queue: Queue, dma: DmaMem, interrupt: Arc<dyn QueueInterrupt>) -> Self {
        let notified_used = Wrapping(queue.next_used());
        Self {
            index,
            queue,
            dma,
            interrupt,
            notified_used,
        }
    }

    /// Takes the next chain that the driver made available, or none: the queue is empty, not enabled, or bus
    /// mastering is off. The chain may turn out empty, its head index wrong: [`VirtQueue::add_used`] then fails.
    ///
    /// # Errors
    /// The driver's available index is impossible.
    pub fn pop(&mut self) -> Result<Option<Chain>, DeviceFailed> {
        let Ok(ram) = self.dma.ram() else {
            return Ok(None);
        };
        if !self.queue.ready() {
            return Ok(None);
        }
        let ram = Arc::clone(ram);
        match self.queue.iter(ram) {
            Ok(mut iter) => Ok(iter.next()),
            Err(e) => Err(failed(self.index, "available ring", &e)),
        }
    }

    /// Puts the last chain popped back, to be popped again.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Hands the chain that began at `head` back to the driver, with `len` bytes written to it. While bus mastering
    /// is off the driver does not learn of it.
    ///
    /// # Errors
    /// The driver made a chain available whose head is not in the descriptor table.
    pub fn add_used(&mut self, head: u16, len: u32) -> Result<(), DeviceFailed> {
        let Ok(ram) = self.dma.ram() else {
            return Ok(());
        };
        // The library would log each such head, as often as the guest likes.
        if head >= self.queue.size() {
            let error = format!("head {head} of a queue of {}", self.queue.size());
            return Err(failed(self.index, "available ring", &error));
        }
        self.queue
            .add_used(ram.as_ref(), head, len)
            .map_err(|e| failed(self.index, "used ring", &e))
    }

    /// Hands several chains, `(head, bytes written)` each, back to the driver as one: it sees all of them used or
    /// none. For a frame spread over merged receive buffers (virtio 1.3, 5.1.6.4.1).
    ///
    /// # Errors
    /// The used ring is not in RAM, or has not that many entries.
    pub fn add_used_together(&mut self, used: &[(u16, u32)]) -> Result<(), DeviceFailed> {
        let Some((&(last_head, last_len), rest)) = used.split_last() else {
            return Ok(());
        };
        let size = self.queue.size();
        if used.len() > usize::from(size) || used.iter().any(|(head, _)| *head >= size) {
            return Err(failed(self.index, "used ring", &"no such descriptor"));
        }
        let Ok(ram) = self.dma.ram() else {
            return Ok(());
        };
        // The elements before the last are written where they belong without moving the index; the last one moves
        // it past them all.
        let mut slot = Wrapping(self.queue.next_used());
        for &(head, len) in rest {
            let offset = USED_RING_OFFSET + u64::from(slot.0 % size) * USED_ELEMENT_BYTES;
            // struct virtq_used_elem: the 32-bit id, then the 32-bit length, little-endian.
            let element = (u64::from(len) << 32 | u64::from(head)).to_le();
            let addr = GuestAddress(self.queue.used_ring().saturating_add(offset));
            ram.write_obj(element, addr)
                .map_err(|e| failed(self.index, "used ring", &e))?;
            slot += 1;
        }
        self.queue.set_next_used(slot.0);
        self.add_used(last_head, last_len)
    }

    /// Interrupts the driver if it asked for it (flags or `used_event`). Once after a batch of
    /// [`VirtQueue::add_used`]; cheap when there was none.
    ///
    /// # Errors
    /// The rings are not in RAM.
    pub fn notify(&mut self) -> Result<(), DeviceFailed> {
        let Ok(ram) = self.dma.ram() else {
            return Ok(());
        };
        let new = Wrapping(self.queue.next_used());
        let old = std::mem::replace(&mut self.notified_used, new);
        if new == old {
            return Ok(());
        }
        // The used index must be out before the driver's wish is read, or both sides may wait (2.7.10.1).
        fence(Ordering::SeqCst);
        let load = |offset: u64| {
            ram.load(
                GuestAddress(self.queue.avail_ring().saturating_add(offset)),
                Ordering::Relaxed,
            )
            .map(u16::from_le)
            .map_err(|e| failed(self.index, "notification", &e))
        };
        let wanted = if self.queue.event_idx_enabled() {
            let used_event = load(4 + 2 * u64::from(self.queue.size()))?;
            new - Wrapping(used_event) - Wrapping(1) < new - old
        } else {
            u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.interrupt.signal_queue(self.index);
        }
        Ok(())
    }

    /// Asks the driver to notify again (after a batch); true when more chains came meanwhile and the batch must go
    /// on.
    ///
    /// # Errors
    /// The rings are not in RAM.
    pub fn enable_notification(&mut self) -> Result<bool, DeviceFailed> {
        let Ok(ram) = self.dma.ram() else {
            return Ok(false);
        };
        if !self.queue.ready() {
            return Ok(false);
        }
        self.queue
            .enable_notification(ram.as_ref())
            .map_err(|e| failed(self.index, "notification", &e))
    }

    /// Asks the driver not to notify while a batch is worked on.
    ///
    /// # Errors
    /// The rings are not in RAM.
    pub fn disable_notification(&mut self) -> Result<(), DeviceFailed> {
        let Ok(ram) = self.dma.ram() else {
            return Ok(());
        };
        if !self.queue.ready() {
            return Ok(());
        }
        self.queue
            .disable_notification(ram.as_ref())
            .map_err(|e| failed(self.index, "notification", &e))
    }

    /// The transport's interrupts, for configuration changes.
    #[must_use]
    pub fn interrupt(&self) -> &Arc<dyn QueueInterrupt> {
        &self.interrupt
    }

    /// The number of descriptors in the ring; no honest driver has more chains in flight.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }
}

fn failed(index: u16, what: &str, error: &dyn std::fmt::Display) -> DeviceFailed {
    DeviceFailed(format!("queue {index}: {what}: {error}"))
}
