//! The inside of a loopback: what is sent comes back (manual, 13.4.22, LBM).

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use vm_memory::VolatileSlice;

use crate::net::{NetBackend, NetOffloads};

/// Most frames on the way. As on hardware, whose packet buffer is full then, the next are lost.
const MAX_FRAMES: usize = 64;

/// Frames on their way back, header first.
#[derive(Debug, Default)]
pub struct LoopedFrames(VecDeque<Vec<u8>>);

impl LoopedFrames {
    /// Whether none is on its way.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many are on their way.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Loses them.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl NetBackend for LoopedFrames {
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let len = frame.iter().map(VolatileSlice::len).sum();
        if self.0.len() < MAX_FRAMES {
            let mut bytes = vec![0; len];
            let mut rest = &mut bytes[..];
            for slice in frame {
                let (room, next) = rest.split_at_mut(slice.len());
                slice.copy_to(room);
                rest = next;
            }
            self.0.push_back(bytes);
        }
        Ok(len)
    }

    fn recv(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let bytes = self.0.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        let mut rest = &bytes[..];
        for slice in frame {
            let (part, next) = rest.split_at(slice.len().min(rest.len()));
            slice.copy_from(part);
            rest = next;
        }
        Ok(bytes.len() - rest.len())
    }

    fn set_offloads(&mut self, _offloads: NetOffloads) -> io::Result<()> {
        Ok(())
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }
}
