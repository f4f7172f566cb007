//! The transmit queue (virtio 1.3, 5.1.6.2).

use std::io;

use thiserror::Error;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

use super::{Complaints, MAX_CHAIN_SEGMENTS, MAX_FRAME_BYTES};
use crate::dma::GuestRam;
use crate::net::{NetBackend, VNET_HEADER_BYTES};
use crate::virtio::device::DeviceFailed;
use crate::virtio::queue::{Chain, VirtQueue};

/// Most frames in one call; then the other devices have their turn.
const FRAMES_PER_CALL: usize = 64;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TxOutcome {
    /// The queue is empty; the driver will notify.
    Idle,
    /// The call did enough; the device must come back.
    MoreToDo,
    /// The backend takes no more; it will say when it does.
    Blocked,
}

/// Why a chain is not a frame.
#[derive(Debug, PartialEq, Eq, Error)]
enum BadFrame {
    #[error("{0} bytes are not even a header")]
    TooShort(usize),
    #[error("more than {MAX_FRAME_BYTES} bytes")]
    TooLong,
    #[error("more than {MAX_CHAIN_SEGMENTS} descriptors")]
    TooManySegments,
    #[error("{len} bytes at {addr:#x} are outside guest RAM")]
    OutsideRam { addr: u64, len: u32 },
}

/// The transmit queue of an active device.
pub(super) struct TxQueue {
    queue: VirtQueue,
    blocked: bool,
}

impl TxQueue {
    pub fn new(queue: VirtQueue) -> Self {
        Self {
            queue,
            blocked: false,
        }
    }

    /// Whether the last call ended with [`TxOutcome::Blocked`].
    pub fn blocked(&self) -> bool {
        self.blocked
    }

    /// Sends what the driver made available. A frame that cannot be sent is dropped.
    pub fn run(
        &mut self,
        ram: &GuestRam,
        backend: &mut dyn NetBackend,
        log: &Complaints,
    ) -> Result<TxOutcome, DeviceFailed> {
        self.queue.disable_notification()?;
        let outcome = self.send_frames(ram, backend, log)?;
        self.blocked = outcome == TxOutcome::Blocked;
        // One interrupt for all of them, if the driver wants it.
        self.queue.notify()?;
        Ok(outcome)
    }

    fn send_frames(
        &mut self,
        ram: &GuestRam,
        backend: &mut dyn NetBackend,
        log: &Complaints,
    ) -> Result<TxOutcome, DeviceFailed> {
        let mut slices = Vec::new();
        for _ in 0..FRAMES_PER_CALL {
            let Some(chain) = self.queue.pop()? else {
                if self.queue.enable_notification()? {
                    self.queue.disable_notification()?;
                    continue;
                }
                return Ok(TxOutcome::Idle);
            };
            let head = chain.head_index();
            slices.clear();
            match frame_slices(ram, chain, &mut slices) {
                Ok(()) => match backend.send(&slices) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.queue.undo_pop();
                        return Ok(TxOutcome::Blocked);
                    }
                    Err(error) => log.warn(format_args!("frame not sent: {error}")),
                },
                Err(error) => log.warn(format_args!("frame not sent: {error}")),
            }
            self.queue.add_used(head, 0)?;
        }
        Ok(TxOutcome::MoreToDo)
    }
}

/// Appends the readable buffers of `chain`: the header and the frame, however they are divided (2.7.4).
fn frame_slices<'a>(
    ram: &'a GuestRam,
    chain: Chain,
    slices: &mut Vec<VolatileSlice<'a>>,
) -> Result<(), BadFrame> {
    let mut total = 0_usize;
    for (i, descriptor) in chain.enumerate() {
        if i >= MAX_CHAIN_SEGMENTS {
            return Err(BadFrame::TooManySegments);
        }
        let (addr, len) = (descriptor.addr(), descriptor.len());
        if descriptor.is_write_only() || len == 0 {
            continue;
        }
        let len_bytes = len as usize;
        total = total.saturating_add(len_bytes);
        if total > MAX_FRAME_BYTES {
            return Err(BadFrame::TooLong);
        }
        for slice in ram.get_slices(addr, len_bytes) {
            slices.push(slice.map_err(|_| BadFrame::OutsideRam { addr: addr.0, len })?);
        }
    }
    if total <= VNET_HEADER_BYTES {
        return Err(BadFrame::TooShort(total));
    }
    Ok(())
}
