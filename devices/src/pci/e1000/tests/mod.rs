//! The device driven as a driver does: registers through its BARs, rings in test RAM, a wire in memory.

mod hostile;
mod moderation;
mod rx;
mod tx;
mod units;

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::registers::*;
use super::*;
use crate::net::{PipeNet, PipePeer};
use crate::pci::config::{
    CAPABILITIES_POINTER, COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY_SPACE, INTERRUPT_PIN,
    bar_register,
};
use crate::testing::{FakePin, test_ram};

const RAM_BYTES: usize = 4 << 20;
const TX_RING: u64 = 0x1000;
const RX_RING: u64 = 0x2000;
/// Descriptors in each ring, unless a test says otherwise.
const RING_SIZE: u32 = 16;
const TX_DATA: u64 = 0x10_0000;
const RX_DATA: u64 = 0x20_0000;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// An adapter, its driver and its wire.
struct Bench {
    nic: Arc<E1000>,
    ram: Arc<GuestRam>,
    peer: PipePeer,
    pin: Arc<FakePin>,
    tx_tail: u32,
    rx_next: u32,
}

impl Bench {
    /// After power-on, bus mastering on.
    fn cold() -> Self {
        let ram = test_ram(RAM_BYTES);
        let (wire, peer) = PipeNet::pair().unwrap();
        let (line, pin) = FakePin::line();
        let mac = MacAddr::new(MAC).unwrap();
        let nic = E1000::new("e1000-0".into(), Box::new(wire), mac, ram.clone(), line).unwrap();
        let command = COMMAND_BUS_MASTER | COMMAND_MEMORY_SPACE;
        let _ = nic.config_write(COMMAND, &command.to_le_bytes());
        Self {
            nic,
            ram,
            peer,
            pin,
            tx_tail: 0,
            rx_next: 0,
        }
    }

    /// With both rings set up, all receive buffers given, all interrupts on.
    fn new() -> Self {
        let bench = Self::cold();
        bench.set_up();
        bench
    }

    fn set_up(&self) {
        for i in 0..RING_SIZE {
            let addr = RX_DATA + u64::from(i) * 0x4000;
            self.put(RX_RING + u64::from(i) * 16, &addr.to_le_bytes());
        }
        for (register, value) in [
            (TDBAL, TX_RING as u32),
            (TDBAL + 8, RING_SIZE * 16),
            (RDBAL, RX_RING as u32),
            (RDBAL + 8, RING_SIZE * 16),
            (TCTL, TCTL_EN),
            (RCTL, RCTL_EN | RCTL_BAM),
            (RDT, RING_SIZE - 1),
            (IMS, ICR_ALL),
        ] {
            self.write(register, value);
        }
        self.again();
        self.read(ICR);
    }

    fn read(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.nic.bar_read(0, register.into(), &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u32, value: u32) {
        self.nic
            .bar_write(0, register.into(), &value.to_le_bytes())
            .unwrap();
    }

    fn put(&self, addr: u64, data: &[u8]) {
        self.ram.write_slice(data, GuestAddress(addr)).unwrap();
    }

    fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read_slice(&mut data, GuestAddress(addr)).unwrap();
        data
    }

    /// Whether the device had asked to be called again; if so, it is.
    fn again(&self) -> bool {
        let asked = self.nic.rerun.is_asked();
        if asked {
            self.nic.process_rerun();
        }
        asked
    }

    /// Puts descriptors into the transmit ring and hands them over.
    fn send(&mut self, descriptors: &[[u8; 16]]) {
        for descriptor in descriptors {
            self.put(TX_RING + u64::from(self.tx_tail) * 16, descriptor);
            self.tx_tail = (self.tx_tail + 1) % RING_SIZE;
        }
        self.write(TDT, self.tx_tail);
    }

    /// A frame comes on the wire, behind a plain header.
    fn arrive(&self, frame: &[u8]) {
        self.arrive_with([0; 12], frame);
    }

    fn arrive_with(&self, header: [u8; 12], frame: &[u8]) {
        self.peer.push(&[&header[..], frame].concat());
        self.nic.process_backend(EventSet::IN);
    }

