//! PCI: functions, their configuration space, and the root bus.

mod access;
pub mod config;
#[cfg(test)]
mod config_tests;
mod device;
mod e1000;
mod host_bridge;
mod mapping;
mod msix;
mod root;
#[cfg(test)]
mod root_tests;

pub use access::{CONFIG_PORT_COUNT, ECAM_BUS_BYTES, Ecam, PciConfigPorts};
pub use config::{BarKind, PciConfig, PciConfigError, PciIds};
pub use device::{BarChange, DoorbellSpec, PciDevice, PortDoorbell};
pub use e1000::{E1000, E1000Error, E1000Subscriber};
pub use host_bridge::HostBridge;
pub use mapping::{BarMapper, BarMapping, HostPages};
pub use msix::{MSIX_ENTRY_BYTES, MSIX_MAX_VECTORS, Msix, MsixLayout};
pub use root::{
    DEVICE_COUNT, FUNCTION_COUNT, INTX_LINE_COUNT, PciWindows, RootBus, RootBusError, intx_line,
};
