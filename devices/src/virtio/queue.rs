//! A split virtqueue as a device uses it (virtio 1.3, 2.7).

use std::sync::Arc;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

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
}

impl VirtQueue {
    /// Queue number `index`, working in `dma`.
    #[must_use]
    pub fn new(index: u16, queue: Queue, dma: DmaMem, interrupt: Arc<dyn QueueInterrupt>) -> Self {
        Self {
            index,
            queue,
            dma,
            interrupt,
        }
    }

    /// Takes the next chain that the driver made available, or none: the queue is empty, not enabled, or bus
    /// mastering is off.
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

    /// Hands the chain that began at `head` back to the driver, with `len` bytes written to it.
    ///
    /// # Errors
    /// The used ring is not in RAM.
    pub fn add_used(&mut self, head: u16, len: u32) -> Result<(), DeviceFailed> {
        let Ok(ram) = self.dma.ram() else {
            return Ok(());
        };
        self.queue
            .add_used(ram.as_ref(), head, len)
            .map_err(|e| failed(self.index, "used ring", &e))
    }

    /// Interrupts the driver if it asked for it (flags or `used_event`). Once after a batch of
    /// [`VirtQueue::add_used`].
    ///
    /// # Errors
    /// The rings are not in RAM.
    pub fn notify(&mut self) -> Result<(), DeviceFailed> {
        let Ok(ram) = self.dma.ram() else {
            return Ok(());
        };
        if self
            .queue
            .needs_notification(ram.as_ref())
            .map_err(|e| failed(self.index, "notification", &e))?
        {
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
