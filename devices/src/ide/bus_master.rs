//! The bus-master registers of one channel and its PRD tables ("Programming Interface for Bus Master IDE
//! Controller", revision 1.0; PIIX3 datasheet, 2.7).

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::dma::{DmaError, DmaMem};

/// Offset of the command register, 8 bits.
pub const COMMAND: u8 = 0;
/// Offset of the status register, 8 bits.
pub const STATUS: u8 = 2;
/// Offset of the table's address, 32 bits.
pub const TABLE: u8 = 4;
/// Bytes of registers for each channel.
pub const CHANNEL_BYTES: u8 = 8;

/// Command: start.
pub const START: u8 = 1 << 0;
/// Command: to memory, so from the drive.
pub const TO_MEMORY: u8 = 1 << 3;

/// Status: the engine works.
const ACTIVE: u8 = 1 << 0;
/// Status: memory could not be reached.
const ERROR: u8 = 1 << 1;
/// Status: the drive's interrupt line has risen.
const INTERRUPT: u8 = 1 << 2;
/// Status: which drives can do DMA; software writes it for software.
const DRIVES_CAPABLE: u8 = 0b11 << 5;

/// Bytes of a physical region descriptor.
const PRD_BYTES: u64 = 8;
/// A table lies within 64 KiB.
const MAX_PRDS: u64 = (1 << 16) / PRD_BYTES;
/// In the last descriptor's second word.
const END_OF_TABLE: u32 = 1 << 31;

/// What a table offers for a transfer.
#[derive(Debug, PartialEq, Eq)]
pub enum Regions {
    /// Room for all of it.
    Enough {
        /// Guest buffers, `(address, length)`, in order, as long as the transfer.
        segments: Vec<(u64, u32)>,
        /// The table ends with the transfer.
        exact: bool,
    },
    /// Less than the transfer.
    Short,
}

/// The registers of one channel.
#[derive(Debug, Default)]
pub struct BusMaster {
    command: u8,
    status: u8,
    table: u32,
}

impl BusMaster {
    /// Whether it was started.
    pub fn started(&self) -> bool {
        self.command & START != 0
    }

    /// Whether a transfer in that direction may go on now.
    pub fn ready(&self, to_memory: bool) -> bool {
        self.status & ACTIVE != 0 && (self.command & TO_MEMORY != 0) == to_memory
    }

    /// The byte at `offset`.
    pub fn read(&self, offset: u8) -> u8 {
        match offset {
            COMMAND => self.command,
            STATUS => self.status,
            TABLE..CHANNEL_BYTES => self.table.to_le_bytes()[usize::from(offset - TABLE)],
            _ => 0,
        }
    }

    /// Writes the byte at `offset`.
    pub fn write(&mut self, offset: u8, value: u8) {
        match offset {
            COMMAND => {
                let was_started = self.started();
                self.command = value & (START | TO_MEMORY);
                if !self.started() {
                    self.status &= !ACTIVE;
                } else if !was_started {
                    self.status |= ACTIVE;
                }
            }
            STATUS => {
                self.status &= !(value & (ERROR | INTERRUPT));
                self.status = self.status & !DRIVES_CAPABLE | value & DRIVES_CAPABLE;
            }
            TABLE..CHANNEL_BYTES => {
                let mut bytes = self.table.to_le_bytes();
                bytes[usize::from(offset - TABLE)] = value;
                self.table = u32::from_le_bytes(bytes) & !0b11;
            }
            _ => {}
        }
    }

    /// The drive's interrupt line rises.
    pub fn interrupt(&mut self) {
        self.status |= INTERRUPT;
    }

    /// The table is used up.
    pub fn end(&mut self) {
        self.status &= !ACTIVE;
    }

    /// Memory cannot be reached.
    pub fn fail(&mut self) {
        self.status = self.status & !ACTIVE | ERROR;
    }

