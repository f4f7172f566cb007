//! The root bus, ECAM and the configuration ports, driven as a guest does.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::config::{COMMAND, PciConfig, PciIds};
use super::root::*;
use super::*;
use crate::bus::{AccessError, Bus, BusDevice};
use crate::posted::{PostedZone, Space};
use crate::sync::lock;
use crate::testing::{FakeDoorbell, FakePosted, Random};

const WINDOWS: PciWindows = PciWindows {
    mmio32: 0xc000_0000..0xc010_0000,
    mmio64: 0x10_0000_0000..0x10_0010_0000,
    io: 0xc000..0xc100,
};
const ECAM: u64 = 0xe000_0000;
const DOORBELL_OFFSET: u64 = 0x10;
const POSTED: Range<u32> = 0x20..0x28;
const MEM32: BarKind = BarKind::Memory32 {
    prefetchable: false,
};
const MEM64: BarKind = BarKind::Memory64 {
    prefetchable: false,
};

/// A function that remembers what was written to its BARs. Memory BARs have a doorbell each.
struct TestFunction {
    name: String,
    config: Mutex<PciConfig>,
    written: Mutex<Vec<(u8, u64, Vec<u8>)>>,
    bars: Vec<(u8, BarKind, u64)>,
}

impl TestFunction {
    fn new(name: &str, bars: &[(u8, BarKind, u64)]) -> Arc<Self> {
        let mut config = PciConfig::new(PciIds {
            vendor: 0x1af4,
            device: 0x1000,
            revision: 1,
            class: 0xff_00_00,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        for &(index, kind, size) in bars {
            config.add_bar(index, kind, size).unwrap();
        }
        Arc::new(Self {
            name: name.to_string(),
            config: Mutex::new(config),
            written: Mutex::new(Vec::new()),
            bars: bars.to_vec(),
        })
    }

    /// Index, address and length of the BARs that are decoded.
    fn decoded(&self) -> Vec<(Space, u64, u64)> {
        let config = lock(&self.config);
        self.bars
            .iter()
            .filter_map(|&(index, kind, size)| {
                Some((kind.space(), config.bar_address(index)?, size))
            })
            .collect()
    }
}

impl PciDevice for TestFunction {
    fn name(&self) -> &str {
        &self.name
    }
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        lock(&self.config).read(offset, data);
    }
    fn config_write(&self, offset: u16, data: &[u8]) -> Vec<BarChange> {
        lock(&self.config).write(offset, data)
    }
    fn bar_read(&self, bar: u8, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(bar);
        Ok(())
    }
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        lock(&self.written).push((bar, offset, data.to_vec()));
        Ok(())
    }
    fn doorbells(&self, _bar: u8) -> Vec<DoorbellSpec> {
        vec![DoorbellSpec {
            offset: DOORBELL_OFFSET,
            event: EventFd::new(0).unwrap(),
        }]
    }
    fn posted(&self, bar: u8) -> Vec<Range<u32>> {
        if bar == 0 { vec![POSTED] } else { Vec::new() }
    }
    fn reset(&self) {
        lock(&self.config).reset();
    }
}

struct Machine {
    mmio: Arc<Bus>,
    pio: Arc<Bus>,
    doorbell: Arc<FakeDoorbell>,
    posted: Arc<FakePosted>,
    root: Arc<RootBus>,
    resets: Arc<AtomicU32>,
}

impl Machine {
    fn new() -> Self {
        let mmio = Arc::new(Bus::new("mmio"));
        let pio = Arc::new(Bus::new("pio"));
        let doorbell = Arc::new(FakeDoorbell::default());
        let posted = Arc::new(FakePosted::default());
        let root = Arc::new(RootBus::new(
            &mmio,
            &pio,
            doorbell.clone(),
            posted.clone(),
            WINDOWS,
        ));
        let resets = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&resets);
        let ports = PciConfigPorts::new(
            root.clone(),
            Box::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            }),
        );
        pio.insert(0xcf8, CONFIG_PORT_COUNT, Arc::new(ports))
            .unwrap();
        mmio.insert(ECAM, ECAM_BUS_BYTES, Arc::new(Ecam::new(root.clone())))
            .unwrap();
        Self {
            mmio,
            pio,
            doorbell,
            posted,
            root,
            resets,
        }
    }

    fn config_write(&self, slot: u8, offset: u16, data: &[u8]) {
        let addr = ECAM + (u64::from(slot) << 15) + u64::from(offset);
        self.mmio.write(addr, data);
    }

    fn config_read(&self, slot: u8, offset: u16) -> u32 {
        let mut data = [0; 4];
        let addr = ECAM + (u64::from(slot) << 15) + u64::from(offset);
        self.mmio.read(addr, &mut data);
        u32::from_le_bytes(data)
    }

    fn enable(&self, slot: u8) {
        self.config_write(slot, COMMAND, &[3, 0]);
    }

    fn move_bar(&self, slot: u8, bar: u8, address: u32) {
        self.config_write(slot, config::bar_register(bar), &address.to_le_bytes());
    }

    fn claimed(&self, addr: u64) -> Option<String> {
        let found = self.mmio.read(addr, &mut [0; 4]);
        found.map(|found| found.device.name().to_string())
    }

    fn port_in<const N: usize>(&self, port: u64) -> [u8; N] {
        let mut data = [0; N];
        self.pio.read(port, &mut data);
        data
    }
}

