//! The commands of a hard disk (ATA/ATAPI-6, chapter 8, and the CHS commands of ATA-5).

use super::drive::{Addressing, Drive, Transfer, Want};
use super::identify::{self, Geometry, MAX_MULTIPLE};
use super::registers::{
    ABRT, DEVICE, IDNF, LBA, LBA_HIGH, LBA_LOW, LBA_MID, SECTOR_BYTES, SECTOR_COUNT,
};

/// How a command moves its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// Data register, a sector at a time.
    Sector,
    /// Data register, as many as SET MULTIPLE MODE said at a time.
    Multiple,
    Dma,
    /// Not at all: it is read and forgotten.
    Nothing,
}

impl Drive {
    /// Carries out `command`.
    pub(super) fn disk_command(&mut self, command: u8) {
        match command {
            // READ and WRITE SECTORS, MULTIPLE, DMA, READ VERIFY SECTORS and their EXT forms. The odd ones of a pair
            // do not retry; there is nothing to retry here.
            0x20 | 0x21 => self.access(false, false, By::Sector),
            0x24 => self.access(true, false, By::Sector),
            0x25 => self.access(true, false, By::Dma),
            0x29 => self.access(true, false, By::Multiple),
            0x30 | 0x31 => self.access(false, true, By::Sector),
            0x34 => self.access(true, true, By::Sector),
            0x35 => self.access(true, true, By::Dma),
            0x39 => self.access(true, true, By::Multiple),
            // WRITE VERIFY: the host's storage verifies what it writes.
            0x3c => self.access(false, true, By::Sector),
            0x40 | 0x41 => self.access(false, false, By::Nothing),
            0x42 => self.access(true, false, By::Nothing),
            0xc4 => self.access(false, false, By::Multiple),
            0xc5 => self.access(false, true, By::Multiple),
            0xc8 | 0xc9 => self.access(false, false, By::Dma),
            0xca | 0xcb => self.access(false, true, By::Dma),
            // FLUSH CACHE, FLUSH CACHE EXT.
            0xe7 | 0xea => self.want(Want::Flush),
            // RECALIBRATE.
            0x10..=0x1f => self.finish(),
            // SEEK.
            0x70..=0x7f => match self.address(false) {
                Some(lba) if lba < self.sectors() => self.finish(),
                _ => self.fail_with(IDNF),
            },
            // INITIALIZE DEVICE PARAMETERS.
            0x91 => self.initialize_parameters(),
            0xc6 => self.set_multiple(),
            // IDENTIFY DEVICE.
            0xec => {
                let data = identify::disk(&self.info, &self.serial, self.geometry, &self.settings);
                self.send(&data, identify::BYTES);
            }
            0xb0 => self.smart(),
            _ => self.abort(),
        }
    }

    fn sectors(&self) -> u64 {
        self.info.size_bytes / SECTOR_BYTES
    }

    fn register(&self, offset: u8) -> u8 {
        self.current[usize::from(offset)]
    }

    /// The address that the registers hold; none if it is not one.
    fn address(&mut self, ext: bool) -> Option<u64> {
        let device = self.register(DEVICE);
        let low = u32::from_le_bytes([
            self.register(LBA_LOW),
            self.register(LBA_MID),
            self.register(LBA_HIGH),
            if ext { 0 } else { device & 0xf },
        ]);
        if ext {
            self.addressing = Addressing::Lba48;
            let previous = |offset: u8| u64::from(self.previous[usize::from(offset)]);
            let high = previous(LBA_LOW) | previous(LBA_MID) << 8 | previous(LBA_HIGH) << 16;
            return Some(u64::from(low) | high << 24);
        }
        if device & LBA != 0 {
            self.addressing = Addressing::Lba28;
            return Some(low.into());
        }
        self.addressing = Addressing::Chs;
        self.geometry.lba(low)
    }

    fn count(&self, ext: bool) -> u64 {
        let at = usize::from(SECTOR_COUNT);
        let count = u64::from(self.current[at]);
        match (ext, count | u64::from(self.previous[at]) << 8) {
            (true, 0) => 1 << 16,
            (true, count) => count,
            (false, _) if count == 0 => 1 << 8,
            (false, _) => count,
        }
    }

    /// Reads or writes the sectors that the registers name.
    fn access(&mut self, ext: bool, write: bool, by: By) {
        let (lba, count) = (self.address(ext), self.count(ext));
        let within = |lba: &u64| {
            lba.checked_add(count)
                .is_some_and(|end| end <= self.sectors())
        };
        let Some(lba) = lba.filter(within) else {
            return self.fail_with(IDNF);
        };
        if write && self.info.read_only || by == By::Multiple && self.settings.multiple == 0 {
            return self.fail_with(ABRT);
        }
        self.standby = false;
        let block_sectors = match by {
            By::Multiple => usize::from(self.settings.multiple),
            By::Sector | By::Dma | By::Nothing => 1,
        };
        let want = match by {
            By::Dma => Want::Dma,
            By::Nothing => Want::Verify,
            By::Sector | By::Multiple if write => Want::Store,
            By::Sector | By::Multiple => Want::Fill,
        };
        self.start(
            want,
            Transfer {
                write,
                medium: true,
                offset_bytes: lba * SECTOR_BYTES,
                left_bytes: count * SECTOR_BYTES,
                block_bytes: block_sectors * identify::BYTES,
                ..Transfer::default()
            },
        );
    }

    /// INITIALIZE DEVICE PARAMETERS (ATA-5, 8.16).
    fn initialize_parameters(&mut self) {
        let sectors = self.register(SECTOR_COUNT);
        let heads = (self.register(DEVICE) & 0xf) + 1;
        if sectors == 0 {
            return self.abort();
        }
        self.geometry = Geometry::new(self.sectors(), heads, sectors);
        self.finish();
    }

    /// SET MULTIPLE MODE (8.47).
    fn set_multiple(&mut self) {
        let count = self.register(SECTOR_COUNT);
        if count > MAX_MULTIPLE || count != 0 && !count.is_power_of_two() {
            return self.abort();
        }
        self.settings.multiple = count;
        self.finish();
    }

    /// SMART (8.54): a disk that is well.
    fn smart(&mut self) {
        const READ_DATA: u8 = 0xd0;
        const READ_THRESHOLDS: u8 = 0xd1;
        const AUTOSAVE: u8 = 0xd2;
        const ENABLE: u8 = 0xd8;
        const DISABLE: u8 = 0xd9;
        const RETURN_STATUS: u8 = 0xda;
        // The key against accidents; RETURN STATUS leaves it as the sign that all is well.
        let key = (self.register(LBA_MID), self.register(LBA_HIGH));
        let feature = self.current[1];
        if key != (0x4f, 0xc2) || !self.settings.smart && feature != ENABLE {
            return self.abort();
        }
        match feature {
            READ_DATA | READ_THRESHOLDS => {
                // A structure of revision 16 without attributes, and its checksum.
                let mut data = [0; identify::BYTES];
                data[0] = 16;
                data[identify::BYTES - 1] = 16u8.wrapping_neg();
                self.send(&data, identify::BYTES);
            }
            ENABLE | DISABLE => {
                self.settings.smart = feature == ENABLE;
                self.finish();
            }
            AUTOSAVE | RETURN_STATUS => self.finish(),
            _ => self.abort(),
        }
    }
}
