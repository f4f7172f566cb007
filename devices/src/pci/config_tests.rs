//! Configuration space, bit by bit.

use std::sync::atomic::Ordering;

use super::BarChange;
use super::config::*;
use crate::posted::Space;

const IDS: PciIds = PciIds {
    vendor: 0x1234,
    device: 0x5678,
    revision: 9,
    class: 0x0a0b0c,
    subsystem_vendor: 0xaaaa,
    subsystem: 0xbbbb,
};
const MEM32: BarKind = BarKind::Memory32 {
    prefetchable: false,
};
const MEM64: BarKind = BarKind::Memory64 { prefetchable: true };

fn with_bars() -> PciConfig {
    let mut config = PciConfig::new(IDS);
    config.add_bar(0, MEM32, 0x1000).unwrap();
    config.add_bar(1, BarKind::Io, 0x20).unwrap();
    config.add_bar(2, MEM64, 0x4000).unwrap();
    config
}

fn write_u32(config: &mut PciConfig, offset: u16, value: u32) -> Vec<BarChange> {
    config.write(offset, &value.to_le_bytes())
}

fn write_u16(config: &mut PciConfig, offset: u16, value: u16) -> Vec<BarChange> {
    config.write(offset, &value.to_le_bytes())
}

#[test]
fn header_shows_the_ids() {
    let config = PciConfig::new(IDS);
    assert_eq!(config.read_u32(VENDOR_ID), 0x5678_1234);
    assert_eq!(config.read_u32(REVISION_ID), 0x0a0b_0c09);
    assert_eq!(config.read_u32(SUBSYSTEM_VENDOR_ID), 0xbbbb_aaaa);
    assert_eq!(config.read_u16(HEADER_TYPE), 0);
    assert_eq!(config.read_u16(STATUS), 0);
}

#[test]
fn every_bit_that_is_not_named_writable_is_read_only() {
    let mut expected = [0u8; 256];
    let command: u16 = 0x0547;
    put(&mut expected, COMMAND, &command.to_le_bytes());
    put(&mut expected, CACHE_LINE_SIZE, &[0xff]);
    put(&mut expected, INTERRUPT_LINE, &[0xff]);
    put(&mut expected, 0x10, &0xffff_f000u32.to_le_bytes());
    put(&mut expected, 0x14, &0xffff_ffe0u32.to_le_bytes());
    put(&mut expected, 0x18, &0xffff_ffff_ffff_c000u64.to_le_bytes());
    for (offset, mask) in expected.iter().enumerate() {
        for bit in 0..8 {
            let mut config = with_bars();
            let at = u16::try_from(offset).unwrap();
            let mut before = [0];
            config.read(at, &mut before);
            let _ = config.write(at, &[before[0] ^ (1 << bit)]);
            let mut after = [0];
            config.read(at, &mut after);
            assert_eq!(
                (before[0] ^ after[0]) & (1 << bit),
                mask & (1 << bit),
                "offset {offset:#x} bit {bit}"
            );
            assert_eq!((before[0] ^ after[0]) & !(1 << bit), 0);
        }
    }
}

#[test]
fn space_bits_are_wired_to_zero_without_such_bars() {
    let mut config = PciConfig::new(IDS);
    let _ = write_u16(&mut config, COMMAND, 0xffff);
    assert_eq!(
        config.command() & (COMMAND_IO_SPACE | COMMAND_MEMORY_SPACE),
        0
    );
}

#[test]
fn bus_master_follows_the_command_register_and_reset() {
    let mut config = with_bars();
    let gate = config.bus_master();
    assert!(!gate.load(Ordering::Acquire));
    let _ = config.write(COMMAND, &[COMMAND_BUS_MASTER.to_le_bytes()[0]]);
    assert!(gate.load(Ordering::Acquire));
    config.reset();
    assert!(!gate.load(Ordering::Acquire));
}

#[test]
fn sizing_shows_the_size_and_decodes_nothing() {
    let mut config = with_bars();
    let changes = write_u16(
        &mut config,
        COMMAND,
        COMMAND_IO_SPACE | COMMAND_MEMORY_SPACE,
    );
    assert_eq!(changes, []);
    for (register, mask) in [
        (0x10, 0xffff_f000),
        (0x14, 0xffff_ffe1),
        (0x18, 0xffff_c00c),
        (0x1c, 0xffff_ffff),
        (0x20, 0),
        (0x30, 0),
    ] {
        assert_eq!(write_u32(&mut config, register, u32::MAX), []);
        assert_eq!(config.read_u32(register), mask, "{register:#x}");
    }
}

#[test]
fn a_64_bit_bar_moves_half_by_half() {
    let mut config = with_bars();
    let _ = write_u16(&mut config, COMMAND, COMMAND_MEMORY_SPACE);
    let change = |old, new| {
        vec![BarChange {
            bar: 2,
            space: Space::Memory,
            len: 0x4000,
            old,
            new,
        }]
    };
    assert_eq!(
        write_u32(&mut config, 0x18, 0xd000_0000),
        change(None, Some(0xd000_0000))
    );
    assert_eq!(
        write_u32(&mut config, 0x1c, 2),
        change(Some(0xd000_0000), Some(0x2_d000_0000))
    );
    assert_eq!(config.bar_address(2), Some(0x2_d000_0000));
    // The same address again is no change.
    assert_eq!(write_u32(&mut config, 0x1c, 2), []);
    assert_eq!(
        write_u32(&mut config, 0x1c, u32::MAX),
        change(Some(0x2_d000_0000), None)
    );
    assert_eq!(
        write_u32(&mut config, 0x1c, 0),
        change(None, Some(0xd000_0000))
    );
    assert_eq!(
        write_u16(&mut config, COMMAND, 0),
        change(Some(0xd000_0000), None)
    );
}

