//! The configuration space that the guest sees: [`PciConfig`] for what is emulated, the hardware through the host's
//! kernel for the rest, told apart bit by bit.
//!
//! - Emulated: identity and header type; BARs and ROM (addresses are the guest's); the bits of the command register
//!   that switch decoding (on the host it stays on, as the mapped registers would be taken away with it); interrupt
//!   line and pin; the list of capabilities; MSI, MSI-X, power management, and what of the PCI Express capability is
//!   about a link.
//! - Passed through: the other bits of the command register, bus mastering above all; the status register; what
//!   `capabilities` says; and what is in no capability, which is the driver's and the device's own affair. The
//!   host's kernel decides what of it may be written.
//! - Hidden: what `capabilities` says.

use std::io;

use thiserror::Error;

use super::capabilities::{CAP_ID_MSI, List, Treatment, treatment};
use super::host_function::{HostFunction, IrqKind, ROM_REGION};
use crate::pci::config::{
    BAR_COUNT, BAR_IO_SPACE, BAR_MEMORY_64, BAR_PREFETCHABLE, CACHE_LINE_SIZE, CAP_ID_MSIX,
    CAP_ID_PCI_EXPRESS, CAP_ID_POWER_MANAGEMENT, CAPABILITIES_POINTER, COMMAND, COMMAND_BUS_MASTER,
    COMMAND_INTERRUPT_DISABLE, COMMAND_IO_SPACE, COMMAND_MEMORY_SPACE,
    COMMAND_PARITY_ERROR_RESPONSE, COMMAND_SERR_ENABLE, DEVICE_ID, HEADER_TYPE, INTERRUPT_PIN,
    REVISION_ID, ROM_BAR, STATUS, STATUS_CAPABILITIES_LIST, SUBSYSTEM_VENDOR_ID, VENDOR_ID,
    bar_register, overlaps,
};
use crate::pci::{BarChange, BarKind, PciConfig, PciIds};
use crate::ratelimit::RateLimiter;

const HEADER_BYTES: u16 = 0x40;
const CONVENTIONAL_BYTES: u16 = 0x100;
const EXTENDED_BYTES: u16 = 0x1000;
const MAX_LATENCY_AND_GRANT: u16 = 0x3e;
const HEADER_TYPE_LAYOUT: u8 = 0x7f;
/// More capabilities than fit: where a list that never ends is cut.
const MAX_CAPABILITIES: usize = 48;
const MAX_EXTENDED_CAPABILITIES: usize = 480;

/// Command bits whose writes reach the hardware.
const COMMAND_PASSED: u16 = COMMAND_BUS_MASTER
    | COMMAND_PARITY_ERROR_RESPONSE
    | COMMAND_SERR_ENABLE
    | COMMAND_INTERRUPT_DISABLE;

/// Power management control/status, from the capability (PCI Power Management 1.2, 3.2.4).
const PM_CONTROL: u16 = 4;
const PM_BYTES: u16 = 8;
const PM_POWER_STATE: u8 = 0b11;
const PM_NO_SOFT_RESET: u8 = 1 << 3;
/// Power management capabilities: states that PME# can be asserted from.
const PM_CAPABILITIES_PME: u16 = 0xf800;

/// PCI Express capabilities register (PCI Express Base 5.0, 7.5.3.2): version, port type, slot implemented.
const EXPRESS_VERSION: u16 = 0xf;
const EXPRESS_TYPE_SHIFT: u16 = 4;
const EXPRESS_TYPE: u16 = 0xf << EXPRESS_TYPE_SHIFT;
const EXPRESS_SLOT: u16 = 1 << 8;
const EXPRESS_ENDPOINT: u16 = 0;
const EXPRESS_INTEGRATED_ENDPOINT: u16 = 9;
/// Lengths of the capability in its first version, as an endpoint has it, and in its second.
const EXPRESS_V1_BYTES: u16 = 0x14;
const EXPRESS_V2_BYTES: u16 = 0x3c;
/// Registers of the capability that are not about a link, a slot or a root: `(offset, bytes, passed)`.
const EXPRESS_DEVICE: [(u16, u16, bool); 4] = [
    // Device capabilities; device control and status.
    (0x04, 4, false),
    (0x08, 4, true),
    // The same, second part.
    (0x24, 4, false),
    (0x28, 4, true),
];
/// Device capabilities 2: latency tolerance reporting and OBFF, which are about the host's fabric.
const EXPRESS_CAPABILITIES_2: u16 = 0x24;
const EXPRESS_LTR_AND_OBFF: u32 = 1 << 11 | 0b11 << 18;

