//! The block of 16-bit code in `services.s`, and what is filled in when it is written to guest memory.
#![allow(unsafe_code)]

use std::arch::global_asm;
use std::ops::Range;

use devices::dma::GuestRam;
use devices::legacy::SLP_TYP_S5;

use super::STACK_END;
use crate::boot::BootError;
use crate::boot::params::MapType;
use crate::layout;

/// The segment of all services.
pub(super) const SEGMENT: u16 = 0xf000;
/// Where the block starts in the segment.
const OFFSET: u16 = 0xf000;
const BLOCK_BYTES: usize = 0x1000;
const OFFSETS: usize = 0x10;
const MEMORY_MAP: usize = 0x100;
const MEMORY_MAP_END: usize = 0x380;
const MEMORY_MAP_ENTRY_BYTES: usize = 20;

const _: () = assert!((SEGMENT as u64) * 16 + OFFSET as u64 == layout::REAL_MODE_SERVICES.start);

global_asm!(
    include_str!("services.s"),
    rom_offset = const OFFSET,
    stack = const STACK_END,
    com1 = const layout::COM_PORTS[0],
    pm1a_control = const layout::PM1A_CONTROL,
    // SLP_EN, and SLP_TYP in bits 12:10.
    soft_off = const 1u16 << 13 | (SLP_TYP_S5 as u16) << 10,
    pci_address = const layout::PCI_CONFIG_ADDRESS,
    reset_control = const layout::RESET_CONTROL,
    options(att_syntax)
);

unsafe extern "C" {
    static tripath_realmode_start: [u8; BLOCK_BYTES];
}

/// The code that an interrupt leads to, in the order of the block's table; the first entry is not a vector's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vector {
    /// Returns at once.
    Nothing = 1,
    /// Says that there is no such service.
    Unsupported,
    /// Acknowledges an interrupt of the first PIC.
    MasterIrq,
    /// Acknowledges an interrupt of the second PIC.
    SlaveIrq,
    /// IRQ0.
    Timer,
    /// INT 10h.
    Video,
    /// INT 11h.
    Equipment,
    /// INT 12h.
    BaseMemory,
    /// INT 13h.
    Disk,
    /// INT 15h.
    System,
    /// INT 16h.
    Keyboard,
    /// INT 18h and INT 19h.
    NoBootDevice,
    /// INT 1Ah.
    TimeAndPci,
}

impl Vector {
    /// What the interrupt of this number leads to.
    pub fn of(number: u8) -> Self {
        match number {
            // Exceptions, and the timer's hook.
            0x00..=0x07 | 0x1c => Self::Nothing,
            0x08 => Self::Timer,
            0x09..=0x0f => Self::MasterIrq,
            0x10 => Self::Video,
            0x11 => Self::Equipment,
            0x12 => Self::BaseMemory,
            0x13 => Self::Disk,
            0x15 => Self::System,
            0x16 => Self::Keyboard,
            0x18 | 0x19 => Self::NoBootDevice,
            0x1a => Self::TimeAndPci,
            0x70..=0x77 => Self::SlaveIrq,
            _ => Self::Unsupported,
        }
    }
}

fn block() -> &'static [u8; BLOCK_BYTES] {
    // SAFETY: the symbol is defined above, in a section that is never written; services.s makes what it names exactly
    // that long, by its last `.org`.
    unsafe { &tripath_realmode_start }
}

/// Offset of that code in the segment.
pub(super) fn offset(vector: Vector) -> Result<u16, BootError> {
    entry_of_table(vector as usize)
}

/// Offset in the segment at which the first CPU starts.
pub(super) fn entry() -> Result<u16, BootError> {
    entry_of_table(0)
}

fn entry_of_table(index: usize) -> Result<u16, BootError> {
    let bytes = block()
        .get(OFFSETS + 2 * index..)
        .and_then(<[u8]>::first_chunk);
    bytes
        .map(|bytes| u16::from_le_bytes(*bytes))
        .ok_or(BootError::Write {
            what: "an interrupt vector",
            addr: index as u64,
        })
}

/// Writes the block for a kernel at `kernel_segment`, with this memory map.
pub(super) fn write(
    ram: &GuestRam,
    kernel_segment: u16,
    map: &[(Range<u64>, MapType)],
) -> Result<(), BootError> {
    let mut bytes = block().to_vec();
    let mut entries = 0;
    let slots = bytes[MEMORY_MAP..MEMORY_MAP_END].chunks_exact_mut(MEMORY_MAP_ENTRY_BYTES);
    for (slot, (range, kind)) in slots.zip(map) {
        slot[..8].copy_from_slice(&range.start.to_le_bytes());
        slot[8..16].copy_from_slice(&(range.end - range.start).to_le_bytes());
        let kind: u32 = match kind {
            MapType::Ram => 1,
            MapType::Reserved => 2,
        };
        slot[16..].copy_from_slice(&kind.to_le_bytes());
        entries += 1;
    }
    let above_1m = map
        .iter()
        .filter(|(range, kind)| *kind == MapType::Ram && range.start == layout::HIGH_RAM)
        .map(|(range, _)| range.end - range.start)
        .sum::<u64>();
    const TO_16M: u64 = 15 << 20;
    let word = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
    let words = [
        kernel_segment,
        entries,
        word(above_1m.min(TO_16M) >> 10),
        word(above_1m.saturating_sub(TO_16M) >> 16),
        word(above_1m >> 10),
    ];
    for (slot, word) in bytes.chunks_exact_mut(2).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    super::write(
        ram,
        "the real-mode services",
        layout::REAL_MODE_SERVICES.start,
        &bytes,
    )
}
