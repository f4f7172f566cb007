//! Interrupts of a virtio PCI function: MSI-X vectors, or INTx with the ISR status (virtio 1.3, 4.1.4.5 and
//! 4.1.5).

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use super::pci_common::{CommonConfig, VIRTIO_MSI_NO_VECTOR};
use super::queue::QueueInterrupt;
use crate::irq::IrqLine;
use crate::pci::config::COMMAND_INTERRUPT_DISABLE;
use crate::pci::{Msix, PciConfig};
use crate::sync::lock;

const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

struct Intx {
    isr: u8,
    /// The interrupt disable bit of the command register.
    disabled: bool,
    line: IrqLine,
}

/// What a function raises interrupts with. Shared with the queues; its locks are innermost.
pub(super) struct Interrupts {
    pub(super) msix: Msix,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    generation: AtomicU8,
    needs_reset: AtomicBool,
    intx: Mutex<Intx>,
}

impl Interrupts {
    pub(super) fn new(msix: Msix, queue_count: usize, line: IrqLine) -> Self {
        Self {
            msix,
            config_vector: AtomicU16::new(VIRTIO_MSI_NO_VECTOR),
            queue_vectors: (0..queue_count)
                .map(|_| AtomicU16::new(VIRTIO_MSI_NO_VECTOR))
                .collect(),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            intx: Mutex::new(Intx {
                isr: 0,
                disabled: false,
                line,
            }),
        }
    }

    /// Follows the vector registers.
    pub(super) fn sync_vectors(&self, common: &CommonConfig) {
        self.config_vector
            .store(common.config_vector(), Ordering::Release);
        for (vector, queue) in self.queue_vectors.iter().zip(common.queues()) {
            vector.store(queue.vector, Ordering::Release);
        }
    }

    /// Follows message control and the interrupt disable bit after a write to configuration space.
    pub(super) fn sync_config(&self, config: &PciConfig) {
        self.msix.sync_control(config);
        let mut intx = lock(&self.intx);
        intx.disabled = config.command() & COMMAND_INTERRUPT_DISABLE != 0;
        self.sync_line(&intx);
    }

    /// Reads the ISR status, which clears it and takes the wire back.
    pub(super) fn take_isr(&self) -> u8 {
        let mut intx = lock(&self.intx);
        let isr = std::mem::take(&mut intx.isr);
        self.sync_line(&intx);
        isr
    }

    /// What the interrupt status bit of the status register says.
    pub(super) fn intx_pending(&self) -> bool {
        lock(&self.intx).isr != 0 && !self.msix.enabled()
    }

    /// The configuration atomicity value (2.5.1).
    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    pub(super) fn set_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
    }

    /// A device reset: no interrupt from before it arrives after it.
    pub(super) fn reset(&self) {
        self.config_vector
            .store(VIRTIO_MSI_NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(VIRTIO_MSI_NO_VECTOR, Ordering::Release);
        }
        self.msix.clear_pending();
        self.take_isr();
        self.needs_reset.store(false, Ordering::Release);
    }

    fn set_isr(&self, bit: u8) {
        let mut intx = lock(&self.intx);
        intx.isr |= bit;
        self.sync_line(&intx);
    }

    fn sync_line(&self, intx: &Intx) {
        intx.line
            .set(intx.isr != 0 && !intx.disabled && !self.msix.enabled());
    }
}

impl QueueInterrupt for Interrupts {
    fn signal_queue(&self, index: u16) {
        if !self.msix.enabled() {
            self.set_isr(ISR_QUEUE);
        } else if let Some(vector) = self.queue_vectors.get(usize::from(index)) {
            // NO_VECTOR is no vector of the table: nothing happens.
            self.msix.trigger(vector.load(Ordering::Acquire));
        }
    }

    fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        // With MSI-X, too (4.1.4.5.1).
        self.set_isr(ISR_CONFIG);
        if self.msix.enabled() {
            self.msix
                .trigger(self.config_vector.load(Ordering::Acquire));
        }
    }
}
