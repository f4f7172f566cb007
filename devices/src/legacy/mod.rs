//! Devices at fixed ports: what a PC has had since before PCI.
//!
//! Every chip here is a pure register file inside a thin shell. The shell owns the lock, the wire and the backend,
//! and recomputes the wire after each access while it still holds the lock, so that two vCPUs cannot leave the wire
//! in an old state. Requests to power off or reset are made after the lock is released.

mod cmos;
mod i8042;
mod pm;
mod power;
mod pvpanic;
mod reset;
mod uart16550;

pub use cmos::{Cmos, MemorySizes};
pub use i8042::I8042;
pub use pm::{Pm, SLP_TYP_S5};
pub use power::{PowerControl, PowerEvent, ResetSource};
pub use pvpanic::Pvpanic;
pub(crate) use reset::ResetControl;
pub use uart16550::{Uart16550, UartEvents};

/// What a machine reset does to a device at fixed ports.
pub trait Reset: Send + Sync {
    /// Back to the state after power-on. Called with all vCPUs stopped, on any thread.
    fn reset(&self);
}
