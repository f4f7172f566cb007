//! The character backend trait.

use std::io;
use std::os::fd::RawFd;

/// What the user of a backend waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// Input: [`CharBackend::read`] will be called when there is some.
    pub input: bool,
    /// Room: [`CharBackend::write`] refused something and will be called again.
    pub output: bool,
}

impl Default for Interest {
    /// Input only.
    fn default() -> Self {
        Self {
            input: true,
            output: false,
        }
    }
}

/// Bytes in, bytes out. Nothing here blocks, but for a write to a regular file or block device, which takes as long
/// as the disk.
///
/// All calls come under the lock of the device's [`Port`](super::Port), on vCPU threads or the event loop.
pub trait CharBackend: Send {
    /// Takes the beginning of `data`, which is not empty, and says how much of it, never 0. A pty that no one reads,
    /// and a socket without a client, take everything and keep its end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing can be taken now: with [`Interest::output`], [`CharBackend::poll_fd`] tells when to
    /// try again. Any other: the other end is gone or full for good, and the device goes on without it.
    fn write(&mut self, data: &[u8]) -> io::Result<usize>;

    /// Reads what is there; `Ok(0)` is the end of input for good. Unless implemented, there is no input.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there now.
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let _ = data;
        Ok(0)
    }

    /// Readable (level-triggered) when [`CharBackend::progress`] is to be called, and then what the interest says is
    /// to be tried. One fd for life, whatever connects and disconnects behind it. None if that is never needed.
    fn poll_fd(&self) -> Option<RawFd> {
        None
    }

    /// From now on the user waits for this. At first, for [`Interest::default`].
    ///
    /// # Errors
    /// What the host said; input or output may then stop.
    fn set_interest(&mut self, interest: Interest) -> io::Result<()> {
        let _ = interest;
        Ok(())
    }

    /// [`CharBackend::poll_fd`] is readable: does what the backend has to do for itself, such as accepting a client
    /// or sending what it holds.
    fn progress(&mut self) {}
}
