//! Output to a descriptor that may belong to others as well, without blocking and without changing it for them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::termios::isatty;

use super::poll_set::can_be_watched;

/// A pipe that can be written to takes this much at once (pipe(7), `PIPE_BUF`).
const PIPE_ATOMIC_BYTES: usize = 4096;

/// How not to block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Files and devices that are always ready.
    Always,
    /// The open file description is ours alone, and non-blocking.
    NonBlocking,
    /// Sockets: each call says so.
    PerCall,
    /// Asked before each write, of at most so many bytes. If another process that writes to the same pipe comes
    /// between, the write waits all the same.
    Asked(usize),
}

/// A descriptor to write to.
#[derive(Debug)]
pub(super) struct Outlet {
    fd: OwnedFd,
    manner: Manner,
}

impl Outlet {
    /// Writes to `fd`, whose open file description is shared: with the shell that started us, with our own standard
    /// error, with whoever else has the terminal open. `O_NONBLOCK` would be theirs too, and make their writes fail.
    /// So a pipe or terminal is opened anew by way of /proc; where that cannot be (no /proc, a terminal of another
    /// user), it is asked before each write.
    ///
    /// # Errors
    /// The descriptor is not open.
    pub fn shared(fd: OwnedFd) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(fstat(&fd)?.st_mode);
        let terminal = isatty(&fd);
        Ok(match kind {
            FileType::Socket => Self::with(fd, Manner::PerCall),
            FileType::Fifo | FileType::CharacterDevice if terminal || kind == FileType::Fifo => {
                match open_anew(&fd) {
                    Ok(own) => Self::with(own, Manner::NonBlocking),
                    // A terminal that can be written to has room for one byte, for more is not said.
                    Err(_) if terminal => Self::with(fd, Manner::Asked(1)),
                    Err(_) => Self::with(fd, Manner::Asked(PIPE_ATOMIC_BYTES)),
                }
            }
            _ if can_be_watched(&fd)? => Self::with(fd, Manner::Asked(1)),
            _ => Self::with(fd, Manner::Always),
        })
    }

    /// Writes to `fd`, which is non-blocking and of which nobody else knows.
    ///
    /// # Errors
    /// The descriptor is not open.
    pub fn own(fd: OwnedFd) -> io::Result<Self> {
        let manner = if can_be_watched(&fd)? {
            Manner::NonBlocking
        } else {
            Manner::Always
        };
        Ok(Self::with(fd, manner))
    }

    fn with(fd: OwnedFd, manner: Manner) -> Self {
        Self { fd, manner }
    }

    /// Whether it can be busy, and then be watched.
    pub fn can_be_busy(&self) -> bool {
        self.manner != Manner::Always
    }

    /// As [`CharBackend::write`](super::CharBackend::write).
    pub fn write(&self, data: &[u8]) -> io::Result<usize> {
        loop {
            let result = match self.manner {
                Manner::Always | Manner::NonBlocking => rustix::io::write(&self.fd, data),
                Manner::PerCall => {
                    rustix::net::send(&self.fd, data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
                }
                Manner::Asked(most) => self.ask_and_write(&data[..data.len().min(most)]),
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    fn ask_and_write(&self, data: &[u8]) -> rustix::io::Result<usize> {
        let mut fds = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::OUT)];
        if poll(&mut fds, Some(&Timespec::default()))? == 0 {
            return Err(Errno::AGAIN);
        }
        rustix::io::write(&self.fd, data)
    }
}

impl AsFd for Outlet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Another open file description of the same pipe or terminal, non-blocking.
fn open_anew(fd: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    openat(
        CWD,
        format!("/proc/self/fd/{}", fd.as_raw_fd()),
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use rustix::fs::fcntl_getfl;

    /// Fills `outlet` until it takes no more; how much that was.
    fn fill(outlet: &Outlet) -> usize {
        let mut total = 0;
        loop {
            match outlet.write(&[b'x'; 1000]) {
                Ok(len) => total += len,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    return total;
                }
            }
        }
    }

    fn non_blocking(fd: impl AsFd) -> bool {
        fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
    }

    fn drain(from: &mut impl Read, mut len: usize) {
        let mut data = [0; 4096];
        while len > 0 {
            let part = len.min(data.len());
            from.read_exact(&mut data[..part]).unwrap();
            len -= part;
        }
    }

    #[test]
    fn a_full_pipe_refuses_and_keeps_its_flags() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let outlet = Outlet::shared(writer.try_clone().unwrap()).unwrap();
        assert_eq!(outlet.manner, Manner::NonBlocking);
        let len = fill(&outlet);
        assert!(!non_blocking(&writer), "the others' writes still wait");
        drain(&mut std::fs::File::from(reader.try_clone().unwrap()), len);
        assert_eq!(outlet.write(b"more").unwrap(), 4);
    }

    #[test]
    fn a_pipe_that_cannot_be_opened_anew_is_asked() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let outlet = Outlet::with(writer, Manner::Asked(PIPE_ATOMIC_BYTES));
        let mut reader = std::fs::File::from(reader);
        drain(&mut reader, fill(&outlet));
        assert_eq!(outlet.write(b"more").unwrap(), 4);
    }

    #[test]
    fn a_full_socket_refuses_and_keeps_its_flags() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let outlet = Outlet::shared(near.try_clone().unwrap().into()).unwrap();
        assert_eq!(outlet.manner, Manner::PerCall);
        let len = fill(&outlet);
        assert!(!non_blocking(&near));
        drain(&mut far, len);
        assert_eq!(outlet.write(b"more").unwrap(), 4);
    }

    #[test]
    fn a_stopped_terminal_refuses() {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        let outlet = Outlet::shared(terminal.try_clone().unwrap()).unwrap();
        assert_eq!(outlet.manner, Manner::NonBlocking);
        assert_eq!(outlet.write(b"shown").unwrap(), 5);
        rustix::termios::tcflow(&terminal, rustix::termios::Action::OOff).unwrap();
        let refused = outlet.write(b"stopped").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert!(!non_blocking(&terminal));
    }

    #[test]
    fn files_are_always_ready() {
        let file = tempfile::tempfile().unwrap();
        assert!(!Outlet::shared(file.into()).unwrap().can_be_busy());
        let null = std::fs::File::options()
            .write(true)
            .open("/dev/null")
            .unwrap();
        assert!(!Outlet::shared(null.into()).unwrap().can_be_busy());
    }
}
