//! The configuration space of a function (PCI Local Bus 3.0, chapter 6): header type 0, BARs, capabilities.
//!
//! A conventional function has 256 bytes and answers ones above them, as a PCI Express bridge does on its behalf;
//! only a function with the PCI Express capability has the extended 4 KiB. The difference is visible: a driver
//! that finds extended space walks it for a dozen capabilities, each an access that exits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

use super::device::BarChange;
use crate::posted::Space;

/// Vendor ID register, 16 bits (6.2.1).
pub const VENDOR_ID: u16 = 0x00;
/// Device ID register, 16 bits (6.2.1).
pub const DEVICE_ID: u16 = 0x02;
/// Command register, 16 bits (6.2.2).
pub const COMMAND: u16 = 0x04;
/// Status register, 16 bits (6.2.3).
pub const STATUS: u16 = 0x06;
/// Revision ID register, 8 bits; the class code follows (6.2.1).
pub const REVISION_ID: u16 = 0x08;
/// Cache line size register, 8 bits (6.2.4).
pub const CACHE_LINE_SIZE: u16 = 0x0c;
/// Header type register, 8 bits (6.2.1).
pub const HEADER_TYPE: u16 = 0x0e;
/// First of the six base address registers, 32 bits each (6.2.5.1).
pub const BASE_ADDRESS_0: u16 = 0x10;
/// Subsystem vendor ID register, 16 bits; the subsystem ID follows (6.2.4).
pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
/// Expansion ROM base address register, 32 bits (6.2.5.2).
pub const ROM_ADDRESS: u16 = 0x30;
/// Capabilities pointer, 8 bits (6.7).
pub const CAPABILITIES_POINTER: u16 = 0x34;
/// Interrupt line register, 8 bits (6.2.4).
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin register, 8 bits: 0 is none, 1 is INTA# (6.2.4).
pub const INTERRUPT_PIN: u16 = 0x3d;

/// Command: the function decodes its I/O BARs.
pub const COMMAND_IO_SPACE: u16 = 1 << 0;
/// Command: the function decodes its memory BARs.
pub const COMMAND_MEMORY_SPACE: u16 = 1 << 1;
/// Command: the function may access memory of its own accord.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command: parity error response.
pub const COMMAND_PARITY_ERROR_RESPONSE: u16 = 1 << 6;
/// Command: SERR# enable.
pub const COMMAND_SERR_ENABLE: u16 = 1 << 8;
/// Command: the function does not assert its INTx# pin.
pub const COMMAND_INTERRUPT_DISABLE: u16 = 1 << 10;
/// Status: the function would assert its INTx# pin.
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// Status: the capabilities pointer is valid.
pub const STATUS_CAPABILITIES_LIST: u16 = 1 << 4;
/// Header type: the device has more than one function.
pub const HEADER_TYPE_MULTIFUNCTION: u8 = 1 << 7;
/// BAR: the address is in I/O space.
pub const BAR_IO_SPACE: u32 = 1 << 0;
/// BAR: the register and the next one hold a 64-bit memory address.
pub const BAR_MEMORY_64: u32 = 0b10 << 1;
/// BAR: reads have no side effects.
pub const BAR_PREFETCHABLE: u32 = 1 << 3;

/// Expansion ROM base address: the ROM is decoded, if memory space is.
pub const ROM_ENABLE: u32 = 1 << 0;

/// Capability ID of power management.
pub const CAP_ID_POWER_MANAGEMENT: u8 = 0x01;
/// Capability ID of a vendor-specific capability.
pub const CAP_ID_VENDOR_SPECIFIC: u8 = 0x09;
/// Capability ID of PCI Express.
pub const CAP_ID_PCI_EXPRESS: u8 = 0x10;
/// Capability ID of MSI-X.
pub const CAP_ID_MSIX: u8 = 0x11;

/// How many BAR registers a header of type 0 has.
pub const BAR_COUNT: u8 = 6;
/// The number by which the expansion ROM goes among the BARs.
pub const ROM_BAR: u8 = 6;

/// The BARs and the ROM.
const DECODED_COUNT: usize = BAR_COUNT as usize + 1;

const CONVENTIONAL_BYTES: usize = 0x100;
const EXTENDED_BYTES: usize = 0x1000;
const FIRST_CAPABILITY: usize = 0x40;
const STATUS_ERROR_BITS: u16 = 0xf900;
/// No x86 processor addresses more than 52 bits.
const LAST_PHYSICAL_ADDRESS: u64 = (1 << 52) - 1;

