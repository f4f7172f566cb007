//! The CD-ROM.

use super::*;

const SECONDARY: usize = 1;

impl Rig {
    /// A PACKET command on the CD-ROM, with a byte count limit.
    fn packet(&self, dma: bool, limit: u16, packet: &[u8]) {
        let [low, high] = limit.to_le_bytes();
        let features = u8::from(dma);
        for (register, value) in (1..).zip([features, 0, 0, low, high, 0xa0]) {
            self.out(SECONDARY, register, value);
        }
        self.out(SECONDARY, registers::STATUS, 0xa0);
        assert_eq!(self.get(SECONDARY, registers::SECTOR_COUNT), registers::CD);
        assert!(!self.pins[SECONDARY].level());
        let mut bytes = [0; 12];
        bytes[..packet.len()].copy_from_slice(packet);
        self.pio_out(SECONDARY, &bytes);
    }

    /// All the data that a packet command gives.
    fn ask(&self, limit: u16, packet: &[u8]) -> Vec<u8> {
        self.packet(false, limit, packet);
        let mut data = Vec::new();
        loop {
            let status = self.served(SECONDARY);
            let reason = self.get(SECONDARY, registers::SECTOR_COUNT);
            if status & registers::DRQ == 0 {
                assert_eq!(reason, registers::IO | registers::CD);
                assert_eq!(status, READY, "{packet:x?}");
                return data;
            }
            assert_eq!(reason, registers::IO);
            let count = [registers::LBA_MID, registers::LBA_HIGH].map(|r| self.get(SECONDARY, r));
            let count = usize::from(u16::from_le_bytes(count));
            assert!(count <= usize::from(limit));
            data.extend(self.pio_in(SECONDARY, count));
        }
    }

    /// A packet that fails; returns sense key, code and qualifier.
    fn refused(&self, packet: &[u8]) -> (u8, u8, u8) {
        self.packet(false, 0xfffe, packet);
        assert_eq!(self.served(SECONDARY), FAILED, "{packet:x?}");
        let key = self.get(SECONDARY, registers::ERROR) >> 4;
        let sense = self.ask(0xfffe, &[3, 0, 0, 0, 18]);
        assert_eq!((sense.len(), sense[0], sense[2]), (18, 0x70, key));
        (sense[2], sense[12], sense[13])
    }

    /// One that has been told of its reset.
    fn with_medium() -> Self {
        let rig = Self::new();
        assert_eq!(rig.refused(&[0]), (6, 0x29, 0));
        rig
    }
}

#[test]
fn the_drive_says_what_it_is_but_not_as_a_disk() {
    let rig = Rig::new();
    rig.out(SECONDARY, registers::STATUS, 0xec);
    assert_eq!(rig.served(SECONDARY), FAILED);
    assert_eq!(rig.get(SECONDARY, registers::LBA_MID), 0x14);
    assert_eq!(rig.get(SECONDARY, registers::LBA_HIGH), 0xeb);
    rig.out(SECONDARY, registers::STATUS, 0xa1);
    assert_eq!(rig.served(SECONDARY), READY | registers::DRQ);
    let data = rig.pio_in(SECONDARY, 512);
    assert_eq!(data[..2], [0xc0, 0x85]);
    assert_eq!(rig.get(SECONDARY, registers::STATUS), READY);
    assert!(!rig.pins[SECONDARY].level());
    let inquiry = rig.ask(0xfffe, &[0x12, 0, 0, 0, 36]);
    assert_eq!(inquiry.len(), 36);
    assert_eq!((inquiry[0], inquiry[1]), (5, 0x80));
}

