//! The function as a driver sees it: two memory disks and a CD-ROM, RAM, fake wires.

mod atapi;
mod disk;
mod dma;
mod hostile;
mod on_bus;

use std::sync::Arc;

use super::bus_master::{START, TO_MEMORY};
use super::*;
use crate::block::{MemoryControl, MemoryDisk};
use crate::pci::config::{COMMAND, COMMAND_BUS_MASTER};
use crate::testing::{FakePin, test_ram};

const RAM_BYTES: usize = 4 << 20;
const SECTORS: u64 = 4096;
const TABLE_AT: u32 = 0x1000;
const BUSY: u8 = registers::BSY;
const READY: u8 = registers::DRDY | registers::DSC;
const FAILED: u8 = READY | registers::ERR;

/// Primary master and slave are disks, secondary master is a CD-ROM.
struct Rig {
    ide: Arc<Ide>,
    command: [Arc<dyn BusDevice>; 2],
    control: [Arc<dyn BusDevice>; 2],
    pins: [Arc<FakePin>; 2],
    ram: DmaMem,
    disks: [MemoryControl; 3],
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(7) ^ (i >> 8) as u8 ^ seed)
        .collect()
}

fn info(size_bytes: u64, read_only: bool) -> BlockInfo {
    BlockInfo {
        size_bytes,
        logical_block_bytes: 512,
        physical_block_bytes: 4096,
        read_only,
        discard: false,
        write_zeroes: false,
    }
}

impl Rig {
    fn new() -> Self {
        Self::with_first(info(SECTORS * 512, false))
    }

    fn with_first(first: BlockInfo) -> Self {
        let ram = test_ram(RAM_BYTES);
        let (line0, pin0) = FakePin::line();
        let (line1, pin1) = FakePin::line();
        let (a, a_control) = MemoryDisk::new(first);
        let (b, b_control) = MemoryDisk::new(info(8 << 10, false));
        let (c, c_control) = MemoryDisk::new(info(1 << 20, true));
        let drive = |kind, disk: MemoryDisk, serial: &str| {
            Some(IdeDrive {
                kind,
                backend: Box::new(disk),
                serial: serial.to_string(),
            })
        };
        let drives = [
            drive(IdeDriveKind::Disk, a, "ONE"),
            drive(IdeDriveKind::Disk, b, "TWO"),
            drive(IdeDriveKind::Cdrom, c, "CD"),
            None,
        ];
        let ide = Ide::new("ide".into(), drives, Arc::clone(&ram), [line0, line1]).unwrap();
        let rig = Self {
            command: [ide.command_block(0), ide.command_block(1)],
            control: [ide.control_block(0), ide.control_block(1)],
            ide,
            pins: [pin0, pin1],
            ram: DmaMem::always_on(ram),
            disks: [a_control, b_control, c_control],
        };
        rig.set_command(COMMAND_IO_SPACE | COMMAND_BUS_MASTER);
        rig
    }

    fn set_command(&self, command: u16) {
        let _ = self.ide.config_write(COMMAND, &command.to_le_bytes());
    }

    fn out(&self, channel: usize, register: u8, value: u8) {
        self.command[channel]
            .write(register.into(), &[value])
            .unwrap();
    }

    fn get(&self, channel: usize, register: u8) -> u8 {
        let mut data = [0];
        self.command[channel]
            .read(register.into(), &mut data)
            .unwrap();
        data[0]
    }

    fn alternate(&self, channel: usize) -> u8 {
        let mut data = [0];
        self.control[channel].read(0, &mut data).unwrap();
        data[0]
    }

    fn set_control(&self, channel: usize, value: u8) {
        self.control[channel].write(0, &[value]).unwrap();
    }

    /// The event loop's turn, for both channels.
    fn turn(&self) {
        self.ide.run(0);
        self.ide.run(1);
    }

