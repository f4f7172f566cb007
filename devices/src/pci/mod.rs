//! PCI: functions, their configuration space, and the root bus.

pub mod config;
mod device;
mod msix;

pub use config::{BarKind, PciConfig, PciConfigError, PciIds};
pub use device::{BarChange, BarSpace, DoorbellSpec, PciDevice};
pub use msix::{MSIX_ENTRY_BYTES, MSIX_MAX_VECTORS, Msix, MsixLayout};