/// Who a function is. All fields are read-only to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciIds {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class and programming interface, from high to low: `0x01_80_00`.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// What a BAR asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Ports: 4 to 256 of them.
    Io,
    /// Memory below 4 GiB: 16 bytes to 2 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere: 16 bytes to 2^51 bytes. Takes two registers.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// The expansion ROM: memory below 4 GiB, 2 KiB to 16 MiB.
    Rom,
}

impl BarKind {
    /// The address space it is decoded in.
    #[must_use]
    pub fn space(self) -> Space {
        match self {
            Self::Io => Space::Io,
            Self::Memory32 { .. } | Self::Memory64 { .. } | Self::Rom => Space::Memory,
        }
    }

    fn flags(self) -> u32 {
        let prefetch = |on: bool| if on { BAR_PREFETCHABLE } else { 0 };
        match self {
            Self::Io => BAR_IO_SPACE,
            Self::Memory32 { prefetchable } => prefetch(prefetchable),
            Self::Memory64 { prefetchable } => BAR_MEMORY_64 | prefetch(prefetchable),
            Self::Rom => 0,
        }
    }

    fn sizes(self) -> std::ops::RangeInclusive<u64> {
        match self {
            Self::Io => 4..=256,
            Self::Memory32 { .. } => 16..=1 << 31,
            Self::Memory64 { .. } => 16..=1 << 51,
            Self::Rom => 1 << 11..=1 << 24,
        }
    }
}

/// A configuration space that cannot be built: a mistake in a device model.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PciConfigError {
    /// The BAR's registers do not exist or are taken.
    #[error("BAR {index} does not exist or is taken")]
    BarIndex {
        /// The register asked for.
        index: u8,
    },
    /// The size is not a power of two, or not one that this kind of BAR can have.
    #[error("BAR {index}: a size of {size:#x} bytes is impossible for {kind:?}")]
    BarSize {
        /// The register asked for.
        index: u8,
        /// What was asked for.
        kind: BarKind,
        /// Bytes asked for.
        size: u64,
    },
    /// The capability does not fit in what is left of the first 256 bytes.
    #[error("no room for a capability of {bytes} bytes with ID {id:#x}")]
    CapabilitySpace {
        /// Capability ID.
        id: u8,
        /// Its length, the two-byte header included.
        bytes: usize,
    },
}

#[derive(Clone, Copy)]
struct Bar {
    index: u8,
    kind: BarKind,
    size: u64,
}

/// The registers, with what the guest may write of each byte. Pure: the shell around it applies what
/// [`PciConfig::write`] returns.
pub struct PciConfig {
    bytes: Vec<u8>,
    /// What the bytes are after a reset.
    initial: Vec<u8>,
    /// Bits that take the value written.
    writable: Vec<u8>,
    /// Bits that a written one clears.
    write_one_to_clear: Vec<u8>,
    bars: Vec<Bar>,
    last_capability: Option<usize>,
    next_capability: usize,
    bus_master: Arc<AtomicBool>,
}

impl PciConfig {
    /// A function without BARs, capabilities or interrupt pin.
    #[must_use]
    pub fn new(ids: PciIds) -> Self {
        let zeroes = || vec![0; CONVENTIONAL_BYTES];
        let mut config = Self {
            bytes: zeroes(),
            initial: zeroes(),
            writable: zeroes(),
            write_one_to_clear: zeroes(),
            bars: Vec::new(),
            last_capability: None,
            next_capability: FIRST_CAPABILITY,
            bus_master: Arc::new(AtomicBool::new(false)),
        };
        config.init(VENDOR_ID, &ids.vendor.to_le_bytes());
        config.init(DEVICE_ID, &ids.device.to_le_bytes());
        config.init(REVISION_ID, &[ids.revision]);
        config.init(REVISION_ID + 1, &ids.class.to_le_bytes()[..3]);
        config.init(SUBSYSTEM_VENDOR_ID, &ids.subsystem_vendor.to_le_bytes());
        config.init(SUBSYSTEM_VENDOR_ID + 2, &ids.subsystem.to_le_bytes());
        let command = COMMAND_BUS_MASTER
            | COMMAND_PARITY_ERROR_RESPONSE
            | COMMAND_SERR_ENABLE
            | COMMAND_INTERRUPT_DISABLE;
        config.allow(COMMAND, &command.to_le_bytes());
        config.allow(CACHE_LINE_SIZE, &[0xff]);
        config.allow(INTERRUPT_LINE, &[0xff]);
        put(
            &mut config.write_one_to_clear,
            STATUS,
            &STATUS_ERROR_BITS.to_le_bytes(),
        );
        config
    }

