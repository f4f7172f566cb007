//! MSI-X (PCI Local Bus 3.0, 6.8.2): the capability, the table, the pending bits.
//!
//! All interrupts of our devices start in user space, in [`Msix::trigger`], so masking is decided there and costs
//! the guest no system call. The hypervisor hears of a vector when it is unmasked with a message that it does not
//! have yet, and never of a mask. A hypervisor that has no route left is still usable: the messages are then sent
//! one by one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::config::{CAP_ID_MSIX, PciConfig, PciConfigError};
use crate::bus::AccessError;
use crate::irq::{MsiMessage, MsiSink, MsiVector};
use crate::ratelimit::RateLimiter;
use crate::sync::lock;

/// Bytes of one table entry.
pub const MSIX_ENTRY_BYTES: u64 = 16;
/// The most vectors a function can have.
pub const MSIX_MAX_VECTORS: u16 = 2048;

const MESSAGE_CONTROL: u16 = 2;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const CONTROL_ENABLE: u16 = 1 << 15;
const VECTOR_CONTROL_MASK: u32 = 1 << 0;
const ENTRY_DWORDS: usize = 4;
const ADDRESS_LOW: usize = 0;
const ADDRESS_HIGH: usize = 1;
const DATA: usize = 2;
const VECTOR_CONTROL: usize = 3;

/// Where the table and the pending bits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixLayout {
    /// The BAR they are in, 0 to 5.
    pub bar: u8,
    /// Offset of the table, a multiple of 8.
    pub table: u32,
    /// Offset of the pending bits, a multiple of 8.
    pub pba: u32,
}

struct Vector {
    /// The table entry, as dwords.
    entry: [u32; ENTRY_DWORDS],
    pending: bool,
    line: Option<Box<dyn MsiVector>>,
    /// What `line` points at.
    routed: Option<MsiMessage>,
}

impl Vector {
    fn new() -> Self {
        let mut entry = [0; ENTRY_DWORDS];
        entry[VECTOR_CONTROL] = VECTOR_CONTROL_MASK;
        Self {
            entry,
            pending: false,
            line: None,
            routed: None,
        }
    }

    fn masked(&self) -> bool {
        self.entry[VECTOR_CONTROL] & VECTOR_CONTROL_MASK != 0
    }

    fn message(&self) -> MsiMessage {
        MsiMessage {
            address: u64::from(self.entry[ADDRESS_HIGH]) << 32 | u64::from(self.entry[ADDRESS_LOW]),
            data: self.entry[DATA],
        }
    }
}

/// The MSI-X of one function.
pub struct Msix {
    capability: u16,
    /// MSI-X is on: the function uses it instead of INTx.
    enabled: AtomicBool,
    /// MSI-X is on and the function mask is off.
    live: AtomicBool,
    vectors: Vec<Mutex<Vector>>,
    sink: Arc<dyn MsiSink>,
    failures: RateLimiter,
}