#[test]
fn unreachable_addresses_are_not_decoded() {
    let mut config = with_bars();
    let _ = write_u16(
        &mut config,
        COMMAND,
        COMMAND_IO_SPACE | COMMAND_MEMORY_SPACE,
    );
    for (register, value) in [
        (0x10, 0),
        (0x10, 0xffff_f000),
        (0x14, 0),
        (0x14, 0x1_0000),
        (0x18, 0xffff_c000),
        (0x1c, 0x0010_0000),
    ] {
        assert_eq!(write_u32(&mut config, register, value), [], "{value:#x}");
    }
    let _ = write_u32(&mut config, 0x14, 0xffe0);
    assert_eq!(config.bar_address(1), Some(0xffe0));
    assert_eq!(config.bar_address(3), None);
}

#[test]
fn one_command_write_moves_all_bars_of_the_space() {
    let mut config = with_bars();
    let _ = write_u32(&mut config, 0x10, 0xc000_0000);
    let _ = write_u32(&mut config, 0x14, 0xc000);
    let _ = write_u32(&mut config, 0x18, 0xc001_0000);
    let changes = write_u16(&mut config, COMMAND, COMMAND_MEMORY_SPACE);
    let bars: Vec<u8> = changes.iter().map(|c| c.bar).collect();
    assert_eq!(bars, [0, 2]);
    let changes = write_u16(
        &mut config,
        COMMAND,
        COMMAND_MEMORY_SPACE | COMMAND_IO_SPACE,
    );
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].space, Space::Io);
    // A dword write over command and status counts as a command write.
    assert_eq!(write_u32(&mut config, COMMAND, 0).len(), 3);
}

#[test]
fn impossible_bars_are_refused() {
    let mut config = with_bars();
    for index in [0, 1, 2, 3, 6, 255] {
        assert_eq!(
            config.add_bar(index, MEM32, 0x1000),
            Err(PciConfigError::BarIndex { index })
        );
    }
    assert_eq!(
        config.add_bar(5, MEM64, 0x1000),
        Err(PciConfigError::BarIndex { index: 5 })
    );
    for (kind, size) in [
        (BarKind::Io, 2),
        (BarKind::Io, 512),
        (MEM32, 8),
        (MEM32, 0x3000),
        (MEM32, 1 << 32),
        (MEM64, 1 << 52),
        (MEM64, 0),
    ] {
        assert_eq!(
            config.add_bar(4, kind, size),
            Err(PciConfigError::BarSize {
                index: 4,
                kind,
                size
            })
        );
    }
}

#[test]
fn capabilities_are_linked_and_bounded() {
    let mut config = PciConfig::new(IDS);
    let first = config
        .add_capability(CAP_ID_VENDOR_SPECIFIC, &[1, 2, 3], &[0, 0xf0])
        .unwrap();
    let second = config.add_capability(CAP_ID_MSIX, &[4; 10], &[]).unwrap();
    assert_eq!((first, second), (0x40, 0x48));
    assert_eq!(config.read_u16(STATUS), STATUS_CAPABILITIES_LIST);
    assert_eq!(config.read_u16(CAPABILITIES_POINTER), 0x40);
    assert_eq!(config.read_u16(0x40), 0x4809);
    assert_eq!(config.read_u16(0x48), 0x0011);
    let _ = write_u32(&mut config, 0x40, u32::MAX);
    assert_eq!(config.read_u32(0x40), 0xf201_4809);
    config.reset();
    assert_eq!(config.read_u32(0x40), 0x0201_4809);
    assert_eq!(
        config.add_capability(5, &[0; 0xab], &[]),
        Err(PciConfigError::CapabilitySpace { id: 5, bytes: 0xad })
    );
    config.add_capability(5, &[0; 0xaa], &[]).unwrap();
    assert!(config.add_capability(5, &[], &[]).is_err());
}

#[test]
fn write_one_clears_device_status_only() {
    let mut config = PciConfig::new(IDS);
    let express = u16::from(config.add_pci_express().unwrap());
    config.set_bytes(express + 0x0a, &[0x0f]);
    let _ = config.write(express + 0x0a, &[0x05]);
    assert_eq!(config.read_u16(express + 0x0a), 0x0a);
    let _ = config.write(express + 0x0a, &[0]);
    assert_eq!(config.read_u16(express + 0x0a), 0x0a);
}

#[test]
fn extended_space_is_for_pci_express_only() {
    let mut config = PciConfig::new(IDS);
    assert_eq!(config.read_u32(0x100), u32::MAX);
    assert_eq!(config.read_u32(0xffc), u32::MAX);
    let express = config.add_pci_express().unwrap();
    assert_eq!(config.read_u16(u16::from(express) + 2), 0x0092);
    assert_eq!(config.read_u32(0x100), 0);
    assert_eq!(write_u32(&mut config, 0x100, u32::MAX), []);
    assert_eq!(config.read_u32(0x100), 0);
    assert_eq!(write_u32(&mut config, 0xffe, u32::MAX), []);
    assert_eq!(config.read_u32(0xffe), 0xffff_0000);
}

#[test]
fn interrupt_status_is_the_devices_to_set() {
    let mut config = PciConfig::new(IDS);
    config.set_interrupt_status(true);
    let _ = write_u16(&mut config, STATUS, 0xffff);
    assert_eq!(config.read_u16(STATUS), STATUS_INTERRUPT);
    config.set_interrupt_status(false);
    assert_eq!(config.read_u16(STATUS), 0);
}
