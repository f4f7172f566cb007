//! IDENTIFY DEVICE and IDENTIFY PACKET DEVICE data (ATA/ATAPI-6, 8.15 and 8.16).

use super::drive::Settings;
use super::registers::SECTOR_BYTES;
use crate::block::BlockInfo;

/// What both commands return.
pub const BYTES: usize = 512;
/// Sectors that 28 bits of address reach.
pub const LBA28_SECTORS: u64 = 1 << 28;
/// Most sectors of a data block of READ and WRITE MULTIPLE.
pub const MAX_MULTIPLE: u8 = 16;
/// Highest multiword DMA mode.
pub const MAX_MULTIWORD_MODE: u8 = 2;
/// Highest Ultra DMA mode. The controller has none; another one might.
pub const MAX_ULTRA_MODE: u8 = 5;
/// Highest PIO mode.
pub const MAX_PIO_MODE: u8 = 4;

/// Cylinders, heads, sectors per track.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders, at most 16383 by default.
    pub cylinders: u16,
    /// Heads, 1 to 16.
    pub heads: u8,
    /// Sectors per track, 1 to 255.
    pub sectors: u8,
}

impl Geometry {
    /// As many cylinders of `heads` and `sectors` as the disk has and the words can say.
    pub fn new(disk_sectors: u64, heads: u8, sectors: u8) -> Self {
        let track = u64::from(heads.max(1)) * u64::from(sectors.max(1));
        let cylinders = (disk_sectors / track).min(16383);
        Self {
            cylinders: u16::try_from(cylinders).unwrap_or(16383),
            heads,
            sectors,
        }
    }

    /// The one before a driver asks for another.
    pub fn default_of(disk_sectors: u64) -> Self {
        Self::new(disk_sectors, 16, 63)
    }

    /// The LBA of an address in the registers' form: sector in bits 0 to 7, cylinder in 8 to 23, head in 24 to 27. None
    /// where no such sector is.
    pub fn lba(self, registers: u32) -> Option<u64> {
        let [sector, low, high, head] = registers.to_le_bytes();
        let (cylinder, head) = (u64::from(u16::from_le_bytes([low, high])), head & 0xf);
        if sector == 0 || sector > self.sectors || head >= self.heads {
            return None;
        }
        let track = cylinder * u64::from(self.heads) + u64::from(head);
        Some(track * u64::from(self.sectors) + u64::from(sector) - 1)
    }

    /// The registers' form of `lba`, cut to what fits.
    pub fn chs(self, lba: u64) -> u64 {
        let (heads, sectors) = (u64::from(self.heads.max(1)), u64::from(self.sectors.max(1)));
        let (track, sector) = (lba / sectors, lba % sectors + 1);
        (track % heads) << 24 | ((track / heads) & 0xffff) << 8 | sector
    }
}

struct Words([u16; BYTES / 2]);

impl Words {
    fn set(&mut self, values: &[(usize, u16)]) {
        for &(word, value) in values {
            self.0[word] = value;
        }
    }

    fn double(&mut self, word: usize, value: u32) {
        let bytes = value.to_le_bytes();
        self.0[word] = u16::from_le_bytes([bytes[0], bytes[1]]);
        self.0[word + 1] = u16::from_le_bytes([bytes[2], bytes[3]]);
    }

    /// ASCII, first character in the high byte, padded with blanks (8.15.8).
    fn string(&mut self, words: std::ops::Range<usize>, text: &str) {
        let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
        for word in &mut self.0[words] {
            let (high, low) = (bytes.next(), bytes.next());
            *word = u16::from_be_bytes([high.unwrap_or(b' '), low.unwrap_or(b' ')]);
        }
    }

    /// With the checksum that makes the sum of all bytes zero (8.15.61).
    fn finish(mut self) -> [u8; BYTES] {
        self.0[255] = 0xa5;
        let mut bytes = [0; BYTES];
        for (pair, word) in bytes.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&word.to_le_bytes());
        }
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[BYTES - 1] = sum.wrapping_neg();
        bytes
    }
}

