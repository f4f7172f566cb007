//! The transmitter (manual, 3.3 and 3.4): fetches descriptors, gathers a frame from their buffers, and hands it to the
//! backend.
//!
//! A frame is copied out of guest RAM first. The guest cannot change it under us then, headers can be patched, and a
//! frame of Ethernet's size costs less to copy than the call that sends it.

use std::io;

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::Complaints;
use super::offload::{BadSegmentation, Context, MAX_HEADER_BYTES, Sum};
use super::registers::{CTRL_VME, ICR_TXD_LOW, ICR_TXQE, TCTL_EN, TCTL_PSP, TXDCTL_LWTHRESH_SHIFT};
use super::ring::{Ring, RingError};
use super::stats::{Counter, Octets, Statistics};
use crate::dma::GuestRam;
use crate::net::{NetBackend, VNET_HEADER_BYTES, VnetHeader};

/// Most descriptors in one call; then the event loop goes on.
const DESCRIPTORS_PER_CALL: u32 = 256;
/// The longest frame that is sent whole: 16,288 bytes (3.3.3), and some.
const MAX_FRAME_BYTES: usize = 16_384;
/// The longest frame for segmentation: more than any driver gives.
const MAX_SEGMENTED_BYTES: usize = 256 << 10;
/// The shortest frame without its check sequence.
const MIN_FRAME_BYTES: usize = 60;
const CHECK_SEQUENCE_BYTES: usize = 4;
/// Destination and source address; a VLAN tag goes behind them.
const ADDRESSES_BYTES: usize = 12;

// Bits of a descriptor's third dword; the kinds of descriptors agree on most.
const EOP: u32 = 1 << 24;
/// Legacy: insert a checksum. Data: segment.
const IC_TSE: u32 = 1 << 26;
const RS: u32 = 1 << 27;
const DEXT: u32 = 1 << 29;
const VLE: u32 = 1 << 30;
const IDE: u32 = 1 << 31;
const DTYP: u32 = 0xf << 20;
const DTYP_DATA: u32 = 1 << 20;
const LENGTH_LEGACY: u32 = 0xffff;
const LENGTH_DATA: u32 = 0xf_ffff;
/// Status: descriptor done.
const DD: u8 = 1;
/// Data, POPTS: insert the IP, and the TCP or UDP checksum.
const IXSM: u8 = 1;
const TXSM: u8 = 2;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxOutcome {
    /// No descriptor is left, or none can be had; the driver will write the tail.
    Idle,
    /// The call did enough.
    MoreToDo,
    /// The backend takes no more; it will say when it does.
    Blocked,
}

/// Why a frame is not sent.
#[derive(Debug, Error)]
enum BadFrame {
    #[error("more than {0} bytes")]
    TooLong(usize),
    #[error("{len} bytes at {addr:#x} are outside guest RAM")]
    OutsideRam { addr: u64, len: usize },
    #[error("{0} bytes are no frame")]
    TooShort(usize),
    #[error("segmentation: {0}")]
    Segmentation(#[from] BadSegmentation),
}

/// A descriptor's fields, of whatever kind.
#[derive(Clone, Copy)]
struct Descriptor {
    raw: [u8; 16],
    command: u32,
}

impl Descriptor {
    fn new(raw: [u8; 16]) -> Self {
        let command = u32::from_le_bytes([raw[8], raw[9], raw[10], raw[11]]);
        Self { raw, command }
    }

    fn has(&self, bit: u32) -> bool {
        self.command & bit != 0
    }

    fn address(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.raw;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    fn len(&self) -> usize {
        let mask = if self.has(DEXT) {
            LENGTH_DATA
        } else {
            LENGTH_LEGACY
        };
        (self.command & mask) as usize
    }

    /// The upper half as it is written back.
    fn done(&self) -> [u8; 8] {
        let [.., a, b, c, d, status, f, g, h] = self.raw;
        // The upper bits of the status byte are reserved; the collision bits never come on a full-duplex link.
        [a, b, c, d, status & 0xf0 | DD, f, g, h]
    }

    /// What goes in the tag.
    fn special(&self) -> [u8; 2] {
        [self.raw[15], self.raw[14]]
    }
}

/// A frame that is gathered and waits to be sent.
#[derive(Debug, Clone, Copy)]
enum Ready {
    /// In one piece.
    Whole(VnetHeader),
    /// In segments, from this one on.
    Segments { next: usize, count: usize },
}

/// Registers of other blocks that the transmitter looks at, and blocks that it tells.
pub struct TxEnvironment<'a> {
    /// CTRL.
    pub ctrl: u32,
    /// VET.
    pub vlan_ethertype: u16,
    /// The backend takes the place of the wire; otherwise frames come back, and cannot be left to be segmented.
    pub segments_can_be_left: bool,
    /// Counters.
    pub stats: &'a mut Statistics,
    /// Where complaints go.
    pub log: &'a Complaints,
}

/// What a call did, for the interrupt block.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct TxReport {
    /// How many descriptors that asked for it were written back.
    pub reported: u32,
    /// All that asked allowed a delay.
    pub delayed: bool,
    /// Causes other than that.
    pub causes: u32,
}