#[test]
fn slots_are_given_out_in_order_and_refused_twice() {
    let machine = Machine::new();
    let root = &machine.root;
    let add = |slot| root.insert(TestFunction::new("f", &[]), slot);
    assert_eq!(add(None), Ok(0));
    assert_eq!(add(Some(2)), Ok(2));
    assert_eq!(root.next_slot(), Some(1));
    assert!(matches!(add(Some(2)), Err(RootBusError::Taken { .. })));
    assert!(matches!(
        add(Some(32)),
        Err(RootBusError::NoSuchSlot { .. })
    ));
    assert!(
        root.insert_function(TestFunction::new("g", &[]), 2, 1)
            .is_ok()
    );
    assert!(
        root.insert_function(TestFunction::new("g", &[]), 2, 8)
            .is_err()
    );
    for slot in (1..32).filter(|slot| *slot != 2) {
        assert_eq!(add(None), Ok(slot));
    }
    assert!(matches!(add(None), Err(RootBusError::Full { .. })));
    assert_eq!(root.next_slot(), None);
}

#[test]
fn intx_lines_swizzle() {
    assert_eq!(intx_line(0, 0), 0);
    assert_eq!(intx_line(3, 1), 4);
    assert_eq!(intx_line(31, 3), 2);
    assert_eq!(intx_line(255, 255), 6);
}

#[test]
fn bars_are_assigned_from_large_to_small_and_left_off() {
    let machine = Machine::new();
    let a = TestFunction::new(
        "a",
        &[(0, MEM32, 16), (1, BarKind::Io, 8), (2, MEM64, 0x1000)],
    );
    let b = TestFunction::new(
        "b",
        &[
            (0, MEM32, 0x4000),
            (4, MEM64, 0x8000),
            (1, BarKind::Io, 0x40),
        ],
    );
    machine.root.insert(a.clone(), Some(1)).unwrap();
    machine.root.insert(b.clone(), Some(2)).unwrap();
    machine.root.assign_resources().unwrap();
    assert!(a.decoded().is_empty() && b.decoded().is_empty());
    assert_eq!(machine.config_read(1, COMMAND) & 0x7, 0);
    machine.enable(1);
    machine.enable(2);
    assert_eq!(
        a.decoded(),
        [
            (Space::Memory, 0xc000_4000, 16),
            (Space::Io, 0xc040, 8),
            (Space::Memory, 0x10_0000_8000, 0x1000),
        ]
    );
    assert_eq!(
        b.decoded(),
        [
            (Space::Memory, 0xc000_0000, 0x4000),
            (Space::Memory, 0x10_0000_0000, 0x8000),
            (Space::Io, 0xc000, 0x40),
        ]
    );
    assert_eq!(machine.claimed(0x10_0000_8ffc).as_deref(), Some("a"));
    machine.mmio.write(0xc000_0004, &[7]);
    assert_eq!(*lock(&b.written), [(0, 4, vec![7])]);
    assert_eq!(machine.port_in::<1>(0xc041), [1]);
    // Assigning again while all is on ends in the same place, off.
    machine.root.assign_resources().unwrap();
    assert!(a.decoded().is_empty());
    assert_eq!(machine.claimed(0xc000_0000), None);
    assert!(machine.doorbell.bound().is_empty());
}

#[test]
fn a_bar_that_does_not_fit_is_an_error() {
    let machine = Machine::new();
    for name in ["a", "b"] {
        let function = TestFunction::new(name, &[(3, MEM32, 0x10_0000)]);
        machine.root.insert(function, None).unwrap();
    }
    assert_eq!(
        machine.root.assign_resources(),
        Err(RootBusError::WindowFull {
            name: "b".into(),
            bar: 3,
            size: 0x10_0000,
            window: WINDOWS.mmio32,
        })
    );
}