    /// Reads the table as far as a transfer of `len_bytes` needs it.
    ///
    /// # Errors
    /// The table or a region is outside RAM, or bus mastering is off.
    pub fn regions(&self, dma: &DmaMem, len_bytes: u64) -> Result<Regions, DmaError> {
        let ram = dma.ram()?;
        let mut segments: Vec<(u64, u32)> = Vec::new();
        let mut left = len_bytes;
        for index in 0..MAX_PRDS {
            let mut prd = [0; size_of::<[u32; 2]>()];
            let at = GuestAddress(u64::from(self.table) + index * PRD_BYTES);
            ram.read_slice(&mut prd, at)?;
            let word = |i: usize| u32::from_le_bytes([prd[i], prd[i + 1], prd[i + 2], prd[i + 3]]);
            // Bit 0 of address and count does not exist; a count of 0 is 64 KiB.
            let (addr, flags) = (u64::from(word(0) & !1), word(4));
            let count = match flags & 0xfffe {
                0 => 1 << 16,
                count => count,
            };
            let used = u32::try_from(left).unwrap_or(u32::MAX).min(count);
            // No u32 is too long for a usize.
            if !ram.check_range(GuestAddress(addr), used as usize) {
                return Err(
                    vm_memory::GuestMemoryError::InvalidGuestAddress(GuestAddress(addr)).into(),
                );
            }
            match segments.last_mut() {
                Some((last, len))
                    if *last + u64::from(*len) == addr && len.checked_add(used).is_some() =>
                {
                    *len += used;
                }
                _ => segments.push((addr, used)),
            }
            left -= u64::from(used);
            let end = flags & END_OF_TABLE != 0;
            if left == 0 {
                let exact = end && used == count;
                return Ok(Regions::Enough { segments, exact });
            }
            if end {
                break;
            }
        }
        Ok(Regions::Short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::test_ram;

    const RAM_BYTES: usize = 0x20_0000;

    fn engine(prds: &[(u32, u32)]) -> (BusMaster, DmaMem) {
        let dma = DmaMem::always_on(test_ram(RAM_BYTES));
        let mut engine = BusMaster::default();
        for (offset, byte) in (TABLE..).zip(0x1003u32.to_le_bytes()) {
            engine.write(offset, byte);
        }
        for (at, (addr, flags)) in (0x1000..).step_by(8).zip(prds) {
            dma.write(at, &addr.to_le_bytes()).unwrap();
            dma.write(at + 4, &flags.to_le_bytes()).unwrap();
        }
        (engine, dma)
    }

    fn enough(segments: &[(u64, u32)], exact: bool) -> Regions {
        let segments = segments.to_vec();
        Regions::Enough { segments, exact }
    }

    #[test]
    fn regions_are_joined_cut_and_counted() {
        let (engine, dma) = engine(&[(0x2000, 0x200), (0x2200, 0x200), (0x8001, 0x8000_0401)]);
        let of = |len| engine.regions(&dma, len).unwrap();
        assert_eq!(of(0x800), enough(&[(0x2000, 0x400), (0x8000, 0x400)], true));
        assert_eq!(
            of(0x600),
            enough(&[(0x2000, 0x400), (0x8000, 0x200)], false)
        );
        assert_eq!(of(0x400), enough(&[(0x2000, 0x400)], false));
        assert_eq!(of(0x802), Regions::Short);
    }

    #[test]
    fn a_count_of_zero_is_64_kib() {
        let (engine, dma) = engine(&[(0x1_0000, END_OF_TABLE)]);
        let of = |len| engine.regions(&dma, len).unwrap();
        assert_eq!(of(0x1_0000), enough(&[(0x1_0000, 0x1_0000)], true));
        assert_eq!(of(0x1_0200), Regions::Short);
    }

    #[test]
    fn a_table_without_end_is_left_after_64_kib() {
        let prds = vec![(0x4_0000, 2); 0x3000];
        let (engine, dma) = engine(&prds);
        assert_eq!(engine.regions(&dma, 1 << 20).unwrap(), Regions::Short);
    }

    #[test]
    fn nothing_outside_ram_is_taken() {
        for prds in [
            &[(0xffff_fffe, 0x8000_0200)][..],
            &[(0x1f_ff00, 0x8000_0200)],
            &[(0x2000, 0x200), (0x20_0000, 0x8000_0200)],
        ] {
            let (engine, dma) = engine(prds);
            assert!(matches!(
                engine.regions(&dma, 0x400),
                Err(DmaError::OutsideRam(_))
            ));
        }
        // The table itself.
        let (mut engine, dma) = engine(&[]);
        engine.write(TABLE + 3, 0xf0);
        assert!(engine.regions(&dma, 0x400).is_err());
        engine.write(TABLE, 0xf8);
        engine.write(TABLE + 1, 0xff);
        engine.write(TABLE + 2, 0x1f);
        engine.write(TABLE + 3, 0);
        dma.write(0x1f_fff8, &[0, 0, 0, 0, 0, 2, 0, 0]).unwrap();
        assert!(
            engine.regions(&dma, 0x400).is_err(),
            "crosses the end of RAM"
        );
    }

    #[test]
    fn the_registers_follow_the_specification() {
        let mut engine = BusMaster::default();
        engine.write(COMMAND, 0xff);
        assert_eq!(engine.read(COMMAND), START | TO_MEMORY);
        assert_eq!(engine.read(STATUS), ACTIVE);
        assert!(engine.ready(true) && !engine.ready(false));
        engine.interrupt();
        engine.fail();
        engine.write(STATUS, DRIVES_CAPABLE);
        assert_eq!(engine.read(STATUS), ERROR | INTERRUPT | DRIVES_CAPABLE);
        // Started already: no new start.
        engine.write(COMMAND, START);
        assert!(!engine.ready(false));
        engine.write(STATUS, 0xff);
        assert_eq!(engine.read(STATUS), DRIVES_CAPABLE);
        engine.write(COMMAND, 0);
        engine.write(COMMAND, START);
        assert!(engine.ready(false));
        engine.write(COMMAND, 0);
        assert!(!engine.ready(false));
        engine.write(1, 0xff);
        assert_eq!(engine.read(1), 0);
    }
}
