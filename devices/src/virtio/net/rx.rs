//! The receive queue (virtio 1.3, 5.1.6.3, 5.1.6.4).

use std::collections::VecDeque;
use std::io;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::{Complaints, MAX_CHAIN_SEGMENTS, MAX_FRAME_BYTES, has};
use crate::dma::GuestRam;
use crate::net::{NetBackend, VNET_HEADER_BYTES};
use crate::virtio::device::DeviceFailed;
use crate::virtio::queue::{Chain, VirtQueue};

/// Most work in one call, in frames received and chains taken; then the other devices have their turn.
const WORK_PER_CALL: usize = 256;
/// Offsets of `flags` and `num_buffers` in `struct virtio_net_hdr_v1`.
const FLAGS_OFFSET: usize = 0;
const NUM_BUFFERS_OFFSET: usize = 10;
/// Enough room for a frame that is not the result of segmentation offload, on a usual Ethernet.
const SMALL_FRAME_BYTES: usize = 2048;
/// Most slices of guest memory offered for one frame, a chain more or less.
const MAX_OFFERED_SEGMENTS: usize = 512;
/// After so many small frames in a row, large ones are no longer expected.
const SMALL_RUN: u32 = 64;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RxOutcome {
    /// No frame waits; the backend will announce the next.
    Drained,
    /// The driver has to give more buffers; it will notify.
    NoBuffers,
    /// The call did enough; the device must come back.
    MoreToDo,
}

/// A chain taken from the queue and not yet used.
struct Buffer {
    head: u16,
    /// How many entries of [`RxQueue::segments`] are its.
    segments: usize,
    /// Room, at most [`MAX_FRAME_BYTES`].
    len: usize,
}

/// A frame that has been received, with its header.
#[derive(Clone, Copy)]
struct Received {
    len: usize,
    /// So much of it is in the first buffers; the rest is in the bounce buffer.
    direct: usize,
}

/// The receive queue of an active device.
///
/// A frame is read straight into the driver's buffers. A driver that can receive large segments fills its queue with
/// small buffers to be merged, and a frame's length is known only once it is read. To offer buffers for the largest
/// frame each time would cost more than most frames do, so a bounce buffer follows those for a small frame; after a
/// frame that reached it, buffers for the largest are offered for a while.
pub(super) struct RxQueue {
    queue: VirtQueue,
    mergeable: bool,
    /// The driver knows the flags in the header (`GUEST_CSUM`).
    flags_known: bool,
    /// Chains taken, in order, and their writable segments.
    buffers: VecDeque<Buffer>,
    segments: VecDeque<(GuestAddress, usize)>,
    /// Sum of the buffers' lengths.
    room: usize,
    bounce: Vec<u8>,
    /// A frame that has no room yet.
    received: Option<Received>,
    expect_large: bool,
    small_run: u32,
    /// The driver notifies when it adds buffers.
    notified: bool,
    /// The chains of one frame, kept for its allocation.
    used: Vec<(u16, u32)>,
}

impl RxQueue {
    /// The queue for a driver with these features.
    pub fn new(queue: VirtQueue, features: u64) -> Self {
        Self {
            queue,
            mergeable: has(features, VIRTIO_NET_F_MRG_RXBUF),
            flags_known: has(features, VIRTIO_NET_F_GUEST_CSUM),
            buffers: VecDeque::new(),
            segments: VecDeque::new(),
            room: 0,
            bounce: vec![0; MAX_FRAME_BYTES],
            received: None,
            expect_large: false,
            small_run: 0,
            notified: true,
            used: Vec::new(),
        }
    }

    /// Receives what the backend has, as far as there are buffers.
    pub fn run(
        &mut self,
        ram: &GuestRam,
        backend: &mut dyn NetBackend,
        log: &Complaints,
    ) -> Result<RxOutcome, DeviceFailed> {
        if self.notified {
            self.queue.disable_notification()?;
            self.notified = false;
        }
        // Out of `self` for the time, so that the slice of it can live beside `self`.
        let mut bounce = std::mem::take(&mut self.bounce);
        let outcome = self.receive(ram, VolatileSlice::from(&mut bounce[..]), backend, log);
        self.bounce = bounce;
        let outcome = outcome?;
        // One interrupt for all of them, if the driver wants it.
        self.queue.notify()?;
        Ok(outcome)
    }

