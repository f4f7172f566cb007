//! A split virtqueue as a device uses it (virtio 1.3, 2.7).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::device::DeviceFailed;
use crate::dma::{DmaMem, GuestRam};

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
    /// Chains were handed back since the driver was last told.
    unannounced: bool,
}

impl VirtQueue {
    /// Queue number `index`, working in `dma`. If it is ready, its rings lie in RAM.
    #[must_use]
    pub fn new(index: u16, queue: Queue, dma: DmaMem, interrupt: Arc<dyn QueueInterrupt>) -> Self {
        Self {
            index,
            queue,
            dma,
            interrupt,
            unannounced: false,
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
        self.unannounced = true;
        self.queue
            .add_used(ram.as_ref(), head, len)
            .map_err(|e| failed(self.index, "used ring", &e))
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
        if !std::mem::take(&mut self.unannounced) {
            return Ok(());
        }
        // The library decides by `used_event`, after a full barrier; the flag of drivers that negotiated no
        // EVENT_IDX is left to us (2.7.7.2).
        let mut wanted = self
            .queue
            .needs_notification(ram.as_ref())
            .map_err(|e| failed(self.index, "notification", &e))?;
        if wanted && !self.queue.event_idx_enabled() {
            let flags: u16 = ram
                .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
                .map_err(|e| failed(self.index, "notification", &e))?;
            wanted = u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        }
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
