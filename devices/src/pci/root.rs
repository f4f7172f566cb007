//! The root bus: functions by device and function number, their BARs on the two address decoders, and the initial
//! placement that a firmware would do.
//!
//! A write to configuration space and what follows from it happen under one lock, so two vCPUs cannot leave the
//! decoders in a state that no order of their writes explains. An access that the decoders send to a BAR takes no
//! lock of the root bus.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, RwLock, Weak};

use thiserror::Error;

use super::config::{
    BAR_COUNT, BAR_IO_SPACE, BAR_MEMORY_64, COMMAND, COMMAND_IO_SPACE, COMMAND_MEMORY_SPACE,
    ROM_ADDRESS, ROM_BAR, ROM_ENABLE, bar_register,
};
use super::device::{BarChange, DoorbellSpec, PciDevice, PortDoorbell};
use super::mapping::BarMapper;
use crate::bus::{AccessError, Bus, BusDevice, BusError, Region};
use crate::irq::Doorbell;
use crate::posted::{PostedWrites, PostedZone, Space};
use crate::ratelimit::RateLimiter;
use crate::sync::{lock, read, write};

/// Devices on a bus.
pub const DEVICE_COUNT: u8 = 32;
/// Functions in a device.
pub const FUNCTION_COUNT: u8 = 8;
/// Interrupt lines of the root bus.
pub const INTX_LINE_COUNT: u8 = 8;

/// BARs are placed in pages of their own, so that a guest can map one without the other.
const MIN_MEMORY_ALIGNMENT: u64 = 0x1000;

/// Which of the root bus's interrupt lines (0 to 7) pin `pin` of device `slot` drives. Pin 0 is INTA#, as in ACPI's
/// `_PRT`, which must agree with this function.
#[must_use]
pub fn intx_line(slot: u8, pin: u8) -> u8 {
    (slot % INTX_LINE_COUNT + pin % INTX_LINE_COUNT) % INTX_LINE_COUNT
}

/// The address ranges that BARs are placed in, as ACPI's `_CRS` of the host bridge has them. The 64-bit range must
/// not be declared prefetchable there: BARs that are not are placed in it too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciWindows {
    /// Memory below 4 GiB, for 32-bit BARs.
    pub mmio32: Range<u64>,
    /// Memory for 64-bit BARs.
    pub mmio64: Range<u64>,
    /// Ports.
    pub io: Range<u64>,
}

/// Why a function could not be added to the bus, or its BARs not be placed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RootBusError {
    /// All 32 devices are there.
    #[error("{name}: all {DEVICE_COUNT} PCI slots are taken")]
    Full {
        /// The function to be added.
        name: String,
    },
    /// The device or function number does not exist.
    #[error("{name}: there is no PCI slot {slot}, function {function}")]
    NoSuchSlot {
        /// The function to be added.
        name: String,
        /// Device number.
        slot: u8,
        /// Function number.
        function: u8,
    },
    /// Another function has the place.
    #[error("{name}: PCI slot {slot}, function {function} is taken by {other}")]
    Taken {
        /// The function to be added.
        name: String,
        /// Device number.
        slot: u8,
        /// Function number.
        function: u8,
        /// Who is there.
        other: String,
    },
    /// A window has no room for a BAR.
    #[error("{name}: no room for BAR {bar} of {size:#x} bytes in {window:#x?}")]
    WindowFull {
        /// The function.
        name: String,
        /// Index of the BAR.
        bar: u8,
        /// Bytes that it needs.
        size: u64,
        /// Where it should be.
        window: Range<u64>,
    },
}

/// A BAR on the address decoder.
struct BarWindow {
    device: Arc<dyn PciDevice>,
    bar: u8,
}

