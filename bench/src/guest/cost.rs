//! What a guest costs its host, read from its own process.

use vmm_core::machine::Machine;

use crate::results::{CpuTime, GuestCost};

/// Reads the counters. Any thread.
pub struct Meter {}

/// What they said.
pub struct Reading {}

impl Meter {
    /// Of this machine, which counts.
    #[must_use]
    pub fn new(_machine: &Machine) -> Self {
        Self {}
    }

    /// Now.
    #[must_use]
    pub fn read(&self) -> Reading {
        Reading {}
    }
}

impl Reading {
    /// What has been spent since an earlier reading.
    #[must_use]
    pub fn since(&self, _earlier: &Self) -> (GuestCost, CpuTime) {
        (GuestCost::default(), CpuTime::default())
    }
}
