//! What a chain asks of a disk (virtio 1.3, 5.2.6), whatever its framing.

use super::queue::Chain;
use crate::dma::DmaMem;

/// Length of the header: type, reserved, sector (virtio 1.3, 5.2.6).
const HEADER_BYTES: usize = 16;
/// The longest chain accepted, in descriptors: the queue's largest size (virtio 1.3, 2.7.5.3.1).
const MAX_DESCRIPTORS: usize = 256;

/// Guest buffers, `(address, length)`, in order.
pub(super) type Segments = Vec<(u64, u32)>;

/// The parts of a chain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// Request type; none when the header is incomplete.
    pub header: Option<Header>,
    /// Where the status byte goes.
    pub status_addr: u64,
}

/// `struct virtio_blk_req` up to its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// `VIRTIO_BLK_T_…`.
    pub kind: u32,
    /// In units of 512 bytes.
    pub sector: u64,
}

/// The buffers of one chain: first all of it, then what is left for data. Kept for the next chain, to spare its
/// allocation.
#[derive(Debug, Default)]
pub(super) struct ChainBuffers {
    /// What the device may read.
    pub readable: Segments,
    /// What the device may write, without the status byte.
    pub writable: Segments,
}

impl ChainBuffers {
    /// Takes `chain` apart. None when there is no telling where its status goes: nothing writable, a readable
    /// buffer after a writable one (virtio 1.3, 2.7.4.2), a broken or too long chain.
    pub fn split(&mut self, chain: Chain, dma: &DmaMem) -> Option<Parts> {
        self.collect(chain)?;
        let last = self.writable.last_mut()?;
        last.1 -= 1;
        let status_addr = last.0.checked_add(u64::from(last.1))?;
        if last.1 == 0 {
            self.writable.pop();
        }
        let mut bytes = [0; HEADER_BYTES];
        let header = take(&mut self.readable, dma, &mut bytes).then(|| Header {
            kind: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            sector: u64::from_le_bytes([
                bytes[8], bytes[9], bytes[10], bytes[11], bytes[12], bytes[13], bytes[14],
                bytes[15],
            ]),
        });
        Some(Parts {
            header,
            status_addr,
        })
    }

    fn collect(&mut self, chain: Chain) -> Option<()> {
        self.readable.clear();
        self.writable.clear();
        let mut complete = false;
        for (count, descriptor) in chain.enumerate() {
            if count >= MAX_DESCRIPTORS {
                return None;
            }
            // The iterator also ends where the chain leads nowhere.
            complete = !descriptor.has_next();
            let segment = (descriptor.addr().0, descriptor.len());
            if segment.1 == 0 {
                continue;
            }
            if descriptor.is_write_only() {
                self.writable.push(segment);
            } else if self.writable.is_empty() {
                self.readable.push(segment);
            } else {
                return None;
            }
        }
        complete.then_some(())
    }
}

/// The sum of the lengths.
pub(super) fn total_bytes(segments: &Segments) -> u64 {
    segments.iter().map(|&(_, len)| u64::from(len)).sum()
}

/// Takes the first bytes of `segments` into `bytes`, however they are cut. False when there are too few or they
/// are not in RAM.
pub(super) fn take(segments: &mut Segments, dma: &DmaMem, bytes: &mut [u8]) -> bool {
    let mut missing = bytes;
    let mut used_up = 0;
    for segment in segments.iter_mut() {
        if missing.is_empty() {
            break;
        }
        let Ok(left) = u32::try_from(missing.len()) else {
            return false;
        };
        let now = left.min(segment.1);
        let (chunk, rest) = missing.split_at_mut(now as usize);
        if dma.read(segment.0, chunk).is_err() {
            return false;
        }
        // In RAM, so far from the end of the address space.
        segment.0 += u64::from(now);
        segment.1 -= now;
        used_up += usize::from(segment.1 == 0);
        missing = rest;
    }
    let enough = missing.is_empty();
    segments.drain(..used_up);
    enough
}

/// Puts `bytes` into the first of `segments`, however they are cut. False when there is too little room or it is
/// not in RAM.
pub(super) fn put(segments: &Segments, dma: &DmaMem, bytes: &[u8]) -> bool {
    let mut rest = bytes;
    for &(addr, len) in segments {
        let (chunk, more) = rest.split_at(rest.len().min(len as usize));
        if dma.write(addr, chunk).is_err() {
            return false;
        }
        rest = more;
    }
    rest.is_empty()
}
