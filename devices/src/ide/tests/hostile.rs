//! What no driver does.

use super::bus_master::START;
use super::*;
use crate::pci::config::INTERRUPT_LINE;
use crate::testing::Random;

#[test]
fn accesses_of_every_width_at_every_offset() {
    let rig = Rig::new();
    for len in [0, 1, 2, 3, 4, 8, 16, 64] {
        let mut data = vec![0xff; len];
        for offset in (0..20).chain([u64::MAX, u64::MAX - 3, 1 << 32]) {
            for channel in 0..2 {
                let _ = rig.command[channel].read(offset, &mut data);
                let _ = rig.command[channel].write(offset, &data);
                let _ = rig.control[channel].read(offset, &mut data);
                let _ = rig.control[channel].write(offset, &data);
            }
            let _ = rig.ide.bar_read(BAR, offset, &mut data);
            let _ = rig.ide.bar_write(BAR, offset, &data);
            rig.turn();
        }
    }
    let mut data = [0; 2];
    assert_eq!(
        rig.control[0].read(0, &mut data),
        Err(AccessError::InvalidWidth)
    );
    assert_eq!(
        rig.command[0].read(7, &mut data),
        Err(AccessError::InvalidRegister)
    );
}

#[test]
fn wide_accesses_are_the_registers_one_after_another() {
    let rig = Rig::new();
    rig.command[0].write(2, &[1, 2, 3, 4]).unwrap();
    let mut data = [0; 4];
    rig.command[0].read(2, &mut data).unwrap();
    assert_eq!(data, [1, 2, 3, 4]);
    rig.ide
        .bar_write(BAR, 0, &[8, 0, 0x60, 0, 0, 0x10, 0, 0])
        .unwrap();
    let mut data = [0; 8];
    rig.ide.bar_read(BAR, 0, &mut data).unwrap();
    assert_eq!(data, [8, 0, 0x60, 0, 0, 0x10, 0, 0]);
}

#[test]
fn data_without_a_transfer_goes_nowhere() {
    let rig = Rig::new();
    let mut data = [0xaa; 8];
    rig.command[0].read(0, &mut data).unwrap();
    assert_eq!(data, [0; 8]);
    rig.command[0].write(0, &[1; 8]).unwrap();
    // Wider than what is left of a block, and a new command in the middle of data.
    rig.issue(0, 0x20, 1, 0);
    let mut data = vec![0xaa; 700];
    rig.command[0].read(0, &mut data).unwrap();
    assert_eq!(data, vec![0; 700]);
    rig.issue(0, 0x30, 2, 0);
    rig.command[0].write(0, &[1; 100]).unwrap();
    rig.issue(0, 0x20, 1, 0);
    assert_eq!(rig.pio_in(0, 512), [0; 512]);
}

/// A driver gone mad, always with the same seed: nothing may panic, hang, or leave a channel that a reset does not mend.
#[test]
fn random_accesses() {
    let rig = Rig::new();
    let mut random = Random::new(0x1234_5678);
    for round in 0..200_000u32 {
        let value = random.number().to_le_bytes();
        let len = [1, 1, 1, 2, 4, 8][random.below(6) as usize];
        let channel = random.below(2) as usize;
        let offset = random.below(8);
        let mut data = value[..len].to_vec();
        if offset == 7 && random.below(2) == 0 {
            const COMMANDS: [u8; 16] = [
                0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0xc4, 0xc5, 0xc6, 0xc8, 0xca, 0xa0, 0xa1,
                0xec, 0x08,
            ];
            data = vec![COMMANDS[random.below(16) as usize]];
        }
        match random.below(16) {
            0..=4 => drop(rig.command[channel].write(offset, &data)),
            5 => drop(rig.command[channel].write(0, &data)),
            6..=7 => drop(rig.command[channel].read(offset, &mut data)),
            8 => drop(rig.control[channel].write(0, &data[..1])),
            9 => drop(rig.ide.bar_write(BAR, random.below(16), &data)),
            10 => drop(rig.ide.bar_read(BAR, random.below(16), &mut data)),
            11 => rig.bm_out(channel as u64, 4, &(value[0] as u32 * 0x4004).to_le_bytes()),
            12 => {
                let bell = rig.ide.bells[channel].iter().nth(value[0] as usize & 3);
                rig.ide.bells[channel].ring(bell.unwrap().0);
            }
            13 => drop(rig.ram.write(u64::from(value[1]) * 0x4004, &value)),
            14 if round % 64 == 0 => {
                let _ = rig.ide.config_write(COMMAND, &[value[0] | 1, 0]);
            }
            14 if round % 64 == 1 => rig.disks[channel * 2].fail_next(5),
            _ => rig.turn(),
        }
    }
    rig.set_command(COMMAND_IO_SPACE | COMMAND_BUS_MASTER);
    for channel in 0..2 {
        rig.set_control(channel, registers::SRST);
        rig.set_control(channel, 0);
    }
    rig.turn();
    rig.disks[0].put(0, b"alive");
    rig.issue(0, 0x20, 1, 0);
    let data = rig.pio_in(0, 512);
    assert_eq!(&data[..5], b"alive");
}

#[test]
fn configuration_space_is_what_a_piix3_has() {
    let rig = Rig::new();
    let mut data = [0; 4];
    rig.ide.config_read(0, &mut data);
    assert_eq!(data, [0x86, 0x80, 0x10, 0x70]);
    rig.ide.config_read(8, &mut data);
    assert_eq!(data, [0, 0x80, 1, 1]);
    for bar in [0x10u16, 0x14, 0x18, 0x1c, 0x24] {
        let _ = rig.ide.config_write(bar, &[0xff; 4]);
        rig.ide.config_read(bar, &mut data);
        assert_eq!(data, [0; 4]);
    }
    let _ = rig.ide.config_write(0x20, &[0xff; 4]);
    rig.ide.config_read(0x20, &mut data);
    assert_eq!(data, [0xf1, 0xff, 0xff, 0xff]);
    let _ = rig.ide.config_write(INTERRUPT_LINE, &[14]);
    // What is posted and what rings do not get in one another's way.
    let posted = rig.ide.posted(BAR);
    for bell in rig.ide.port_doorbells(BAR) {
        let at = u32::try_from(bell.offset).unwrap();
        assert!(posted.iter().all(|range| !range.contains(&at)));
        assert_eq!(bell.value & START, 0);
    }
}

#[test]
fn media_that_will_not_do_are_told() {
    let disk = info(1 << 20, false);
    assert_eq!(IdeDriveKind::Disk.check(&disk), Ok(()));
    assert_eq!(IdeDriveKind::Cdrom.check(&disk), Ok(()));
    let odd = info(2048 + 512, true);
    assert_eq!(IdeDriveKind::Disk.check(&odd), Ok(()));
    assert_eq!(
        IdeDriveKind::Cdrom.check(&odd),
        Err(IdeMediumError::CdromSize(2560))
    );
    let wide = BlockInfo {
        logical_block_bytes: 4096,
        ..disk
    };
    assert_eq!(
        IdeDriveKind::Disk.check(&wide),
        Err(IdeMediumError::BlockSize(4096))
    );
}
