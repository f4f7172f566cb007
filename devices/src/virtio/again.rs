//! How a device stops in the middle of its work without forgetting it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An eventfd that a device watches itself ([`VirtioDevice::backend_events`](super::VirtioDevice::backend_events)).
///
/// All devices share one event loop, so that a call does a bounded amount of work; a device with more to do asks to
/// be called again, after the others.
pub(super) struct Again(EventFd);

impl Again {
    /// # Errors
    /// The host has no eventfd left.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK).map(Self)
    }

    /// To be watched for reading, level-triggered.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Asks to be called again.
    pub fn ask(&self) {
        // Fails only when the counter is full, and then the event is pending already.
        let _ = self.0.write(1);
    }

    /// Takes the event; says whether it was there.
    pub fn take(&self) -> bool {
        self.0.read().is_ok()
    }
}
