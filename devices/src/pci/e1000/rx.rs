//! The receiver (manual, 3.2): takes frames from the backend, filters and checks them, and puts them into the driver's
//! buffers.
//!
//! While no descriptor is free, frames stay with the backend, which holds them back or drops them as it sees fit; so
//! none is lost to a driver that is late once. The four bytes of frame check sequence that a driver may ask for are
//! zero: no one on this wire computes one.

use std::io;

use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::Complaints;
use super::filter::{Filter, Match};
use super::registers::{
    CTRL_VME, ICR_RXDMT0, ICR_RXO, RCTL_BSEX, RCTL_BSIZE_SHIFT, RCTL_EN, RCTL_LPE,
    RCTL_RDMTS_SHIFT, RCTL_SECRC, RXCSUM_IPOFL, RXCSUM_PCSS, RXCSUM_TUOFL,
};
use super::ring::{Ring, RingError};
use super::stats::{Counter, Octets, Statistics};
use crate::dma::GuestRam;
use crate::net::{NetBackend, VNET_HEADER_BYTES, VnetHeader, checksum};

/// Most frames in one call; then the other devices have their turn.
const FRAMES_PER_CALL: usize = 64;
/// The longest frame of a backend.
const MAX_FRAME_BYTES: usize = 65_550;
/// The longest frame with its check sequence, without and with long packets (13.4.22, LPE).
const MAX_STANDARD_BYTES: usize = 1522;
const MAX_LONG_BYTES: usize = 16_384;
/// The shortest frame without its check sequence.
const MIN_FRAME_BYTES: usize = 60;
const CHECK_SEQUENCE_BYTES: usize = 4;
const ETHERTYPE: usize = 12;
const TAG_BYTES: usize = 4;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const IP_PROTOCOL_TCP: u8 = 6;
const IP_PROTOCOL_UDP: u8 = 17;

// Status of a descriptor (3.2.3.1).
const DD: u8 = 1 << 0;
const EOP: u8 = 1 << 1;
/// The checksum indications mean nothing.
const IXSM: u8 = 1 << 2;
/// The frame had a tag, which was stripped.
const VP: u8 = 1 << 3;
/// The TCP or UDP checksum was looked at.
const TCPCS: u8 = 1 << 5;
/// The IP checksum was looked at.
const IPCS: u8 = 1 << 6;
/// Only a hash of the address matched.
const PIF: u8 = 1 << 7;
// Errors of a descriptor (3.2.3.2).
const TCPE: u8 = 1 << 5;
const IPE: u8 = 1 << 6;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RxOutcome {
    /// No frame waits; the backend will announce the next.
    Drained,
    /// A frame may wait, and the driver must do something first.
    Stalled,
    /// The call did enough.
    MoreToDo,
}

/// Registers of other blocks that the receiver looks at, and blocks that it tells.
pub struct RxEnvironment<'a> {
    /// CTRL.
    pub ctrl: u32,
    /// VET.
    pub vlan_ethertype: u16,
    /// Who may come in.
    pub filter: &'a Filter,
    /// Counters.
    pub stats: &'a mut Statistics,
    /// Where complaints go.
    pub log: &'a Complaints,
}

/// What a call did, for the interrupt block.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RxReport {
    /// A frame came.
    pub received: bool,
    /// Causes other than that.
    pub causes: u32,
}

/// A frame in the receiver's buffer that passed all filters.
#[derive(Debug, Clone, Copy)]
struct Frame {
    /// Length in the driver's buffers, in bytes.
    len: usize,
    status: u8,
    errors: u8,
    /// The tag that was stripped.
    special: u16,
    packet_checksum: u16,
}

/// The receiver.
#[derive(Debug)]
pub struct Receiver {
    /// RCTL.
    pub rctl: u32,
    /// RXCSUM.
    pub rxcsum: u32,
    /// The descriptors.
    pub ring: Ring,
    /// A header and a frame, as the backend gave them.
    buffer: Vec<u8>,
    /// The frame in the buffer that waits for descriptors.
    waiting: Option<Frame>,
    /// The driver was told that it is out of descriptors.
    overrun: bool,
}

