//! Commands of a disk, without DMA.

use super::*;

#[test]
fn both_disks_say_who_they_are() {
    let rig = Rig::new();
    for (drive, sectors, serial) in [(0, SECTORS, "NO E"), (1, 16, "WT O")] {
        rig.issue(drive, 0xec, 0, 0);
        assert_eq!(rig.served(0), READY | registers::DRQ);
        let data = rig.pio_in(0, 512);
        let word = |i: usize| u16::from_le_bytes([data[2 * i], data[2 * i + 1]]);
        assert_eq!(u64::from(word(60)) | u64::from(word(61)) << 16, sectors);
        assert_eq!(u64::from(word(100)), sectors);
        assert_eq!(&data[20..24], serial.as_bytes());
        assert_eq!(word(106), 0x6003, "8 sectors in a physical one");
        assert_eq!(data.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        assert_eq!(rig.get(0, registers::STATUS), READY);
        assert!(!rig.pins[0].level(), "nothing follows the last block");
    }
}

#[test]
fn sectors_are_read_one_by_one_with_an_interrupt_each() {
    let rig = Rig::new();
    let data = pattern(3 * 512, 1);
    rig.disks[0].put(100 * 512, &data);
    rig.issue(0, 0x20, 3, 100);
    let mut got = Vec::new();
    for _ in 0..3 {
        assert_eq!(rig.served(0), READY | registers::DRQ);
        got.extend(rig.pio_in(0, 512));
    }
    assert_eq!(got, data);
    assert_eq!(rig.pins[0].rising_edges(), 3);
}

#[test]
fn a_count_of_zero_is_256_and_spans_refills_and_multiple_blocks() {
    let rig = Rig::new();
    let data = pattern(512 * 512, 2);
    rig.disks[0].put(0, &data);
    rig.issue(0, 0xc6, 16, 0);
    assert_eq!(rig.served(0), READY);
    rig.issue_ext(0x29, 512, 0);
    let mut got = Vec::new();
    for _ in 0..32 {
        assert_eq!(rig.served(0), READY | registers::DRQ);
        got.extend(rig.pio_in(0, 16 * 512));
    }
    assert_eq!(got, data);
    rig.issue(0, 0x20, 0, 0);
    for _ in 0..256 {
        rig.pio_in(0, 512);
    }
    assert_eq!(rig.get(0, registers::STATUS), READY);
    rig.issue(0, 0xc6, 0, 0);
    rig.served(0);
    rig.issue(0, 0xc4, 1, 0);
    assert_eq!(rig.served(0), FAILED, "MULTIPLE is off");
}

#[test]
fn written_sectors_are_on_the_medium_when_the_last_interrupt_comes() {
    let rig = Rig::new();
    let data = pattern(2 * 512, 3);
    rig.issue(0, 0x30, 2, 4094);
    assert!(!rig.pins[0].level(), "the first block is asked for without");
    rig.pio_out(0, &data[..512]);
    assert_eq!(rig.served(0), READY | registers::DRQ);
    rig.disks[0].stall(true);
    rig.pio_out(0, &data[512..]);
    assert!(!rig.pins[0].level());
    assert_eq!(rig.alternate(0) & BUSY, BUSY);
    rig.disks[0].stall(false);
    rig.turn();
    assert_eq!(rig.served(0), READY);
    assert_eq!(rig.disks[0].data()[4094 * 512..], data);
}

#[test]
fn chs_addresses_follow_the_geometry_that_was_set() {
    let rig = Rig::new();
    rig.disks[0].put(512 * (4 * 9 + 2 * 9 + 4), b"chs");
    // 4 heads of 9 sectors.
    rig.task(0, 0, 9, 0);
    rig.out(0, registers::DEVICE, 0xa3);
    rig.out(0, registers::STATUS, 0x91);
    assert_eq!(rig.served(0), READY);
    let read = |sector: u8, cylinder: u8, head: u8| {
        rig.out(0, registers::SECTOR_COUNT, 1);
        rig.out(0, registers::LBA_LOW, sector);
        rig.out(0, registers::LBA_MID, cylinder);
        rig.out(0, registers::LBA_HIGH, 0);
        rig.out(0, registers::DEVICE, 0xa0 | head);
        rig.out(0, registers::STATUS, 0x20);
        rig.turn();
    };
    read(5, 1, 2);
    assert_eq!(&rig.pio_in(0, 512)[..3], b"chs");
    for (sector, head) in [(0, 0), (10, 0), (1, 4)] {
        read(sector, 0, head);
        assert_eq!(rig.served(0), FAILED);
        assert_eq!(rig.get(0, registers::ERROR), registers::IDNF);
    }
}

#[test]
fn addresses_past_the_end_are_not_found() {
    let rig = Rig::new();
    let end = u32::try_from(SECTORS).unwrap();
    for (command, count, lba) in [
        (0x20, 1, end),
        (0x20, 2, end - 1),
        (0x30, 1, end),
        (0x40, 1, end),
        (0xc8, 0, end - 255),
        (0xca, 1, 0x0fff_ffff),
        (0x70, 1, end),
    ] {
        rig.issue(0, command, count, lba);
        assert_eq!(rig.served(0), FAILED, "{command:#x}");
        assert_eq!(rig.get(0, registers::ERROR), registers::IDNF);
    }
    for command in [0x24, 0x25, 0x29, 0x34, 0x35, 0x39, 0x42] {
        rig.issue_ext(command, 0, 0xffff_ffff_ffff);
        assert_eq!(rig.served(0), FAILED, "{command:#x}");
    }
}

#[test]
fn host_errors_become_error_bits() {
    let rig = Rig::new();
    rig.disks[0].fail_next(5);
    rig.issue(0, 0x20, 1, 0x0123);
    assert_eq!(rig.served(0), FAILED);
    assert_eq!(rig.get(0, registers::ERROR), registers::UNC);
    assert_eq!(rig.get(0, registers::LBA_LOW), 0x23);
    assert_eq!(rig.get(0, registers::LBA_MID), 0x01);
    rig.issue(0, 0x30, 1, 0);
    rig.disks[0].fail_next(28);
    rig.pio_out(0, &[0; 512]);
    assert_eq!(rig.served(0), FAILED | registers::DF);
    rig.disks[0].fail_next(5);
    rig.issue(0, 0xe7, 0, 0);
    assert_eq!(rig.served(0), FAILED | registers::DF);
    rig.issue(0, 0x40, 4, 0);
    assert_eq!(rig.served(0), READY, "and it goes on");
}

#[test]
fn a_flush_is_done_when_it_says_so() {
    let rig = Rig::new();
    for command in [0xe7, 0xea, 0xe0, 0xe6] {
        let before = rig.disks[0].flushes();
        rig.disks[0].stall(true);
        rig.issue(0, command, 0, 0);
        assert!(!rig.pins[0].level());
        rig.disks[0].stall(false);
        rig.turn();
        assert_eq!(rig.served(0), READY);
        assert_eq!(rig.disks[0].flushes(), before + 1);
    }
}

#[test]
fn without_write_cache_each_write_is_flushed() {
    let rig = Rig::new();
    rig.task(0, 0x82, 0, 0);
    rig.out(0, registers::STATUS, 0xef);
    rig.turn();
    assert_eq!(rig.served(0), READY);
    let before = rig.disks[0].flushes();
    rig.issue(0, 0x30, 1, 0);
    rig.pio_out(0, &[1; 512]);
    assert_eq!(rig.served(0), READY);
    assert_eq!(rig.disks[0].flushes(), before + 1);
}

#[test]
fn a_read_only_disk_refuses_writes_only() {
    let rig = Rig::with_first(info(SECTORS * 512, true));
    for command in [0x30, 0xca] {
        rig.issue(0, command, 1, 0);
        assert_eq!(rig.served(0), FAILED);
        assert_eq!(rig.get(0, registers::ERROR), registers::ABRT);
    }
    rig.issue(0, 0x20, 1, 0);
    assert_eq!(rig.served(0), READY | registers::DRQ);
}

#[test]
fn small_commands() {
    let rig = Rig::new();
    for (command, feature, count, mid_high, status) in [
        (0x00, 0, 0, (0, 0), FAILED),
        (0x08, 0, 0, (0, 0), FAILED),
        (0x10, 0, 0, (0, 0), READY),
        (0x70, 0, 0, (0, 0), READY),
        (0x91, 0, 0, (0, 0), FAILED),
        (0xa0, 0, 0, (0, 0), FAILED),
        (0xc6, 0, 3, (0, 0), FAILED),
        (0xc6, 0, 32, (0, 0), FAILED),
        (0xef, 0x03, 0x22, (0, 0), READY),
        (0xef, 0x03, 0x23, (0, 0), FAILED),
        (0xef, 0x03, 0x45, (0, 0), READY),
        (0xef, 0x03, 0x0c, (0, 0), READY),
        (0xef, 0x99, 0, (0, 0), FAILED),
        (0xe1, 0, 0, (0, 0), READY),
        (0xb0, 0xda, 0, (0x4f, 0xc2), READY),
        (0xb0, 0xda, 0, (0, 0), FAILED),
        (0xb0, 0xd9, 0, (0x4f, 0xc2), READY),
        (0xb0, 0xd0, 0, (0x4f, 0xc2), FAILED),
        (0xb0, 0xd8, 0, (0x4f, 0xc2), READY),
        (0xb0, 0xd0, 0, (0x4f, 0xc2), READY | registers::DRQ),
        (0xff, 0, 0, (0, 0), FAILED),
    ] {
        rig.task(
            0,
            feature,
            count,
            u32::from_le_bytes([0, mid_high.0, mid_high.1, 0]),
        );
        rig.out(0, registers::STATUS, command);
        rig.turn();
        assert_eq!(rig.served(0), status, "{command:#x} {feature:#x}");
    }
    rig.issue(0, 0xe5, 0, 0);
    assert_eq!(rig.get(0, registers::SECTOR_COUNT), 0xff);
    rig.issue(0, 0xe0, 0, 0);
    rig.issue(0, 0xe5, 0, 0);
    assert_eq!(rig.get(0, registers::SECTOR_COUNT), 0);
}

#[test]
fn software_reset_and_diagnostic_show_the_signatures() {
    let rig = Rig::new();
    let signature = |channel| [2, 3, 4, 5].map(|register| rig.get(channel, register));
    rig.issue(1, 0x20, 1, 0);
    for channel in [0, 1] {
        rig.set_control(channel, registers::SRST);
        assert_eq!(rig.alternate(channel), BUSY);
        rig.set_control(channel, 0);
    }
    assert!(!rig.pins[0].level());
    assert_eq!(
        (signature(0), signature(1)),
        ([1, 1, 0, 0], [1, 1, 0x14, 0xeb])
    );
    assert_eq!(rig.get(0, registers::STATUS), READY);
    assert_eq!(rig.get(1, registers::STATUS), 0);
    assert_eq!(rig.get(0, registers::ERROR), 1);
    rig.out(0, registers::LBA_MID, 0x55);
    rig.out(0, registers::STATUS, 0x90);
    assert_eq!(rig.served(0), READY);
    assert_eq!(signature(0), [1, 1, 0, 0]);
}

#[test]
fn the_interrupt_is_that_of_the_selected_drive_unless_off() {
    let rig = Rig::new();
    rig.set_control(0, registers::NIEN);
    rig.issue(0, 0x10, 0, 0);
    assert!(!rig.pins[0].level());
    assert_eq!(rig.bm_status(0) & 4, 0);
    rig.set_control(0, 0);
    assert!(rig.pins[0].level());
    assert_eq!(rig.bm_status(0) & 4, 4);
    rig.out(0, registers::DEVICE, 0xb0);
    assert!(!rig.pins[0].level());
    rig.out(0, registers::DEVICE, 0xa0);
    assert_eq!(rig.alternate(0), READY);
    assert!(rig.pins[0].level(), "Alternate Status leaves it");
    assert_eq!(rig.served(0), READY);
}

#[test]
fn a_missing_slave_reads_as_zeroes_and_takes_nothing() {
    let rig = Rig::new();
    rig.out(1, registers::DEVICE, 0xb0);
    for register in 1..8 {
        assert_eq!(rig.get(1, register), 0);
    }
    rig.out(1, registers::STATUS, 0xec);
    rig.turn();
    assert_eq!(rig.alternate(1), 0);
    assert!(!rig.pins[1].level());
}

#[test]
fn high_order_bytes_are_read_with_hob() {
    let rig = Rig::new();
    rig.out(0, registers::LBA_MID, 0x11);
    rig.out(0, registers::LBA_MID, 0x22);
    rig.set_control(0, registers::HOB);
    assert_eq!(rig.get(0, registers::LBA_MID), 0x11);
    rig.out(0, registers::LBA_LOW, 0);
    assert_eq!(rig.get(0, registers::LBA_MID), 0x22, "a write ends it");
}