#[test]
fn doorbells_and_posted_zones_follow_their_bar() {
    let machine = Machine::new();
    let function = TestFunction::new("f", &[(0, MEM64, 0x1000), (2, BarKind::Io, 8)]);
    machine.root.insert(function, Some(1)).unwrap();
    machine.root.assign_resources().unwrap();
    assert!(machine.doorbell.bound().is_empty());
    machine.enable(1);
    assert_eq!(machine.doorbell.bound(), [0x10_0000_0010]);
    let zone = |start| PostedZone {
        space: Space::Memory,
        start,
        len_bytes: 8,
    };
    assert_eq!(machine.posted.zones(), [zone(0x10_0000_0020)]);
    machine.move_bar(1, 0, 0x2000);
    assert_eq!(machine.doorbell.bound(), [0x10_0000_2010]);
    assert_eq!(machine.posted.zones(), [zone(0x10_0000_2020)]);
    machine.move_bar(1, 1, 0);
    assert_eq!(machine.doorbell.bound(), [0x2010]);
    machine.config_write(1, COMMAND, &[0, 0]);
    assert!(machine.posted.zones().is_empty());
    assert!(machine.doorbell.bound().is_empty());
}

#[test]
fn a_collision_takes_nothing_from_who_is_there() {
    let machine = Machine::new();
    let a = TestFunction::new("a", &[(0, MEM32, 0x1000)]);
    let b = TestFunction::new("b", &[(0, MEM32, 0x1000)]);
    machine.root.insert(a, Some(1)).unwrap();
    machine.root.insert(b, Some(2)).unwrap();
    machine.root.assign_resources().unwrap();
    machine.enable(1);
    machine.enable(2);
    let (a_home, b_home) = (0xc000_0000, 0xc000_1000);
    // Onto ECAM, and away.
    machine.move_bar(1, 0, 0xe000_0000);
    assert_eq!(machine.claimed(ECAM).as_deref(), Some("pci-ecam"));
    assert_eq!(machine.claimed(a_home), None);
    machine.move_bar(1, 0, 0xc000_0000);
    assert_eq!(machine.claimed(ECAM).as_deref(), Some("pci-ecam"));
    assert_eq!(machine.claimed(a_home).as_deref(), Some("a"));
    // Onto b, which then leaves: a takes over.
    machine.move_bar(1, 0, 0xc000_1000);
    assert_eq!(machine.claimed(b_home).as_deref(), Some("b"));
    assert_eq!(machine.doorbell.bound(), [b_home + DOORBELL_OFFSET]);
    machine.move_bar(2, 0, 0xc000_8000);
    assert_eq!(machine.claimed(b_home).as_deref(), Some("a"));
    assert_eq!(machine.claimed(0xc000_8000).as_deref(), Some("b"));
    assert_eq!(machine.doorbell.bound().len(), 2);
}

#[test]
fn machine_reset_places_all_anew() {
    let machine = Machine::new();
    let function = TestFunction::new("f", &[(0, MEM32, 0x1000)]);
    machine.root.insert(function.clone(), Some(1)).unwrap();
    machine.root.assign_resources().unwrap();
    machine.enable(1);
    machine.move_bar(1, 0, 0xc008_0000);
    machine.root.reset().unwrap();
    assert_eq!(machine.claimed(0xc008_0000), None);
    assert!(machine.doorbell.bound().is_empty());
    machine.enable(1);
    assert_eq!(function.decoded(), [(Space::Memory, 0xc000_0000, 0x1000)]);
    assert_eq!(machine.claimed(0xc000_0000).as_deref(), Some("f"));
}

#[test]
fn ecam_answers_within_a_dword_only() {
    let machine = Machine::new();
    machine
        .root
        .insert(TestFunction::new("f", &[]), Some(3))
        .unwrap();
    let at = ECAM + (3 << 15);
    let mut data = [0; 8];
    machine.mmio.read(at, &mut data[..2]);
    assert_eq!(data[..2], [0xf4, 0x1a]);
    machine.mmio.read(at + 1, &mut data[..2]);
    assert_eq!(data[..2], [0x1a, 0x00]);
    machine.mmio.read(at + 3, &mut data[..1]);
    assert_eq!(data[0], 0x10);
    for (offset, len) in [(0, 8), (2, 4), (3, 2), (0, 3)] {
        data = [0; 8];
        machine.mmio.read(at + offset, &mut data[..len]);
        assert_eq!(data[..len], [0xff; 8][..len], "{len} bytes at {offset:#x}");
    }
    machine.mmio.write(at + 0x3a, &[0x55; 4]);
    machine.mmio.write(at + 0x38, &[0x55; 8]);
    assert_eq!(machine.config_read(3, 0x3c), 0);
    machine.mmio.write(at + 0x3c, &[0x55]);
    assert_eq!(machine.config_read(3, 0x3c), 0x55);
    // Nobody there.
    machine.config_write(4, 0x3c, &[1]);
    assert_eq!(machine.config_read(4, 0), u32::MAX);
    let mut other_function = [0; 4];
    machine.mmio.read(at + 0x1000, &mut other_function);
    assert_eq!(other_function, [0xff; 4]);
}

