//! Guest memory, as a device may use it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// The guest's RAM.
pub type GuestRam = GuestMemoryMmap<()>;

/// Why a device's access to guest memory did not happen.
#[derive(Debug, Error)]
pub enum DmaError {
    /// The function's bus-master bit is off (PCI 3.0, 6.2.2).
    #[error("bus mastering is off")]
    BusMasterOff,
    /// The guest gave an address outside its RAM.
    #[error("outside guest RAM: {0}")]
    OutsideRam(#[from] GuestMemoryError),
}

/// The only way a device reaches guest RAM. Clones share the bus-master switch.
#[derive(Clone)]
pub struct DmaMem {
    ram: Arc<GuestRam>,
    bus_master: Arc<AtomicBool>,
}

impl DmaMem {
    /// Access to `ram` that is on while `bus_master` is.
    #[must_use]
    pub fn new(ram: Arc<GuestRam>, bus_master: Arc<AtomicBool>) -> Self {
        Self { ram, bus_master }
    }

    /// Access that is always on, for what is not a bus master by choice of its driver.
    #[must_use]
    pub fn always_on(ram: Arc<GuestRam>) -> Self {
        Self::new(ram, Arc::new(AtomicBool::new(true)))
    }

    /// The RAM itself, for rings and zero-copy I/O.
    ///
    /// # Errors
    /// [`DmaError::BusMasterOff`].
    pub fn ram(&self) -> Result<&Arc<GuestRam>, DmaError> {
        if self.bus_master.load(Ordering::Acquire) {
            Ok(&self.ram)
        } else {
            Err(DmaError::BusMasterOff)
        }
    }

    /// Copies from guest RAM at `addr`.
    ///
    /// # Errors
    /// [`DmaError`].
    pub fn read(&self, addr: u64, data: &mut [u8]) -> Result<(), DmaError> {
        Ok(self.ram()?.read_slice(data, GuestAddress(addr))?)
    }

    /// Copies to guest RAM at `addr`.
    ///
    /// # Errors
    /// [`DmaError`].
    pub fn write(&self, addr: u64, data: &[u8]) -> Result<(), DmaError> {
        Ok(self.ram()?.write_slice(data, GuestAddress(addr))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::test_ram;

    #[test]
    fn bus_master_gates_every_clone() {
        let gate = Arc::new(AtomicBool::new(true));
        let dma = DmaMem::new(test_ram(0x1000), gate.clone());
        let clone = dma.clone();
        dma.write(0x10, &[1, 2]).unwrap();
        gate.store(false, Ordering::Release);
        let mut data = [0; 2];
        assert!(matches!(
            clone.read(0x10, &mut data),
            Err(DmaError::BusMasterOff)
        ));
        gate.store(true, Ordering::Release);
        clone.read(0x10, &mut data).unwrap();
        assert_eq!(data, [1, 2]);
    }

    #[test]
    fn outside_ram_is_an_error() {
        let dma = DmaMem::always_on(test_ram(0x1000));
        for addr in [0xfff, 0x1000, u64::MAX] {
            assert!(
                matches!(dma.write(addr, &[0; 2]), Err(DmaError::OutsideRam(_))),
                "{addr:#x}"
            );
        }
    }
}
