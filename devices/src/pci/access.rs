//! The two ways to configuration space: ECAM (PCI Express Base 5.0, 7.2.2) and the ports 0xcf8 to 0xcff (PCI Local
//! Bus 3.0, 3.2.2.3.2), among which the reset control register of Intel's chipsets hides.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::root::RootBus;
use crate::bus::{AccessError, BusDevice, Region};
use crate::legacy::ResetControl;
use crate::sync::lock;

/// Bytes of ECAM for one bus.
pub const ECAM_BUS_BYTES: u64 = 1 << 20;
/// How many ports [`PciConfigPorts`] has, from 0xcf8.
pub const CONFIG_PORT_COUNT: u64 = 8;

/// Memory-mapped configuration space of bus 0. An access must lie within one dword, as for any register of a PCI
/// function; others are refused.
pub struct Ecam {
    root: Arc<RootBus>,
}

impl Ecam {
    /// The window to `root`; [`ECAM_BUS_BYTES`] long.
    #[must_use]
    pub fn new(root: Arc<RootBus>) -> Self {
        Self { root }
    }
}

/// Device-function number and register of an offset in ECAM.
fn ecam_target(offset: u64, len: usize) -> Result<(u8, u16), AccessError> {
    let register = u16::try_from(offset & 0xfff).map_err(|_| AccessError::InvalidRegister)?;
    let devfn = u8::try_from(offset >> 12).map_err(|_| AccessError::InvalidRegister)?;
    check_within_dword(register, len)?;
    Ok((devfn, register))
}

fn check_within_dword(register: u16, len: usize) -> Result<(), AccessError> {
    let in_dword = usize::from(register % 4);
    if matches!(len, 1 | 2 | 4) && in_dword + len <= 4 {
        Ok(())
    } else {
        Err(AccessError::InvalidWidth)
    }
}

impl BusDevice for Ecam {
    fn name(&self) -> &str {
        "pci-ecam"
    }

    fn region(&self, offset: u64) -> Region {
        let (slot, function) = (offset >> 15, offset >> 12 & 7);
        Region::Whole(format!("config 00:{slot:02x}.{function}"))
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let (devfn, register) = ecam_target(offset, data.len())?;
        self.root.config_read(devfn, register, data);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let (devfn, register) = ecam_target(offset, data.len())?;
        self.root.config_write(devfn, register, data);
        Ok(())
    }
}

const CONFIG_ADDRESS: u64 = 0;
const RESET_CONTROL: u64 = 1;
const CONFIG_DATA: u64 = 4;

const ADDRESS_ENABLE: u32 = 1 << 31;
const ADDRESS_WRITABLE: u32 = 0x80ff_fffc;

/// The ports 0xcf8 to 0xcff: `CONFIG_ADDRESS`, `CONFIG_DATA`, and the reset control register at 0xcf9.
pub struct PciConfigPorts {
    root: Arc<RootBus>,
    address: AtomicU32,
    reset_control: Mutex<ResetControl>,
    on_reset: Box<dyn Fn() + Send + Sync>,
}

impl PciConfigPorts {
    /// The ports of `root`, [`CONFIG_PORT_COUNT`] of them. `on_reset` asks for a reset of the machine; it is called
    /// on the vCPU thread that wrote the register and must return.
    #[must_use]
    pub fn new(root: Arc<RootBus>, on_reset: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            root,
            address: AtomicU32::new(0),
            reset_control: Mutex::default(),
            on_reset,
        }
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
        lock(&self.reset_control).reset();
    }

    /// The function and register that `CONFIG_DATA` stands for now; none when the window is closed or open to a
    /// bus that does not exist.
    fn data_target(&self, offset: u64, len: usize) -> Result<Option<(u8, u16)>, AccessError> {
        let address = self.address.load(Ordering::Relaxed);
        let [register, devfn, bus, _] = address.to_le_bytes();
        let in_dword =
            u16::try_from(offset - CONFIG_DATA).map_err(|_| AccessError::InvalidRegister)?;
        let register = u16::from(register) + in_dword;
        check_within_dword(register, len)?;
        Ok((address & ADDRESS_ENABLE != 0 && bus == 0).then_some((devfn, register)))
    }
}

impl BusDevice for PciConfigPorts {
    fn name(&self) -> &str {
        "pci-config-ports"
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match (offset, data) {
            (CONFIG_ADDRESS, data @ [_, _, _, _]) => {
                data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
            }
            (RESET_CONTROL, [value]) => *value = lock(&self.reset_control).read(),
            (CONFIG_DATA.., data) => match self.data_target(offset, data.len())? {
                Some((devfn, register)) => self.root.config_read(devfn, register, data),
                None => data.fill(0xff),
            },
            // Bytes and words of the address register go to the expansion bus, where nothing answers.
            (_, data) => data.fill(0xff),
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match (offset, data) {
            (CONFIG_ADDRESS, &[a, b, c, d]) => {
                let address = u32::from_le_bytes([a, b, c, d]) & ADDRESS_WRITABLE;
                self.address.store(address, Ordering::Relaxed);
            }
            (RESET_CONTROL, &[value]) => {
                let reset = lock(&self.reset_control).write(value);
                if reset {
                    (self.on_reset)();
                }
            }
            (CONFIG_DATA.., data) => {
                if let Some((devfn, register)) = self.data_target(offset, data.len())? {
                    self.root.config_write(devfn, register, data);
                }
            }
            // As for reads. Linux probes for the mechanism with a byte to 0xcfb.
            _ => {}
        }
        Ok(())
    }
}
