//! A function of the host's, given to the guest: the passthrough path.
//!
//! The host's `vfio-pci` driver holds the function and hands it to us (`linux/vfio.h`). The guest's driver then drives
//! the real hardware, and as little as possible goes through here:
//!
//! - **Registers.** Memory BARs are mapped into the guest by whole pages ([`PciDevice::mappings`]); an access to them
//!   does not exit. Trapped, and passed on one by one, are I/O BARs, BARs smaller than a page, the ROM, the pages with
//!   the tables of MSI-X, and what the user wants trapped (`bars`).
//! - **Interrupts.** The host's interrupt handler signals an eventfd that the hypervisor turns into the guest's
//!   interrupt, in the kernel (`interrupts`).
//! - **DMA.** The function reaches guest RAM by the guest's own addresses, through the host's IOMMU, and nothing else
//!   ([`GuestDma`]).
//! - **Configuration space** is always trapped: it is where a guest could reach beyond its function. The `overlay`
//!   tells bit by bit what is emulated, what is passed on and what is hidden; the table in [`capabilities`] gives the
//!   reasons.
//!
//! [`HostFunction`] is what all this asks of the host; [`VfioHost`] implements it, tests fake it. Which function may be
//! given away, and how it comes to be bound to `vfio-pci`, is decided before any of this is called: see [`host`].
//!
//! The order of things: the function is opened, guest RAM mapped for it, the function reset and shown; at the end, or
//! at a reset of the machine, its interrupts are switched off, then bus mastering, then it is reset. Only then is RAM
//! unmapped, and the function closed last.
//!
//! [`PciDevice::mappings`]: crate::pci::PciDevice::mappings

mod bars;
pub mod capabilities;
mod dma;
#[cfg(test)]
mod fake;
mod function;
#[cfg(test)]
mod function_tests;
pub mod host;
mod host_function;
mod interrupts;
mod overlay;
#[cfg(test)]
mod overlay_tests;
mod subscriber;

pub use bars::Trap;
pub use dma::{GuestDma, GuestDmaError};
pub use function::{FunctionLoss, VfioFunction, VfioFunctionError, VfioOptions};
pub use host_function::{
    HostFunction, IrqInfo, IrqKind, ROM_REGION, RegionInfo, VfioHost, VfioHostError,
};
pub use interrupts::Mode;
pub use overlay::OverlayError;
pub use subscriber::VfioSubscriber;