    fn receive(
        &mut self,
        ram: &GuestRam,
        bounce: VolatileSlice<'_>,
        backend: &mut dyn NetBackend,
        log: &Complaints,
    ) -> Result<RxOutcome, DeviceFailed> {
        let mut work = WORK_PER_CALL;
        let mut slices = Vec::new();
        while work > 0 {
            work -= 1;
            if self.received.is_none() {
                self.gather(ram, self.room_to_offer(), MAX_OFFERED_SEGMENTS, &mut work)?;
                if self.buffers.is_empty() {
                    if self.wait_for_buffers()? {
                        return Ok(RxOutcome::NoBuffers);
                    }
                    continue;
                }
                slices.clear();
                let direct = self.offer(ram, &mut slices);
                if direct < MAX_FRAME_BYTES {
                    slices.push(bounce);
                }
                match backend.recv(&slices) {
                    Ok(len) => self.received = Some(Received { len, direct }),
                    Err(error) => {
                        if error.kind() != io::ErrorKind::WouldBlock {
                            log.warn(format_args!("receiving: {error}"));
                        }
                        return Ok(RxOutcome::Drained);
                    }
                }
            }
            if !self.deliver(ram, bounce, &mut work, log)? && self.wait_for_buffers()? {
                return Ok(RxOutcome::NoBuffers);
            }
        }
        Ok(RxOutcome::MoreToDo)
    }

    /// How many bytes of buffers to have before receiving.
    fn room_to_offer(&self) -> usize {
        match (self.mergeable, self.expect_large) {
            // Any one buffer.
            (false, _) => 1,
            (true, false) => SMALL_FRAME_BYTES,
            (true, true) => MAX_FRAME_BYTES,
        }
    }

    /// Takes chains until there is `room`, or no more.
    fn gather(
        &mut self,
        ram: &GuestRam,
        room: usize,
        max_segments: usize,
        work: &mut usize,
    ) -> Result<(), DeviceFailed> {
        while self.room < room
            && self.segments.len() < max_segments
            && self.buffers.len() < usize::from(self.queue.size())
            && *work > 0
        {
            let Some(chain) = self.queue.pop()? else {
                break;
            };
            *work -= 1;
            let head = chain.head_index();
            if !self.take(ram, chain) {
                // Nothing can be received into it.
                self.queue.add_used(head, 0)?;
            }
        }
        Ok(())
    }

    /// Keeps the writable segments of `chain`; false if it has none, or not all of them are in RAM.
    fn take(&mut self, ram: &GuestRam, chain: Chain) -> bool {
        let head = chain.head_index();
        let before = self.segments.len();
        let mut len = 0;
        for descriptor in chain.take(MAX_CHAIN_SEGMENTS) {
            // No frame needs more.
            let segment_len = (descriptor.len() as usize).min(MAX_FRAME_BYTES - len);
            if segment_len == 0 || !descriptor.is_write_only() {
                continue;
            }
            if !ram.check_range(descriptor.addr(), segment_len) {
                self.segments.truncate(before);
                return false;
            }
            self.segments.push_back((descriptor.addr(), segment_len));
            len += segment_len;
        }
        if len == 0 {
            return false;
        }
        self.room += len;
        self.buffers.push_back(Buffer {
            head,
            segments: self.segments.len() - before,
            len,
        });
        true
    }

