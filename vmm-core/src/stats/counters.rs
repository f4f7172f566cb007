//! The counters of one thread, or of one thing that several threads do in turn.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use devices::bus::{BusDevice, Region, Register};
use devices::sync::lock;

use super::Times;
use super::report::{Action, DevicePath, ExitRow, RegisterRow};
use crate::vcpu::ExitReason;

/// How many registers of one device, path and direction are told apart. The guest chooses the addresses: the others
/// are one row.
pub const REGISTERS_MAX: usize = 256;

/// What that row is called.
const OTHERS: &str = "other";

/// What is accessed where no device is.
const NO_DEVICE: &str = "(none)";

/// Places whose rows are found without asking for names. Those beyond are found more slowly.
const PLACES_MAX: usize = 4096;

/// Places that are found at once; a power of two.
const RECENT: usize = 64;

/// Counters that one thread adds to, and any may read. Nothing is allocated before something is counted.
#[derive(Default)]
pub struct Counters(Mutex<Tables>);

impl Counters {
    /// Adds one exit, which took `time` in user space. `access` is what it accessed, if it is an access.
    pub fn exit(&self, reason: ExitReason, access: Option<Access<'_>>, time: Duration) {
        let ns = nanos(time);
        let mut tables = lock(&self.0);
        match access {
            // The sum by reason follows from the rows.
            Some(access) => {
                let row = tables.row_of(&access);
                tables.rows[row].times.record(ns);
            }
            None => tables.exits.entry(reason).or_default().record(ns),
        }
    }

    /// Adds one write that waited.
    pub(crate) fn posted(&self, access: Access<'_>) {
        let mut tables = lock(&self.0);
        let row = tables.row_of(&access);
        let posted = &mut tables.rows[row].posted;
        *posted = posted.saturating_add(1);
    }

    /// A row for events of `device` from `source`, for [`Counters::event`].
    pub(crate) fn source(&self, device: &str, source: &str) -> EventSource {
        let name = Name {
            device: device.into(),
            path: DevicePath::Event,
            action: Action::Event,
            register: source.into(),
        };
        EventSource(lock(&self.0).row_named(name))
    }

    /// Adds one event.
    pub(crate) fn event(&self, source: EventSource, time: Duration) {
        if let Some(row) = lock(&self.0).rows.get_mut(source.0) {
            row.times.record(nanos(time));
        }
    }

    /// Adds what was counted here to `sums`.
    pub(super) fn add_to(&self, sums: &mut Sums) {
        let tables = lock(&self.0);
        for (reason, times) in &tables.exits {
            sums.exits.entry(*reason).or_default().merge(times);
        }
        for (name, index) in &tables.names {
            let row = &tables.rows[*index];
            if let Some(reason) = ExitReason::of_access(name.path, name.action)
                && row.times.count() > 0
            {
                sums.exits.entry(reason).or_default().merge(&row.times);
            }
            let sum = sums.rows.entry(name.clone()).or_default();
            sum.times.merge(&row.times);
            sum.posted = sum.posted.saturating_add(row.posted);
        }
    }
}

/// One access of a guest, for the counters.
pub struct Access<'a> {
    /// The bus.
    pub path: DevicePath,
    /// Read or write.
    pub action: Action,
    /// Port or guest-physical address.
    pub address: u64,
    /// What has the address; none if no device has it.
    pub accessed: Option<Register<'a>>,
}

/// One source of events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EventSource(usize);

/// What was counted, of all threads.
#[derive(Default)]
pub(super) struct Sums {
    exits: BTreeMap<ExitReason, Times>,
    rows: BTreeMap<Name, Row>,
}

impl Sums {
    pub(super) fn exits(&self) -> Vec<ExitRow> {
        let rows = self.exits.iter().map(|(reason, times)| ExitRow {
            reason: reason.name().to_string(),
            count: times.count(),
            user_space_ns: times.total_ns(),
            times: times.clone(),
        });
        rows.collect()
    }

    pub(super) fn registers(self) -> Vec<RegisterRow> {
        let rows = self.rows.into_iter().map(|(name, row)| RegisterRow {
            device: name.device,
            path: name.path,
            register: name.register,
            action: name.action,
            count: row.times.count(),
            posted: row.posted,
            user_space_ns: row.times.total_ns(),
            times: row.times,
        });
        rows.filter(|row| row.count > 0 || row.posted > 0).collect()
    }
}

/// What a row is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    device: String,
    path: DevicePath,
    action: Action,
    register: String,
}

#[derive(Default)]
struct Row {
    times: Times,
    posted: u64,
}

/// A register as it is found on a bus: the device's address in memory, or 0, the way, and the offset.
type Place = (usize, DevicePath, Action, u64);

