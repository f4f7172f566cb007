//! What a chain asks of a disk (virtio 1.3, 5.2.6), whatever its framing.

use super::buffers::{ChainBuffers, take};
use super::queue::Chain;
use crate::dma::DmaMem;

/// Length of the header: type, reserved, sector (virtio 1.3, 5.2.6).
const HEADER_BYTES: usize = 16;
/// The longest chain accepted, in descriptors: the queue's largest size (virtio 1.3, 2.7.5.3.1).
const MAX_DESCRIPTORS: usize = 256;

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

impl ChainBuffers {
    /// Takes `chain` apart; what is left are the buffers for data. None when there is no telling where its status goes:
    /// nothing writable, a readable
    /// buffer after a writable one (virtio 1.3, 2.7.4.2), a broken or too long chain.
    pub fn split(&mut self, chain: Chain, dma: &DmaMem) -> Option<Parts> {
        self.collect(chain, MAX_DESCRIPTORS)?;
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
}