impl BusDevice for BarWindow {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn region(&self, _offset: u64) -> Region {
        match self.bar {
            0 => Region::Only,
            bar => Region::Part(format!("bar{bar}")),
        }
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.device.bar_read(self.bar, offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.device.bar_write(self.bar, offset, data)
    }
}

/// A BAR that its function decodes.
struct Decoded {
    window: Arc<BarWindow>,
    space: Space,
    start: u64,
    len: u64,
    /// None while another range is in the way and the BAR is not on the bus.
    mapped: Option<Mapped>,
}

/// What was set up for a BAR on the bus.
#[derive(Default)]
struct Mapped {
    doorbells: Vec<DoorbellSpec>,
    port_doorbells: Vec<PortDoorbell>,
    posted: Vec<PostedZone>,
    /// Guest-physical addresses of pages that the guest reaches without an exit.
    pages: Vec<u64>,
}

/// By device-function number and BAR.
type DecodedBars = BTreeMap<(u8, u8), Decoded>;

/// Bus 0.
pub struct RootBus {
    functions: RwLock<BTreeMap<u8, Arc<dyn PciDevice>>>,
    decoded: Mutex<DecodedBars>,
    // The buses own the configuration ports, which own this.
    mmio: Weak<Bus>,
    pio: Weak<Bus>,
    doorbell: Arc<dyn Doorbell>,
    posted: Arc<dyn PostedWrites>,
    /// None where every access to a BAR exits.
    mapper: Option<Arc<dyn BarMapper>>,
    windows: PciWindows,
    failures: RateLimiter,
}

impl RootBus {
    /// An empty bus whose BARs go to `mmio` and `pio`, which the caller keeps alive, whose doorbells are bound by
    /// `doorbell`, and whose writes that only store go through `posted`.
    #[must_use]
    pub fn new(
        mmio: &Arc<Bus>,
        pio: &Arc<Bus>,
        doorbell: Arc<dyn Doorbell>,
        posted: Arc<dyn PostedWrites>,
        windows: PciWindows,
    ) -> Self {
        Self {
            functions: RwLock::new(BTreeMap::new()),
            decoded: Mutex::new(BTreeMap::new()),
            mmio: Arc::downgrade(mmio),
            pio: Arc::downgrade(pio),
            doorbell,
            posted,
            mapper: None,
            windows,
            failures: RateLimiter::default(),
        }
    }

    /// With a way to give the guest parts of BARs that it reaches without an exit.
    #[must_use]
    pub fn with_mapper(mut self, mapper: Arc<dyn BarMapper>) -> Self {
        self.mapper = Some(mapper);
        self
    }

    /// The lowest device number that is free: where [`RootBus::insert`] puts the next device. Its interrupt line
    /// follows from it ([`intx_line`]).
    #[must_use]
    pub fn next_slot(&self) -> Option<u8> {
        let functions = read(&self.functions);
        (0..DEVICE_COUNT).find(|slot| functions.range(devfns(*slot)).next().is_none())
    }

    /// Adds a device with one function, at `slot` or at [`RootBus::next_slot`]. Returns the slot. Its BARs are
    /// placed by [`RootBus::assign_resources`].
    ///
    /// # Errors
    /// [`RootBusError`].
    pub fn insert(&self, device: Arc<dyn PciDevice>, slot: Option<u8>) -> Result<u8, RootBusError> {
        let slot = match slot.or_else(|| self.next_slot()) {
            Some(slot) => slot,
            None => {
                return Err(RootBusError::Full {
                    name: device.name().to_string(),
                });
            }
        };
        self.insert_function(device, slot, 0)?;
        Ok(slot)
    }

    /// Adds one function of a device with several. Function 0 must be there and say that it has company
    /// ([`super::PciConfig::set_multifunction`]), or the guest does not look for the others.
    ///
    /// # Errors
    /// [`RootBusError`].
    pub fn insert_function(
        &self,
        device: Arc<dyn PciDevice>,
        slot: u8,
        function: u8,
    ) -> Result<(), RootBusError> {
        let name = device.name().to_string();
        if slot >= DEVICE_COUNT || function >= FUNCTION_COUNT {
            return Err(RootBusError::NoSuchSlot {
                name,
                slot,
                function,
            });
        }
        let mut functions = write(&self.functions);
        let devfn = slot << 3 | function;
        if let Some(other) = functions.get(&devfn) {
            return Err(RootBusError::Taken {
                name,
                slot,
                function,
                other: other.name().to_string(),
            });
        }
        functions.insert(devfn, device);
        Ok(())
    }