    /// Adds registers of the function's own at `offset`, between the header and the capabilities or after them, with
    /// what is in them after a reset and the mask of what the guest may write.
    ///
    /// # Panics
    /// When they lie outside configuration space.
    pub fn add_registers(&mut self, offset: u16, initial: &[u8], writable: &[u8]) {
        self.init(offset, initial);
        self.allow(offset, writable);
    }

    /// Says that the device has other functions too.
    pub fn set_multifunction(&mut self) {
        self.init(HEADER_TYPE, &[HEADER_TYPE_MULTIFUNCTION]);
    }

    /// Connects INTA# (6.2.4): a function that is alone in its device uses no other pin.
    pub fn set_interrupt_pin_a(&mut self) {
        self.init(INTERRUPT_PIN, &[1]);
    }

    /// Adds BAR `index` of `size` bytes, a power of two: 0 to 5, or [`ROM_BAR`] for the expansion ROM and nothing else.
    ///
    /// # Errors
    /// [`PciConfigError::BarIndex`], [`PciConfigError::BarSize`].
    pub fn add_bar(&mut self, index: u8, kind: BarKind, size: u64) -> Result<(), PciConfigError> {
        let last = match kind {
            BarKind::Memory64 { .. } => index.saturating_add(1),
            BarKind::Io | BarKind::Memory32 { .. } | BarKind::Rom => index,
        };
        let taken = |bar: &Bar| index <= bar.last_register() && bar.index <= last;
        let exists = if kind == BarKind::Rom {
            index == ROM_BAR
        } else {
            last < BAR_COUNT
        };
        if !exists || self.bars.iter().any(taken) {
            return Err(PciConfigError::BarIndex { index });
        }
        if !size.is_power_of_two() || !kind.sizes().contains(&size) {
            return Err(PciConfigError::BarSize { index, kind, size });
        }
        let register = bar_register(index);
        self.init(register, &kind.flags().to_le_bytes());
        let mask = !(size - 1);
        let (enable, mask_bytes) = match kind {
            BarKind::Io => (COMMAND_IO_SPACE, 4),
            BarKind::Memory32 { .. } => (COMMAND_MEMORY_SPACE, 4),
            BarKind::Memory64 { .. } => (COMMAND_MEMORY_SPACE, 8),
            BarKind::Rom => (COMMAND_MEMORY_SPACE, 4),
        };
        let mask = match kind {
            BarKind::Rom => mask | u64::from(ROM_ENABLE),
            _ => mask,
        };
        self.allow(register, &mask.to_le_bytes()[..mask_bytes]);
        let command = u16::from_le_bytes([self.writable[4], self.writable[5]]) | enable;
        self.allow(COMMAND, &command.to_le_bytes());
        self.bars.push(Bar { index, kind, size });
        Ok(())
    }

    /// Appends a capability (6.7) with what follows its two-byte header, and the mask of what the guest may write
    /// of that. Returns the offset of the header.
    ///
    /// # Errors
    /// [`PciConfigError::CapabilitySpace`].
    ///
    /// # Panics
    /// When `writable` is longer than `body`.
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u8, PciConfigError> {
        assert!(writable.len() <= body.len(), "mask longer than capability");
        let bytes = body.len() + 2;
        let start = self.next_capability;
        let (Ok(offset), true) = (u8::try_from(start), start + bytes <= CONVENTIONAL_BYTES) else {
            return Err(PciConfigError::CapabilitySpace { id, bytes });
        };
        let at = u16::from(offset);
        self.init(at, &[id, 0]);
        self.init(at + 2, body);
        self.allow(at + 2, writable);
        match self.last_capability {
            None => {
                self.init(CAPABILITIES_POINTER, &[offset]);
                self.init(STATUS, &STATUS_CAPABILITIES_LIST.to_le_bytes());
            }
            Some(last) => {
                self.bytes[last + 1] = offset;
                self.initial[last + 1] = offset;
            }
        }
        self.last_capability = Some(start);
        self.next_capability = (start + bytes).next_multiple_of(4);
        Ok(offset)
    }

