//! What a guest costs: exits and their time in user space by reason, by device and register, by source of events, next
//! to KVM's own counters. Counted where it happens, and readable while the guest runs.
//!
//! It is off by default: nothing is allocated then, and an exit costs one more comparison. On, an access costs two
//! readings of the TSC and about a hundred instructions, no lock; `examples/stats_cost.rs` measures it. To know the TSC's
//! frequency, the first [`StatsHandle`] of a process takes about a millisecond, and 200 on the busiest host. Where the TSC
//! is not the same at all times, the system's clock is read, which costs twice as much.

mod counters;
pub mod cpu;
mod report;
mod tally;
mod times;

use std::sync::{Arc, Mutex};

use devices::sync::lock;
use quanta::Clock;

use crate::kvm::{KvmCounters, KvmReading};

pub(crate) use counters::EventSource;
pub use counters::{Access, Moment, REGISTERS_MAX, Recorder};
use counters::{Sums, Tables};
pub use report::{Action, DevicePath, DeviceRow, ExitRow, RegisterRow, Report};
pub use times::Times;

/// The counters of a machine. Clones are the same counters. Any thread; they may outlive the machine.
#[derive(Clone, Default)]
pub struct StatsHandle(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// It reads the TSC where that is invariant, half the price of the system's clock.
    clock: Clock,
    tables: Mutex<Vec<Arc<Mutex<Tables>>>>,
    kvm: Mutex<Kvm>,
}

/// KVM's counters.
#[derive(Default)]
enum Kvm {
    /// There are none, or not yet.
    #[default]
    Absent,
    /// They count.
    Counting(KvmCounters),
    /// What they said last, at the end of the run.
    Over(KvmReading),
}

impl Kvm {
    fn read(&self) -> KvmReading {
        match self {
            Self::Absent => KvmReading::default(),
            Self::Counting(counters) => counters.read().unwrap_or_else(|error| {
                log::warn!("KVM's counters cannot be read: {error}");
                KvmReading::default()
            }),
            Self::Over(reading) => reading.clone(),
        }
    }
}

impl StatsHandle {
    /// What was counted up to now.
    #[must_use]
    pub fn snapshot(&self) -> Report {
        let mut sums = Sums::default();
        for tables in lock(&self.0.tables).iter() {
            sums.add(tables);
        }
        let exits = sums.exits();
        let registers = sums.registers();
        let kvm = lock(&self.0.kvm).read();
        Report {
            exits,
            devices: report::devices_of(&registers),
            registers,
            kvm: kvm.cumulative,
            kvm_now: kvm.instant,
        }
    }

    /// Counts for one thread more.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        let tables = Arc::<Mutex<Tables>>::default();
        lock(&self.0.tables).push(Arc::clone(&tables));
        Recorder::new(tables, self.0.clock.clone())
    }

    #[cfg(test)]
    fn with_clock(clock: Clock) -> Self {
        Self(Arc::new(Shared {
            clock,
            ..Shared::default()
        }))
    }

    /// From now on KVM's counters are part of the snapshots.
    pub(crate) fn attach_kvm(&self, counters: Option<KvmCounters>) {
        *lock(&self.0.kvm) = counters.map_or(Kvm::Absent, Kvm::Counting);
    }

    /// Lets go of the VM, whose vCPUs run no more. What KVM counted stays in the snapshots.
    pub(crate) fn detach_kvm(&self) {
        let mut kvm = lock(&self.0.kvm);
        if let Kvm::Counting(_) = *kvm {
            *kvm = Kvm::Over(kvm.read());
        }
    }
}