    /// Reads configuration space of the function `devfn` (device number times eight plus function number); ones
    /// where there is none. The access lies within a dword.
    pub(super) fn config_read(&self, devfn: u8, offset: u16, data: &mut [u8]) {
        match self.function(devfn) {
            Some(device) => device.config_read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes configuration space, as [`RootBus::config_read`], and moves the BARs accordingly.
    pub(super) fn config_write(&self, devfn: u8, offset: u16, data: &[u8]) {
        if let Some(device) = self.function(devfn) {
            let mut decoded = lock(&self.decoded);
            self.write_and_apply(&mut decoded, devfn, &device, offset, data);
        }
    }

    /// Gives every BAR an address, as a firmware does. Decoding stays off: that is the driver's to enable, and a
    /// guest that sizes BARs which are on must switch them off and on for each register, which costs exits.
    ///
    /// # Errors
    /// [`RootBusError::WindowFull`].
    pub fn assign_resources(&self) -> Result<(), RootBusError> {
        let functions = read(&self.functions).clone();
        let mut decoded = lock(&self.decoded);
        let mut wanted = Vec::new();
        for (&devfn, device) in &functions {
            let off = !(COMMAND_IO_SPACE | COMMAND_MEMORY_SPACE) & read_u16(device, COMMAND);
            self.write_and_apply(&mut decoded, devfn, device, COMMAND, &off.to_le_bytes());
            wanted.extend(
                size_bars(device, |offset, value: u32| {
                    let value = value.to_le_bytes();
                    self.write_and_apply(&mut decoded, devfn, device, offset, &value);
                })
                .into_iter()
                .map(|bar| (devfn, bar)),
            );
        }
        // Powers of two from large to small need no padding.
        wanted.sort_by_key(|(devfn, bar)| (std::cmp::Reverse(bar.size), *devfn, bar.index));
        let mut cursors = self.windows.clone();
        for (devfn, bar) in wanted {
            let device = &functions[&devfn];
            let (cursor, window) = match bar.window {
                WindowKind::Io => (&mut cursors.io, &self.windows.io),
                WindowKind::Mmio32 => (&mut cursors.mmio32, &self.windows.mmio32),
                WindowKind::Mmio64 => (&mut cursors.mmio64, &self.windows.mmio64),
            };
            let start = take(cursor, &bar).ok_or_else(|| RootBusError::WindowFull {
                name: device.name().to_string(),
                bar: bar.index,
                size: bar.size,
                window: window.clone(),
            })?;
            let bytes = start.to_le_bytes();
            let register = bar_register(bar.index);
            self.write_and_apply(&mut decoded, devfn, device, register, &bytes[..4]);
            if bar.window == WindowKind::Mmio64 {
                self.write_and_apply(&mut decoded, devfn, device, register + 4, &bytes[4..]);
            }
        }
        Ok(())
    }

    /// A reset of the machine: takes all BARs off the buses, resets every function and places the BARs again.
    /// Called with all vCPUs stopped.
    ///
    /// # Errors
    /// [`RootBusError::WindowFull`].
    pub fn reset(&self) -> Result<(), RootBusError> {
        {
            let mut decoded = lock(&self.decoded);
            for bar in std::mem::take(&mut *decoded).into_values() {
                self.unmap(&bar);
            }
            let functions = read(&self.functions);
            for device in functions.values() {
                device.reset();
            }
        }
        self.assign_resources()
    }

    /// Takes all BARs off the buses, and all functions off the bus: what they are made of can go. No vCPU runs.
    pub fn close(&self) {
        for bar in std::mem::take(&mut *lock(&self.decoded)).into_values() {
            self.unmap(&bar);
        }
        write(&self.functions).clear();
    }

    fn function(&self, devfn: u8) -> Option<Arc<dyn PciDevice>> {
        read(&self.functions).get(&devfn).cloned()
    }

    fn write_and_apply(
        &self,
        decoded: &mut DecodedBars,
        devfn: u8,
        device: &Arc<dyn PciDevice>,
        offset: u16,
        data: &[u8],
    ) {
        let changes = device.config_write(offset, data);
        if changes.is_empty() {
            return;
        }
        // What moves away first makes room for what moves in.
        for change in &changes {
            if let Some(old) = decoded.remove(&(devfn, change.bar)) {
                self.unmap(&old);
            }
        }
        for change in &changes {
            if let Some(mut bar) = Decoded::new(device, change) {
                if let Err(error) = self.map(&mut bar)
                    && self.failures.allow()
                {
                    log::warn!("BAR {} is not decoded: {error}", change.bar);
                }
                decoded.insert((devfn, change.bar), bar);
            }
        }
        // Others may have waited for the room.
        for bar in decoded.values_mut().filter(|bar| bar.mapped.is_none()) {
            // Still in the way: it was logged when the BAR moved there.
            let _ = self.map(bar);
        }
    }

    fn map(&self, bar: &mut Decoded) -> Result<(), BusError> {
        let Some(bus) = self.bus(bar.space) else {
            return Ok(());
        };
        bus.insert(bar.start, bar.len, Arc::clone(&bar.window) as _)?;
        let mut mapped = Mapped::default();
        let device = &bar.window.device;
        if bar.space == Space::Memory {
            for spec in device.doorbells(bar.window.bar) {
                match self.doorbell.bind(bar.start + spec.offset, &spec.event) {
                    Ok(()) => mapped.doorbells.push(spec),
                    Err(error) => self.complain(bar, "bind the doorbell", spec.offset, &error),
                }
            }
        }
        if bar.space == Space::Memory {
            self.map_pages(bar, &mut mapped);
        }
        if bar.space == Space::Io {
            self.bind_ports(bar, &mut mapped);
        }
        for range in device.posted(bar.window.bar) {
            let zone = PostedZone {
                space: bar.space,
                start: bar.start + u64::from(range.start),
                len_bytes: range.end.saturating_sub(range.start),
            };
            match self.posted.open(zone) {
                Ok(()) => mapped.posted.push(zone),
                Err(error) => {
                    self.complain(bar, "post writes", u64::from(range.start), &error);
                }
            }
        }
        bar.mapped = Some(mapped);
        Ok(())
    }

    /// Gives the guest the pages of a memory BAR. What cannot be mapped exits.
    fn map_pages(&self, bar: &Decoded, mapped: &mut Mapped) {
        let Some(mapper) = &self.mapper else {
            return;
        };
        for mapping in bar.window.device.mappings(bar.window.bar) {
            let addr = bar.start + mapping.offset;
            match mapper.map(addr, &mapping.pages) {
                Ok(()) => mapped.pages.push(addr),
                Err(error) => self.complain(bar, "map pages", mapping.offset, &error),
            }
        }
    }

    /// Binds the doorbells of an I/O BAR.
    fn bind_ports(&self, bar: &Decoded, mapped: &mut Mapped) {
        for doorbell in bar.window.device.port_doorbells(bar.window.bar) {
            let port = bar.start + doorbell.offset;
            let bound = self
                .doorbell
                .bind_port(port, doorbell.value, &doorbell.event);
            match bound {
                Ok(()) => mapped.port_doorbells.push(doorbell),
                Err(error) => {
                    self.complain(bar, "bind the doorbell", doorbell.offset, &error);
                }
            }
        }
    }

    fn unmap(&self, bar: &Decoded) {
        let Some(mapped) = &bar.mapped else {
            return;
        };
        for addr in &mapped.pages {
            if let Some(Err(error)) = self.mapper.as_ref().map(|mapper| mapper.unmap(*addr)) {
                self.complain(bar, "unmap pages", addr - bar.start, &error);
            }
        }
        for spec in &mapped.doorbells {
            if let Err(error) = self.doorbell.unbind(bar.start + spec.offset, &spec.event) {
                self.complain(bar, "unbind the doorbell", spec.offset, &error);
            }
        }
        for bell in &mapped.port_doorbells {
            let port = bar.start + bell.offset;
            if let Err(error) = self.doorbell.unbind_port(port, bell.value, &bell.event) {
                self.complain(bar, "unbind the doorbell", bell.offset, &error);
            }
        }
        for zone in &mapped.posted {
            if let Err(error) = self.posted.close(*zone) {
                self.complain(bar, "stop posting writes", zone.start - bar.start, &error);
            }
        }
        if let Some(bus) = self.bus(bar.space) {
            bus.remove(bar.start);
        }
    }

    fn bus(&self, space: Space) -> Option<Arc<Bus>> {
        match space {
            Space::Io => self.pio.upgrade(),
            Space::Memory => self.mmio.upgrade(),
        }
    }

    fn complain(&self, bar: &Decoded, what: &str, offset: u64, error: &std::io::Error) {
        if self.failures.allow() {
            log::warn!(
                "{}: cannot {what} at {:#x}: {error}",
                bar.window.name(),
                bar.start + offset
            );
        }
    }
}

impl Decoded {
    fn new(device: &Arc<dyn PciDevice>, change: &BarChange) -> Option<Self> {
        Some(Self {
            window: Arc::new(BarWindow {
                device: Arc::clone(device),
                bar: change.bar,
            }),
            space: change.space,
            start: change.new?,
            len: change.len,
            mapped: None,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WindowKind {
    Io,
    Mmio32,
    Mmio64,
}

struct WantedBar {
    index: u8,
    window: WindowKind,
    size: u64,
}

/// Finds out what the function's BARs want, by writing ones to them (PCI 3.0, 6.2.5.1). Decoding is off.
fn size_bars(device: &Arc<dyn PciDevice>, mut write: impl FnMut(u16, u32)) -> Vec<WantedBar> {
    let mut probe = |register: u16| {
        let before = read_u32(device, register);
        write(register, u32::MAX);
        let mask = read_u32(device, register);
        write(register, before);
        mask
    };
    let mut bars = Vec::new();
    let mut index = 0;
    while index < BAR_COUNT {
        let register = bar_register(index);
        let low = probe(register);
        let (window, mask, registers) = if low & BAR_IO_SPACE != 0 {
            let mask = u64::from(low & !0b11) | u64::from(u32::MAX) << 32;
            (WindowKind::Io, mask, 1)
        } else if low & BAR_MEMORY_64 != 0 && index + 1 < BAR_COUNT {
            let high = u64::from(probe(register + 4));
            (WindowKind::Mmio64, high << 32 | u64::from(low & !0xf), 2)
        } else {
            let mask = u64::from(low & !0xf) | u64::from(u32::MAX) << 32;
            (WindowKind::Mmio32, mask, 1)
        };
        if low != 0 {
            // An empty mask wraps to zero, which no window can hold.
            let size = (!mask).wrapping_add(1);
            bars.push(WantedBar {
                index,
                window,
                size,
            });
        }
        index += registers;
    }
    let rom = probe(ROM_ADDRESS) & !ROM_ENABLE;
    if rom != 0 {
        bars.push(WantedBar {
            index: ROM_BAR,
            window: WindowKind::Mmio32,
            size: u64::from((!rom).wrapping_add(1)),
        });
    }
    bars
}

fn take(cursor: &mut Range<u64>, bar: &WantedBar) -> Option<u64> {
    let alignment = match bar.window {
        WindowKind::Io => bar.size,
        WindowKind::Mmio32 | WindowKind::Mmio64 => bar.size.max(MIN_MEMORY_ALIGNMENT),
    };
    if !alignment.is_power_of_two() {
        return None;
    }
    let start = cursor.start.checked_next_multiple_of(alignment)?;
    let end = start.checked_add(bar.size)?;
    (end <= cursor.end).then(|| {
        cursor.start = end;
        start
    })
}

fn devfns(slot: u8) -> std::ops::RangeInclusive<u8> {
    slot << 3..=slot << 3 | (FUNCTION_COUNT - 1)
}

fn read_u16(device: &Arc<dyn PciDevice>, offset: u16) -> u16 {
    let mut data = [0; 2];
    device.config_read(offset, &mut data);
    u16::from_le_bytes(data)
}

fn read_u32(device: &Arc<dyn PciDevice>, offset: u16) -> u32 {
    let mut data = [0; 4];
    device.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}