impl Msix {
    /// Adds the capability to `config`, for `count` vectors (1 to [`MSIX_MAX_VECTORS`]).
    ///
    /// # Errors
    /// [`PciConfigError::CapabilitySpace`].
    ///
    /// # Panics
    /// When `count` or an offset in `layout` is not a possible one.
    pub fn new(
        config: &mut PciConfig,
        layout: MsixLayout,
        count: u16,
        sink: Arc<dyn MsiSink>,
    ) -> Result<Self, PciConfigError> {
        assert!((1..=MSIX_MAX_VECTORS).contains(&count), "{count} vectors");
        assert!(layout.table.is_multiple_of(8) && layout.pba.is_multiple_of(8));
        let mut body = [0; 10];
        body[0..2].copy_from_slice(&(count - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(layout.table | u32::from(layout.bar)).to_le_bytes());
        body[6..10].copy_from_slice(&(layout.pba | u32::from(layout.bar)).to_le_bytes());
        let writable = (CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes();
        let capability = config.add_capability(CAP_ID_MSIX, &body, &writable)?;
        Ok(Self {
            capability: u16::from(capability),
            enabled: AtomicBool::new(false),
            live: AtomicBool::new(false),
            vectors: (0..count).map(|_| Mutex::new(Vector::new())).collect(),
            sink,
            failures: RateLimiter::default(),
        })
    }

    /// How many vectors there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.vectors.len()
    }

    /// Whether the guest has switched the function from INTx to MSI-X. Any thread.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Follows message control after a write to `config`. vCPU thread, one at a time.
    pub fn sync_control(&self, config: &PciConfig) {
        let control = config.read_u16(self.capability + MESSAGE_CONTROL);
        let enabled = control & CONTROL_ENABLE != 0;
        let live = enabled && control & CONTROL_FUNCTION_MASK == 0;
        self.enabled.store(enabled, Ordering::Release);
        // A trigger that still saw the old value has left a pending bit under the vector's lock, which is taken
        // for each vector after the new value is in place: none is lost.
        if self.live.swap(live, Ordering::AcqRel) != live && live {
            for vector in &self.vectors {
                self.deliver_unmasked(&mut lock(vector));
            }
        }
    }

    /// Raises vector `index`: delivers it, or leaves it pending while it is masked. Nothing happens for a vector
    /// that does not exist. Any thread.
    pub fn trigger(&self, index: u16) {
        let Some(vector) = self.vectors.get(usize::from(index)) else {
            return;
        };
        let mut vector = lock(vector);
        if vector.masked() || !self.live.load(Ordering::Acquire) {
            vector.pending = true;
        } else {
            self.deliver(&vector);
        }
    }

    /// Reads the table at `offset` from its start, any width.
    ///
    /// # Errors
    /// [`AccessError::InvalidRegister`] beyond its end.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        for (at, byte) in (offset..).zip(data) {
            let (vector, dword, shift) = self.locate(at)?;
            *byte = lock(vector).entry[dword].to_le_bytes()[shift];
        }
        Ok(())
    }

    /// Writes to the table at `offset` from its start, any width. vCPU thread.
    ///
    /// # Errors
    /// [`AccessError::InvalidRegister`] beyond its end.
    pub fn table_write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let in_entry = usize::try_from(MSIX_ENTRY_BYTES - at % MSIX_ENTRY_BYTES)
                .map_err(|_| AccessError::InvalidRegister)?;
            let (now, later) = rest.split_at(rest.len().min(in_entry));
            let (vector, ..) = self.locate(at)?;
            let mut vector = lock(vector);
            for (byte_at, value) in (at..).zip(now) {
                let (_, dword, shift) = self.locate(byte_at)?;
                let mut bytes = vector.entry[dword].to_le_bytes();
                bytes[shift] = *value;
                vector.entry[dword] = u32::from_le_bytes(bytes);
            }
            vector.entry[ADDRESS_LOW] &= !0b11;
            vector.entry[VECTOR_CONTROL] &= VECTOR_CONTROL_MASK;
            if self.live.load(Ordering::Acquire) {
                self.deliver_unmasked(&mut vector);
            }
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Reads the pending bits at `offset` from their start, any width. They are not writable.
    ///
    /// # Errors
    /// [`AccessError::InvalidRegister`] beyond their end.
    pub fn pba_read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let bytes = self.vectors.len().div_ceil(64) * 8;
        let start = usize::try_from(offset).map_err(|_| AccessError::InvalidRegister)?;
        let end = start
            .checked_add(data.len())
            .ok_or(AccessError::InvalidRegister)?;
        if end > bytes {
            return Err(AccessError::InvalidRegister);
        }
        for (at, byte) in (start..).zip(data) {
            *byte = self
                .vectors
                .iter()
                .skip(at * 8)
                .take(8)
                .enumerate()
                .fold(0, |bits, (i, vector)| {
                    bits | u8::from(lock(vector).pending) << i
                });
        }
        Ok(())
    }

    /// Forgets interrupts that wait for their mask to go: the device was reset.
    pub fn clear_pending(&self) {
        for vector in &self.vectors {
            lock(vector).pending = false;
        }
    }

    /// Back to the state after power-on; the routes are given back.
    pub fn reset(&self) {
        self.enabled.store(false, Ordering::Release);
        self.live.store(false, Ordering::Release);
        for vector in &self.vectors {
            *lock(vector) = Vector::new();
        }
    }

    fn locate(&self, offset: u64) -> Result<(&Mutex<Vector>, usize, usize), AccessError> {
        let offset = usize::try_from(offset).map_err(|_| AccessError::InvalidRegister)?;
        let vector = self
            .vectors
            .get(offset / (ENTRY_DWORDS * 4))
            .ok_or(AccessError::InvalidRegister)?;
        Ok((vector, offset / 4 % ENTRY_DWORDS, offset % 4))
    }

    /// The vector may just have become deliverable: connects it, and delivers what waits.
    fn deliver_unmasked(&self, vector: &mut Vector) {
        if vector.masked() {
            return;
        }
        self.connect(vector);
        if std::mem::take(&mut vector.pending) {
            self.deliver(vector);
        }
    }

    fn connect(&self, vector: &mut Vector) {
        let message = vector.message();
        if vector.routed == Some(message) {
            return;
        }
        vector.routed = None;
        if vector.line.is_none() {
            vector.line = self
                .sink
                .vector()
                .map_err(|error| self.complain("no route", &error))
                .ok();
        }
        if let Some(line) = &vector.line {
            match line.route(Some(message)) {
                Ok(()) => vector.routed = Some(message),
                Err(error) => self.complain("cannot route", &error),
            }
        }
    }

    fn deliver(&self, vector: &Vector) {
        let result = match &vector.line {
            Some(line) if vector.routed.is_some() => line.trigger().write(1),
            _ => self.sink.send(vector.message()),
        };
        if let Err(error) = result {
            self.complain("cannot deliver", &error);
        }
    }

    fn complain(&self, what: &str, error: &std::io::Error) {
        if self.failures.allow() {
            log::warn!("MSI-X: {what}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::config::PciIds;
    use crate::testing::{FakeMsiSink, MsiRefusal};

    const LAYOUT: MsixLayout = MsixLayout {
        bar: 1,
        table: 0x2000,
        pba: 0x3000,
    };
    const MESSAGE: MsiMessage = MsiMessage {
        address: 0xfee0_1000,
        data: 0x4041,
    };

    fn function(count: u16, sink: Arc<dyn MsiSink>) -> (PciConfig, Msix) {
        let mut config = PciConfig::new(PciIds {
            vendor: 1,
            device: 1,
            revision: 0,
            class: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        let msix = Msix::new(&mut config, LAYOUT, count, sink).unwrap();
        (config, msix)
    }

    fn set_control(config: &mut PciConfig, msix: &Msix, control: u16) {
        let _ = config.write(0x42, &control.to_le_bytes());
        msix.sync_control(config);
    }

    fn write_message(msix: &Msix, index: u64, message: MsiMessage) {
        let at = index * MSIX_ENTRY_BYTES;
        msix.table_write(at, &message.address.to_le_bytes())
            .unwrap();
        msix.table_write(at + 8, &message.data.to_le_bytes())
            .unwrap();
    }

    fn set_mask(msix: &Msix, index: u64, masked: bool) {
        let control = u32::from(masked);
        msix.table_write(index * MSIX_ENTRY_BYTES + 12, &control.to_le_bytes())
            .unwrap();
    }

    fn pending(msix: &Msix) -> u64 {
        let mut data = [0; 8];
        msix.pba_read(0, &mut data).unwrap();
        u64::from_le_bytes(data)
    }

    #[test]
    fn capability_describes_table_and_pba() {
        let (mut config, _msix) = function(5, Arc::new(FakeMsiSink::default()));
        assert_eq!(config.read_u32(0x40), 0x0004_0011);
        assert_eq!(config.read_u32(0x44), 0x2001);
        assert_eq!(config.read_u32(0x48), 0x3001);
        let _ = config.write(0x40, &[0xff; 12]);
        assert_eq!(config.read_u32(0x40), 0xc004_0011);
        assert_eq!(config.read_u32(0x44), 0x2001);
    }

    #[test]
    fn the_sink_hears_only_of_new_messages_at_unmasking() {
        let sink = Arc::new(FakeMsiSink::default());
        let (mut config, msix) = function(2, sink.clone());
        set_control(&mut config, &msix, CONTROL_ENABLE);
        write_message(&msix, 1, MESSAGE);
        assert!(sink.vectors().is_empty());
        set_mask(&msix, 1, false);
        let vectors = sink.vectors();
        assert_eq!(vectors.len(), 1);
        assert_eq!(vectors[0].message(), Some(MESSAGE));
        assert_eq!(vectors[0].take_raised(), 0);
        msix.trigger(1);
        assert_eq!(vectors[0].take_raised(), 1);
        // Masked, it still points at its message; the mask is ours.
        set_mask(&msix, 1, true);
        assert_eq!(vectors[0].message(), Some(MESSAGE));
        let moved = MsiMessage {
            data: 0x42,
            ..MESSAGE
        };
        write_message(&msix, 1, moved);
        assert_eq!(vectors[0].message(), Some(MESSAGE));
        set_mask(&msix, 1, false);
        assert_eq!(vectors[0].message(), Some(moved));
        assert_eq!(sink.vectors().len(), 1);
        assert!(sink.sent().is_empty());
    }

    #[test]
    fn masked_vectors_are_pending_and_delivered_once() {
        let sink = Arc::new(FakeMsiSink::default());
        let (mut config, msix) = function(70, sink.clone());
        set_control(&mut config, &msix, CONTROL_ENABLE);
        write_message(&msix, 3, MESSAGE);
        msix.trigger(3);
        msix.trigger(3);
        assert_eq!(pending(&msix), 1 << 3);
        set_mask(&msix, 3, false);
        assert_eq!(sink.vectors()[0].take_raised(), 1);
        assert_eq!(pending(&msix), 0);
        // The function mask holds back all.
        set_control(&mut config, &msix, CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        msix.trigger(3);
        msix.trigger(69);
        assert_eq!(sink.vectors()[0].take_raised(), 0);
        assert_eq!(pending(&msix), 1 << 3);
        let mut high = [0];
        msix.pba_read(8, &mut high).unwrap();
        assert_eq!(high, [1 << 5]);
        set_control(&mut config, &msix, CONTROL_ENABLE);
        assert_eq!(sink.vectors()[0].take_raised(), 1);
        // Vector 69 is masked itself.
        msix.pba_read(8, &mut high).unwrap();
        assert_eq!(high, [1 << 5]);
        msix.clear_pending();
        msix.pba_read(8, &mut high).unwrap();
        assert_eq!(high, [0]);
    }

    #[test]
    fn nothing_is_delivered_while_off_and_reset_gives_routes_back() {
        let sink = Arc::new(FakeMsiSink::default());
        let (mut config, msix) = function(1, sink.clone());
        write_message(&msix, 0, MESSAGE);
        set_mask(&msix, 0, false);
        assert!(sink.vectors().is_empty());
        assert!(!msix.enabled());
        set_control(&mut config, &msix, CONTROL_ENABLE);
        assert!(msix.enabled());
        assert_eq!(sink.vectors().len(), 1);
        let vector = Arc::downgrade(&sink.vectors()[0]);
        let handles = vector.strong_count();
        msix.reset();
        assert_eq!(vector.strong_count(), handles - 1);
        assert!(!msix.enabled());
        let mut control = [0; 4];
        msix.table_read(12, &mut control).unwrap();
        assert_eq!(control, [1, 0, 0, 0]);
    }

    #[test]
    fn any_width_reaches_the_table_but_not_beyond() {
        let (_config, msix) = function(2, Arc::new(FakeMsiSink::default()));
        msix.table_write(0, &[0xff; 16]).unwrap();
        let mut entry = [0; 16];
        msix.table_read(0, &mut entry).unwrap();
        let mut expected = [0xff; 16];
        expected[0] = 0xfc;
        expected[12..].copy_from_slice(&[1, 0, 0, 0]);
        assert_eq!(entry, expected);
        // One byte in the middle, then across two entries.
        msix.table_write(9, &[0x55]).unwrap();
        msix.table_write(15, &[0xee, 0x77]).unwrap();
        let mut word = [0; 4];
        msix.table_read(8, &mut word).unwrap();
        assert_eq!(word, [0xff, 0x55, 0xff, 0xff]);
        msix.table_read(14, &mut word).unwrap();
        assert_eq!(word, [0, 0, 0x74, 0]);
        for offset in [32, 31, u64::MAX - 8] {
            assert!(msix.table_read(offset, &mut word).is_err(), "{offset:#x}");
            assert!(msix.table_write(offset, &word).is_err(), "{offset:#x}");
        }
        for offset in [8, 5, u64::MAX] {
            assert!(msix.pba_read(offset, &mut word).is_err(), "{offset:#x}");
        }
        msix.trigger(2);
        msix.trigger(u16::MAX);
    }

    #[test]
    fn without_a_route_messages_are_sent() {
        let sink = Arc::new(FakeMsiSink::refusing(MsiRefusal::Vectors));
        let (mut config, msix) = function(1, sink.clone());
        set_control(&mut config, &msix, CONTROL_ENABLE);
        write_message(&msix, 0, MESSAGE);
        msix.trigger(0);
        set_mask(&msix, 0, false);
        msix.trigger(0);
        assert_eq!(sink.sent(), [MESSAGE, MESSAGE]);
        assert_eq!(sink.vectors_asked(), 1);
    }

    #[test]
    fn masking_costs_no_routing() {
        let sink = Arc::new(FakeMsiSink::default());
        let (mut config, msix) = function(1, sink.clone());
        set_control(&mut config, &msix, CONTROL_ENABLE);
        write_message(&msix, 0, MESSAGE);
        for _ in 0..10 {
            set_mask(&msix, 0, false);
            msix.trigger(0);
            set_mask(&msix, 0, true);
            set_control(&mut config, &msix, CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
            set_control(&mut config, &msix, CONTROL_ENABLE);
            // The same message again.
            write_message(&msix, 0, MESSAGE);
        }
        let vectors = sink.vectors();
        assert_eq!(vectors.len(), 1);
        assert_eq!(vectors[0].routings(), 1);
        assert!(sink.sent().is_empty(), "there is a route");
    }

    #[test]
    fn a_refused_route_falls_back_to_sending() {
        let sink = Arc::new(FakeMsiSink::refusing(MsiRefusal::Messages));
        let (mut config, msix) = function(1, sink.clone());
        set_control(&mut config, &msix, CONTROL_ENABLE);
        write_message(&msix, 0, MESSAGE);
        set_mask(&msix, 0, false);
        msix.trigger(0);
        assert_eq!(sink.sent(), [MESSAGE]);
        assert_eq!(sink.vectors()[0].routings(), 1);
    }
}
