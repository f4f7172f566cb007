//! Interrupts: wires into the in-kernel controllers, and message-signalled interrupts by irqfd.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use devices::irq::{IrqLine, IrqPin, MsiMessage, MsiSink, MsiVector};
use devices::sync::lock;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Doing, KvmError};
use crate::layout::MSI_GSI;

/// KVM's limit on routes (`KVM_MAX_IRQ_ROUTES`).
const MAX_ROUTES: u32 = 4096;
/// Inputs of the IOAPIC.
const IOAPIC_PINS: u32 = 24;
/// Inputs of the two PICs.
const PIC_PINS: u32 = 16;

/// The interrupt side of a VM. Clones are the same.
#[derive(Clone)]
pub struct Interrupts(Arc<Shared>);

struct Shared {
    vm: Arc<VmFd>,
    /// How many wires hold each GSI high: PCI functions share lines, and KVM does not count.
    asserted: Mutex<BTreeMap<u32, u32>>,
    /// Routes of MSI vectors by GSI; none while masked.
    msi_routes: Mutex<BTreeMap<u32, Option<MsiMessage>>>,
}

impl Interrupts {
    pub(super) fn new(vm: Arc<VmFd>) -> Result<Self, KvmError> {
        let shared = Shared {
            vm,
            asserted: Mutex::default(),
            msi_routes: Mutex::default(),
        };
        shared
            .program(&BTreeMap::new())
            .doing("set the interrupt routes")?;
        Ok(Self(Arc::new(shared)))
    }

    /// A wire to the input `gsi`. Several wires may go to one input; it is high while any of them is.
    #[must_use]
    pub fn line(&self, gsi: u32) -> IrqLine {
        IrqLine::new(Box::new(GsiPin {
            gsi,
            shared: Arc::clone(&self.0),
        }))
    }
}

impl Shared {
    /// Hands the kernel the whole routing table: it has no call for a single route.
    fn program(&self, msi: &BTreeMap<u32, Option<MsiMessage>>) -> Result<(), kvm_ioctls::Error> {
        let mut entries = Vec::with_capacity(40 + msi.len());
        for gsi in 0..IOAPIC_PINS {
            if gsi < PIC_PINS {
                let chip = if gsi < 8 {
                    KVM_IRQCHIP_PIC_MASTER
                } else {
                    KVM_IRQCHIP_PIC_SLAVE
                };
                entries.push(irqchip_route(gsi, chip, gsi % 8));
            }
            match gsi {
                // The PIT is on IOAPIC input 2, as on every PC (the MADT says so); the PICs' cascade has none.
                0 => entries.push(irqchip_route(gsi, KVM_IRQCHIP_IOAPIC, 2)),
                2 => {}
                _ => entries.push(irqchip_route(gsi, KVM_IRQCHIP_IOAPIC, gsi)),
            }
        }
        entries.extend(
            msi.iter()
                .filter_map(|(gsi, message)| message.map(|m| msi_route(*gsi, m))),
        );
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| kvm_ioctls::Error::new(libc::ENOSPC))?;
        self.vm.set_gsi_routing(&table)
    }
}

fn irqchip_route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn msi_route(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = halves(message.address);
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo,
        address_hi,
        data: message.data,
        ..Default::default()
    };
    entry
}

fn halves(value: u64) -> (u32, u32) {
    let bytes = value.to_le_bytes();
    let half = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    (half(0), half(4))
}

struct GsiPin {
    gsi: u32,
    shared: Arc<Shared>,
}

impl IrqPin for GsiPin {
    fn set_level(&self, high: bool) {
        let mut asserted = lock(&self.shared.asserted);
        let wires = asserted.entry(self.gsi).or_default();
        let before = *wires;
        *wires = if high {
            before + 1
        } else {
            before.saturating_sub(1)
        };
        let (was, is) = (before > 0, *wires > 0);
        // The lock stays held: two wires must not reach the kernel in the wrong order.
        if was != is
            && let Err(e) = self.shared.vm.set_irq_line(self.gsi, is)
        {
            log::error!("KVM: set interrupt line {} to {is}: {e}", self.gsi);
        }
    }

    fn connect(&self, trigger: &EventFd, resample: &EventFd) -> io::Result<()> {
        Ok(self
            .shared
            .vm
            .register_irqfd_with_resample(trigger, resample, self.gsi)?)
    }

    fn disconnect(&self, trigger: &EventFd) -> io::Result<()> {
        Ok(self.shared.vm.unregister_irqfd(trigger, self.gsi)?)
    }
}

impl MsiSink for Interrupts {
    fn send(&self, message: MsiMessage) -> io::Result<()> {
        let (address_lo, address_hi) = halves(message.address);
        self.0.vm.signal_msi(kvm_msi {
            address_lo,
            address_hi,
            data: message.data,
            ..Default::default()
        })?;
        Ok(())
    }

    fn vector(&self) -> io::Result<Box<dyn MsiVector>> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let mut routes = lock(&self.0.msi_routes);
        let gsi = (MSI_GSI..MAX_ROUTES)
            .find(|gsi| !routes.contains_key(gsi))
            .ok_or_else(|| io::Error::other("no interrupt route is free"))?;
        routes.insert(gsi, None);
        Ok(Box::new(KvmVector {
            gsi,
            event,
            shared: Arc::clone(&self.0),
            attached: Mutex::new(false),
        }))
    }
}

struct KvmVector {
    gsi: u32,
    event: EventFd,
    shared: Arc<Shared>,
    /// Whether the irqfd is registered.
    attached: Mutex<bool>,
}

impl MsiVector for KvmVector {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let mut attached = lock(&self.attached);
        if message.is_none() {
            if *attached {
                self.shared.vm.unregister_irqfd(&self.event, self.gsi)?;
                *attached = false;
            }
            // The route itself stays in the table: harmless without its irqfd, and each change of the table is
            // slow.
            return Ok(());
        }
        let mut routes = lock(&self.shared.msi_routes);
        if routes.get(&self.gsi).copied().flatten() != message {
            routes.insert(self.gsi, message);
            self.shared.program(&routes)?;
        }
        if !*attached {
            self.shared.vm.register_irqfd(&self.event, self.gsi)?;
            *attached = true;
        }
        Ok(())
    }

    fn trigger(&self) -> &EventFd {
        &self.event
    }
}

impl Drop for KvmVector {
    fn drop(&mut self) {
        if let Err(e) = self.route(None) {
            log::warn!("KVM: give back interrupt route {}: {e}", self.gsi);
        }
        lock(&self.shared.msi_routes).remove(&self.gsi);
    }
}