#[derive(Default)]
struct Tables {
    exits: BTreeMap<ExitReason, Times>,
    rows: Vec<Row>,
    names: BTreeMap<Name, usize>,
    /// How many rows each device has on a path in a direction.
    registers: BTreeMap<(String, DevicePath, Action), usize>,
    places: BTreeMap<Place, usize>,
    /// Those that came last, by a hash. Empty before the first.
    recent: Vec<Option<(Place, usize)>>,
    /// As long as they are held, the addresses in `places` are those of no other device.
    holders: BTreeMap<usize, Weak<dyn BusDevice>>,
}

impl Tables {
    fn row_of(&mut self, access: &Access<'_>) -> usize {
        let device = access.accessed.map_or(0, |found| address_of(found.device));
        let offset = access.accessed.map_or(access.address, |found| found.offset);
        let place = (device, access.path, access.action, offset);
        let slot = slot_of(&place);
        if let Some(Some((recent, row))) = self.recent.get(slot)
            && *recent == place
        {
            return *row;
        }
        let row = match self.places.get(&place) {
            Some(row) => *row,
            None => {
                let row = self.row_named(name_of(access, offset));
                if self.places.len() >= PLACES_MAX {
                    return row;
                }
                if let Some(found) = access.accessed {
                    self.holders
                        .entry(device)
                        .or_insert_with(|| Arc::downgrade(found.device));
                }
                self.places.insert(place, row);
                row
            }
        };
        self.recent.resize(RECENT, None);
        self.recent[slot] = Some((place, row));
        row
    }

    /// The row of that name; that of the others where there are too many.
    fn row_named(&mut self, mut name: Name) -> usize {
        if let Some(row) = self.names.get(&name) {
            return *row;
        }
        let group = (name.device.clone(), name.path, name.action);
        let count = self.registers.entry(group).or_default();
        if *count >= REGISTERS_MAX {
            name.register = OTHERS.to_string();
            if let Some(row) = self.names.get(&name) {
                return *row;
            }
        }
        *count += 1;
        self.rows.push(Row::default());
        let row = self.rows.len() - 1;
        self.names.insert(name, row);
        row
    }
}

fn name_of(access: &Access<'_>, offset: u64) -> Name {
    let path = access.path;
    let (device, register) = match access.accessed {
        None => (NO_DEVICE, format!("{path}+{offset:#x}")),
        Some(found) => {
            let register = match found.device.region(offset) {
                Region::Only => format!("{path}+{offset:#x}"),
                Region::Part(name) => format!("{path}.{name}+{offset:#x}"),
                Region::Whole(name) => name,
            };
            (found.device.name(), register)
        }
    };
    Name {
        device: device.to_string(),
        path,
        action: access.action,
        register,
    }
}

fn address_of(device: &Arc<dyn BusDevice>) -> usize {
    Arc::as_ptr(device).cast::<()>() as usize
}

