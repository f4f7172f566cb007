//! What a thread counts by: the rows, and how they are found.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};

use devices::bus::{BusDevice, Region, Register};
use devices::sync::lock;
use quanta::Clock;

use super::Times;
use super::report::{Action, DevicePath, ExitRow, RegisterRow};
use super::tally::{Tally, add};
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

/// Counts for one thread, or for several that take turns: what it adds, [`super::StatsHandle::snapshot`] reads on
/// any thread. No lock is taken for an access to what was accessed before.
pub struct Recorder {
    tables: Arc<Mutex<Tables>>,
    clock: Clock,
    /// The places that came last, by a hash.
    recent: Box<[Option<(Place, Known)>; RECENT]>,
}

impl Recorder {
    pub(super) fn new(tables: Arc<Mutex<Tables>>, clock: Clock) -> Self {
        Self {
            tables,
            clock,
            recent: Box::new([const { None }; RECENT]),
        }
    }

    /// The time at which an exit or event begins to be served.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment(self.clock.raw())
    }

    /// Adds one exit, which has been in user space since `start`. `access` is what it accessed, if it is an access.
    pub fn exit(&mut self, reason: ExitReason, access: Option<Access<'_>>, start: Moment) {
        let ns = self.ns_since(start);
        match access {
            // The sum by reason follows from the rows.
            Some(access) => self.row_of(&access).times.record(ns),
            None => add_without_access(&self.tables, reason, ns),
        }
    }

    /// Adds one write that waited.
    pub(crate) fn posted(&mut self, access: Access<'_>) {
        add(&self.row_of(&access).posted, 1);
    }

    /// A row for events of `device` from `source`, for [`Recorder::event`].
    pub(crate) fn source(&self, device: &str, source: &str) -> EventSource {
        let name = Name {
            device: device.into(),
            path: DevicePath::Event,
            action: Action::Event,
            register: source.into(),
        };
        EventSource(lock(&self.tables).row_named(name))
    }

    /// Adds one event, which was served since `start`.
    pub(crate) fn event(&self, source: &mut EventSource, start: Moment) {
        source.0.times.record(self.ns_since(start));
    }

    fn ns_since(&self, start: Moment) -> u64 {
        self.clock.delta_as_nanos(start.0, self.clock.raw())
    }

    fn row_of(&mut self, access: &Access<'_>) -> &Row {
        let place = Place::of(access);
        let tables = &self.tables;
        let recent = &mut self.recent[place.slot()];
        if recent.as_ref().is_none_or(|(there, _)| *there != place) {
            *recent = None;
        }
        let (_, known) = recent.get_or_insert_with(|| (place, known_of(tables, access, &place)));
        &known.row
    }
}

/// Seldom, and so apart from what each exit does.
#[cold]
fn known_of(tables: &Mutex<Tables>, access: &Access<'_>, place: &Place) -> Known {
    lock(tables).known_of(access, place)
}

/// As [`known_of`].
#[cold]
fn add_without_access(tables: &Mutex<Tables>, reason: ExitReason, ns: u64) {
    let mut tables = lock(tables);
    tables.exits.entry(reason).or_default().times.record(ns);
}

/// A reading of the clock that [`Recorder`] has.
#[derive(Clone, Copy)]
pub struct Moment(u64);

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

/// One source of events, of the recorder that it was made by.
pub(crate) struct EventSource(Arc<Row>);

/// What was counted, of all threads.
#[derive(Default)]
pub(super) struct Sums {
    exits: BTreeMap<ExitReason, Times>,
    rows: BTreeMap<Name, (Times, u64)>,
}

