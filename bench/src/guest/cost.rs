//! What a guest costs its host, read from its own process.

use std::collections::BTreeMap;

use vmm_core::machine::Machine;
use vmm_core::stats::cpu::{ThreadTime, threads};
use vmm_core::stats::{DevicePath, RegisterRow, Report, StatsHandle};

use crate::results::{AccessCount, CpuTime, GuestCost};

/// KVM's counters that are told also when they have not moved: 0 says something.
const TOLD: [&str; 2] = ["exits", "irq_injections"];

/// Reads the counters. Any thread.
pub struct Meter(Option<StatsHandle>);

/// What they said.
#[derive(Default)]
pub struct Reading {
    stats: Report,
    threads: Vec<ThreadTime>,
}

impl Meter {
    /// Of this machine, which counts.
    #[must_use]
    pub fn new(machine: &Machine) -> Self {
        Self(machine.stats_handle())
    }

    /// Now. Where the host does not tell CPU times, there are none.
    #[must_use]
    pub fn read(&self) -> Reading {
        Reading {
            stats: self
                .0
                .as_ref()
                .map(StatsHandle::snapshot)
                .unwrap_or_default(),
            threads: threads().unwrap_or_default(),
        }
    }
}

impl Reading {
    /// What has been spent since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> (GuestCost, CpuTime) {
        let cost = cost_of(self.stats.since(&earlier.stats));
        (cost, cpu_time(&earlier.threads, &self.threads))
    }
}

fn cost_of(stats: Report) -> GuestCost {
    let exits = stats.exits.into_iter();
    let mut kvm = stats.kvm;
    kvm.retain(|name, count| *count > 0 || TOLD.contains(&name.as_str()));
    GuestCost {
        exits: exits.map(|row| (row.reason, row.count)).collect(),
        accesses: stats
            .registers
            .into_iter()
            .filter(|row| row.count > 0 || row.posted > 0)
            .map(access)
            .collect(),
        // Only the guest knows.
        interrupts: None,
        kvm,
    }
}

fn access(row: RegisterRow) -> AccessCount {
    let what = match row.path {
        // What an event is for says all.
        DevicePath::Event => row.register,
        _ => format!("{} {}", row.register, row.action),
    };
    AccessCount {
        device: row.device,
        what,
        count: row.count,
        posted: row.posted,
        user_space_ns: row.user_space_ns,
    }
}

/// A thread that was not there before has spent all of its time since.
fn cpu_time(before: &[ThreadTime], after: &[ThreadTime]) -> CpuTime {
    let mut time = CpuTime::default();
    let mut user: BTreeMap<String, u64> = BTreeMap::new();
    for thread in after {
        let earlier = before.iter().find(|one| one.tid == thread.tid);
        let spent = thread.since(earlier);
        time.guest_ns += spent.guest_ns;
        time.kernel_ns += spent.kernel_ns;
        if spent.user_ns > 0 {
            *user.entry(thread.name.clone()).or_default() += spent.user_ns;
        }
    }
    time.user_ns = user;
    time
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_core::stats::cpu::Ticks;

    /// As many nanoseconds as ticks.
    fn thread(tid: u32, name: &str, [guest, user, kernel]: [u64; 3]) -> ThreadTime {
        ThreadTime {
            tid,
            name: name.to_owned(),
            exact_ns: Some(guest + user + kernel),
            ticks: Ticks {
                user,
                guest,
                kernel,
            },
        }
    }

    #[test]
    fn times_are_differences_by_thread() {
        let before = [
            thread(1, "tripath", [0, 10, 5]),
            thread(2, "vcpu0", [100, 20, 7]),
        ];
        let after = [
            thread(1, "tripath", [0, 10, 6]),
            thread(2, "vcpu0", [400, 25, 9]),
            thread(3, "vcpu0", [0, 2, 0]),
        ];
        let time = cpu_time(&before, &after);
        assert_eq!((time.guest_ns, time.kernel_ns), (300, 3));
        assert_eq!(time.user_ns, BTreeMap::from([("vcpu0".to_owned(), 7)]));
    }
}
