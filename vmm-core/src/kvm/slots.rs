//! Memory slots beside those of RAM: registers of devices that the guest reaches without an exit.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use devices::pci::{BarMapper, HostPages};
use devices::sync::lock;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, VmFd};

/// RAM has the slots below it; there are at most two regions.
pub(super) const FIRST_BAR_SLOT: u32 = 8;
/// Used where KVM does not say how many there are.
const FEW_SLOTS: usize = 32;

/// A slot in use, which keeps its pages mapped in our address space.
struct Slot {
    number: u32,
    pages: Arc<HostPages>,
}

/// The slots of parts of BARs, by guest-physical address.
pub(super) struct Slots {
    vm: Arc<VmFd>,
    used: Mutex<BTreeMap<u64, Slot>>,
}

impl Slots {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            used: Mutex::default(),
        }
    }

    /// One past the last slot number.
    fn end(&self) -> u32 {
        let count = match self.vm.check_extension_int(Cap::NrMemslots) {
            count @ 1.. => usize::try_from(count).unwrap_or(FEW_SLOTS),
            _ => FEW_SLOTS,
        };
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    #[allow(unsafe_code)]
    fn set(&self, slot: &Slot, guest_phys_addr: u64, memory_size: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot: slot.number,
            flags: 0,
            guest_phys_addr,
            memory_size,
            userspace_addr: slot.pages.host_address(),
        };
        // SAFETY: the pages are mapped there and are that long (or it is 0, which removes the slot), and `used` owns
        // them until the slot is removed. Nothing of ours reads or writes them.
        Ok(unsafe { self.vm.set_user_memory_region(region) }?)
    }
}

impl BarMapper for Slots {
    fn map(&self, addr: u64, pages: &Arc<HostPages>) -> io::Result<()> {
        let mut used = lock(&self.used);
        if used.contains_key(&addr) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let taken: std::collections::BTreeSet<u32> =
            used.values().map(|slot| slot.number).collect();
        let number = (FIRST_BAR_SLOT..self.end())
            .find(|number| !taken.contains(number))
            .ok_or_else(|| io::Error::other("KVM has no memory slot left"))?;
        let slot = Slot {
            number,
            pages: Arc::clone(pages),
        };
        self.set(&slot, addr, pages.len_bytes())?;
        used.insert(addr, slot);
        Ok(())
    }

    fn unmap(&self, addr: u64) -> io::Result<()> {
        let mut used = lock(&self.used);
        let Some(slot) = used.get(&addr) else {
            return Ok(());
        };
        // If KVM refuses, the pages stay.
        self.set(slot, addr, 0)?;
        used.remove(&addr);
        Ok(())
    }
}
