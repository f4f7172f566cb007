//! BAR 4 on the root bus: what is posted, and the doorbells that go before it.

use super::*;
use crate::bus::Bus;
use crate::pci::{CONFIG_PORT_COUNT, PciConfigPorts, PciWindows, RootBus};
use crate::testing::{FakeDoorbell, FakePosted};

struct Machine {
    pio: Arc<Bus>,
    _mmio: Arc<Bus>,
    doorbell: Arc<FakeDoorbell>,
    posted: Arc<FakePosted>,
}

impl Machine {
    fn new() -> Self {
        let (pio, mmio) = (Arc::new(Bus::new("pio")), Arc::new(Bus::new("mmio")));
        let (doorbell, posted) = (
            Arc::new(FakeDoorbell::default()),
            Arc::new(FakePosted::default()),
        );
        let windows = PciWindows {
            mmio32: 0xc000_0000..0xe000_0000,
            mmio64: 0..0,
            io: 0xc000..0xe000,
        };
        let root = RootBus::new(&mmio, &pio, doorbell.clone(), posted.clone(), windows);
        root.insert(Rig::new().ide, Some(0)).unwrap();
        root.assign_resources().unwrap();
        let ports = PciConfigPorts::new(Arc::new(root), Box::new(|| {}));
        pio.insert(0xcf8, CONFIG_PORT_COUNT, Arc::new(ports))
            .unwrap();
        Self {
            pio,
            _mmio: mmio,
            doorbell,
            posted,
        }
    }

    fn set_command(&self, command: u16) {
        self.pio.write(0xcf8, &0x8000_0004u32.to_le_bytes());
        self.pio.write(0xcfc, &command.to_le_bytes());
    }

    fn posted_ports(&self) -> Vec<(u64, u32)> {
        let zones = self.posted.zones();
        zones
            .iter()
            .map(|zone| (zone.start, zone.len_bytes))
            .collect()
    }
}

#[test]
fn what_only_stores_is_posted_and_what_does_not_start_rings() {
    let machine = Machine::new();
    assert!(machine.doorbell.ports().is_empty());
    machine.set_command(COMMAND_IO_SPACE);
    let stops = [(0xc000, 0), (0xc000, 8), (0xc008, 0), (0xc008, 8)];
    assert_eq!(machine.doorbell.ports(), stops);
    let posted = [(0xc002, 1), (0xc004, 4), (0xc00a, 1), (0xc00c, 4)];
    assert_eq!(machine.posted_ports(), posted);
    machine.set_command(0);
    assert!(machine.doorbell.ports().is_empty());
    assert!(machine.posted_ports().is_empty());
}