/// MSI message control (PCI 3.0, 6.8.1.3).
const MSI_ENABLE: u16 = 1 << 0;
const MSI_MULTIPLE_CAPABLE_SHIFT: u16 = 1;
const MSI_MULTIPLE_ENABLE_SHIFT: u16 = 4;
const MSI_MULTIPLE: u16 = 0b111;
const MSI_64_BIT: u16 = 1 << 7;
const MSI_MASKABLE: u16 = 1 << 8;
/// At most 32 messages.
const MSI_MAX_MULTIPLE: u16 = 5;

/// MSI-X message control (PCI 3.0, 6.8.2.3).
const MSIX_TABLE_SIZE: u16 = 0x7ff;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_BAR_INDEX: u32 = 0b111;
const MSIX_BYTES: u16 = 12;

/// Why a function cannot be shown to a guest.
#[derive(Debug, Error)]
pub enum OverlayError {
    /// It is a bridge or something unheard of.
    #[error("its header is of type {0}: only ordinary functions (type 0) can be given to a guest")]
    HeaderType(u8),
    /// Its configuration space cannot be read.
    #[error("its configuration space cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// Where the registers of MSI are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MsiRegisters {
    capability: u16,
    wide: bool,
    maskable: bool,
    max_multiple: u16,
}

impl MsiRegisters {
    fn data(self) -> u16 {
        self.capability + if self.wide { 0x0c } else { 0x08 }
    }

    fn mask(self) -> u16 {
        self.capability + if self.wide { 0x10 } else { 0x0c }
    }

    fn bytes(self) -> u16 {
        match (self.wide, self.maskable) {
            (false, false) => 0x0a,
            (true, false) => 0x0e,
            (false, true) => 0x14,
            (true, true) => 0x18,
        }
    }
}

/// What the guest has set MSI to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiControl {
    /// How many messages, 1 to 32.
    pub count: u32,
    /// Message address.
    pub address: u64,
    /// Message data of the first message.
    pub data: u32,
    /// Bits of the messages that are masked.
    pub masked: u32,
}

/// Where the table and the pending bits of MSI-X are, and how many vectors there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixPlace {
    capability: u16,
    /// Vectors, 1 to 2048.
    pub count: u16,
    /// BAR with the table.
    pub table_bar: u8,
    /// Offset of the table in it.
    pub table: u64,
    /// BAR with the pending bits.
    pub pba_bar: u8,
    /// Offset of the pending bits in it.
    pub pba: u64,
}

/// What the guest has set MSI-X to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixControl {
    /// All vectors are masked.
    pub function_mask: bool,
}

/// A function's configuration space. Pure but for the hardware, which is an argument.
pub struct Overlay {
    name: String,
    config: PciConfig,
    /// Bits that are read from the hardware, for each byte.
    from_host: Vec<u8>,
    /// Bytes whose writes go to the hardware.
    to_host: Vec<bool>,
    /// Decoding that is always on in the hardware.
    decoding: u16,
    msi: Option<MsiRegisters>,
    msix: Option<MsixPlace>,
    failures: RateLimiter,
}

