//! Interrupts and doorbells, as devices see them.
//!
//! The hypervisor side implements [`IrqPin`], [`MsiSink`], [`MsiVector`] and [`Doorbell`]; `testing` fakes them.

use std::io;
use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;

use crate::sync::lock;

/// The far end of a wire: an input of an interrupt controller.
pub trait IrqPin: Send + Sync {
    /// Drives the input. Called by [`IrqLine`] only when the level changes, on any thread.
    fn set_level(&self, high: bool);

    /// From now on `trigger` drives the input high, in the kernel, and the guest's end of interrupt drives it low and
    /// signals `resample`: whoever still wants the interrupt then triggers again. Called by
    /// [`IrqLine::connect`], on a vCPU thread or before there are any.
    ///
    /// # Errors
    /// What the hypervisor said; that it cannot, by default.
    fn connect(&self, _trigger: &EventFd, _resample: &EventFd) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Undoes [`IrqPin::connect`]; the input is low as far as it goes.
    ///
    /// # Errors
    /// What the hypervisor said.
    fn disconnect(&self, _trigger: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

/// A wire with a level. It has no number and cannot be cloned: a device owns its wire.
///
/// High means asserted, whatever the polarity at the controller.
pub struct IrqLine {
    pin: Box<dyn IrqPin>,
    level: Mutex<bool>,
}

impl IrqLine {
    /// A wire to `pin`, low.
    #[must_use]
    pub fn new(pin: Box<dyn IrqPin>) -> Self {
        Self {
            pin,
            level: Mutex::new(false),
        }
    }

    /// Sets the level; does nothing when the wire has it already. Any thread.
    pub fn set(&self, high: bool) {
        let mut level = lock(&self.level);
        if *level != high {
            *level = high;
            self.pin.set_level(high);
        }
    }

    /// Lets events drive the wire beside [`IrqLine::set`], as [`IrqPin::connect`] says: for a device whose
    /// level-triggered interrupts come from the host's kernel.
    ///
    /// # Errors
    /// What the hypervisor said.
    pub fn connect(&self, trigger: &EventFd, resample: &EventFd) -> io::Result<()> {
        self.pin.connect(trigger, resample)
    }

    /// Undoes [`IrqLine::connect`].
    ///
    /// # Errors
    /// What the hypervisor said.
    pub fn disconnect(&self, trigger: &EventFd) -> io::Result<()> {
        self.pin.disconnect(trigger)
    }

    /// Low, high, low: one edge for an edge-triggered input.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// A message-signalled interrupt (PCI 3.0, 6.8): the address and data that the function writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Delivers message-signalled interrupts.
pub trait MsiSink: Send + Sync {
    /// Delivers one message now. Any thread.
    ///
    /// # Errors
    /// What the hypervisor said.
    fn send(&self, message: MsiMessage) -> io::Result<()>;

    /// A vector with an eventfd that delivers without leaving the kernel. Called when a driver first unmasks it, on
    /// a vCPU thread.
    ///
    /// # Errors
    /// What the hypervisor said, or that it has no routes left.
    fn vector(&self) -> io::Result<Box<dyn MsiVector>>;
}

/// One interrupt vector behind an eventfd. Dropping it gives back its route.
pub trait MsiVector: Send + Sync {
    /// Points the vector at `message`, or disconnects it (masked). Called on a vCPU thread.
    ///
    /// # Errors
    /// What the hypervisor said.
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()>;

    /// Writing to it raises the interrupt. Any thread.
    fn trigger(&self) -> &EventFd;
}

/// Where the guest's writes are to become events instead of exits.
pub trait Doorbell: Send + Sync {
    /// From now on a guest's write of any width to `addr` in MMIO space signals `event` and does not exit.
    ///
    /// # Errors
    /// What the hypervisor said.
    fn bind(&self, addr: u64, event: &EventFd) -> io::Result<()>;

    /// Undoes [`Doorbell::bind`].
    ///
    /// # Errors
    /// What the hypervisor said.
    fn unbind(&self, addr: u64, event: &EventFd) -> io::Result<()>;

    /// From now on a guest's write of the byte `value` to `port` signals `event` and neither exits nor is posted.
    /// Other writes to the port are as they were.
    ///
    /// # Errors
    /// What the hypervisor said; that it cannot, by default.
    fn bind_port(&self, _port: u64, _value: u8, _event: &EventFd) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Undoes [`Doorbell::bind_port`].
    ///
    /// # Errors
    /// What the hypervisor said.
    fn unbind_port(&self, _port: u64, _value: u8, _event: &EventFd) -> io::Result<()> {
        Ok(())
    }
}