impl Receiver {
    /// A receiver that is off.
    pub fn new() -> Self {
        Self {
            rctl: 0,
            rxcsum: 0,
            ring: Ring::default(),
            buffer: vec![0; VNET_HEADER_BYTES + MAX_FRAME_BYTES],
            waiting: None,
            overrun: false,
        }
    }

    /// As after power-on; a frame that waits is lost.
    pub fn reset(&mut self) {
        self.rctl = 0;
        self.rxcsum = 0;
        self.ring = Ring::default();
        self.waiting = None;
        self.overrun = false;
    }

    /// Receives what the backend has and the driver has room for.
    pub fn run(
        &mut self,
        ram: &GuestRam,
        backend: &mut dyn NetBackend,
        env: &mut RxEnvironment<'_>,
    ) -> (RxOutcome, RxReport) {
        let mut report = RxReport::default();
        let outcome = match self.work(ram, backend, env, &mut report) {
            Ok(outcome) => outcome,
            Err(error) => {
                env.log.warn(format_args!("receive: {error}"));
                RxOutcome::Stalled
            }
        };
        (outcome, report)
    }

    fn work(
        &mut self,
        ram: &GuestRam,
        backend: &mut dyn NetBackend,
        env: &mut RxEnvironment<'_>,
        report: &mut RxReport,
    ) -> Result<RxOutcome, RingError> {
        for _ in 0..FRAMES_PER_CALL {
            if self.rctl & RCTL_EN == 0 {
                return Ok(RxOutcome::Stalled);
            }
            let available = self.ring.available()?;
            if available == 0 && self.waiting.is_none() {
                return Ok(RxOutcome::Stalled);
            }
            let frame = match self.waiting.take() {
                Some(frame) => frame,
                None => match self.fetch(backend, env) {
                    Err(outcome) => return Ok(outcome),
                    Ok(None) => continue,
                    Ok(Some(frame)) => frame,
                },
            };
            let needed = frame.len.div_ceil(self.buffer_bytes());
            if needed >= self.ring.count() as usize {
                env.stats.count(Counter::Mpc);
                env.log.warn(format_args!(
                    "a frame of {} bytes does not fit the receive ring",
                    frame.len
                ));
                continue;
            }
            if needed > available as usize {
                self.waiting = Some(frame);
                if !std::mem::replace(&mut self.overrun, true) {
                    report.causes |= ICR_RXO;
                    env.stats.count(Counter::Rnbc);
                }
                return Ok(RxOutcome::Stalled);
            }
            self.overrun = false;
            self.store(ram, frame, env.log)?;
            report.received = true;
            let left = available.saturating_sub(u32::try_from(needed).unwrap_or(u32::MAX));
            let threshold = self.low_threshold();
            if left <= threshold && available > threshold {
                report.causes |= ICR_RXDMT0;
            }
        }
        Ok(RxOutcome::MoreToDo)
    }

    /// So few descriptors left raise RXDMT0 (13.4.22, RDMTS).
    fn low_threshold(&self) -> u32 {
        self.ring.count() >> (((self.rctl >> RCTL_RDMTS_SHIFT) & 0b11) + 1)
    }

    /// BSIZE and BSEX, in bytes.
    fn buffer_bytes(&self) -> usize {
        let size = 2048 >> ((self.rctl >> RCTL_BSIZE_SHIFT) & 0b11);
        match (self.rctl & RCTL_BSEX != 0, size) {
            // 16 times 2048 is reserved; it stays what it is.
            (false, size) | (true, size @ 2048) => size,
            (true, size) => size * 16,
        }
    }

