//! What a guest costs: exits and their time in user space by reason, by device and register, by source of events, next
//! to KVM's own counters. Counted where it happens, and readable while the guest runs.
//!
//! It is off by default: nothing is allocated then, and an exit costs one more comparison.

mod counters;
mod report;
mod times;

use std::sync::{Arc, Mutex};

use devices::sync::lock;

use counters::Sums;
pub(crate) use counters::{Access, EventSource};
pub use counters::{Counters, REGISTERS_MAX};
pub use report::{Action, DevicePath, DeviceRow, ExitRow, RegisterRow, Report};
pub use times::Times;

/// The counters of a machine. Clones are the same counters. Any thread; they may outlive the machine.
#[derive(Clone, Default)]
pub struct StatsHandle(Arc<Shared>);

#[derive(Default)]
struct Shared {
    counters: Mutex<Vec<Arc<Counters>>>,
}

impl StatsHandle {
    /// What was counted up to now.
    #[must_use]
    pub fn snapshot(&self) -> Report {
        let mut sums = Sums::default();
        for counters in lock(&self.0.counters).iter() {
            counters.add_to(&mut sums);
        }
        let exits = sums.exits();
        let registers = sums.registers();
        Report {
            exits,
            devices: report::devices_of(&registers),
            registers,
            ..Report::default()
        }
    }

    /// Counters for one thread more.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        let counters = Arc::<Counters>::default();
        lock(&self.0.counters).push(Arc::clone(&counters));
        counters
    }
}
