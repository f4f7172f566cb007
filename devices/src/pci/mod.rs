//! PCI: functions, their configuration space, and the root bus.

mod device;

pub use device::{BarChange, BarSpace, DoorbellSpec, PciDevice};
