//! The address decoder: one [`Bus`] for port I/O, one for MMIO.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use thiserror::Error;

use crate::ratelimit::RateLimiter;
use crate::sync::{read, write};

/// What a guest did wrong in one register access. The bus logs it (rate-limited) and answers reads with ones; it
/// never leaves the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AccessError {
    /// No register at this offset.
    #[error("no register at this offset")]
    InvalidRegister,
    /// The register exists, but not for an access of this width or alignment.
    #[error("access width or alignment not supported by the register")]
    InvalidWidth,
    /// The register exists, but the value written has no meaning for it.
    #[error("value not accepted by the register")]
    InvalidValue,
    /// The device has failed or is not decoding at present.
    #[error("the device does not answer")]
    NotReady,
}

/// A device as the bus sees it.
///
/// Both calls come on a vCPU thread, any number of them at once, with no lock of the bus held: the device locks
/// itself. Lengths are whatever the guest used (1, 2, 4 or 8 bytes, more for string instructions cut up by KVM);
/// a device must accept any length and never panic.
pub trait BusDevice: Send + Sync {
    /// A short name, unique enough for logs and statistics (`com1`, `virtio-blk0`).
    fn name(&self) -> &str;

    /// How statistics call the place of the register at `offset`. Any thread; may be slow.
    fn region(&self, _offset: u64) -> Region {
        Region::Only
    }

    /// Reads `data.len()` bytes at `offset` from the start of the device's range.
    ///
    /// # Errors
    /// What the guest did wrong; the bus then fills `data` with ones.
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError>;

    /// Writes `data` at `offset` from the start of the device's range.
    ///
    /// # Errors
    /// What the guest did wrong; the write is dropped.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError>;
}

/// The place of a register among those of its device, for statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Region {
    /// In the device's first or only range: the offset says all.
    Only,
    /// In one of several, by its name, as in `bar2`.
    Part(String),
    /// In a range whose registers are counted as one, under this name.
    Whole(String),
}

/// A register that was accessed, for statistics.
#[derive(Clone)]
pub struct Accessed {
    /// The device.
    pub device: Arc<dyn BusDevice>,
    /// From the start of the device's range, in bytes.
    pub offset: u64,
}

impl Accessed {
    /// The same without a share in the device.
    #[must_use]
    pub fn register(&self) -> Register<'_> {
        Register {
            device: &self.device,
            offset: self.offset,
        }
    }
}

/// A register on a bus.
#[derive(Clone, Copy)]
pub struct Register<'a> {
    /// Its device.
    pub device: &'a Arc<dyn BusDevice>,
    /// From the start of the device's range, in bytes.
    pub offset: u64,
}

/// Why a range could not be put on a bus.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BusError {
    /// The range overlaps one that is there.
    #[error("{name}: {start:#x}..{end:#x} overlaps {other}")]
    Overlap {
        /// The device to be inserted.
        name: String,
        /// First address.
        start: u64,
        /// One past the last address.
        end: u64,
        /// The device that is there.
        other: String,
    },
    /// The range is empty or wraps around.
    #[error("{name}: empty or wrapping range at {start:#x}, length {len:#x}")]
    BadRange {
        /// The device to be inserted.
        name: String,
        /// First address.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
}