impl Overlay {
    /// Reads what the function is. With `rom`, an expansion ROM is shown. `name` is for logs.
    ///
    /// # Errors
    /// [`OverlayError`].
    pub fn new(name: &str, host: &dyn HostFunction, rom: bool) -> Result<Self, OverlayError> {
        let read = Hardware(host);
        let header_type = read.u8(HEADER_TYPE)? & HEADER_TYPE_LAYOUT;
        if header_type != 0 {
            return Err(OverlayError::HeaderType(header_type));
        }
        let mut config = PciConfig::new(PciIds {
            vendor: read.u16(VENDOR_ID)?,
            device: read.u16(DEVICE_ID)?,
            revision: read.u8(REVISION_ID)?,
            class: read.u32(REVISION_ID)? >> 8,
            subsystem_vendor: read.u16(SUBSYSTEM_VENDOR_ID)?,
            subsystem: read.u16(SUBSYSTEM_VENDOR_ID + 2)?,
        });
        if read.u8(INTERRUPT_PIN)? != 0 && host.irq(IrqKind::Intx).count > 0 {
            config.set_interrupt_pin_a();
        }
        let mut overlay = Self {
            name: name.to_string(),
            config,
            from_host: vec![0; usize::from(CONVENTIONAL_BYTES)],
            to_host: vec![false; usize::from(CONVENTIONAL_BYTES)],
            decoding: 0,
            msi: None,
            msix: None,
            failures: RateLimiter::default(),
        };
        overlay.add_bars(host, rom)?;
        overlay.pass(STATUS, 2);
        overlay.from_host[usize::from(STATUS)] &= !STATUS_CAPABILITIES_LIST.to_le_bytes()[0];
        overlay.pass(CACHE_LINE_SIZE, 2);
        overlay.pass(MAX_LATENCY_AND_GRANT, 2);
        overlay.pass(HEADER_BYTES, CONVENTIONAL_BYTES - HEADER_BYTES);
        let express = overlay.add_capabilities(host)?;
        if express && host.config_size() >= u64::from(EXTENDED_BYTES) {
            overlay.add_extended_capabilities(host)?;
        }
        Ok(overlay)
    }