    /// Appends the buffers for the next frame: as many as may be expected to be needed, or the one that must do.
    /// Returns their length.
    fn offer<'a>(&self, ram: &'a GuestRam, slices: &mut Vec<VolatileSlice<'a>>) -> usize {
        let room = self.room_to_offer();
        let (mut offered, mut count) = (0, 0);
        for buffer in &self.buffers {
            if offered >= room {
                break;
            }
            offered += buffer.len;
            count += buffer.segments;
        }
        for &(addr, len) in self.segments.iter().take(count) {
            // All were checked when they were taken.
            slices.extend(ram.get_slices(addr, len).flatten());
        }
        offered
    }

    /// Gives the received frame to the driver, or drops it if the driver's buffers can never hold it; false if more
    /// buffers are needed first.
    fn deliver(
        &mut self,
        ram: &GuestRam,
        bounce: VolatileSlice<'_>,
        work: &mut usize,
        log: &Complaints,
    ) -> Result<bool, DeviceFailed> {
        let Some(Received { len, direct }) = self.received.take() else {
            return Ok(true);
        };
        if len > direct && self.mergeable {
            self.gather(ram, len, usize::MAX, work)?;
            if self.room < len && self.buffers.len() < usize::from(self.queue.size()) {
                self.received = Some(Received { len, direct });
                return Ok(false);
            }
        }
        let room = if self.mergeable { self.room } else { direct };
        if len > room {
            log.warn(format_args!(
                "a frame of {len} bytes does not fit the driver's buffers of {room}"
            ));
            return Ok(true);
        }
        if len < VNET_HEADER_BYTES {
            return Ok(true);
        }
        self.expect(len, direct);
        if let Some(beyond) = len.checked_sub(direct).filter(|beyond| *beyond > 0)
            && let Ok(tail) = bounce.subslice(0, beyond)
        {
            self.scatter(ram, direct, tail);
        }
        self.use_buffers(ram, len)?;
        Ok(true)
    }

    /// Learns from a frame whether large ones are to be expected.
    fn expect(&mut self, len: usize, direct: usize) {
        if len > SMALL_FRAME_BYTES {
            self.small_run = 0;
            // One that fits what was offered costs nothing extra.
            self.expect_large |= len > direct;
        } else if self.expect_large {
            self.small_run += 1;
            self.expect_large = self.small_run < SMALL_RUN;
        }
    }

    /// Writes `from` to the buffers, at `offset` from the start of the first one.
    fn scatter(&self, ram: &GuestRam, offset: usize, mut from: VolatileSlice<'_>) {
        let mut skip = offset;
        for &(addr, len) in &self.segments {
            if from.is_empty() {
                break;
            }
            if skip >= len {
                skip -= len;
                continue;
            }
            let start = GuestAddress(addr.0 + skip as u64);
            let count = from.len().min(len - skip);
            for to in ram.get_slices(start, count).flatten() {
                from.copy_to_volatile_slice(to);
                from = from.offset(to.len()).unwrap_or(from);
            }
            skip = 0;
        }
    }

    /// Hands the buffers that the frame of `len` bytes lies in to the driver, all at once.
    fn use_buffers(&mut self, ram: &GuestRam, len: usize) -> Result<(), DeviceFailed> {
        let mut rest = len;
        let mut segments = 0;
        self.used.clear();
        for buffer in &self.buffers {
            if rest == 0 {
                break;
            }
            let filled = rest.min(buffer.len);
            rest -= filled;
            segments += buffer.segments;
            // Cannot fail: at most `MAX_FRAME_BYTES`.
            let filled = u32::try_from(filled).unwrap_or(u32::MAX);
            self.used.push((buffer.head, filled));
        }
        // At most the size of the queue.
        let num_buffers = u16::try_from(self.used.len()).unwrap_or(u16::MAX);
        let mut num_buffers = num_buffers.to_le_bytes();
        self.scatter(
            ram,
            NUM_BUFFERS_OFFSET,
            VolatileSlice::from(&mut num_buffers[..]),
        );
        if !self.flags_known {
            // The host may have said that it checked the checksum; this driver must see no flags (5.1.6.4.1).
            self.scatter(ram, FLAGS_OFFSET, VolatileSlice::from(&mut [0][..]));
        }
        for buffer in self.buffers.drain(..self.used.len()) {
            self.room -= buffer.len;
        }
        self.segments.drain(..segments);
        self.queue.add_used_together(&self.used)
    }

    /// Asks the driver to notify when it adds buffers; false if it has added some already.
    fn wait_for_buffers(&mut self) -> Result<bool, DeviceFailed> {
        if self.queue.enable_notification()? {
            self.queue.disable_notification()?;
            return Ok(false);
        }
        self.notified = true;
        Ok(true)
    }
}
