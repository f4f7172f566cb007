//! Work that goes on in a later turn of the event loop.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Lets a device that has done its share of work come back after the other devices: a driver that never stops
/// making buffers available gets no more than its turn.
///
/// The device returns [`Rerun::event`] among its backend events and calls [`Rerun::clear`] when it comes.
pub(crate) struct Rerun(EventFd);

impl Rerun {
    /// # Errors
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?))
    }

    /// The descriptor to watch, and for what.
    pub fn event(&self) -> (RawFd, EventSet) {
        (self.0.as_raw_fd(), EventSet::IN)
    }

    /// Asks for another turn.
    pub fn ask(&self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = self.0.write(1);
    }

    /// The turn has come, if `fd` is the event's. Says whether it is.
    pub fn clear(&self, fd: RawFd) -> bool {
        if fd != self.0.as_raw_fd() {
            return false;
        }
        // Nothing to read is fine.
        let _ = self.0.read();
        true
    }

    /// Whether another turn was asked for and has not come.
    #[cfg(test)]
    pub fn is_asked(&self) -> bool {
        let asked = self.0.read().is_ok();
        if asked {
            self.ask();
        }
        asked
    }
}
