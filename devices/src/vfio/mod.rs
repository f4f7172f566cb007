//! Passthrough of real PCI functions by VFIO.
//!
//! [`host`] is the host's side: what functions there are, whether one can be assigned, and taking it from its driver
//! and giving it back.

pub mod host;
