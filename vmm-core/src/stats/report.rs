//! What was counted, as users and programs read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Times;

/// What a run cost, up to one moment or between two.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Exits of all vCPUs to user space, by reason.
    pub exits: Vec<ExitRow>,
    /// The devices' share.
    pub devices: Vec<DeviceRow>,
    /// The same by register or queue, with percentiles.
    #[serde(default)]
    pub registers: Vec<RegisterRow>,
    /// KVM's own counters, of the VM and all its vCPUs added up, by KVM's names (`exits`, `io_exits`, `mmio_exits`...);
    /// empty where this kernel's KVM does not tell them. Times are in nanoseconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kvm: BTreeMap<String, u64>,
    /// KVM's figures that are true for the moment (`pages_4k`, `guest_mode`...), added up alike.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kvm_now: BTreeMap<String, u64>,
}

/// Exits for one reason.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ExitRow {
    /// The reason, as in `io-out`.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// Time spent handling them in user space, in nanoseconds.
    pub user_space_ns: u64,
    /// Each of these times.
    #[serde(default)]
    pub times: Times,
}

/// One device on one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRow {
    /// The device's name.
    pub device: String,
    /// How it was reached.
    pub path: DevicePath,
    /// Reads by the guest; 0 for events.
    pub reads: u64,
    /// Writes by the guest that exited; for events, how many were handled.
    pub writes: u64,
    /// Writes by the guest that waited in a buffer and made no exit of their own.
    #[serde(default)]
    pub posted: u64,
    /// Time spent in the device, in nanoseconds, that of posted writes not included.
    pub user_space_ns: u64,
}

impl DeviceRow {
    /// Reads and writes that exited, together; saturating.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.reads.saturating_add(self.writes)
    }
}

/// How a device is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DevicePath {
    /// Port I/O, on a vCPU thread.
    Pio,
    /// Memory-mapped I/O, on a vCPU thread.
    Mmio,
    /// A doorbell or backend event, on the event loop: no exit to user space.
    Event,
}

impl std::fmt::Display for DevicePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pio => "pio",
            Self::Mmio => "mmio",
            Self::Event => "event",
        })
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The guest read a register.
    Read,
    /// The guest wrote a register.
    Write,
    /// The event loop served an event.
    Event,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Event => "event",
        })
    }
}

/// One register in one direction, or one source of events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegisterRow {
    /// The device's name; `(none)` for addresses that no device has.
    pub device: String,
    /// How it was reached.
    pub path: DevicePath,
    /// The register: path, region if the device has several, and offset, as in `pio+0x1`, `mmio+0x3818` and
    /// `pio.bar4+0x2`; the address where there is no device; a function's configuration space as a whole, as in
    /// `config 00:02.0`; a source of events, as in `queue 0`, `backend` and `timer`. `other` for all registers beyond
    /// the [256](super::REGISTERS_MAX) of a device that are told apart.
    pub register: String,
    /// What was done.
    pub action: Action,
    /// Exits, or events.
    pub count: u64,
    /// Writes that waited in a buffer and made no exit of their own. Their time is not measured.
    #[serde(default)]
    pub posted: u64,
    /// Time spent handling the exits or events in user space, in nanoseconds.
    pub user_space_ns: u64,
    /// Each of these times.
    pub times: Times,
}

impl RegisterRow {
    /// What tells the row from all others.
    pub(super) fn key(&self) -> (&str, DevicePath, &str, Action) {
        (&self.device, self.path, &self.register, self.action)
    }
}

impl Report {
    /// What came after `earlier`, which is a report of the same run. Rows in which nothing happened are left out.
    /// [`Report::kvm_now`] is that of `self`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let exits = self.exits.iter().map(|row| {
            let old = earlier.exits.iter().find(|old| old.reason == row.reason);
            let none = ExitRow::default();
            let old = old.unwrap_or(&none);
            ExitRow {
                reason: row.reason.clone(),
                count: row.count.saturating_sub(old.count),
                user_space_ns: row.user_space_ns.saturating_sub(old.user_space_ns),
                times: row.times.since(&old.times),
            }
        });
        let registers = registers_since(&self.registers, &earlier.registers);
        Self {
            exits: exits.filter(|row| row.count > 0).collect(),
            devices: devices_of(&registers),
            registers,
            kvm: kvm_since(&self.kvm, &earlier.kvm),
            kvm_now: self.kvm_now.clone(),
        }
    }

    /// Exits of all vCPUs to user space for all reasons.
    #[must_use]
    pub fn total_exits(&self) -> u64 {
        (self.exits.iter()).fold(0, |sum, row| sum.saturating_add(row.count))
    }
}

fn registers_since(later: &[RegisterRow], earlier: &[RegisterRow]) -> Vec<RegisterRow> {
    let earlier: BTreeMap<_, _> = earlier.iter().map(|row| (row.key(), row)).collect();
    let rows = later.iter().map(|now| {
        let mut row = now.clone();
        if let Some(old) = earlier.get(&now.key()) {
            row.count = row.count.saturating_sub(old.count);
            row.posted = row.posted.saturating_sub(old.posted);
            row.user_space_ns = row.user_space_ns.saturating_sub(old.user_space_ns);
            row.times = row.times.since(&old.times);
        }
        row
    });
    rows.filter(|row| row.count > 0 || row.posted > 0).collect()
}

