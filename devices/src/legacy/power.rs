//! What a device asks of the machine as a whole.

/// Which device the guest used to reset the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResetSource {
    /// The keyboard controller's output port, bit 0.
    I8042,
    /// The reset control register at port 0xcf9.
    ResetControl,
}

/// A request by the guest that concerns the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PowerEvent {
    /// Switch off (ACPI S5, or pvpanic's shutdown event).
    PowerOff,
    /// Start anew.
    Reset(ResetSource),
    /// The guest's kernel has panicked and will do nothing more.
    Panicked,
    /// The guest's kernel has panicked and goes on to its crash kernel.
    CrashLoaded,
}

/// Receives those requests; the machine's lifecycle implements it.
pub trait PowerControl: Send + Sync {
    /// Takes note of `event` and returns at once. Called on the vCPU thread that made the access, with no lock of
    /// the device held; the vCPU may run a little further before it is stopped, and may ask again.
    fn request(&self, event: PowerEvent);
}