#[derive(Clone)]
struct Range {
    start: u64,
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// An address space of devices. Ranges do not overlap.
pub struct Bus {
    name: &'static str,
    /// By start. Whoever changes them makes new ones, so that a [`BusView`] may go on with those that it has.
    ranges: RwLock<Arc<[Range]>>,
    /// Counts the changes.
    version: AtomicU64,
    bad_access: RateLimiter,
}

impl Bus {
    /// An empty bus; `name` is for logs (`pio`, `mmio`).
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            ranges: RwLock::new(Arc::new([])),
            version: AtomicU64::new(0),
            bad_access: RateLimiter::default(),
        }
    }

    /// Puts `device` at `start..start + len`.
    ///
    /// # Errors
    /// [`BusError`] when the range is empty, wraps, or overlaps another.
    pub fn insert(&self, start: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let name = || device.name().to_string();
        let Some(end) = start.checked_add(len).filter(|_| len > 0) else {
            return Err(BusError::BadRange {
                name: name(),
                start,
                len,
            });
        };
        let mut ranges = write(&self.ranges);
        let place = ranges.partition_point(|range| range.start < end);
        if let Some(other) = place.checked_sub(1).and_then(|last| ranges.get(last))
            && other.start.saturating_add(other.len) > start
        {
            return Err(BusError::Overlap {
                name: name(),
                start,
                end,
                other: other.device.name().to_string(),
            });
        }
        let mut changed = ranges.to_vec();
        changed.insert(place, Range { start, len, device });
        self.change(&mut ranges, changed);
        Ok(())
    }

    /// Takes away the range that starts at `start`; says whether there was one.
    pub fn remove(&self, start: u64) -> bool {
        let mut ranges = write(&self.ranges);
        let Ok(place) = ranges.binary_search_by_key(&start, |range| range.start) else {
            return false;
        };
        let mut changed = ranges.to_vec();
        changed.remove(place);
        self.change(&mut ranges, changed);
        true
    }

    fn change(&self, ranges: &mut Arc<[Range]>, changed: Vec<Range>) {
        *ranges = changed.into();
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Reads on behalf of the guest. Unclaimed and refused accesses read as ones. Returns the register that was
    /// found, for statistics. Who reads often has a [`BusView`].
    pub fn read(&self, addr: u64, data: &mut [u8]) -> Option<Accessed> {
        let ranges = self.ranges();
        let found = find(&ranges, addr, data.len());
        self.read_from(found, data);
        found.map(owned)
    }

    /// Writes on behalf of the guest. Unclaimed and refused writes are dropped. Returns the register that was found,
    /// for statistics.
    pub fn write(&self, addr: u64, data: &[u8]) -> Option<Accessed> {
        let ranges = self.ranges();
        let found = find(&ranges, addr, data.len());
        self.write_to(found, data);
        found.map(owned)
    }

    fn ranges(&self) -> Arc<[Range]> {
        Arc::clone(&read(&self.ranges))
    }

    fn read_from(&self, found: Option<Register<'_>>, data: &mut [u8]) {
        let Some(Register { device, offset }) = found else {
            return data.fill(0xff);
        };
        if let Err(error) = device.read(offset, data) {
            data.fill(0xff);
            self.complain("read", &**device, offset, data.len(), error);
        }
    }

    fn write_to(&self, found: Option<Register<'_>>, data: &[u8]) {
        if let Some(Register { device, offset }) = found
            && let Err(error) = device.write(offset, data)
        {
            self.complain("write", &**device, offset, data.len(), error);
        }
    }

    #[cold]
    fn complain(
        &self,
        what: &str,
        device: &dyn BusDevice,
        offset: u64,
        len: usize,
        error: AccessError,
    ) {
        if self.bad_access.allow() {
            log::warn!(
                "{} {}: {what} of {len} bytes at offset {offset:#x}: {error}",
                self.name,
                device.name()
            );
        }
    }
}

fn find(ranges: &[Range], addr: u64, len: usize) -> Option<Register<'_>> {
    ranges.get(place_of(ranges, addr)?)?.register(addr, len)
}

/// The place of the last range that does not start beyond `addr`.
fn place_of(ranges: &[Range], addr: u64) -> Option<usize> {
    let beyond = ranges.partition_point(|range| range.start <= addr);
    beyond.checked_sub(1)
}

impl Range {
    /// The register at `addr`, if `len` bytes from there are all in the range.
    fn register(&self, addr: u64, len: usize) -> Option<Register<'_>> {
        let offset = addr.checked_sub(self.start)?;
        let end = offset.checked_add(len as u64)?;
        (end <= self.len).then_some(Register {
            device: &self.device,
            offset,
        })
    }
}

fn owned(register: Register<'_>) -> Accessed {
    Accessed {
        device: Arc::clone(register.device),
        offset: register.offset,
    }
}

/// A bus as one thread sees it that accesses it often, a vCPU's: it takes no lock, but when the bus has changed.
///
/// An access sees each change that was over when it began.
pub struct BusView {
    bus: Arc<Bus>,
    version: u64,
    ranges: Arc<[Range]>,
    /// The place in `ranges` of what was found last: drivers access a device many times in a row.
    last: Cell<usize>,
}

impl BusView {
    /// Of that bus.
    #[must_use]
    pub fn new(bus: Arc<Bus>) -> Self {
        Self {
            // Older than the ranges, if they are being changed: they are then looked at again.
            version: bus.version.load(Ordering::Acquire),
            ranges: bus.ranges(),
            last: Cell::new(0),
            bus,
        }
    }