#[test]
fn ports_reach_every_byte_of_a_register() {
    let machine = Machine::new();
    machine
        .root
        .insert(TestFunction::new("f", &[]), Some(3))
        .unwrap();
    let select = |register: u32| {
        let address: u32 = 0x8000_0000 | 3 << 11 | register;
        machine.pio.write(0xcf8, &address.to_le_bytes());
    };
    // Closed window.
    assert_eq!(machine.port_in::<4>(0xcfc), [0xff; 4]);
    select(0);
    assert_eq!(machine.port_in::<4>(0xcf8), [0, 0x18, 0, 0x80]);
    assert_eq!(machine.port_in::<4>(0xcfc), [0xf4, 0x1a, 0x00, 0x10]);
    assert_eq!(machine.port_in::<2>(0xcfe), [0x00, 0x10]);
    assert_eq!(machine.port_in::<1>(0xcfd), [0x1a]);
    assert_eq!(machine.port_in::<2>(0xcfd), [0x1a, 0x00]);
    assert_eq!(machine.port_in::<4>(0xcfd), [0xff; 4]);
    select(0x3c);
    machine.pio.write(0xcfd, &[9]);
    machine.pio.write(0xcfc, &[0x21]);
    assert_eq!(machine.port_in::<4>(0xcfc), [0x21, 0, 0, 0]);
    // Bytes and words do not reach the address register, nor do reserved bits.
    for port in [0xcf8, 0xcfa, 0xcfb] {
        machine.pio.write(port, &[0]);
        assert_eq!(machine.port_in::<1>(port), [0xff]);
    }
    machine.pio.write(0xcf8, &[0, 0]);
    assert_eq!(machine.port_in::<4>(0xcf8), [0x3c, 0x18, 0, 0x80]);
    machine.pio.write(0xcf8, &[0xff; 4]);
    assert_eq!(machine.port_in::<4>(0xcf8), [0xfc, 0xff, 0xff, 0x80]);
    // That was bus 255.
    assert_eq!(machine.port_in::<4>(0xcfc), [0xff; 4]);
}

#[test]
fn reset_control_resets_once_per_request() {
    let machine = Machine::new();
    let resets = || machine.resets.load(Ordering::SeqCst);
    assert_eq!(machine.port_in::<1>(0xcf9), [0]);
    machine.pio.write(0xcf9, &[0x02]);
    assert_eq!(machine.port_in::<1>(0xcf9), [0x02]);
    assert_eq!(resets(), 0);
    machine.pio.write(0xcf9, &[0x06]);
    assert_eq!(resets(), 1);
    assert_eq!(machine.port_in::<1>(0xcf9), [0x02]);
    machine.pio.write(0xcf9, &[0x0e]);
    assert_eq!(resets(), 2);
    // A dword to 0xcf8 is an address, whatever its second byte says.
    machine.pio.write(0xcf8, &[0x06; 4]);
    assert_eq!(resets(), 2);
}

#[test]
fn config_ports_forget_at_reset() {
    let machine = Machine::new();
    let ports = PciConfigPorts::new(machine.root.clone(), Box::new(|| {}));
    ports.write(0, &[0, 0, 0, 0x80]).unwrap();
    ports.write(1, &[0x02]).unwrap();
    ports.reset();
    let mut data = [1; 4];
    ports.read(0, &mut data).unwrap();
    assert_eq!(data, [0; 4]);
    ports.read(1, &mut data[..1]).unwrap();
    assert_eq!(data[0], 0);
}