/// The transmitter.
#[derive(Debug, Default)]
pub struct Transmitter {
    /// TCTL.
    pub tctl: u32,
    /// TXDCTL.
    pub txdctl: u32,
    /// The descriptors.
    pub ring: Ring,
    /// For frames that are not segmented.
    context: Context,
    /// For frames that are.
    segment_context: Context,
    frame: Vec<u8>,
    /// The first data descriptor of the frame: its options hold for all.
    first: Option<(bool, u8)>,
    /// The frame is being skipped up to its end, and this is why nothing of it is sent.
    skipping: bool,
    ready: Option<Ready>,
    tag: Option<[u8; 4]>,
    blocked: bool,
}

impl Transmitter {
    /// Whether the last call ended with [`TxOutcome::Blocked`].
    pub fn blocked(&self) -> bool {
        self.blocked
    }

    /// Sends what the driver gave.
    pub fn run(
        &mut self,
        ram: &GuestRam,
        backend: &mut dyn NetBackend,
        env: &mut TxEnvironment<'_>,
    ) -> (TxOutcome, TxReport) {
        let mut report = TxReport {
            delayed: true,
            ..TxReport::default()
        };
        self.blocked = false;
        if self.tctl & TCTL_EN == 0 {
            return (TxOutcome::Idle, report);
        }
        let outcome = match self.work(ram, backend, env, &mut report) {
            Ok(outcome) => outcome,
            Err(error) => {
                env.log.warn(format_args!("transmit: {error}"));
                TxOutcome::Idle
            }
        };
        self.blocked = outcome == TxOutcome::Blocked;
        (outcome, report)
    }

    fn work(
        &mut self,
        ram: &GuestRam,
        backend: &mut dyn NetBackend,
        env: &mut TxEnvironment<'_>,
        report: &mut TxReport,
    ) -> Result<TxOutcome, RingError> {
        let threshold = 8 * (self.txdctl >> TXDCTL_LWTHRESH_SHIFT);
        let mut left = self.ring.available()?;
        for _ in 0..DESCRIPTORS_PER_CALL {
            if left == 0 {
                return Ok(TxOutcome::Idle);
            }
            let descriptor = Descriptor::new(self.ring.fetch(ram)?);
            if self.ready.is_none() {
                self.take(&descriptor, ram, env);
            }
            if self.ready.is_some() && self.send(backend, env) == TxOutcome::Blocked {
                return Ok(TxOutcome::Blocked);
            }
            if descriptor.has(RS) {
                self.ring.write_back(ram, descriptor.done())?;
                report.reported += 1;
                report.delayed &= descriptor.has(IDE);
            }
            self.ring.advance();
            left -= 1;
            if left == 0 {
                report.causes |= ICR_TXQE;
            }
            if threshold != 0 && left + 1 == threshold {
                report.causes |= ICR_TXD_LOW;
            }
        }
        Ok(if left == 0 {
            TxOutcome::Idle
        } else {
            TxOutcome::MoreToDo
        })
    }

    /// Takes what a descriptor gives; with the last one of a frame, the frame is ready.
    fn take(&mut self, descriptor: &Descriptor, ram: &GuestRam, env: &mut TxEnvironment<'_>) {
        let extended = descriptor.has(DEXT);
        if extended && descriptor.command & DTYP != DTYP_DATA {
            let context = Context::decode(&descriptor.raw);
            // A frame keeps the context that it began with, as on hardware that has two of each.
            if descriptor.has(IC_TSE) {
                self.segment_context = context;
                env.stats.count(Counter::Tsctc);
            } else {
                self.context = context;
            }
            return;
        }
        let (segmented, _) = *self.first.get_or_insert_with(|| {
            let options = if extended { descriptor.raw[13] } else { 0 };
            (extended && descriptor.has(IC_TSE), options)
        });
        if !self.skipping
            && let Err(error) = self.gather(descriptor, ram, segmented)
        {
            env.log.warn(format_args!("frame not sent: {error}"));
            self.skipping = true;
        }
        if !descriptor.has(EOP) {
            return;
        }
        let skipped = std::mem::take(&mut self.skipping);
        let first = self.first.take();
        if !skipped && let Some((segmented, options)) = first {
            match self.finish(descriptor, segmented, options, env) {
                Ok(ready) => {
                    self.ready = Some(ready);
                    return;
                }
                Err(error) => {
                    if segmented {
                        env.stats.count(Counter::Tsctfc);
                    }
                    env.log.warn(format_args!("frame not sent: {error}"));
                }
            }
        }
        self.frame.clear();
    }