impl Sums {
    /// Adds what was counted by one.
    pub(super) fn add(&mut self, tables: &Mutex<Tables>) {
        // Who counts waits for this lock when there is something new.
        let (exits, rows) = {
            let tables = lock(tables);
            (tables.exits.clone(), tables.rows.clone())
        };
        for (reason, row) in exits {
            let times = row.times.times();
            self.exits.entry(reason).or_default().merge(&times);
        }
        for (name, row) in rows {
            let times = row.times.times();
            if let Some(reason) = ExitReason::of_access(name.path, name.action)
                && times.count() > 0
            {
                self.exits.entry(reason).or_default().merge(&times);
            }
            let (sum, posted) = self.rows.entry(name).or_default();
            sum.merge(&times);
            *posted = posted.saturating_add(row.posted.load(Relaxed));
        }
    }

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
        let rows = self
            .rows
            .into_iter()
            .map(|(name, (times, posted))| RegisterRow {
                device: name.device,
                path: name.path,
                register: name.register,
                action: name.action,
                count: times.count(),
                posted,
                user_space_ns: times.total_ns(),
                times,
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

/// What is counted of one register or source. As with a [`Tally`], one thread adds at a time.
#[derive(Default)]
struct Row {
    times: Tally,
    posted: AtomicU64,
}

/// A register as it is found on a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// The device's address in memory, or 0.
    device: usize,
    path: DevicePath,
    action: Action,
    /// From the start of the device's range; the address where there is none.
    offset: u64,
}

impl Place {
    fn of(access: &Access<'_>) -> Self {
        Self {
            device: access.accessed.map_or(0, |found| address_of(found.device)),
            path: access.path,
            action: access.action,
            offset: access.accessed.map_or(access.address, |found| found.offset),
        }
    }

    /// Where in [`Recorder::recent`] it is to be. Devices are apart by more than the lowest bits of their addresses.
    fn slot(&self) -> usize {
        let offset = usize::try_from(self.offset % RECENT as u64).unwrap_or(0);
        let mmio = usize::from(self.path == DevicePath::Mmio);
        let way = mmio * 2 + usize::from(self.action == Action::Write);
        ((self.device >> 4) ^ (self.device >> 10) ^ offset ^ (way << 4)) % RECENT
    }
}

/// The row of a place.
#[derive(Clone)]
struct Known {
    row: Arc<Row>,
    /// While it is held, the address in the [`Place`] is no other device's.
    _device: Option<Weak<dyn BusDevice>>,
}

/// The rows of one [`Recorder`].
#[derive(Default)]
pub(super) struct Tables {
    exits: BTreeMap<ExitReason, Arc<Row>>,
    rows: BTreeMap<Name, Arc<Row>>,
    /// How many rows each device has on a path in a direction.
    registers: BTreeMap<(String, DevicePath, Action), usize>,
    places: BTreeMap<Place, Known>,
}

impl Tables {
    fn known_of(&mut self, access: &Access<'_>, place: &Place) -> Known {
        if let Some(known) = self.places.get(place) {
            return known.clone();
        }
        let known = Known {
            row: self.row_named(name_of(access, place.offset)),
            _device: access.accessed.map(|found| Arc::downgrade(found.device)),
        };
        if self.places.len() < PLACES_MAX {
            self.places.insert(*place, known.clone());
        }
        known
    }

    /// The row of that name; that of the others where there are too many.
    fn row_named(&mut self, mut name: Name) -> Arc<Row> {
        if let Some(row) = self.rows.get(&name) {
            return Arc::clone(row);
        }
        let group = (name.device.clone(), name.path, name.action);
        let count = self.registers.entry(group).or_default();
        if *count >= REGISTERS_MAX {
            name.register = OTHERS.to_string();
            if let Some(row) = self.rows.get(&name) {
                return Arc::clone(row);
            }
        }
        *count += 1;
        Arc::clone(self.rows.entry(name).or_default())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Report, StatsHandle};
    use devices::bus::{AccessError, Accessed, Bus};
    use quanta::Mock;

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

    /// Counters whose clock is the test's.
    struct Fixture {
        stats: StatsHandle,
        clock: Arc<Mock>,
    }

    impl Default for Fixture {
        fn default() -> Self {
            let (time, clock) = Clock::mock();
            let stats = StatsHandle::with_clock(time);
            Self { stats, clock }
        }
    }

    impl Fixture {
        fn exit(
            &self,
            recorder: &mut Recorder,
            reason: ExitReason,
            accessed: Option<&Accessed>,
            ns: u64,
        ) {
            let start = recorder.now();
            self.clock.increment(ns);
            recorder.exit(reason, Some(access(reason, 0x80, accessed)), start);
        }
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
        let f = Fixture::default();
        let (mut a, mut b) = (f.stats.recorder(), f.stats.recorder());
        let com1 = [0, 5].map(|offset| found("com1", Region::Only, offset));
        f.exit(&mut a, IoOut, Some(&com1[0]), 2);
        f.exit(&mut a, IoIn, Some(&com1[1]), 3);
        f.exit(&mut b, IoOut, Some(&com1[0]), 4);
        f.exit(&mut b, MmioRead, None, 1);
        b.exit(Interrupted, None, b.now());
        let (mut blk0, start) = (a.source("blk0", "queue 0"), a.now());
        f.clock.increment(10u64);
        a.event(&mut blk0, start);
        let mut idle = b.source("idle", "events");
        let report = f.stats.snapshot();
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
        b.event(&mut idle, b.now());
        assert_eq!(f.stats.snapshot().since(&report).devices.len(), 1);
    }

    #[test]
    fn regions_have_names() {
        let f = Fixture::default();
        let mut recorder = f.stats.recorder();
        for (region, offset) in [
            (Region::Only, 0x3818),
            (Region::Part("bar2".into()), 0x10),
            (Region::Whole("config 00:02.0".into()), 0x4),
            (Region::Whole("config 00:02.0".into()), 0x8),
        ] {
            let found = found("nic", region, offset);
            f.exit(&mut recorder, ExitReason::MmioRead, Some(&found), 1);
        }
        assert_eq!(
            rows(&f.stats.snapshot()),
            [
                ("nic", "config 00:02.0", Action::Read, 2, 2),
                ("nic", "mmio+0x3818", Action::Read, 1, 1),
                ("nic", "mmio.bar2+0x10", Action::Read, 1, 1),
            ]
        );
    }

    #[test]
    fn posted_writes_are_no_exits() {
        let f = Fixture::default();
        let mut recorder = f.stats.recorder();
        let data = found("com1", Region::Only, 0);
        recorder.posted(access(ExitReason::IoOut, 0x3f8, Some(&data)));
        recorder.posted(access(ExitReason::IoOut, 0x3f8, Some(&data)));
        f.exit(&mut recorder, ExitReason::IoOut, Some(&data), 5);
        let report = f.stats.snapshot();
        let row = &report.registers[0];
        assert_eq!((row.count, row.posted, row.user_space_ns), (1, 2, 5));
        assert_eq!(report.devices[0].posted, 2);
        assert_eq!(report.total_exits(), 1);
    }

    #[test]
    fn registers_of_the_guests_choice_are_bounded() {
        let f = Fixture::default();
        let mut recorder = f.stats.recorder();
        let device: Arc<dyn BusDevice> = Arc::new(Device("big", Region::Only));
        let last = PLACES_MAX as u64 + 100;
        for offset in (0..last).chain(0..10).chain(last - 10..last) {
            let found = Accessed {
                device: Arc::clone(&device),
                offset,
            };
            f.exit(&mut recorder, ExitReason::MmioWrite, Some(&found), 1);
        }
        let report = f.stats.snapshot();
        assert_eq!(report.registers.len(), REGISTERS_MAX + 1);
        let other = report.registers.iter().find(|row| row.register == "other");
        let others = last - REGISTERS_MAX as u64 + 10;
        assert_eq!(other.unwrap().count, others);
        assert_eq!(report.devices[0].writes, last + 20);
        assert!(lock(&recorder.tables).places.len() <= PLACES_MAX);
    }

    #[test]
    fn a_device_in_anothers_place_is_another() {
        let f = Fixture::default();
        let mut recorder = f.stats.recorder();
        for name in ["old", "new", "newer"] {
            let bus = Bus::new("test");
            let device = Arc::new(Device(name, Region::Only));
            bus.insert(0x10, 8, device).unwrap();
            let found = bus.read(0x12, &mut [0]);
            f.exit(&mut recorder, ExitReason::IoIn, found.as_ref(), 1);
        }
        let report = f.stats.snapshot();
        let names: Vec<_> = rows(&report).iter().map(|row| row.0).collect();
        assert_eq!(names, ["new", "newer", "old"]);
    }
}