/// What must hold whatever a guest wrote: a BAR that nothing overlaps answers, with its doorbell; nothing else is
/// bound; who was there from the start still is.
fn check_maps(machine: &Machine, functions: &[Arc<TestFunction>]) {
    let decoded: Vec<_> = functions
        .iter()
        .flat_map(|f| f.decoded().into_iter().map(move |bar| (f, bar)))
        .collect();
    let memory: Vec<_> = decoded
        .iter()
        .filter(|(_, (space, ..))| *space == Space::Memory)
        .map(|(f, (_, start, len))| (f.name.as_str(), *start, *len))
        .collect();
    let bound = machine.doorbell.bound();
    for (i, &(name, start, len)) in memory.iter().enumerate() {
        let overlapped = memory.iter().enumerate().any(|(j, (_, other, other_len))| {
            i != j && *other < start + len && start < other + other_len
        }) || (ECAM < start + len && start < ECAM + ECAM_BUS_BYTES);
        if !overlapped {
            assert_eq!(machine.claimed(start).as_deref(), Some(name));
            assert_eq!(machine.claimed(start + len - 4).as_deref(), Some(name));
            assert!(bound.contains(&(start + DOORBELL_OFFSET)));
        }
    }
    for door in &bound {
        assert!(
            memory
                .iter()
                .any(|(_, start, _)| start + DOORBELL_OFFSET == *door),
            "stale doorbell {door:#x}"
        );
    }
    assert_eq!(machine.claimed(ECAM).as_deref(), Some("pci-ecam"));
}

#[test]
fn random_config_writes_keep_the_maps_consistent() {
    let machine = Machine::new();
    let functions: Vec<_> = ["a", "b", "c", "d"]
        .iter()
        .map(|name| {
            let bars = [
                (0, MEM32, 0x1000),
                (1, BarKind::Io, 16),
                (2, MEM64, 0x4000),
                (4, MEM64, 0x20),
            ];
            let function = TestFunction::new(name, &bars);
            machine.root.insert(function.clone(), None).unwrap();
            function
        })
        .collect();
    machine.root.assign_resources().unwrap();
    let mut random = Random::new(0x1234_5678_9abc_def1);
    for _ in 0..20_000 {
        let slot = u8::try_from(random.below(5)).unwrap();
        let (offset, value) = match random.below(4) {
            0 => (u64::from(COMMAND), random.below(8)),
            1 => (random.below(0x1000), random.number()),
            // A few addresses, so that BARs meet one another and ECAM.
            _ => {
                let value = match random.below(5) {
                    0 => u64::from(u32::MAX),
                    1 => random.below(3),
                    2 => 0xe000_0000 + random.below(3) * 0x1000,
                    _ => 0xc000_0000 + random.below(8) * 0x1000,
                };
                (0x10 + 4 * random.below(6), value)
            }
        };
        let len = [1, 2, 4, 4, 4, 8][usize::try_from(random.below(6)).unwrap()];
        machine.config_write(
            slot,
            u16::try_from(offset).unwrap(),
            &value.to_le_bytes()[..len],
        );
        check_maps(&machine, &functions);
    }
    for slot in 0..4 {
        machine.config_write(slot, COMMAND, &[0, 0]);
    }
    assert!(machine.doorbell.bound().is_empty());
    for page in 0..8 {
        assert_eq!(machine.claimed(0xc000_0000 + page * 0x1000), None);
    }
    machine.root.reset().unwrap();
    machine.enable(0);
    assert_eq!(machine.claimed(0xc000_0000).as_deref(), Some("a"));
}

#[test]
fn concurrent_writes_leave_what_some_order_of_them_explains() {
    let machine = Machine::new();
    let functions: Vec<_> = (0..2)
        .map(|i| {
            let function = TestFunction::new(["a", "b"][i], &[(0, MEM32, 0x1000)]);
            machine.root.insert(function.clone(), None).unwrap();
            function
        })
        .collect();
    std::thread::scope(|scope| {
        for seed in 1..=4 {
            let machine = &machine;
            scope.spawn(move || {
                let mut random = Random::new(seed);
                for _ in 0..2000 {
                    let slot = u8::try_from(random.below(2)).unwrap();
                    if random.below(4) == 0 {
                        machine.config_write(slot, COMMAND, &[random.below(4) as u8]);
                    } else {
                        let page = u32::try_from(random.below(4)).unwrap();
                        machine.move_bar(slot, 0, 0xc000_0000 + page * 0x1000);
                    }
                }
            });
        }
    });
    machine.enable(0);
    machine.enable(1);
    machine.move_bar(0, 0, 0xc000_0000);
    machine.move_bar(1, 0, 0xc000_1000);
    check_maps(&machine, &functions);
    assert_eq!(machine.claimed(0xc000_2000), None);
    assert_eq!(machine.claimed(0xc000_3000), None);
}