    /// Makes the function a PCI Express one: a root complex integrated endpoint (PCI Express Base 5.0, 7.5.3)
    /// with 4 KiB of configuration space and no extended capabilities. Returns the capability's offset.
    ///
    /// # Errors
    /// [`PciConfigError::CapabilitySpace`].
    pub fn add_pci_express(&mut self) -> Result<u8, PciConfigError> {
        const VERSION_2: u16 = 2;
        const ROOT_COMPLEX_INTEGRATED_ENDPOINT: u16 = 0b1001 << 4;
        const ROLE_BASED_ERROR_REPORTING: u32 = 1 << 15;
        // Relaxed ordering, no snoop and 512-byte read requests, the values after a reset.
        const DEVICE_CONTROL: u16 = 1 << 4 | 1 << 11 | 0b010 << 12;
        const DEVICE_CONTROL_WRITABLE: u16 = 0x78ff;
        const DEVICE_STATUS_ERRORS: u8 = 0xf;

        let mut body = [0; 0x3a];
        let capabilities = VERSION_2 | ROOT_COMPLEX_INTEGRATED_ENDPOINT;
        body[0..2].copy_from_slice(&capabilities.to_le_bytes());
        body[2..6].copy_from_slice(&ROLE_BASED_ERROR_REPORTING.to_le_bytes());
        body[6..8].copy_from_slice(&DEVICE_CONTROL.to_le_bytes());
        let mut writable = [0; 0x3a];
        writable[6..8].copy_from_slice(&DEVICE_CONTROL_WRITABLE.to_le_bytes());
        let offset = self.add_capability(CAP_ID_PCI_EXPRESS, &body, &writable)?;
        let status = u16::from(offset) + 0x0a;
        put(
            &mut self.write_one_to_clear,
            status,
            &[DEVICE_STATUS_ERRORS],
        );
        self.extend();
        Ok(offset)
    }

    /// Gives the function the extended 4 KiB, zeroes so far. [`PciConfig::add_pci_express`] does it by itself.
    pub fn extend(&mut self) {
        for space in [
            &mut self.bytes,
            &mut self.initial,
            &mut self.writable,
            &mut self.write_one_to_clear,
        ] {
            space.resize(EXTENDED_BYTES, 0);
        }
    }

    /// Reads at byte `offset`; ones where there is no register space.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// Writes at byte `offset`, as far as the guest may, and says which BARs moved because of it.
    #[must_use]
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Vec<BarChange> {
        let touches = |first: u16, bytes: u16| {
            overlaps(
                usize::from(offset),
                data.len(),
                usize::from(first),
                usize::from(bytes),
            )
        };
        let command = touches(COMMAND, 2);
        let decoding =
            command || touches(BASE_ADDRESS_0, u16::from(BAR_COUNT) * 4) || touches(ROM_ADDRESS, 4);
        let before = if decoding {
            self.decoded_all()
        } else {
            [None; DECODED_COUNT]
        };
        for (at, value) in (usize::from(offset)..).zip(data) {
            let Some(byte) = self.bytes.get_mut(at) else {
                break;
            };
            let writable = self.writable[at];
            *byte = (*byte & !writable) | (value & writable);
            *byte &= !(value & self.write_one_to_clear[at]);
        }
        if command {
            self.update_bus_master();
        }
        if decoding {
            self.changes_since(&before)
        } else {
            Vec::new()
        }
    }