    /// Puts the hardware into the state that the guest's registers describe: decoding, and no bus mastering.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn start(&self, host: &dyn HostFunction) -> io::Result<()> {
        host.config_write(COMMAND, &self.hardware_command().to_le_bytes())
    }

    /// Where MSI-X is.
    #[must_use]
    pub fn msix(&self) -> Option<MsixPlace> {
        self.msix
    }

    /// How MSI-X is set; none while it is off.
    #[must_use]
    pub fn msix_control(&self) -> Option<MsixControl> {
        let control = self.config.read_u16(self.msix?.capability + 2);
        (control & MSIX_ENABLE != 0).then_some(MsixControl {
            function_mask: control & MSIX_FUNCTION_MASK != 0,
        })
    }

    /// How MSI is set; none while it is off.
    #[must_use]
    pub fn msi_control(&self) -> Option<MsiControl> {
        let msi = self.msi?;
        let control = self.config.read_u16(msi.capability + 2);
        if control & MSI_ENABLE == 0 {
            return None;
        }
        let multiple = control >> MSI_MULTIPLE_ENABLE_SHIFT & MSI_MULTIPLE;
        let low = u64::from(self.config.read_u32(msi.capability + 4));
        let high = if msi.wide {
            u64::from(self.config.read_u32(msi.capability + 8))
        } else {
            0
        };
        Some(MsiControl {
            count: 1 << multiple.min(msi.max_multiple),
            address: high << 32 | low,
            data: self.config.read_u16(msi.data()).into(),
            masked: if msi.maskable {
                self.config.read_u32(msi.mask())
            } else {
                0
            },
        })
    }

    /// Whether the guest has the function decode anything: its driver is at work.
    #[must_use]
    pub fn decodes(&self) -> bool {
        self.config.command() & (COMMAND_IO_SPACE | COMMAND_MEMORY_SPACE) != 0
    }

    /// Whether the guest sees an INTx pin.
    #[must_use]
    pub fn has_intx(&self) -> bool {
        let mut pin = [0];
        self.config.read(INTERRUPT_PIN, &mut pin);
        pin != [0]
    }

    /// Whether reading `len` bytes at `offset` shows pending bits of MSI.
    #[must_use]
    pub fn shows_msi_pending(&self, offset: u16, len: usize) -> bool {
        self.msi.is_some_and(|msi| {
            let pending = usize::from(msi.mask() + 4);
            msi.maskable && overlaps(usize::from(offset), len, pending, 4)
        })
    }

    /// Sets the pending bits of MSI.
    pub fn set_msi_pending(&mut self, pending: u32) {
        if let Some(msi) = self.msi.filter(|msi| msi.maskable) {
            self.config
                .set_bytes(msi.mask() + 4, &pending.to_le_bytes());
        }
    }

    /// Reads at byte `offset`, within a dword. What the hardware does not say reads as ones.
    pub fn read(&self, host: &dyn HostFunction, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
        let at = usize::from(offset);
        let masks = (at..).map(|at| self.from_host.get(at).copied().unwrap_or(0));
        if masks.clone().take(data.len()).all(|mask| mask == 0) {
            return;
        }
        let mut hardware = [0xff; 4];
        let Some(hardware) = hardware.get_mut(..data.len()) else {
            return;
        };
        if let Err(error) = host.config_read(offset, hardware) {
            hardware.fill(0xff);
            self.complain("read", offset, &error);
        }
        for ((byte, hardware), mask) in data.iter_mut().zip(hardware).zip(masks) {
            *byte = *byte & !mask | *hardware & mask;
        }
    }

    /// Writes at byte `offset`, within a dword, and says which BARs moved because of it.
    #[must_use]
    pub fn write(&mut self, host: &dyn HostFunction, offset: u16, data: &[u8]) -> Vec<BarChange> {
        let changes = self.config.write(offset, data);
        let at = usize::from(offset);
        if overlaps(at, data.len(), usize::from(COMMAND), 2)
            && let Err(error) = self.start(host)
        {
            self.complain("write", offset, &error);
        }
        let passed: Vec<bool> = (at..at.saturating_add(data.len()))
            .map(|at| self.to_host.get(at).copied().unwrap_or(false))
            .collect();
        // Each run of bytes that go to the hardware is one write of the guest's own width.
        let mut start = 0;
        for run in passed.chunk_by(|a, b| a == b) {
            let end = start + run.len();
            if run[0]
                && let Ok(offset) = u16::try_from(at + start)
                && let Err(error) = host.config_write(offset, &data[start..end])
            {
                self.complain("write", offset, &error);
            }
            start = end;
        }
        changes
    }

    /// Back to the state after power-on, in the hardware too as far as it is ours.
    pub fn reset(&mut self, host: &dyn HostFunction) {
        self.config.reset();
        if let Err(error) = self.start(host) {
            self.complain("write", COMMAND, &error);
        }
    }

    fn hardware_command(&self) -> u16 {
        self.config.command() & COMMAND_PASSED | self.decoding
    }

    fn pass(&mut self, offset: u16, bytes: u16) {
        let range = usize::from(offset)..usize::from(offset + bytes);
        self.from_host[range.clone()].fill(0xff);
        self.to_host[range].fill(true);
    }

    /// Takes registers from the hardware; what is in them is ours from now on.
    fn hold(&mut self, offset: u16, bytes: u16) {
        let range = usize::from(offset)..usize::from(offset + bytes);
        self.from_host[range.clone()].fill(0);
        self.to_host[range].fill(false);
    }

    fn add_bars(&mut self, host: &dyn HostFunction, rom: bool) -> io::Result<()> {
        let mut index = 0;
        while index < BAR_COUNT {
            let size = host.region(index).size;
            let mut registers = 1;
            if size > 0 {
                let low = Hardware(host).u32(bar_register(index))?;
                let prefetchable = low & BAR_PREFETCHABLE != 0;
                let (kind, decoding, least) = if low & BAR_IO_SPACE != 0 {
                    (BarKind::Io, COMMAND_IO_SPACE, 4)
                } else if low & BAR_MEMORY_64 != 0 && index + 1 < BAR_COUNT {
                    registers = 2;
                    (BarKind::Memory64 { prefetchable }, COMMAND_MEMORY_SPACE, 16)
                } else {
                    (BarKind::Memory32 { prefetchable }, COMMAND_MEMORY_SPACE, 16)
                };
                self.decoding |= decoding;
                if let Err(error) = self.config.add_bar(index, kind, size.max(least)) {
                    log::warn!("{}: not shown to the guest: {error}", self.name);
                }
            }
            index += registers;
        }
        let rom_size = host.region(ROM_REGION).size;
        if rom && rom_size > 0 {
            self.decoding |= COMMAND_MEMORY_SPACE;
            if let Err(error) = self
                .config
                .add_bar(ROM_BAR, BarKind::Rom, rom_size.max(0x800))
            {
                log::warn!("{}: its ROM is not shown to the guest: {error}", self.name);
            }
        }
        Ok(())
    }

    /// The list of capabilities, at the hardware's offsets. Those that are emulated say how long they are, or that they
    /// cannot be shown. Says whether PCI Express is among them.
    fn add_capabilities(&mut self, host: &dyn HostFunction) -> io::Result<bool> {
        let read = Hardware(host);
        let found = read.capabilities()?;
        let mut express = false;
        let mut shown = Vec::new();
        for &(offset, id) in &found {
            let next = found.iter().map(|(other, _)| *other);
            let end = next.filter(|other| *other > offset).min();
            let room = end.unwrap_or(CONVENTIONAL_BYTES) - offset;
            let show = match treatment(List::Standard, u16::from(id)) {
                Treatment::Pass => {
                    self.hold(offset, 2);
                    true
                }
                Treatment::Hide => {
                    self.hold(offset, room);
                    false
                }
                Treatment::Emulate => {
                    self.hold(offset, room);
                    let bytes = match id {
                        CAP_ID_POWER_MANAGEMENT => {
                            self.add_power_management(&read, offset, room)?
                        }
                        CAP_ID_MSI => self.add_msi(&read, offset, room)?,
                        CAP_ID_MSIX => self.add_msix(host, offset, room)?,
                        CAP_ID_PCI_EXPRESS => self.add_express(&read, offset, room)?,
                        _ => None,
                    };
                    express |= bytes.is_some() && id == CAP_ID_PCI_EXPRESS;
                    // What is behind it is of no capability.
                    if let Some(bytes) = bytes {
                        self.pass(offset + bytes, room - bytes);
                    }
                    bytes.is_some()
                }
            };
            if show {
                shown.push((offset, id));
            }
        }
        let mut pointer = CAPABILITIES_POINTER;
        for (offset, id) in shown {
            self.config
                .add_registers(pointer, &offset.to_le_bytes()[..1], &[0]);
            self.config.add_registers(offset, &[id, 0], &[0, 0]);
            if pointer == CAPABILITIES_POINTER {
                let status = STATUS_CAPABILITIES_LIST.to_le_bytes();
                self.config.add_registers(STATUS, &status, &[0, 0]);
            }
            pointer = offset + 1;
        }
        Ok(express)
    }

    fn add_power_management(
        &mut self,
        read: &Hardware<'_>,
        offset: u16,
        room: u16,
    ) -> io::Result<Option<u16>> {
        if room < PM_BYTES {
            return Ok(None);
        }
        // PME# would be an interrupt of the host.
        let capabilities = read.u16(offset + 2)? & !PM_CAPABILITIES_PME;
        self.config
            .add_registers(offset + 2, &capabilities.to_le_bytes(), &[0, 0]);
        self.config.add_registers(
            offset + PM_CONTROL,
            &[PM_NO_SOFT_RESET, 0, 0, 0],
            &[PM_POWER_STATE, 0, 0, 0],
        );
        Ok(Some(PM_BYTES))
    }

    fn add_msi(&mut self, read: &Hardware<'_>, offset: u16, room: u16) -> io::Result<Option<u16>> {
        let hardware = read.u16(offset + 2)?;
        let max_multiple = hardware >> MSI_MULTIPLE_CAPABLE_SHIFT & MSI_MULTIPLE;
        let msi = MsiRegisters {
            capability: offset,
            wide: hardware & MSI_64_BIT != 0,
            maskable: hardware & MSI_MASKABLE != 0,
            max_multiple: max_multiple.min(MSI_MAX_MULTIPLE),
        };
        if room < msi.bytes() || self.msi.is_some() {
            return Ok(None);
        }
        let shown =
            hardware & (MSI_64_BIT | MSI_MASKABLE) | msi.max_multiple << MSI_MULTIPLE_CAPABLE_SHIFT;
        let control = MSI_ENABLE | MSI_MULTIPLE << MSI_MULTIPLE_ENABLE_SHIFT;
        let config = &mut self.config;
        config.add_registers(offset + 2, &shown.to_le_bytes(), &control.to_le_bytes());
        config.add_registers(offset + 4, &[0; 4], &[0xfc, 0xff, 0xff, 0xff]);
        if msi.wide {
            config.add_registers(offset + 8, &[0; 4], &[0xff; 4]);
        }
        config.add_registers(msi.data(), &[0; 2], &[0xff; 2]);
        if msi.maskable {
            let vectors = u32::MAX >> (32 - (1u32 << msi.max_multiple));
            config.add_registers(msi.mask(), &[0; 4], &vectors.to_le_bytes());
            config.add_registers(msi.mask() + 4, &[0; 4], &[0; 4]);
        }
        self.msi = Some(msi);
        Ok(Some(msi.bytes()))
    }

    fn add_msix(
        &mut self,
        host: &dyn HostFunction,
        offset: u16,
        room: u16,
    ) -> io::Result<Option<u16>> {
        let read = Hardware(host);
        if room < MSIX_BYTES || self.msix.is_some() {
            return Ok(None);
        }
        let count = (read.u16(offset + 2)? & MSIX_TABLE_SIZE) + 1;
        let (table, pba) = (read.u32(offset + 4)?, read.u32(offset + 8)?);
        let bar = |register: u32| (register & MSIX_BAR_INDEX).to_le_bytes()[0];
        let place = MsixPlace {
            capability: offset,
            count,
            table_bar: bar(table),
            table: u64::from(table & !MSIX_BAR_INDEX),
            pba_bar: bar(pba),
            pba: u64::from(pba & !MSIX_BAR_INDEX),
        };
        if place.table_bar >= BAR_COUNT || host.irq(IrqKind::Msix).count == 0 {
            return Ok(None);
        }
        let writable = (MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes();
        let config = &mut self.config;
        config.add_registers(offset + 2, &(count - 1).to_le_bytes(), &writable);
        config.add_registers(offset + 4, &table.to_le_bytes(), &[0; 4]);
        config.add_registers(offset + 8, &pba.to_le_bytes(), &[0; 4]);
        self.msix = Some(place);
        Ok(Some(MSIX_BYTES))
    }

    /// An endpoint becomes one that is integrated in the root complex: on the root bus there is nothing that a link
    /// could lead to. A legacy endpoint may not be there at all, so it is shown as a conventional function.
    fn add_express(
        &mut self,
        read: &Hardware<'_>,
        offset: u16,
        room: u16,
    ) -> io::Result<Option<u16>> {
        let capabilities = read.u16(offset + 2)?;
        let version = capabilities & EXPRESS_VERSION;
        let bytes = if version < 2 {
            EXPRESS_V1_BYTES
        } else {
            EXPRESS_V2_BYTES
        };
        let port = (capabilities & EXPRESS_TYPE) >> EXPRESS_TYPE_SHIFT;
        let endpoint = matches!(port, EXPRESS_ENDPOINT | EXPRESS_INTEGRATED_ENDPOINT);
        if !endpoint || version == 0 || room < bytes {
            return Ok(None);
        }
        let shown = capabilities & !(EXPRESS_TYPE | EXPRESS_SLOT)
            | EXPRESS_INTEGRATED_ENDPOINT << EXPRESS_TYPE_SHIFT;
        self.config
            .add_registers(offset + 2, &shown.to_le_bytes(), &[0, 0]);
        for (register, length, passed) in EXPRESS_DEVICE {
            if register + length > bytes {
                continue;
            }
            if passed {
                self.pass(offset + register, length);
                continue;
            }
            let mut value = read.u32(offset + register)?;
            if register == EXPRESS_CAPABILITIES_2 {
                value &= !EXPRESS_LTR_AND_OBFF;
            }
            self.config
                .add_registers(offset + register, &value.to_le_bytes(), &[0; 4]);
        }
        Ok(Some(bytes))
    }

    fn add_extended_capabilities(&mut self, host: &dyn HostFunction) -> io::Result<()> {
        let found = Hardware(host).extended_capabilities()?;
        self.config.extend();
        self.from_host.resize(usize::from(EXTENDED_BYTES), 0);
        self.to_host.resize(usize::from(EXTENDED_BYTES), false);
        // The list starts at 0x100, whatever is there: with the null capability if nothing is.
        let mut last: Option<(u16, u32)> = None;
        for &(offset, header) in &found {
            let id = u16::try_from(header & 0xffff).unwrap_or(0);
            if treatment(List::Extended, id) != Treatment::Pass {
                continue;
            }
            let others = found.iter().map(|(other, _)| *other);
            let end = others.filter(|other| *other > offset).min();
            let room = end.unwrap_or(EXTENDED_BYTES) - offset;
            self.pass(offset, room);
            self.hold(offset, 4);
            let (before, its_header) = last.unwrap_or((CONVENTIONAL_BYTES, 0));
            if before != offset {
                let linked = its_header | u32::from(offset) << 20;
                self.config
                    .add_registers(before, &linked.to_le_bytes(), &[0; 4]);
            }
            let header = header & 0x000f_ffff;
            self.config
                .add_registers(offset, &header.to_le_bytes(), &[0; 4]);
            last = Some((offset, header));
        }
        Ok(())
    }

    fn complain(&self, what: &str, offset: u16, error: &io::Error) {
        if self.failures.allow() {
            log::warn!(
                "{}: cannot {what} configuration space at {offset:#x}: {error}",
                self.name
            );
        }
    }
}