fn kvm_since(
    later: &BTreeMap<String, u64>,
    earlier: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let before = |name| earlier.get(name).copied().unwrap_or(0);
    later
        .iter()
        .map(|(name, value)| (name.clone(), value.saturating_sub(before(name))))
        .collect()
}

/// The devices' sums, in the order in which the devices come first.
pub(super) fn devices_of(registers: &[RegisterRow]) -> Vec<DeviceRow> {
    let mut devices: Vec<DeviceRow> = Vec::new();
    for row in registers {
        let same = |one: &DeviceRow| one.device == row.device && one.path == row.path;
        let index = match devices.iter().position(same) {
            Some(index) => index,
            None => {
                devices.push(DeviceRow {
                    device: row.device.clone(),
                    path: row.path,
                    reads: 0,
                    writes: 0,
                    posted: 0,
                    user_space_ns: 0,
                });
                devices.len() - 1
            }
        };
        let device = &mut devices[index];
        let count = match row.action {
            Action::Read => &mut device.reads,
            Action::Write | Action::Event => &mut device.writes,
        };
        *count = count.saturating_add(row.count);
        device.posted = device.posted.saturating_add(row.posted);
        device.user_space_ns = device.user_space_ns.saturating_add(row.user_space_ns);
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(list: &[u64]) -> Times {
        let mut times = Times::default();
        for ns in list {
            times.record(*ns);
        }
        times
    }

    fn exits(reason: &str, list: &[u64]) -> ExitRow {
        let times = times(list);
        ExitRow {
            reason: reason.into(),
            count: times.count(),
            user_space_ns: times.total_ns(),
            times,
        }
    }

    fn register(device: &str, register: &str, action: Action, list: &[u64]) -> RegisterRow {
        let times = times(list);
        RegisterRow {
            device: device.into(),
            path: match action {
                Action::Event => DevicePath::Event,
                _ => DevicePath::Pio,
            },
            register: register.into(),
            action,
            count: times.count(),
            posted: 0,
            user_space_ns: times.total_ns(),
            times,
        }
    }

    fn report(exits: Vec<ExitRow>, registers: Vec<RegisterRow>, kvm: &[(&str, u64)]) -> Report {
        Report {
            exits,
            devices: devices_of(&registers),
            registers,
            kvm: kvm.iter().map(|(name, n)| ((*name).into(), *n)).collect(),
            kvm_now: BTreeMap::from([("pages_4k".into(), 7)]),
        }
    }

    fn earlier_and_later() -> (Report, Report) {
        let mut posting = register("com1", "pio+0x0", Action::Write, &[4]);
        let earlier = report(
            vec![exits("io-in", &[1, 2]), exits("hlt", &[9])],
            vec![
                register("com1", "pio+0x5", Action::Read, &[1, 2]),
                posting.clone(),
            ],
            &[("exits", 100)],
        );
        posting.posted = 5;
        let later = report(
            vec![
                exits("io-in", &[1, 2, 3]),
                exits("io-out", &[4]),
                exits("hlt", &[9]),
            ],
            vec![
                register("com1", "pio+0x5", Action::Read, &[1, 2, 3]),
                posting,
                register("blk0", "queue 0", Action::Event, &[10, 20]),
            ],
            &[("exits", 170), ("io_exits", 3)],
        );
        (earlier, later)
    }

    #[test]
    fn the_difference_of_two_reports() {
        let (earlier, later) = earlier_and_later();
        let between = later.since(&earlier);
        assert_eq!(
            between.exits,
            [exits("io-in", &[3]), exits("io-out", &[4])],
            "nothing halted"
        );
        let mut posted = register("com1", "pio+0x0", Action::Write, &[]);
        posted.posted = 5;
        let registers = [
            register("com1", "pio+0x5", Action::Read, &[3]),
            posted,
            register("blk0", "queue 0", Action::Event, &[10, 20]),
        ];
        assert_eq!(between.registers, registers);
        let com1 = &between.devices[0];
        assert_eq!(
            (com1.reads, com1.writes, com1.posted, com1.user_space_ns),
            (1, 0, 5, 3)
        );
        assert_eq!(between.devices[1].writes, 2);
        assert_eq!(between.kvm["exits"], 70);
        assert_eq!(between.kvm["io_exits"], 3);
        assert_eq!(between.kvm_now["pages_4k"], 7);
        assert_eq!(between.total_exits(), 2);
    }

    #[test]
    fn no_difference_to_itself_and_all_to_nothing() {
        let (_, later) = earlier_and_later();
        let none = later.since(&later);
        assert!(none.exits.is_empty() && none.registers.is_empty() && none.devices.is_empty());
        assert!(none.kvm.values().all(|value| *value == 0));
        assert_eq!(later.since(&Report::default()), later);
    }

    #[test]
    fn written_and_read_it_is_the_same() {
        let (_, later) = earlier_and_later();
        let text = serde_json::to_string(&later).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), later);
        assert!(text.contains(r#""path":"pio""#), "{text}");
        let old = r#"{"exits":[{"reason":"hlt","count":1,"user_space_ns":2}],"devices":[]}"#;
        assert_eq!(
            serde_json::from_str::<Report>(old).unwrap().exits[0].count,
            1
        );
    }
}