    /// Back to the state after power-on. The owner has unmapped the BARs.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.initial);
        self.update_bus_master();
    }

    /// The switch that follows the bus-master bit, for [`crate::dma::DmaMem`].
    #[must_use]
    pub fn bus_master(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.bus_master)
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        self.read_u16(COMMAND)
    }

    /// Shows in the status register whether the function has an INTx interrupt to present.
    pub fn set_interrupt_status(&mut self, asserted: bool) {
        let mut status = self.read_u16(STATUS) & !STATUS_INTERRUPT;
        if asserted {
            status |= STATUS_INTERRUPT;
        }
        put(&mut self.bytes, STATUS, &status.to_le_bytes());
    }

    /// Where BAR `index` is decoded now; none when it is not.
    #[must_use]
    pub fn bar_address(&self, index: u8) -> Option<u64> {
        let bar = self.bars.iter().find(|bar| bar.index == index)?;
        self.decoded(bar)
    }

    /// The 16-bit register at `offset`.
    #[must_use]
    pub fn read_u16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// The 32-bit register at `offset`.
    #[must_use]
    pub fn read_u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Sets bytes from the device's side, the guest's write mask notwithstanding.
    ///
    /// # Panics
    /// When they lie outside configuration space.
    pub fn set_bytes(&mut self, offset: u16, data: &[u8]) {
        put(&mut self.bytes, offset, data);
    }

    fn init(&mut self, offset: u16, data: &[u8]) {
        put(&mut self.bytes, offset, data);
        put(&mut self.initial, offset, data);
    }

    fn allow(&mut self, offset: u16, mask: &[u8]) {
        put(&mut self.writable, offset, mask);
    }

    fn update_bus_master(&self) {
        let on = self.command() & COMMAND_BUS_MASTER != 0;
        self.bus_master.store(on, Ordering::Release);
    }

    /// An address is decoded only if the guest can have meant it. While a driver sizes a BAR with ones, or has
    /// written one half of a 64-bit address, the register may say zero, the very top of 32 bits, or more than a
    /// processor can address: nothing is there then.
    fn decoded(&self, bar: &Bar) -> Option<u64> {
        let register = bar_register(bar.index);
        let low = u64::from(self.read_u32(register)) & !(bar.size - 1);
        let (enable, base, last_possible) = match bar.kind {
            BarKind::Io => (COMMAND_IO_SPACE, low, u64::from(u16::MAX)),
            BarKind::Memory32 { .. } => (COMMAND_MEMORY_SPACE, low, u64::from(u32::MAX)),
            BarKind::Rom if self.read_u32(register) & ROM_ENABLE == 0 => return None,
            BarKind::Rom => (COMMAND_MEMORY_SPACE, low, u64::from(u32::MAX)),
            BarKind::Memory64 { .. } => {
                let high = u64::from(self.read_u32(register + 4)) << 32;
                let base = (high | low) & !(bar.size - 1);
                (COMMAND_MEMORY_SPACE, base, LAST_PHYSICAL_ADDRESS)
            }
        };
        let last = base.checked_add(bar.size - 1)?;
        let reachable = base != 0 && last <= last_possible && last != u64::from(u32::MAX);
        (self.command() & enable != 0 && reachable).then_some(base)
    }

    fn decoded_all(&self) -> [Option<u64>; DECODED_COUNT] {
        let mut all = [None; DECODED_COUNT];
        for bar in &self.bars {
            all[usize::from(bar.index)] = self.decoded(bar);
        }
        all
    }

    fn changes_since(&self, before: &[Option<u64>; DECODED_COUNT]) -> Vec<BarChange> {
        let now = self.decoded_all();
        self.bars
            .iter()
            .map(|bar| BarChange {
                bar: bar.index,
                space: bar.kind.space(),
                len: bar.size,
                old: before[usize::from(bar.index)],
                new: now[usize::from(bar.index)],
            })
            .filter(|change| change.old != change.new)
            .collect()
    }
}

impl Bar {
    fn last_register(&self) -> u8 {
        match self.kind {
            BarKind::Memory64 { .. } => self.index + 1,
            BarKind::Io | BarKind::Memory32 { .. } | BarKind::Rom => self.index,
        }
    }
}

/// The offset of BAR register `index`, 0 to 5, or [`ROM_BAR`].
#[must_use]
pub fn bar_register(index: u8) -> u16 {
    if index == ROM_BAR {
        return ROM_ADDRESS;
    }
    BASE_ADDRESS_0 + 4 * u16::from(index)
}

/// Whether `len` bytes at `offset` and `other_len` bytes at `other` have a byte in common.
pub(crate) fn overlaps(offset: usize, len: usize, other: usize, other_len: usize) -> bool {
    offset < other + other_len && other < offset + len
}

/// Writes `data` at `offset`, which lies within `space`.
pub(super) fn put(space: &mut [u8], offset: u16, data: &[u8]) {
    let at = usize::from(offset);
    space[at..at + data.len()].copy_from_slice(data);
}