    /// Appends a descriptor's buffer to the frame.
    fn gather(
        &mut self,
        descriptor: &Descriptor,
        ram: &GuestRam,
        segmented: bool,
    ) -> Result<(), BadFrame> {
        let (addr, len) = (descriptor.address(), descriptor.len());
        let limit = if segmented {
            MAX_SEGMENTED_BYTES
        } else {
            MAX_FRAME_BYTES
        };
        let start = self.frame.len();
        if start + len > limit {
            return Err(BadFrame::TooLong(limit));
        }
        self.frame.resize(start + len, 0);
        let room = self.frame.get_mut(start..).unwrap_or_default();
        ram.read_slice(room, GuestAddress(addr))
            .map_err(|_| BadFrame::OutsideRam { addr, len })
    }

    /// The frame is whole: does to it what the last descriptor and the context say. A descriptor without IFCS means that
    /// the driver made the check sequence; it is sent as data then, as nobody looks at it.
    fn finish(
        &mut self,
        last: &Descriptor,
        segmented: bool,
        options: u8,
        env: &TxEnvironment<'_>,
    ) -> Result<Ready, BadFrame> {
        if self.frame.len() <= ADDRESSES_BYTES {
            return Err(BadFrame::TooShort(self.frame.len()));
        }
        let tagged = env.ctrl & CTRL_VME != 0 && last.has(VLE);
        let [type_high, type_low] = env.vlan_ethertype.to_be_bytes();
        let [high, low] = last.special();
        self.tag = tagged.then_some([type_high, type_low, high, low]);
        if segmented {
            return self.finish_segmented(options, env);
        }
        let mut header = VnetHeader::default();
        if last.has(DEXT) {
            if options & IXSM != 0 {
                self.context.ip.insert(&mut self.frame);
            }
            if options & TXSM != 0 {
                header.checksum = self.context.transport.leave_or_insert(&mut self.frame);
            }
        } else if last.has(IC_TSE) {
            let sum = Sum {
                start: usize::from(last.raw[13]),
                field: usize::from(last.raw[10]),
                end: 0,
            };
            header.checksum = sum.leave_or_insert(&mut self.frame);
        }
        if self.tctl & TCTL_PSP != 0 && self.frame.len() < MIN_FRAME_BYTES {
            // A checksum to the end must not be left with zeros that the end did not include; they add nothing to it.
            self.frame.resize(MIN_FRAME_BYTES, 0);
        }
        Ok(Ready::Whole(header))
    }

    fn finish_segmented(
        &mut self,
        options: u8,
        env: &TxEnvironment<'_>,
    ) -> Result<Ready, BadFrame> {
        let context = &self.segment_context;
        let count = context.segments(self.frame.len())?;
        let (ip, transport) = (options & IXSM != 0, options & TXSM != 0);
        if env.segments_can_be_left
            && let Some(header) = context.leave_segmentation(&mut self.frame, ip, transport)
        {
            return Ok(Ready::Whole(header));
        }
        // Which checksums are wanted is kept with the context until the last segment is sent.
        self.first = Some((true, options));
        Ok(Ready::Segments { next: 0, count })
    }

    /// Sends the frame that is ready, or what is left of its segments.
    fn send(&mut self, backend: &mut dyn NetBackend, env: &mut TxEnvironment<'_>) -> TxOutcome {
        let result = match self.ready {
            None => Ok(()),
            Some(Ready::Whole(header)) => {
                let result = send_frame(backend, header, self.tag, &mut self.frame, &mut []);
                if result.is_ok() {
                    let (segment_bytes, header_bytes) = header
                        .segmentation
                        .map_or((0, 0), |gso| (gso.segment_bytes, gso.header_bytes));
                    let frame = &self.frame;
                    count(env.stats, frame, frame.len(), segment_bytes, header_bytes);
                }
                result
            }
            Some(Ready::Segments { next, count }) => self.send_segments(next, count, backend, env),
        };
        if let Err(error) = result {
            if error.kind() == io::ErrorKind::WouldBlock {
                return TxOutcome::Blocked;
            }
            env.log.warn(format_args!("frame not sent: {error}"));
        }
        self.ready = None;
        self.first = None;
        self.frame.clear();
        TxOutcome::Idle
    }