    /// Receives one frame into the buffer. None if it is not for the driver.
    fn fetch(
        &mut self,
        backend: &mut dyn NetBackend,
        env: &mut RxEnvironment<'_>,
    ) -> Result<Option<Frame>, RxOutcome> {
        let received = backend.recv(&[VolatileSlice::from(&mut self.buffer[..])]);
        let len = match received {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(RxOutcome::Drained);
            }
            Err(error) => {
                env.log.warn(format_args!("receive: {error}"));
                return Err(RxOutcome::Drained);
            }
        };
        let Some(frame_bytes) = len.min(self.buffer.len()).checked_sub(VNET_HEADER_BYTES) else {
            return Ok(None);
        };
        Ok(self.accept(frame_bytes, env))
    }

    /// Filters, checks and counts the frame in the buffer, and strips its tag.
    fn accept(&mut self, received_bytes: usize, env: &mut RxEnvironment<'_>) -> Option<Frame> {
        let mut header = [0; VNET_HEADER_BYTES];
        let (head, data) = self.buffer.split_at_mut(VNET_HEADER_BYTES);
        header.copy_from_slice(head);
        let mut len = received_bytes;
        if len < MIN_FRAME_BYTES {
            data.get_mut(len..MIN_FRAME_BYTES)?.fill(0);
            len = MIN_FRAME_BYTES;
        }
        let frame = data.get_mut(..len)?;
        env.stats.count(Counter::Tpr);
        env.stats
            .count_octets(Octets::Tor, len + CHECK_SEQUENCE_BYTES);

        let limit = if self.rctl & RCTL_LPE != 0 {
            MAX_LONG_BYTES
        } else {
            MAX_STANDARD_BYTES
        };
        if len + CHECK_SEQUENCE_BYTES > limit {
            env.stats.count(Counter::Roc);
            return None;
        }
        let to = *frame.first_chunk::<6>()?;
        let tag =
            (word(frame, ETHERTYPE) == env.vlan_ethertype).then(|| word(frame, ETHERTYPE + 2));
        let matched = env.filter.passes(self.rctl, to, tag)?;
        count(env.stats, to, len);

        // The bytes beyond what was received are padding, which is in no checksum of the payload.
        let checks = check(frame, received_bytes, &header, self.rxcsum);
        let mut result = Frame {
            len,
            status: checks.0 | if matched == Match::Hash { PIF } else { 0 },
            errors: checks.1,
            special: 0,
            packet_checksum: 0,
        };
        if env.ctrl & CTRL_VME != 0
            && let Some(tag) = tag
        {
            frame.copy_within(ETHERTYPE + TAG_BYTES.., ETHERTYPE);
            result.len -= TAG_BYTES;
            result.status |= VP;
            result.special = tag;
        }
        let start = (self.rxcsum & RXCSUM_PCSS) as usize;
        result.packet_checksum = checksum::add(0, frame.get(start..result.len).unwrap_or_default());
        if self.rctl & RCTL_SECRC == 0 {
            let end = result.len + CHECK_SEQUENCE_BYTES;
            data.get_mut(result.len..end)?.fill(0);
            result.len = end;
        }
        Some(result)
    }

    /// Puts the frame in the buffer into descriptors, of which there are enough.
    fn store(&mut self, ram: &GuestRam, frame: Frame, log: &Complaints) -> Result<(), RingError> {
        let size = self.buffer_bytes();
        let data = self
            .buffer
            .get(VNET_HEADER_BYTES..VNET_HEADER_BYTES + frame.len)
            .unwrap_or_default();
        let mut chunks = data.chunks(size).peekable();
        while let Some(chunk) = chunks.next() {
            let descriptor = self.ring.fetch(ram)?;
            let [a, b, c, d, e, f, g, h, ..] = descriptor;
            let addr = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            // Hardware writes to wherever it is told; a buffer that is not there takes the frame with it.
            if ram.write_slice(chunk, GuestAddress(addr)).is_err() {
                log.warn(format_args!(
                    "receive buffer of {} bytes at {addr:#x} is outside guest RAM",
                    chunk.len()
                ));
            }
            let last = chunks.peek().is_none();
            let [len_low, len_high] = u16::try_from(chunk.len()).unwrap_or(u16::MAX).to_le_bytes();
            let [sum_low, sum_high] = frame.packet_checksum.to_be_bytes();
            let [tag_low, tag_high] = frame.special.to_le_bytes();
            let (status, errors) = if last {
                (frame.status | DD | EOP, frame.errors)
            } else {
                (frame.status | DD, 0)
            };
            let upper = [
                len_low, len_high, sum_low, sum_high, status, errors, tag_low, tag_high,
            ];
            self.ring.write_back(ram, upper)?;
            self.ring.advance();
        }
        Ok(())
    }
}

