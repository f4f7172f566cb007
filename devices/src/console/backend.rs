//! The character backend trait.

use std::io;
use std::os::fd::RawFd;

/// Bytes in, bytes out.
pub trait CharBackend: Send {
    /// Writes all of `data`, in order. A terminal, pipe or file blocks until it has taken them; a pty or socket
    /// that no one reads drops the oldest. vCPU thread (UART) or event loop (virtio-console).
    ///
    /// # Errors
    /// The other end is gone or full for good; the device goes on without it.
    fn write(&mut self, data: &[u8]) -> io::Result<()>;

    /// Reads what is there, without blocking; `Ok(0)` is the end of input for good. Event loop or vCPU thread.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there now.
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize>;

    /// Readable when [`CharBackend::read`] may have something; one fd for life, whatever connects and disconnects
    /// behind it. None if input never comes.
    fn poll_fd(&self) -> Option<RawFd>;
}
