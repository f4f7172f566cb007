//! A network in memory, for tests: a backend, and its far end in the test's hands.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, VolatileSlice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::{NetBackend, NetOffloads};
use crate::sync::lock;

#[derive(Default)]
struct Wire {
    to_device: VecDeque<Vec<u8>>,
    from_device: Vec<Vec<u8>>,
    offloads: NetOffloads,
    refuse_send: Option<io::ErrorKind>,
    refuse_offloads: bool,
    recv_calls: usize,
    slices_offered: usize,
}

/// The device's end.
pub struct PipeNet {
    wire: Arc<Mutex<Wire>>,
    readable: EventFd,
}

/// The test's end. Frames are whole: header first.
pub struct PipePeer {
    wire: Arc<Mutex<Wire>>,
    readable: EventFd,
}

impl PipeNet {
    /// Both ends of a wire.
    ///
    /// # Errors
    /// The host has no eventfd left.
    pub fn pair() -> io::Result<(Self, PipePeer)> {
        let wire = Arc::new(Mutex::new(Wire::default()));
        let readable = EventFd::new(EFD_NONBLOCK)?;
        let peer = PipePeer {
            wire: Arc::clone(&wire),
            readable: readable.try_clone()?,
        };
        Ok((Self { wire, readable }, peer))
    }
}

impl PipePeer {
    /// Puts a frame on the wire to the device.
    ///
    /// # Panics
    /// When the wire holds 2^64 frames.
    pub fn push(&self, frame: &[u8]) {
        lock(&self.wire).to_device.push_back(frame.to_vec());
        self.readable.write(1).expect("eventfd");
    }

    /// How many frames the device has not received yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        lock(&self.wire).to_device.len()
    }

    /// Takes the frames that the device sent since the last call.
    #[must_use]
    pub fn take_sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut lock(&self.wire).from_device)
    }

    /// What the device said it can receive.
    #[must_use]
    pub fn offloads(&self) -> NetOffloads {
        lock(&self.wire).offloads
    }

    /// Sending fails like this from now on; none: it works again.
    pub fn refuse_send(&self, error: Option<io::ErrorKind>) {
        lock(&self.wire).refuse_send = error;
    }

    /// Setting offloads fails from now on.
    pub fn refuse_offloads(&self) {
        lock(&self.wire).refuse_offloads = true;
    }

    /// How often the device tried to receive.
    #[must_use]
    pub fn recv_calls(&self) -> usize {
        lock(&self.wire).recv_calls
    }

    /// How many slices the device offered when it last tried to receive.
    #[must_use]
    pub fn slices_offered(&self) -> usize {
        lock(&self.wire).slices_offered
    }
}

impl NetBackend for PipeNet {
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut wire = lock(&self.wire);
        if let Some(error) = wire.refuse_send {
            return Err(error.into());
        }
        let mut bytes = Vec::new();
        for slice in frame {
            let start = bytes.len();
            bytes.resize(start + slice.len(), 0);
            slice.copy_to(&mut bytes[start..]);
        }
        let len = bytes.len();
        wire.from_device.push(bytes);
        Ok(len)
    }

    fn recv(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut wire = lock(&self.wire);
        wire.recv_calls += 1;
        wire.slices_offered = frame.len();
        let Some(bytes) = wire.to_device.pop_front() else {
            // The count may already be 0: nothing was pushed since.
            let _ = self.readable.read();
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let mut done = 0;
        for slice in frame {
            let count = slice.len().min(bytes.len() - done);
            slice
                .write_slice(&bytes[done..done + count], 0)
                .map_err(io::Error::other)?;
            done += count;
        }
        Ok(done)
    }

    fn set_offloads(&mut self, offloads: NetOffloads) -> io::Result<()> {
        let mut wire = lock(&self.wire);
        if wire.refuse_offloads {
            return Err(io::ErrorKind::Unsupported.into());
        }
        wire.offloads = offloads;
        Ok(())
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.readable.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_cross_whole_and_in_order() {
        let (mut net, peer) = PipeNet::pair().unwrap();
        peer.push(b"first");
        peer.push(b"second");
        let (mut head, mut tail) = ([0; 3], [0; 8]);
        let slices = [
            VolatileSlice::from(&mut head[..]),
            VolatileSlice::from(&mut tail[..]),
        ];
        assert_eq!(net.recv(&slices).unwrap(), 5);
        assert_eq!(net.recv(&slices).unwrap(), 6);
        assert_eq!(
            net.recv(&slices).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        net.send(&slices).unwrap();
        assert_eq!(&peer.take_sent()[0][..6], b"second");
    }

    #[test]
    fn a_frame_too_long_is_cut() {
        let (mut net, peer) = PipeNet::pair().unwrap();
        peer.push(&[7; 100]);
        let mut room = [0; 10];
        assert_eq!(net.recv(&[VolatileSlice::from(&mut room[..])]).unwrap(), 10);
    }
}
