//! Register offsets and bits (ATA/ATAPI-6, chapter 7).

/// Data, 16 bits (7.6).
pub const DATA: u8 = 0;
/// Error, read (7.9); Features, written (7.10).
pub const ERROR: u8 = 1;
/// Sector Count (7.14); Interrupt Reason of a PACKET command (7.13).
pub const SECTOR_COUNT: u8 = 2;
/// LBA Low, the sector number in CHS (7.12).
pub const LBA_LOW: u8 = 3;
/// LBA Mid, the low half of the cylinder in CHS (7.12); low half of the byte count of a PACKET command.
pub const LBA_MID: u8 = 4;
/// LBA High, the high half of the cylinder in CHS (7.12); high half of the byte count of a PACKET command.
pub const LBA_HIGH: u8 = 5;
/// Device, formerly Device/Head (7.7).
pub const DEVICE: u8 = 6;
/// Status, read (7.15); Command, written (7.4).
pub const STATUS: u8 = 7;

/// Status: an error, or CHECK CONDITION of a PACKET command.
pub const ERR: u8 = 1 << 0;
/// Status: data request.
pub const DRQ: u8 = 1 << 3;
/// Status: seek complete, in older editions; drivers look for it still.
pub const DSC: u8 = 1 << 4;
/// Status: device fault.
pub const DF: u8 = 1 << 5;
/// Status: device ready.
pub const DRDY: u8 = 1 << 6;
/// Status: busy; no other bit and no other register means anything.
pub const BSY: u8 = 1 << 7;

/// Error: command aborted.
pub const ABRT: u8 = 1 << 2;
/// Error: the address is not on the medium.
pub const IDNF: u8 = 1 << 4;
/// Error: data that cannot be corrected.
pub const UNC: u8 = 1 << 6;
/// Error register after a reset: device 0 passed, device 1 passed or is not there (9.10).
pub const DIAGNOSTIC_PASSED: u8 = 1;

/// Device: device 1 is selected.
pub const DEV: u8 = 1 << 4;
/// Device: the address is an LBA, not CHS.
pub const LBA: u8 = 1 << 6;

/// Device Control: interrupts off (7.8).
pub const NIEN: u8 = 1 << 1;
/// Device Control: software reset.
pub const SRST: u8 = 1 << 2;
/// Device Control: reads give the previous content of the 16-bit registers.
pub const HOB: u8 = 1 << 7;

/// Interrupt Reason: a command packet is wanted, or completion.
pub const CD: u8 = 1 << 0;
/// Interrupt Reason: to the host.
pub const IO: u8 = 1 << 1;

/// Bytes of a disk's sector.
pub const SECTOR_BYTES: u64 = 512;