    fn send_segments(
        &mut self,
        next: usize,
        count_all: usize,
        backend: &mut dyn NetBackend,
        env: &mut TxEnvironment<'_>,
    ) -> io::Result<()> {
        let context = self.segment_context;
        let options = self.first.map_or(0, |(_, options)| options);
        let header_bytes = context.header_bytes.min(self.frame.len());
        let (whole_header, payload) = self.frame.split_at_mut(header_bytes);
        let size = context.segment_bytes.max(1);
        for index in next..count_all {
            let start = (index * size).min(payload.len());
            let end = (start + size).min(payload.len());
            let part = payload.get_mut(start..end).unwrap_or_default();
            let mut room = [0; MAX_HEADER_BYTES];
            let header = room.get_mut(..header_bytes).unwrap_or_default();
            header.copy_from_slice(whole_header);
            let frame_bytes = header_bytes + part.len();
            context.patch_header(header, index, index + 1 == count_all, frame_bytes);
            if options & IXSM != 0 {
                context.ip.insert(header);
            }
            let mut vnet = VnetHeader::default();
            if options & TXSM != 0 {
                let mut joined = [&*header, &*part].concat();
                vnet.checksum = context.transport.leave_or_insert(&mut joined);
                if vnet.checksum.is_none() {
                    header.copy_from_slice(joined.get(..header_bytes).unwrap_or_default());
                }
            }
            if let Err(error) = send_frame(backend, vnet, self.tag, header, part) {
                self.ready = Some(Ready::Segments {
                    next: index,
                    count: count_all,
                });
                return Err(error);
            }
            count(env.stats, header, frame_bytes, 0, 0);
        }
        Ok(())
    }
}

/// Sends a frame in two parts, with its tag if it is to have one.
fn send_frame(
    backend: &mut dyn NetBackend,
    mut vnet: VnetHeader,
    tag: Option<[u8; 4]>,
    frame: &mut [u8],
    rest: &mut [u8],
) -> io::Result<()> {
    let mut tag_bytes = tag.unwrap_or_default();
    let tag_room = if tag.is_some() {
        let shift = |offset: &mut u16| *offset = offset.saturating_add(4);
        if let Some(checksum) = &mut vnet.checksum {
            shift(&mut checksum.start);
        }
        if let Some(gso) = &mut vnet.segmentation {
            shift(&mut gso.header_bytes);
        }
        &mut tag_bytes[..]
    } else {
        &mut []
    };
    let mut header: [u8; VNET_HEADER_BYTES] = vnet.to_bytes();
    let (addresses, body) = frame.split_at_mut(ADDRESSES_BYTES.min(frame.len()));
    let parts = [
        VolatileSlice::from(&mut header[..]),
        VolatileSlice::from(addresses),
        VolatileSlice::from(tag_room),
        VolatileSlice::from(body),
        VolatileSlice::from(rest),
    ];
    backend.send(&parts).map(|_| ())
}

/// Counts a frame sent, or the segments it is cut into.
fn count(
    stats: &mut Statistics,
    head: &[u8],
    frame_bytes: usize,
    segment_bytes: u16,
    header_bytes: u16,
) {
    let one = |stats: &mut Statistics, bytes: usize| {
        let bytes = bytes.max(MIN_FRAME_BYTES) + CHECK_SEQUENCE_BYTES;
        stats.count(Counter::Gptc);
        stats.count(Counter::Tpt);
        stats.count_size(Counter::Ptc64, bytes);
        stats.count_octets(Octets::Gotc, bytes);
        stats.count_octets(Octets::Tot, bytes);
    };
    match head {
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, ..] => stats.count(Counter::Bptc),
        [first, ..] if first & 1 != 0 => stats.count(Counter::Mptc),
        _ => {}
    }
    let header = usize::from(header_bytes);
    let mut payload = frame_bytes.saturating_sub(header);
    if segment_bytes == 0 {
        return one(stats, frame_bytes);
    }
    while payload > 0 {
        let part = payload.min(usize::from(segment_bytes));
        one(stats, header + part);
        payload -= part;
    }
}
