//! Device models: what a guest's drivers see.
//!
//! The crate knows no hypervisor, no command line and no machine configuration: a device is handed a wire
//! ([`irq::IrqLine`]), a way to send message-signalled interrupts ([`irq::MsiSink`]), guest memory
//! ([`dma::DmaMem`]) and a backend, and is tested with the fakes in `testing`.
//!
//! Threads: a register access comes on a vCPU thread through [`bus::Bus`]; queue and backend events come on the
//! event-loop thread. No device starts a thread.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::cast_possible_truncation))]

pub mod block;
pub mod bus;
pub mod console;
pub mod dma;
pub mod ide;
mod iovec;
pub mod irq;
pub mod legacy;
pub mod net;
pub mod pci;
pub mod posted;
pub mod ratelimit;
pub mod recall;
mod rerun;
pub mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vfio;
pub mod virtio;
