//! EEPROM, PHY and statistics.

use super::*;

const SK: u32 = 1;
const CS: u32 = 2;
const DI: u32 = 4;
const DO: u32 = 8;

fn eerd(bench: &Bench, address: u32) -> u32 {
    bench.write(EERD, address << 8 | 1);
    bench.read(EERD)
}

/// Clocks `count` bits out of `value`, the highest first; returns what came back.
fn clock(bench: &Bench, value: u32, count: u32) -> u32 {
    let mut back = 0;
    for i in (0..count).rev() {
        let data = if value >> i & 1 != 0 { DI } else { 0 };
        for step in [CS | data, CS | data | SK] {
            bench.write(EECD, step);
        }
        back = back << 1 | u32::from(bench.read(EECD) & DO != 0);
        bench.write(EECD, CS | data);
    }
    back
}

fn microwire(bench: &Bench, command: u32, data: u32, data_bits: u32) -> u32 {
    bench.write(EECD, CS);
    clock(bench, command, 9);
    let back = clock(bench, data, data_bits);
    bench.write(EECD, 0);
    back
}

#[test]
fn the_eeprom_by_eerd() {
    let bench = Bench::cold();
    assert_eq!(eerd(&bench, 0), 0x5452_0010);
    assert_eq!(eerd(&bench, 1) >> 16, 0x1200);
    assert_eq!(eerd(&bench, 2) >> 16, 0x5634);
    let sum = (0..64).fold(0_u16, |sum, address| {
        sum.wrapping_add((eerd(&bench, address) >> 16) as u16)
    });
    assert_eq!(sum, 0xbaba);
    assert_eq!(eerd(&bench, 64) >> 16, 0xffff);
    assert_eq!(eerd(&bench, 255) >> 16, 0xffff);
}

#[test]
fn the_eeprom_bit_by_bit() {
    let bench = Bench::cold();
    bench.write(EECD, 0x40);
    assert_eq!(bench.read(EECD) & 0x3c0, 0x1c0);
    for address in 0..64 {
        let word = microwire(&bench, 0b110 << 6 | address, 0, 16);
        assert_eq!(word, eerd(&bench, address) >> 16, "{address}");
    }
    // Two words in one go.
    let words = microwire(&bench, 0b110 << 6 | 63, 0, 32);
    assert_eq!(
        words,
        eerd(&bench, 63) & 0xffff_0000 | eerd(&bench, 0) >> 16
    );
    // An unfinished command is forgotten.
    bench.write(EECD, CS);
    clock(&bench, 0b110, 3);
    bench.write(EECD, 0);
    assert_eq!(microwire(&bench, 0b110 << 6, 0, 16), 0x5452);
}

#[test]
fn the_eeprom_is_written_only_when_enabled() {
    let bench = Bench::cold();
    let write = |value| microwire(&bench, 0b101 << 6 | 5, value, 16);
    let read = || eerd(&bench, 5) >> 16;
    let before = read();
    write(0x1234);
    assert_eq!(read(), before);
    microwire(&bench, 0b1_0011_0000, 0, 0);
    write(0x1234);
    assert_eq!(read(), 0x1234);
    microwire(&bench, 0b1_0000_0000, 0, 0);
    write(0x4321);
    assert_eq!(read(), 0x1234);
    bench.write(CTRL, CTRL_RST);
    assert_eq!(read(), 0x1234);
}

fn mdic(bench: &Bench, phy: u32, op: u32, register: u32, data: u32) -> u32 {
    bench.write(MDIC, op << 26 | phy << 21 | register << 16 | data);
    bench.read(MDIC)
}

#[test]
fn the_phy_by_mdic() {
    let bench = Bench::cold();
    let read = |register| mdic(&bench, 1, 2, register, 0);
    assert_eq!(read(2) & 0xffff, 0x0141);
    assert_eq!(read(3) & 0xffff, 0x0c20);
    assert_eq!(read(2) & (1 << 28 | 1 << 30), 1 << 28);
    assert_eq!(read(1) & 0x24, 0x24);
    assert_eq!(read(17) & 0xffff, 0xac00);
    mdic(&bench, 1, 1, 4, 0x0123);
    assert_eq!(read(4) & 0xffff, 0x0123);
    // Read-only.
    mdic(&bench, 1, 1, 2, 0);
    assert_eq!(read(2) & 0xffff, 0x0141);
    // Nobody there, and no operation.
    assert_eq!(mdic(&bench, 2, 2, 2, 0) & 0x4000_ffff, 0x4000_ffff);
    assert_ne!(mdic(&bench, 1, 3, 2, 0) & 1 << 30, 0);
    // The interrupt.
    bench.write(MDIC, 1 << 29 | 2 << 26 | 1 << 21);
    assert_eq!(bench.read(ICR), ICR_MDAC);
}

#[test]
fn the_phy_remembers_that_the_link_was_down() {
    let bench = Bench::cold();
    let link = || mdic(&bench, 1, 2, 1, 0) & 4 != 0;
    bench.nic.set_link(false);
    bench.nic.set_link(true);
    assert!(!link());
    assert!(link());
    // Powered down and up by the driver.
    bench.read(ICR);
    mdic(&bench, 1, 1, 0, 0x1940);
    assert_eq!(bench.read(STATUS) & STATUS_LU, 0);
    assert_eq!(bench.read(ICR), ICR_LSC);
    mdic(&bench, 1, 1, 0, 0x9140);
    assert_eq!(bench.read(STATUS) & STATUS_LU, STATUS_LU);
    // Auto-negotiation ends with a word of it.
    bench.read(ICR);
    mdic(&bench, 1, 1, 0, 0x1340);
    assert_eq!(bench.read(ICR), ICR_LSC);
    assert_eq!(mdic(&bench, 1, 2, 0, 0) & 0xffff, 0x1140);
    bench.write(CTRL, CTRL_PHY_RST);
    assert_eq!(mdic(&bench, 1, 2, 0, 0) & 0xffff, 0x1140);
}

#[test]
fn statistics_count_and_clear() {
    let mut bench = Bench::new();
    bench.arrive(&frame_to([0xff; 6], 60));
    bench.arrive(&frame_to(MAC, 300));
    bench.send(&[tx::legacy(TX_DATA, 1000, tx::EOP)]);
    for (register, expected) in [
        (0x40d0, 2),
        (0x4074, 2),
        (0x4078, 1),
        (0x405c, 1),
        (0x4068, 1),
        (0x4080, 1),
        (0x40d4, 1),
        (0x40e8, 1),
    ] {
        assert_eq!(bench.read(register), expected, "{register:#x}");
        assert_eq!(bench.read(register), 0, "{register:#x}");
    }
    // 64 bits: the lower half stays until the upper one is read.
    for (low, bytes) in [(0x4088, 64 + 304), (0x40c0, 64 + 304), (0x4090, 1004)] {
        assert_eq!(bench.read(low), bytes, "{low:#x}");
        assert_eq!(bench.read(low), bytes, "{low:#x}");
        assert_eq!(bench.read(low + 4), 0);
        assert_eq!(bench.read(low), 0, "{low:#x}");
    }
}