/// The hardware's own configuration space.
struct Hardware<'a>(&'a dyn HostFunction);

impl Hardware<'_> {
    fn u8(&self, offset: u16) -> io::Result<u8> {
        let mut data = [0];
        self.0.config_read(offset, &mut data)?;
        Ok(data[0])
    }

    fn u16(&self, offset: u16) -> io::Result<u16> {
        let mut data = [0; 2];
        self.0.config_read(offset, &mut data)?;
        Ok(u16::from_le_bytes(data))
    }

    fn u32(&self, offset: u16) -> io::Result<u32> {
        let mut data = [0; 4];
        self.0.config_read(offset, &mut data)?;
        Ok(u32::from_le_bytes(data))
    }

    /// `(offset, ID)` of the capabilities, in the list's order.
    fn capabilities(&self) -> io::Result<Vec<(u16, u8)>> {
        let mut found: Vec<(u16, u8)> = Vec::new();
        if self.u16(STATUS)? & STATUS_CAPABILITIES_LIST == 0 {
            return Ok(found);
        }
        let mut offset = u16::from(self.u8(CAPABILITIES_POINTER)? & !0b11);
        while offset >= HEADER_BYTES
            && found.len() < MAX_CAPABILITIES
            && found.iter().all(|(other, _)| *other != offset)
        {
            found.push((offset, self.u8(offset)?));
            offset = u16::from(self.u8(offset + 1)? & !0b11);
        }
        Ok(found)
    }

    /// `(offset, header)` of the extended capabilities, in the list's order.
    fn extended_capabilities(&self) -> io::Result<Vec<(u16, u32)>> {
        let mut found: Vec<(u16, u32)> = Vec::new();
        let mut offset = CONVENTIONAL_BYTES;
        while offset >= CONVENTIONAL_BYTES
            && found.len() < MAX_EXTENDED_CAPABILITIES
            && found.iter().all(|(other, _)| *other != offset)
        {
            let header = self.u32(offset)?;
            if header == 0 || header == u32::MAX {
                break;
            }
            found.push((offset, header));
            offset = u16::try_from(header >> 20 & 0xffc).unwrap_or(0);
        }
        Ok(found)
    }
}
