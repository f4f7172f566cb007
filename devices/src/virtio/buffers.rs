//! The buffers of a chain of descriptors, and copying from and to them, however they are cut.

use super::queue::Chain;
use crate::dma::DmaMem;

/// Guest buffers, `(address, length)`, in order.
pub(super) type Segments = Vec<(u64, u32)>;

/// The buffers of one chain, without the empty ones. Kept for the next chain, to spare its allocation.
#[derive(Debug, Default)]
pub(super) struct ChainBuffers {
    /// What the device may read.
    pub readable: Segments,
    /// What the device may write.
    pub writable: Segments,
}

impl ChainBuffers {
    /// Takes `chain`, of at most `max_descriptors`, in place of the last one. None when it cannot be served: a readable
    /// buffer after a writable one (virtio 1.3, 2.7.4.2), a broken or too long chain.
    pub fn collect(&mut self, chain: Chain, max_descriptors: usize) -> Option<()> {
        self.readable.clear();
        self.writable.clear();
        let mut complete = false;
        for (count, descriptor) in chain.enumerate() {
            if count >= max_descriptors {
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
pub(super) fn total_bytes(segments: &[(u64, u32)]) -> u64 {
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
pub(super) fn put(segments: &[(u64, u32)], dma: &DmaMem, bytes: &[u8]) -> bool {
    let mut rest = bytes;
    for &(addr, len) in segments {
        if rest.is_empty() {
            break;
        }
        let (chunk, more) = rest.split_at(rest.len().min(len as usize));
        if dma.write(addr, chunk).is_err() {
            return false;
        }
        rest = more;
    }
    rest.is_empty()
}
