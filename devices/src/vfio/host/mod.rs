//! The host's side of passthrough.
//!
//! | question | where |
//! | --- | --- |
//! | what functions and groups are there? | [`PciFunction`], [`iommu`], [`isolation`], [`usage`] |
//! | can one be assigned now, and if not, what changes that? | [`check`], [`memory`], [`reason`] |
//! | virtual functions | [`sriov`], [`netlink`] |
//! | taking functions for a guest | [`claim`] |
//! | a PF that is ready for several guests in turn | [`hold`] |
//! | what was changed, written down first | [`state`] |
//! | giving back, in place of a killed run too | [`recover`] |
//!
//! Everything is read below the root of a [`Host`], and changed through its [`Kernel`], so that tests use a tree and a
//! kernel of their own. Nothing here opens a device: that is for who has a [`claim::Lease`].

mod address;
mod bind;
pub mod check;
pub mod claim;
pub mod config_space;
mod function;
pub mod hold;
pub mod iommu;
pub mod isolation;
mod kernel;
pub mod memory;
mod names;
pub mod netlink;
pub mod reason;
pub mod recover;
mod root;
pub mod sriov;
pub mod state;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod usage;

pub use address::{NotAnAddress, PciAddress};
pub use bind::ActionError;
pub use function::{Bar, Interrupts, PciFunction, Sriov};
pub use kernel::{Caller, Kernel, LiveKernel};
pub use root::Host;