/// What disks and CD-ROMs say alike.
fn common(serial: &str, model: &str, settings: &Settings) -> Words {
    let mut words = Words([0; BYTES / 2]);
    words.string(10..20, serial);
    words.string(23..27, "1");
    words.string(27..47, model);
    let active = |mode: Option<u8>| mode.map_or(0, |mode| 1 << (8 + mode));
    words.set(&[
        // LBA, DMA, IORDY, which can be switched off.
        (49, 1 << 11 | 1 << 10 | 1 << 9 | 1 << 8),
        // Words 54 to 58, 64 to 70 and 88 are valid.
        (53, 0b111),
        (63, 0b111 | active(settings.multiword_mode)),
        // PIO modes 3 and 4, and 120 ns a cycle in all modes.
        (64, 0b11),
        (65, 120),
        (66, 120),
        (67, 120),
        (68, 120),
        // ATA/ATAPI-4 to -6.
        (80, 0b111 << 4),
        (83, 1 << 14),
        (84, 1 << 14),
        (87, 1 << 14),
        (88, 0b11_1111 | active(settings.ultra_mode)),
        // Reset by the jumpers' rules, an 80-conductor cable.
        (93, 1 << 14 | 1 << 13 | 1),
    ]);
    words
}

/// IDENTIFY DEVICE data of a disk.
pub fn disk(info: &BlockInfo, serial: &str, current: Geometry, settings: &Settings) -> [u8; BYTES] {
    const SMART: u16 = 1 << 0;
    const POWER: u16 = 1 << 3;
    const WRITE_CACHE: u16 = 1 << 5;
    const LOOK_AHEAD: u16 = 1 << 6;
    const NOP: u16 = 1 << 14;
    const FLUSH_EXT_FLUSH_LBA48: u16 = 1 << 13 | 1 << 12 | 1 << 10;

    let sectors = info.size_bytes / SECTOR_BYTES;
    let default = Geometry::default_of(sectors);
    let mut words = common(serial, "tripath disk", settings);
    let on = |on: bool, bit: u16| if on { bit } else { 0 };
    words.set(&[
        (0, 1 << 6),
        (1, default.cylinders),
        (3, default.heads.into()),
        (6, default.sectors.into()),
        (47, 0x8000 | u16::from(MAX_MULTIPLE)),
        (50, 1 << 14),
        (54, current.cylinders),
        (55, current.heads.into()),
        (56, current.sectors.into()),
        (82, SMART | POWER | WRITE_CACHE | LOOK_AHEAD | NOP),
        (83, 1 << 14 | FLUSH_EXT_FLUSH_LBA48),
        (
            85,
            POWER
                | NOP
                | on(settings.smart, SMART)
                | on(settings.write_cache, WRITE_CACHE)
                | on(settings.look_ahead, LOOK_AHEAD),
        ),
        (86, FLUSH_EXT_FLUSH_LBA48),
        // Not a rotating medium (ATA8-ACS, 7.16.7.74).
        (217, 1),
    ]);
    if settings.multiple > 0 {
        words.0[59] = 1 << 8 | u16::from(settings.multiple);
    }
    let capacity =
        u32::from(current.cylinders) * u32::from(current.heads) * u32::from(current.sectors);
    words.double(57, capacity);
    let lba28 = u32::try_from(sectors.min(LBA28_SECTORS - 1)).unwrap_or(u32::MAX);
    words.double(60, lba28);
    let lba48 = sectors.to_le_bytes();
    words.double(
        100,
        u32::from_le_bytes([lba48[0], lba48[1], lba48[2], lba48[3]]),
    );
    words.double(
        102,
        u32::from_le_bytes([lba48[4], lba48[5], lba48[6], lba48[7]]),
    );
    let per_physical = (u64::from(info.physical_block_bytes) / SECTOR_BYTES).max(1);
    if per_physical > 1 {
        // Several logical sectors in a physical one (ATA8-ACS, 7.16.7.54).
        let exponent = u16::try_from(per_physical.ilog2()).unwrap_or(0);
        words.0[106] = 1 << 14 | 1 << 13 | exponent;
    }
    words.finish()
}

/// IDENTIFY PACKET DEVICE data of a CD-ROM.
pub fn cdrom(serial: &str, settings: &Settings) -> [u8; BYTES] {
    const PACKET: u16 = 1 << 4;
    const DEVICE_RESET: u16 = 1 << 9;
    const NOP: u16 = 1 << 14;
    let mut words = common(serial, super::cdrom::MODEL, settings);
    words.set(&[
        // ATAPI, CD-ROM, removable, DRQ within 50 us of PACKET, packets of 12 bytes.
        (0, 0b10 << 14 | 5 << 8 | 1 << 7 | 0b10 << 5),
        (82, PACKET | DEVICE_RESET | NOP),
        (85, PACKET | DEVICE_RESET | NOP),
    ]);
    words.finish()
}
