//! The host bridge, function 00:00.0.

use std::sync::Mutex;

use super::config::{PciConfig, PciIds};
use super::device::{BarChange, DoorbellSpec, PciDevice};
use crate::bus::AccessError;
use crate::sync::lock;

/// Red Hat's generic PCI Express host bridge: guests have no driver and no erratum for it, whereas an Intel or AMD
/// identity would have them look for that chipset's registers.
const IDS: PciIds = PciIds {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// A host bridge that has nothing but an identity: the root bus does its work.
pub struct HostBridge {
    config: Mutex<PciConfig>,
}

impl Default for HostBridge {
    fn default() -> Self {
        Self {
            config: Mutex::new(PciConfig::new(IDS)),
        }
    }
}

impl PciDevice for HostBridge {
    fn name(&self) -> &str {
        "pci-host-bridge"
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        lock(&self.config).read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Vec<BarChange> {
        lock(&self.config).write(offset, data)
    }

    fn bar_read(&self, _bar: u8, _offset: u64, _data: &mut [u8]) -> Result<(), AccessError> {
        Err(AccessError::InvalidRegister)
    }

    fn bar_write(&self, _bar: u8, _offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        Err(AccessError::InvalidRegister)
    }

    fn doorbells(&self, _bar: u8) -> Vec<DoorbellSpec> {
        Vec::new()
    }

    fn reset(&self) {
        lock(&self.config).reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_host_bridge_without_bars() {
        let bridge = HostBridge::default();
        let mut data = [0; 4];
        bridge.config_read(0, &mut data);
        assert_eq!(data, [0x36, 0x1b, 0x08, 0x00]);
        bridge.config_read(8, &mut data);
        assert_eq!(data, [0, 0, 0, 6]);
        assert_eq!(bridge.config_write(0x10, &[0xff; 4]), []);
        bridge.config_read(0x10, &mut data);
        assert_eq!(data, [0; 4]);
        bridge.config_write(0x3c, &[5]);
        bridge.reset();
        bridge.config_read(0x3c, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