/// Where in [`Tables::recent`] a place is to be. Devices are apart by more than the lowest bits of their addresses.
fn slot_of(place: &Place) -> usize {
    let (device, path, action, offset) = *place;
    let offset = usize::try_from(offset % RECENT as u64).unwrap_or(0);
    let way = usize::from(path == DevicePath::Mmio) * 2 + usize::from(action == Action::Write);
    ((device >> 4) ^ (device >> 10) ^ offset ^ (way << 4)) % RECENT
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Report, StatsHandle};
    use devices::bus::{AccessError, Accessed, Bus};

    struct Device(&'static str, Region);

    impl BusDevice for Device {
        fn name(&self) -> &str {
            self.0
        }
        fn region(&self, _: u64) -> Region {
            self.1.clone()
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), AccessError> {
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<(), AccessError> {
            Ok(())
        }
    }

    fn found(name: &'static str, region: Region, offset: u64) -> Accessed {
        Accessed {
            device: Arc::new(Device(name, region)),
            offset,
        }
    }

    fn access(reason: ExitReason, address: u64, accessed: Option<&Accessed>) -> Access<'_> {
        let (path, action) = reason.access().unwrap();
        Access {
            path,
            action,
            address,
            accessed: accessed.map(Accessed::register),
        }
    }

    fn exit(counters: &Counters, reason: ExitReason, accessed: Option<&Accessed>, ns: u64) {
        let access = access(reason, 0x80, accessed);
        counters.exit(reason, Some(access), Duration::from_nanos(ns));
    }

    fn rows(report: &Report) -> Vec<(&str, &str, Action, u64, u64)> {
        let rows = report.registers.iter();
        rows.map(|row| {
            let (device, register) = (row.device.as_str(), row.register.as_str());
            (device, register, row.action, row.count, row.user_space_ns)
        })
        .collect()
    }

    #[test]
    fn threads_add_up_by_reason_device_and_register() {
        use ExitReason::{Interrupted, IoIn, IoOut, MmioRead};
        let stats = StatsHandle::default();
        let (a, b) = (stats.counters(), stats.counters());
        let com1 = [0, 5].map(|offset| found("com1", Region::Only, offset));
        exit(&a, IoOut, Some(&com1[0]), 2);
        exit(&a, IoIn, Some(&com1[1]), 3);
        exit(&b, IoOut, Some(&com1[0]), 4);
        exit(&b, MmioRead, None, 1);
        b.exit(Interrupted, None, Duration::from_nanos(1));
        let blk0 = a.source("blk0", "queue 0");
        a.event(blk0, Duration::from_nanos(10));
        let idle = b.source("idle", "events");
        let report = stats.snapshot();
        assert_eq!(
            rows(&report),
            [
                ("(none)", "mmio+0x80", Action::Read, 1, 1),
                ("blk0", "queue 0", Action::Event, 1, 10),
                ("com1", "pio+0x5", Action::Read, 1, 3),
                ("com1", "pio+0x0", Action::Write, 2, 6),
            ]
        );
        let com1 = report.devices.iter().find(|row| row.device == "com1");
        let com1 = com1.unwrap();
        assert_eq!((com1.reads, com1.writes, com1.user_space_ns), (1, 2, 9));
        let out = report.exits.iter().find(|e| e.reason == "io-out").unwrap();
        assert_eq!(
            (out.count, out.user_space_ns, out.times.max_ns()),
            (2, 6, 4)
        );
        assert_eq!(report.total_exits(), 5);
        b.event(idle, Duration::from_nanos(1));
        assert_eq!(stats.snapshot().since(&report).devices.len(), 1);
    }

    #[test]
    fn regions_have_names() {
        let counters = StatsHandle::default();
        let one = counters.counters();
        for (region, offset) in [
            (Region::Only, 0x3818),
            (Region::Part("bar2".into()), 0x10),
            (Region::Whole("config 00:02.0".into()), 0x4),
            (Region::Whole("config 00:02.0".into()), 0x8),
        ] {
            let found = found("nic", region, offset);
            exit(&one, ExitReason::MmioRead, Some(&found), 1);
        }
        assert_eq!(
            rows(&counters.snapshot()),
            [
                ("nic", "config 00:02.0", Action::Read, 2, 2),
                ("nic", "mmio+0x3818", Action::Read, 1, 1),
                ("nic", "mmio.bar2+0x10", Action::Read, 1, 1),
            ]
        );
    }

    #[test]
    fn posted_writes_are_no_exits() {
        let stats = StatsHandle::default();
        let counters = stats.counters();
        let data = found("com1", Region::Only, 0);
        counters.posted(access(ExitReason::IoOut, 0x3f8, Some(&data)));
        counters.posted(access(ExitReason::IoOut, 0x3f8, Some(&data)));
        exit(&counters, ExitReason::IoOut, Some(&data), 5);
        let report = stats.snapshot();
        let row = &report.registers[0];
        assert_eq!((row.count, row.posted, row.user_space_ns), (1, 2, 5));
        assert_eq!(report.devices[0].posted, 2);
        assert_eq!(report.total_exits(), 1);
    }

    #[test]
    fn registers_of_the_guests_choice_are_bounded() {
        let stats = StatsHandle::default();
        let counters = stats.counters();
        let device: Arc<dyn BusDevice> = Arc::new(Device("big", Region::Only));
        let last = PLACES_MAX as u64 + 100;
        for offset in (0..last).chain(0..10).chain(last - 10..last) {
            let found = Accessed {
                device: Arc::clone(&device),
                offset,
            };
            exit(&counters, ExitReason::MmioWrite, Some(&found), 1);
        }
        let report = stats.snapshot();
        assert_eq!(report.registers.len(), REGISTERS_MAX + 1);
        let other = report.registers.iter().find(|row| row.register == "other");
        let others = last - REGISTERS_MAX as u64 + 10;
        assert_eq!(other.unwrap().count, others);
        assert_eq!(report.devices[0].writes, last + 20);
        let tables = lock(&counters.0);
        assert!(tables.places.len() <= PLACES_MAX && tables.holders.len() == 1);
    }

    #[test]
    fn a_device_in_anothers_place_is_another() {
        let stats = StatsHandle::default();
        let counters = stats.counters();
        for name in ["old", "new", "newer"] {
            let bus = Bus::new("test");
            let device = Arc::new(Device(name, Region::Only));
            bus.insert(0x10, 8, device).unwrap();
            let found = bus.read(0x12, &mut [0]);
            exit(&counters, ExitReason::IoIn, found.as_ref(), 1);
        }
        let report = stats.snapshot();
        let names: Vec<_> = rows(&report).iter().map(|row| row.0).collect();
        assert_eq!(names, ["new", "newer", "old"]);
    }
}