    /// Primary channel: the task file of a 28-bit command, drive 0 or 1.
    fn task(&self, drive: u8, feature: u8, count: u8, lba: u32) {
        let [low, mid, high, top] = lba.to_le_bytes();
        let device = 0xe0 | drive << 4 | top & 0xf;
        for (register, value) in (1..).zip([feature, count, low, mid, high, device]) {
            self.out(0, register, value);
        }
    }

    /// A 28-bit command on the primary channel.
    fn issue(&self, drive: u8, command: u8, count: u8, lba: u32) {
        self.task(drive, 0, count, lba);
        self.out(0, registers::STATUS, command);
        self.turn();
    }

    /// A 48-bit command on the primary master.
    fn issue_ext(&self, command: u8, count: u16, lba: u64) {
        let (count, lba) = (count.to_le_bytes(), lba.to_le_bytes());
        for (register, bytes) in [
            (2, [count[1], count[0]]),
            (3, [lba[3], lba[0]]),
            (4, [lba[4], lba[1]]),
            (5, [lba[5], lba[2]]),
        ] {
            self.out(0, register, bytes[0]);
            self.out(0, register, bytes[1]);
        }
        self.out(0, registers::DEVICE, 0x40);
        self.out(0, registers::STATUS, command);
        self.turn();
    }

    /// Reads a block of data, expecting that there is one.
    fn pio_in(&self, channel: usize, len: usize) -> Vec<u8> {
        assert_ne!(self.get(channel, registers::STATUS) & registers::DRQ, 0);
        let mut data = vec![0; len];
        for word in data.chunks_mut(2) {
            self.command[channel].read(0, word).unwrap();
        }
        self.turn();
        data
    }

    fn pio_out(&self, channel: usize, data: &[u8]) {
        assert_ne!(self.get(channel, registers::STATUS) & registers::DRQ, 0);
        for word in data.chunks(2) {
            self.command[channel].write(0, word).unwrap();
        }
        self.turn();
    }

    fn bm_out(&self, channel: u64, register: u8, data: &[u8]) {
        self.ide
            .bar_write(BAR, channel * 8 + u64::from(register), data)
            .unwrap();
    }

    fn bm_status(&self, channel: u64) -> u8 {
        let mut data = [0];
        self.ide.bar_read(BAR, channel * 8 + 2, &mut data).unwrap();
        data[0]
    }

    /// A table of regions, and the engine ready in that direction.
    fn prepare(&self, channel: u64, prds: &[(u32, u32)], to_memory: bool) {
        for (index, (addr, flags)) in (0u64..).zip(prds) {
            let at = u64::from(TABLE_AT) + index * 8;
            self.ram.write(at, &addr.to_le_bytes()).unwrap();
            self.ram.write(at + 4, &flags.to_le_bytes()).unwrap();
        }
        self.bm_out(channel, bus_master::TABLE, &TABLE_AT.to_le_bytes());
        self.bm_out(channel, 0, &[if to_memory { TO_MEMORY } else { 0 }]);
        self.bm_out(channel, 2, &[0x66]);
    }

    /// Starts the engine.
    fn start(&self, channel: usize, to_memory: bool) {
        let direction = if to_memory { TO_MEMORY } else { 0 };
        self.bm_out(channel as u64, bus_master::COMMAND, &[START | direction]);
        self.turn();
    }

    /// A 28-bit READ DMA of drive 0 on the primary channel, told by its doorbell.
    fn ring_read(&self, count: u8, lba: u32) {
        self.task(0, 0, count, lba);
        self.ide.bells[0].ring(Bell::DmaRead(0xc8));
    }

    fn memory(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read(addr, &mut data).unwrap();
        data
    }

    /// The interrupt came, the status that its handler reads, and the wire is low afterwards.
    fn served(&self, channel: usize) -> u8 {
        assert!(self.pins[channel].level(), "no interrupt");
        let status = self.get(channel, registers::STATUS);
        assert!(!self.pins[channel].level(), "still asserted");
        status
    }
}