#[test]
fn a_read_by_pio_comes_in_blocks_of_the_hosts_size() {
    let rig = Rig::with_medium();
    let data = pattern(128 * 2048, 6);
    rig.disks[2].put(2048, &data);
    for limit in [2048, 3000, 0xfffe] {
        assert_eq!(rig.ask(limit, &[0x28, 0, 0, 0, 0, 1, 0, 0, 128]), data);
    }
    assert_eq!(
        rig.ask(0xffff, &[0xa8, 0, 0, 0, 0, 1, 0, 0, 0, 1]),
        data[..2048]
    );
    assert_eq!(
        rig.ask(2048, &[0xbe, 0, 0, 0, 0, 1, 0, 0, 1, 0x10]),
        data[..2048]
    );
}

#[test]
fn reads_and_replies_by_dma() {
    let rig = Rig::with_medium();
    let data = pattern(4096, 7);
    rig.disks[2].put(511 * 2048 - 2048, &data);
    rig.prepare(1, &[(0x8000, 0x800), (0xa000, 0x8000_0800)], true);
    rig.packet(true, 0, &[0x28, 0, 0, 0, 1, 0xfe, 0, 0, 2]);
    rig.start(SECONDARY, true);
    assert_eq!(rig.served(SECONDARY), READY);
    assert_eq!(rig.bm_status(1), 0x64);
    assert_eq!(rig.memory(0x8000, 0x800), data[..0x800]);
    assert_eq!(rig.memory(0xa000, 0x800), data[0x800..]);
    rig.bm_out(1, 0, &[0]);
    rig.prepare(1, &[(0x8000, 4), (0x9000, 0x8000_0004)], true);
    rig.packet(true, 0, &[0x25]);
    rig.start(SECONDARY, true);
    assert_eq!(rig.served(SECONDARY), READY);
    assert_eq!(rig.memory(0x8000, 4), [0, 0, 1, 0xff]);
    assert_eq!(rig.memory(0x9000, 4), [0, 0, 8, 0]);
}

