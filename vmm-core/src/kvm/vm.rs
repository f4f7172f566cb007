//! The VM: memory slots, interrupt controller state, doorbells.

use std::io;
use std::sync::Arc;

use devices::dma::GuestRam;
use devices::irq::Doorbell;
use devices::pci::BarMapper;
use devices::posted::{PostedZone, Space};
use kvm_bindings::{
    KVM_CAP_HALT_POLL, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_irqchip, kvm_pit_config, kvm_pit_state2,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, NoDatamatch, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::slots::{FIRST_BAR_SLOT, Slots};
use super::{Doing, Interrupts, KvmError, KvmSystem, KvmVcpu};
use crate::layout;

/// A VM. Clones are the same VM.
#[derive(Clone)]
pub struct KvmVm {
    fd: Arc<VmFd>,
    interrupts: Interrupts,
    slots: Arc<Slots>,
}

/// The interrupt controllers and the PIT as they were before the guest touched them.
pub struct IrqchipState {
    chips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
}

/// How long KVM may spin for a vCPU that has halted before it gives the host's CPU away, at most. It does so only while
/// the guest's waits turn out to be shorter than this and nothing else wants the CPU, so that an idle guest costs nothing.
/// A request to a device and its answer take longer than KVM's own bound of 0.2 ms where interrupts are slow, as in
/// nested guests; to be woken takes longer still.
const HALT_POLL_NS: u64 = 500_000;

impl KvmVm {
    pub(super) fn new(system: &KvmSystem) -> Result<Self, KvmError> {
        let fd = Arc::new(system.0.create_vm().doing("create the VM")?);
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .doing("set the identity map address")?;
        fd.set_tss_address(layout::KVM_TSS)
            .doing("set the TSS address")?;
        fd.create_irq_chip()
            .doing("create the interrupt controller")?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(pit).doing("create the PIT")?;
        // Kernels without the capability keep their own bound.
        let _ = fd.enable_cap(&kvm_enable_cap {
            cap: KVM_CAP_HALT_POLL,
            args: [HALT_POLL_NS, 0, 0, 0],
            ..Default::default()
        });
        let interrupts = Interrupts::new(Arc::clone(&fd))?;
        let slots = Arc::new(Slots::new(Arc::clone(&fd)));
        Ok(Self {
            fd,
            interrupts,
            slots,
        })
    }

    /// Memory slots for parts of BARs.
    #[must_use]
    pub fn bar_mapper(&self) -> Arc<dyn BarMapper> {
        Arc::clone(&self.slots) as _
    }

    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Interrupt lines and message-signalled interrupts.
    #[must_use]
    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// Makes `ram` the VM's memory, a slot for each region.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    #[allow(unsafe_code)]
    pub fn set_memory(&self, ram: &GuestRam) -> Result<(), KvmError> {
        for (slot, region) in (0..FIRST_BAR_SLOT).zip(ram.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped at that address and length for as long as the `GuestRam` lives, and the
            // machine keeps it until after the last vCPU has stopped.
            unsafe { self.fd.set_user_memory_region(region) }.doing("set a memory region")?;
        }
        Ok(())
    }

    /// Creates vCPU number `id`, which is its APIC id too.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn create_vcpu(&self, id: u32) -> Result<KvmVcpu, KvmError> {
        Ok(KvmVcpu::new(
            self.fd.create_vcpu(u64::from(id)).doing("create a vCPU")?,
        ))
    }

    /// Lets writes in `zone` wait in the VM's [`super::WriteRing`], or no longer. Does nothing where this kernel's KVM
    /// cannot: the writes then exit.
    ///
    /// # Errors
    /// What KVM said.
    pub fn coalesce(&self, zone: PostedZone, on: bool) -> io::Result<()> {
        let (cap, addr) = match zone.space {
            Space::Io => (Cap::CoalescedPio, IoEventAddress::Pio(zone.start)),
            Space::Memory => (Cap::CoalescedMmio, IoEventAddress::Mmio(zone.start)),
        };
        if !self.fd.check_extension(cap) {
            return Ok(());
        }
        if on {
            self.fd.register_coalesced_mmio(addr, zone.len_bytes)?;
        } else {
            self.fd.unregister_coalesced_mmio(addr, zone.len_bytes)?;
        }
        Ok(())
    }

    /// The state of the interrupt controllers and the PIT now.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn irqchip_state(&self) -> Result<IrqchipState, KvmError> {
        let mut chips = Vec::new();
        for chip_id in [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ] {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            self.fd
                .get_irqchip(&mut chip)
                .doing("read the interrupt controller")?;
            chips.push(chip);
        }
        Ok(IrqchipState {
            chips,
            pit: self.fd.get_pit2().doing("read the PIT")?,
        })
    }

    /// Puts back a state that [`KvmVm::irqchip_state`] gave. All vCPUs are paused.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn set_irqchip_state(&self, state: &IrqchipState) -> Result<(), KvmError> {
        let IrqchipState { chips, pit } = state;
        for chip in chips {
            self.fd
                .set_irqchip(chip)
                .doing("reset the interrupt controller")?;
        }
        self.fd.set_pit2(pit).doing("reset the PIT")
    }
}

impl Doorbell for KvmVm {
    fn bind(&self, addr: u64, event: &EventFd) -> io::Result<()> {
        Ok(self
            .fd
            .register_ioevent(event, &IoEventAddress::Mmio(addr), NoDatamatch)?)
    }

    fn unbind(&self, addr: u64, event: &EventFd) -> io::Result<()> {
        Ok(self
            .fd
            .unregister_ioevent(event, &IoEventAddress::Mmio(addr), NoDatamatch)?)
    }

    fn bind_port(&self, port: u64, value: u8, event: &EventFd) -> io::Result<()> {
        Ok(self
            .fd
            .register_ioevent(event, &IoEventAddress::Pio(port), value)?)
    }

    fn unbind_port(&self, port: u64, value: u8, event: &EventFd) -> io::Result<()> {
        Ok(self
            .fd
            .unregister_ioevent(event, &IoEventAddress::Pio(port), value)?)
    }
}