    /// As [`Bus::read`].
    pub fn read(&mut self, addr: u64, data: &mut [u8]) -> Option<Register<'_>> {
        let (bus, found) = self.find(addr, data.len());
        bus.read_from(found, data);
        found
    }

    /// As [`Bus::write`].
    pub fn write(&mut self, addr: u64, data: &[u8]) -> Option<Register<'_>> {
        let (bus, found) = self.find(addr, data.len());
        bus.write_to(found, data);
        found
    }

    fn find(&mut self, addr: u64, len: usize) -> (&Bus, Option<Register<'_>>) {
        self.follow();
        let at = |place: usize| self.ranges.get(place)?.register(addr, len);
        let found = at(self.last.get()).or_else(|| {
            let place = place_of(&self.ranges, addr)?;
            self.last.set(place);
            at(place)
        });
        (&self.bus, found)
    }

    fn follow(&mut self) {
        let version = self.bus.version.load(Ordering::Acquire);
        if version != self.version {
            self.ranges = self.bus.ranges();
            self.version = version;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeDevice;

    fn fake() -> Arc<FakeDevice> {
        Arc::default()
    }

    #[test]
    fn finds_the_device_and_the_offset() {
        let bus = Bus::new("test");
        let device = fake();
        bus.insert(0x10, 8, device.clone()).unwrap();
        let mut data = [0; 2];
        assert!(bus.read(0x13, &mut data).is_some());
        assert_eq!(data, [3, 3]);
        assert!(bus.write(0x12, &[1, 2]).is_some());
        assert_eq!(device.written(), [(2, vec![1, 2])]);
    }

    #[test]
    fn unclaimed_straddling_and_refused_reads_are_ones() {
        let bus = Bus::new("test");
        bus.insert(0x10, 8, fake()).unwrap();
        for addr in [0x0, 0xf, 0x16, 0x18, u64::MAX] {
            let mut data = [0; 4];
            assert!(bus.read(addr, &mut data).is_none(), "{addr:#x}");
            assert_eq!(data, [0xff; 4]);
        }
        let mut data = [0; 1];
        assert!(bus.read(0x10 + FakeDevice::REFUSED, &mut data).is_some());
        assert_eq!(data, [0xff]);
    }

    #[test]
    fn a_view_follows_the_bus() {
        let bus = Arc::new(Bus::new("test"));
        let mut view = BusView::new(Arc::clone(&bus));
        assert!(view.read(0x10, &mut [0]).is_none());
        bus.insert(0x10, 8, fake()).unwrap();
        let mut data = [0; 2];
        assert_eq!(view.read(0x13, &mut data).unwrap().offset, 3);
        assert_eq!(data, [3, 3]);
        assert!(bus.remove(0x10));
        assert!(view.write(0x10, &[1]).is_none());
    }

    #[test]
    fn a_view_finds_one_device_after_another() {
        let bus = Arc::new(Bus::new("test"));
        let (low, high) = (fake(), fake());
        bus.insert(0x10, 8, low.clone()).unwrap();
        bus.insert(0x20, 8, high.clone()).unwrap();
        let mut view = BusView::new(Arc::clone(&bus));
        for value in [1, 2] {
            assert!(view.write(0x11, &[value]).is_some());
            assert!(view.write(0x22, &[value]).is_some());
            assert!(view.write(0x18, &[value]).is_none(), "between them");
        }
        assert_eq!(low.written(), [(1, vec![1]), (1, vec![2])]);
        assert_eq!(high.written(), [(2, vec![1]), (2, vec![2])]);
        // What was found last is in another place now, and another device in its place.
        let lowest = fake();
        bus.insert(0, 8, lowest.clone()).unwrap();
        assert!(view.write(0x11, &[3]).is_some());
        assert_eq!(low.written().len(), 3);
        assert!(lowest.written().is_empty());
    }

    #[test]
    fn overlaps_and_bad_ranges_are_refused() {
        let bus = Bus::new("test");
        bus.insert(0x10, 8, fake()).unwrap();
        for (start, len) in [(0x10, 1), (0x17, 1), (0x8, 9), (0x0, 0x100)] {
            assert!(
                matches!(
                    bus.insert(start, len, fake()),
                    Err(BusError::Overlap { .. })
                ),
                "{start:#x}"
            );
        }
        assert!(matches!(
            bus.insert(0x40, 0, fake()),
            Err(BusError::BadRange { .. })
        ));
        assert!(matches!(
            bus.insert(u64::MAX, 2, fake()),
            Err(BusError::BadRange { .. })
        ));
        bus.insert(0x18, 8, fake()).unwrap();
        bus.insert(0x8, 8, fake()).unwrap();
        assert!(bus.remove(0x10));
        assert!(!bus.remove(0x10));
    }
}