    /// The next receive descriptor's upper half, if it is done: length, status, errors, tag.
    fn next_received(&mut self) -> Option<Received> {
        let at = RX_RING + u64::from(self.rx_next) * 16;
        let upper = self.get(at + 8, 8);
        if upper[4] & 1 == 0 {
            return None;
        }
        let len = u16::from_le_bytes([upper[0], upper[1]]);
        let buffer = RX_DATA + u64::from(self.rx_next) * 0x4000;
        self.put(at + 8, &[0; 8]);
        self.rx_next = (self.rx_next + 1) % RING_SIZE;
        Some(Received {
            data: self.get(buffer, len.into()),
            checksum: u16::from_be_bytes([upper[2], upper[3]]),
            status: upper[4],
            errors: upper[5],
            tag: u16::from_le_bytes([upper[6], upper[7]]),
        })
    }

    fn set_command(&self, command: u16) {
        let _ = self.nic.config_write(COMMAND, &command.to_le_bytes());
    }
}

/// A receive descriptor that is done.
struct Received {
    data: Vec<u8>,
    checksum: u16,
    status: u8,
    errors: u8,
    tag: u16,
}

/// An Ethernet frame to `to` with `len` bytes in all.
fn frame_to(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
    frame[..6].copy_from_slice(&to);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

#[test]
fn identity_and_bars() {
    let bench = Bench::cold();
    let mut ids = [0; 4];
    bench.nic.config_read(0, &mut ids);
    assert_eq!(ids, [0x86, 0x80, 0x0e, 0x10]);
    let mut pin = [0; 1];
    bench.nic.config_read(INTERRUPT_PIN, &mut pin);
    assert_eq!(pin, [1]);
    for (bar, mask) in [(0, 0xfffe_0000_u32), (1, 0), (2, 0xffff_ffc1)] {
        let register = bar_register(bar);
        let _ = bench.nic.config_write(register, &[0xff; 4]);
        let mut value = [0; 4];
        bench.nic.config_read(register, &mut value);
        assert_eq!(u32::from_le_bytes(value), mask, "BAR {bar}");
    }
}

#[test]
fn reset_values() {
    let bench = Bench::cold();
    assert_eq!(bench.read(STATUS), 0x283);
    assert_eq!(bench.read(CTRL), 0x241);
    assert_eq!(bench.read(VET), 0x8100);
    assert_eq!(bench.read(PBA), 0x0010_0030);
    assert_eq!(bench.read(RAL), 0x1200_5452);
    assert_eq!(bench.read(RAL + 4), 0x8000_5634);
    for register in [ICR, IMS, RCTL, TCTL, RDBAL, TDT, MTA, VFTA, ITR, RXCSUM] {
        assert_eq!(bench.read(register), 0, "{register:#x}");
    }
}

#[test]
fn registers_keep_only_the_bits_they_have() {
    let bench = Bench::cold();
    // What Linux's own register test expects of this chip.
    for (register, mask) in [
        (FCAL, 0xffff_ffff),
        (FCAH, 0xffff),
        (FCT, 0xffff),
        (VET, 0xffff),
        (RDTR, 0xffff),
        (RDBAL, 0xffff_fff0),
        (RDBAL + 4, 0xffff_ffff),
        (RDBAL + 8, 0xf_ff80),
        (RDBAL + 0x10, 0xffff),
        (RDT, 0xffff),
        (FCRTH, 0xfff8),
        (FCTTV, 0xffff),
        (TIPG, 0x3fff_ffff),
        (TDBAL, 0xffff_fff0),
        (TDBAL + 4, 0xffff_ffff),
        (TDBAL + 8, 0xf_ff80),
        (TXCW, 0xc000_ffff),
        (RAL + 8, 0xffff_ffff),
        (RAL + 12, 0x8003_ffff),
        (MTA + 4, 0xffff_ffff),
        (VFTA + 4, 0xffff_ffff),
    ] {
        for pattern in [0x5a5a_5a5a, 0xa5a5_a5a5, 0, u32::MAX] {
            bench.write(register, pattern);
            assert_eq!(bench.read(register), pattern & mask, "{register:#x}");
        }
    }
    // Read-only.
    bench.write(STATUS, 0);
    assert_eq!(bench.read(STATUS), 0x283);
}

#[test]
fn accesses_of_every_width() {
    let bench = Bench::cold();
    let mut byte = [0; 1];
    bench.nic.bar_read(0, 0x0009, &mut byte).unwrap();
    assert_eq!(byte, [0x02]);
    let mut word = [0; 2];
    bench.nic.bar_read(0, 0x0008, &mut word).unwrap();
    assert_eq!(word, [0x83, 0x02]);
    let mut eight = [0; 8];
    bench.nic.bar_read(0, RAL.into(), &mut eight).unwrap();
    assert_eq!(eight, [0x52, 0x54, 0, 0x12, 0x34, 0x56, 0, 0x80]);
    bench.nic.bar_write(0, u64::from(MTA), &[0x11; 8]).unwrap();
    assert_eq!(bench.read(MTA + 4), 0x1111_1111);
    // Across registers, and narrow writes.
    assert!(bench.nic.bar_read(0, 0x000a, &mut [0; 4]).is_err());
    for len in [1, 2] {
        let data = vec![0; len];
        assert!(bench.nic.bar_write(0, u64::from(MTA), &data).is_err());
    }
    assert_eq!(bench.read(MTA), 0x1111_1111);
}

#[test]
fn the_io_window_reaches_the_registers() {
    let bench = Bench::cold();
    let nic = &bench.nic;
    nic.bar_write(2, 0, &VET.to_le_bytes()).unwrap();
    nic.bar_write(2, 4, &[0x34, 0x12, 0, 0]).unwrap();
    let mut value = [0; 4];
    nic.bar_read(2, 4, &mut value).unwrap();
    assert_eq!((value, bench.read(VET)), ([0x34, 0x12, 0, 0], 0x1234));
    for target in [0x2_0000_u32, 0x39, u32::MAX] {
        nic.bar_write(2, 0, &target.to_le_bytes()).unwrap();
        assert!(nic.bar_read(2, 4, &mut value).is_err());
        assert!(nic.bar_write(2, 4, &value).is_err());
    }
    assert!(nic.bar_read(2, 8, &mut value).is_err());
    assert!(nic.bar_read(2, 0, &mut [0; 2]).is_err());
    // CTRL.RST through the window, as Linux does it.
    nic.bar_write(2, 0, &CTRL.to_le_bytes()).unwrap();
    nic.bar_write(2, 4, &CTRL_RST.to_le_bytes()).unwrap();
    assert_eq!((bench.read(VET), bench.read(CTRL)), (0x8100, 0x241));
}

#[test]
fn a_reset_in_the_middle_of_everything() {
    let mut bench = Bench::new();
    bench.write(VFTA, 7);
    bench.arrive(&frame_to(MAC, 100));
    // A frame half given.
    bench.send(&[tx::legacy(TX_DATA, 50, 0)]);
    assert!(bench.pin.level());
    bench.write(CTRL, CTRL_RST);
    assert!(!bench.pin.level());
    for register in [ICR, IMS, RCTL, TCTL, RDBAL, TDT, VFTA, STATISTICS + 0xd0] {
        assert_eq!(bench.read(register), 0, "{register:#x}");
    }
    bench.arrive(&frame_to(MAC, 100));
    assert_eq!(bench.peer.waiting(), 1);
    // It works as before, and the half frame is gone.
    bench.set_up();
    bench.tx_tail = 0;
    bench.rx_next = 0;
    bench.again();
    assert_eq!(bench.next_received().unwrap().data.len(), 104);
    bench.send(&[tx::legacy(TX_DATA, 60, tx::EOP)]);
    assert_eq!(bench.peer.take_sent()[0].len(), 12 + 60);
}

#[test]
fn a_machine_reset() {
    let bench = Bench::new();
    bench.arrive(&frame_to(MAC, 100));
    bench.nic.reset();
    assert!(!bench.pin.level());
    assert_eq!(bench.read(RCTL), 0);
    let mut command = [0; 2];
    bench.nic.config_read(COMMAND, &mut command);
    assert_eq!(command, [0, 0]);
}

#[test]
fn causes_mask_and_wire() {
    let bench = Bench::cold();
    bench.write(ICS, ICR_LSC);
    assert!(!bench.pin.level());
    bench.write(IMS, ICR_LSC | ICR_RXT0);
    assert!(bench.pin.level());
    bench.write(IMC, ICR_LSC);
    assert!(!bench.pin.level());
    assert_eq!((bench.read(IMS), bench.read(ICS)), (ICR_RXT0, ICR_LSC));
    bench.write(IMS, ICR_LSC);
    assert!(bench.pin.level());
    assert_eq!(bench.read(ICR), ICR_LSC);
    assert!(!bench.pin.level());
    assert_eq!(bench.read(ICR), 0);
    bench.write(ICS, ICR_LSC | ICR_RXT0);
    bench.write(ICR, ICR_LSC);
    assert_eq!(bench.read(ICR), ICR_RXT0);
}

#[test]
fn the_interrupt_disable_bit_holds_the_wire_low() {
    let bench = Bench::new();
    bench.write(ICS, ICR_LSC);
    bench.set_command(COMMAND_BUS_MASTER | COMMAND_INTERRUPT_DISABLE);
    assert!(!bench.pin.level());
    let mut status = [0; 2];
    bench.nic.config_read(CONFIG_STATUS, &mut status);
    assert_eq!(status[0] & 8, 8);
    bench.set_command(COMMAND_BUS_MASTER);
    assert!(bench.pin.level());
}

#[test]
fn the_link_goes_down_and_comes_up() {
    let mut bench = Bench::new();
    bench.nic.set_link(false);
    assert_eq!(bench.read(STATUS) & STATUS_LU, 0);
    assert_eq!(bench.read(ICR), ICR_LSC);
    bench.arrive(&frame_to(MAC, 100));
    assert!(bench.next_received().is_none());
    bench.send(&[tx::legacy(TX_DATA, 60, tx::EOP | tx::RS)]);
    assert!(bench.peer.take_sent().is_empty());
    assert_eq!(bench.get(TX_RING + 12, 1), [1]);
    bench.nic.set_link(true);
    assert_eq!(bench.read(STATUS) & STATUS_LU, STATUS_LU);
    assert!(bench.read(ICR) & ICR_LSC != 0);
    bench.again();
    assert!(bench.next_received().is_some());
}

#[test]
fn asleep_nothing_answers_and_waking_resets() {
    let bench = Bench::new();
    let mut cap = [0; 1];
    bench.nic.config_read(CAPABILITIES_POINTER, &mut cap);
    let pmcsr = u16::from(cap[0]) + 4;
    let _ = bench.nic.config_write(pmcsr, &[3, 0]);
    assert!(bench.nic.bar_read(0, 8, &mut [0; 4]).is_err());
    bench.arrive(&frame_to(MAC, 100));
    assert_eq!(bench.peer.waiting(), 1);
    let _ = bench.nic.config_write(pmcsr, &[0, 0]);
    assert_eq!(bench.read(RCTL), 0);
}

#[test]
fn loopback_brings_frames_back() {
    let mut bench = Bench::new();
    bench.write(RCTL, RCTL_EN | RCTL_LBM);
    bench.put(TX_DATA, &frame_to(MAC, 100));
    bench.send(&[tx::legacy(TX_DATA, 100, tx::EOP)]);
    assert!(bench.again());
    assert_eq!(
        bench.next_received().unwrap().data[..100],
        frame_to(MAC, 100)
    );
    assert!(bench.peer.take_sent().is_empty());
}

#[test]
fn what_is_posted_is_what_only_stores() {
    let posted = Bench::cold().nic.posted(0);
    let has = |register: u32| posted.iter().any(|range| range.contains(&register));
    for register in [EECD, ITR, IMC, RDT, MTA, RAL, VFTA] {
        assert!(has(register), "{register:#x}");
    }
    for register in [CTRL, IMS, ICS, ICR, TDT, RCTL, TCTL, MDIC, RDTR] {
        assert!(!has(register), "{register:#x}");
    }
    assert!(Bench::cold().nic.posted(2).is_empty());
}