#[test]
fn absurd_lengths_are_refused_or_cut() {
    let rig = Rig::with_medium();
    for packet in [
        &[0x28, 0, 0, 0, 2, 0, 0, 0, 1][..],
        &[0x28, 0, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff],
        &[0xa8, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        &[0xa8, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x2b, 0, 0, 0, 2, 0],
    ] {
        assert_eq!(rig.refused(packet), (5, 0x21, 0));
    }
    assert_eq!(rig.ask(2, &[0x28]), [0_u8; 0]);
    assert_eq!(rig.ask(2, &[0x12, 0, 0, 0, 0]), [0_u8; 0]);
    assert_eq!(rig.ask(0xfffe, &[0x12, 0, 0, 0xff, 0xff]).len(), 36);
    assert_eq!(rig.ask(0xfffe, &[0x12, 0, 0, 0, 5]).len(), 5);
    assert_eq!(rig.refused(&[0x55]), (5, 0x20, 0));
    assert_eq!(rig.refused(&[0xff]), (5, 0x20, 0));
    // Overlapped commands there are not.
    rig.out(SECONDARY, registers::ERROR, 2);
    rig.out(SECONDARY, registers::STATUS, 0xa0);
    assert_eq!(rig.served(SECONDARY), FAILED);
}

#[test]
fn what_sr_asks_for() {
    let rig = Rig::with_medium();
    assert_eq!(rig.ask(0xfffe, &[0]), [0_u8; 0]);
    assert_eq!(rig.ask(0xfffe, &[0x25]), [0, 0, 1, 0xff, 0, 0, 8, 0]);
    let toc = rig.ask(0xfffe, &[0x43, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(
        toc,
        [
            0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 2, 0
        ]
    );
    let lead_out = rig.ask(0xfffe, &[0x43, 2, 0, 0, 0, 0, 0xaa, 1, 0]);
    assert_eq!(lead_out[8..], [0, 0, 8, 62], "512 blocks and 2 s");
    assert_eq!(rig.refused(&[0x43, 0, 0, 0, 0, 0, 2, 1, 0]), (5, 0x24, 0));
    assert_eq!(rig.ask(0xfffe, &[0x43, 0, 1, 0, 0, 0, 0, 0, 12]).len(), 12);
    assert_eq!(rig.ask(0xfffe, &[0x43, 2, 2, 0, 0, 0, 0, 1, 0]).len(), 48);
    let sense = rig.ask(0xfffe, &[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 128]);
    assert_eq!((sense.len(), sense[1], sense[8]), (30, 28, 0x2a));
    let sense = rig.ask(0xfffe, &[0x1a, 0, 0x3f, 0, 255]);
    assert_eq!((sense.len(), sense[0], sense[4]), (34, 33, 1));
    assert_eq!(
        rig.refused(&[0x5a, 0, 0x05, 0, 0, 0, 0, 0, 128]),
        (5, 0x24, 0)
    );
    assert_eq!(
        rig.refused(&[0x5a, 0, 0xea, 0, 0, 0, 0, 0, 128]),
        (5, 0x39, 0)
    );
    let features = rig.ask(0xfffe, &[0x46, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(
        features[..8],
        [0, 0, 0, features.len() as u8 - 4, 0, 0, 0, 8]
    );
    let event = rig.ask(0xfffe, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]);
    assert_eq!(event, [0, 6, 4, 0x10, 0, 2, 0, 0]);
    assert_eq!(
        rig.refused(&[0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8]),
        (5, 0x24, 0)
    );
    assert_eq!(rig.ask(0xfffe, &[0x51, 0, 0, 0, 0, 0, 0, 0, 34]).len(), 34);
}

#[test]
fn the_tray() {
    const EJECT: [u8; 5] = [0x1b, 0, 0, 0, 2];
    const LOAD: [u8; 5] = [0x1b, 0, 0, 0, 3];
    const EVENT: [u8; 9] = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8];
    let rig = Rig::with_medium();
    assert_eq!(rig.ask(2, &[0x1e, 0, 0, 0, 1]), [0_u8; 0]);
    assert_eq!(rig.refused(&EJECT), (5, 0x53, 2));
    assert_eq!(rig.ask(2, &[0x1e, 0, 0, 0, 0]), [0_u8; 0]);
    assert_eq!(rig.ask(2, &EJECT), [0_u8; 0]);
    assert_eq!(rig.refused(&[0]), (2, 0x3a, 2));
    assert_eq!(rig.refused(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1]), (2, 0x3a, 2));
    assert_eq!(rig.ask(8, &EVENT)[4..6], [3, 1]);
    assert_eq!(rig.ask(8, &EVENT)[4..6], [0, 1], "told once");
    assert_eq!(rig.ask(2, &LOAD), [0_u8; 0]);
    assert_eq!(rig.refused(&[0]), (6, 0x28, 0));
    assert_eq!(rig.ask(8, &EVENT)[4..6], [2, 2]);
    assert_eq!(rig.ask(2, &[0]), [0_u8; 0]);
}

#[test]
fn host_errors_are_medium_errors() {
    let rig = Rig::with_medium();
    rig.disks[2].fail_next(5);
    assert_eq!(rig.refused(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1]), (3, 0x11, 0));
    assert_eq!(rig.ask(2048, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1]).len(), 2048);
}

#[test]
fn device_reset_is_obeyed_in_the_middle_of_a_read() {
    let rig = Rig::with_medium();
    rig.disks[2].stall(true);
    rig.packet(false, 2048, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(rig.alternate(SECONDARY) & BUSY, BUSY);
    rig.out(SECONDARY, registers::STATUS, 0x08);
    assert_eq!(rig.get(SECONDARY, registers::STATUS), 0);
    assert_eq!(rig.get(SECONDARY, registers::LBA_MID), 0x14);
    rig.disks[2].stall(false);
    rig.turn();
    assert_eq!(rig.get(SECONDARY, registers::STATUS), 0);
    assert_eq!(rig.refused(&[0]), (6, 0x29, 0));
}