/// Fills in or checks the checksums of a frame whose first `received_bytes` came from the backend: the status and the
/// error bits (3.2.9).
fn check(
    frame: &mut [u8],
    received_bytes: usize,
    header: &[u8; VNET_HEADER_BYTES],
    rxcsum: u32,
) -> (u8, u8) {
    let header = VnetHeader::checksums_of(header);
    let payload = frame.get_mut(..received_bytes).unwrap_or_default();
    let mut known = header.checksum_valid;
    if let Some(partial) = header.checksum {
        // The sender left it out, as the wire would not have changed a bit on the way: it is right once it is there.
        known |= partial.complete(payload);
    }
    let Some((ip, transport)) = layers(payload) else {
        return (IXSM, 0);
    };
    let (mut status, mut errors) = (0, 0);
    if rxcsum & RXCSUM_IPOFL != 0
        && let Some(ip_header) = ip
    {
        status |= IPCS;
        if checksum::add(0, ip_header) != 0xffff {
            errors |= IPE;
        }
    }
    if rxcsum & RXCSUM_TUOFL != 0
        && let Some(transport) = transport
    {
        status |= TCPCS;
        if !known && checksum::add(transport.pseudo_sum, transport.data) != 0xffff {
            errors |= TCPE;
        }
    }
    if status == 0 {
        status = IXSM;
    }
    (status, errors)
}

/// A TCP segment or UDP datagram with a checksum.
struct Transport<'a> {
    data: &'a [u8],
    /// The sum of the pseudo-header.
    pseudo_sum: u16,
}

/// The IPv4 header, if it is one, and what is in the packet; none if this is no IP packet.
fn layers(frame: &[u8]) -> Option<(Option<&[u8]>, Option<Transport<'_>>)> {
    let mut start = ETHERTYPE + 2;
    let mut ethertype = word(frame, ETHERTYPE);
    if ethertype == 0x8100 {
        ethertype = word(frame, start + 2);
        start += TAG_BYTES;
    }
    let packet = frame.get(start..)?;
    match ethertype {
        ETHERTYPE_IPV4 => {
            let header_bytes = usize::from(packet.first()? & 0xf) * 4;
            let header = packet.get(..header_bytes).filter(|h| h.len() >= 20)?;
            let total = usize::from(word(packet, 2));
            let fragment = word(header, 6) & 0x3fff != 0;
            let data = packet.get(header_bytes..total).filter(|_| !fragment);
            let transport =
                data.and_then(|data| transport(*header.get(9)?, header.get(12..20)?, data));
            Some((Some(header), transport))
        }
        ETHERTYPE_IPV6 => {
            let header = packet.get(..40)?;
            let data = packet.get(40..40 + usize::from(word(packet, 4)));
            let transport =
                data.and_then(|data| transport(*header.get(6)?, header.get(8..40)?, data));
            Some((None, transport))
        }
        _ => None,
    }
}

fn transport<'a>(protocol: u8, addresses: &[u8], data: &'a [u8]) -> Option<Transport<'a>> {
    match protocol {
        IP_PROTOCOL_TCP if data.len() >= 20 => {}
        // A UDP checksum of 0 is none.
        IP_PROTOCOL_UDP if data.len() >= 8 && word(data, 6) != 0 => {}
        _ => return None,
    }
    let len = u16::try_from(data.len()).ok()?;
    let sum = checksum::add(u16::from(protocol), addresses);
    Some(Transport {
        data,
        pseudo_sum: checksum::add_word(sum, len),
    })
}

fn word(data: &[u8], at: usize) -> u16 {
    match data.get(at..at + 2) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

/// Counts a frame that passed the filter, of `len` bytes without its check sequence.
fn count(stats: &mut Statistics, to: [u8; 6], len: usize) {
    let bytes = len + CHECK_SEQUENCE_BYTES;
    stats.count(Counter::Gprc);
    stats.count_size(Counter::Prc64, bytes);
    stats.count_octets(Octets::Gorc, bytes);
    if to == [0xff; 6] {
        stats.count(Counter::Bprc);
    } else if to[0] & 1 != 0 {
        stats.count(Counter::Mprc);
    }
}
