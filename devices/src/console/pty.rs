//! A pseudo-terminal.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::event::epoll;
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::backlog::{BACKLOG_BYTES, Backlog};
use super::{CharBackend, CharError};

/// A new pseudo-terminal, raw, for a terminal program to open at [`PtyBackend::path`], now or later, any number of
/// times.
///
/// Output that no one reads stays in the kernel's buffer (some KiB), then here, of which the last 64 KiB are kept:
/// a reader who comes late sees the beginning, a gap, and the end. Input never ends.
#[derive(Debug)]
pub struct PtyBackend {
    master: OwnedFd,
    /// Never read or written. While one slave is open, the master does not fail when the reader goes.
    _slave: OwnedFd,
    path: PathBuf,
    /// Readable when the master is, or when it takes output again that was refused before.
    epoll: OwnedFd,
    watching_output: bool,
    backlog: Backlog,
}

impl PtyBackend {
    /// Opens a pseudo-terminal.
    ///
    /// # Errors
    /// [`CharError::Pty`].
    pub fn open() -> Result<Self, CharError> {
        Self::try_open().map_err(CharError::Pty)
    }

    /// The slave's path, for the user (`/dev/pts/3`).
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn try_open() -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let nonblock = OpenptFlags::from_bits_retain(OFlags::NONBLOCK.bits());
        let master = openpt(flags | nonblock)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        let mut termios = tcgetattr(&slave)?;
        termios.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &termios)?;
        let path = ptsname(&master, Vec::new())?
            .into_string()
            .map_err(io::Error::other)?
            .into();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &master,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            master,
            _slave: slave,
            path,
            epoll,
            watching_output: false,
            backlog: Backlog::new(BACKLOG_BYTES),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        let master = &self.master;
        self.backlog
            .flush(|data| Ok(rustix::io::write(master, data)?))?;
        let watch_output = self.backlog.has_unsent();
        if watch_output != self.watching_output {
            let mut events = epoll::EventFlags::IN;
            events.set(epoll::EventFlags::OUT, watch_output);
            epoll::modify(
                &self.epoll,
                &self.master,
                epoll::EventData::new_u64(0),
                events,
            )?;
            self.watching_output = watch_output;
        }
        Ok(())
    }
}

impl CharBackend for PtyBackend {
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.backlog.push(data);
        self.flush()
    }

    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.flush()?;
        match rustix::io::read(&self.master, data)? {
            // A slave is open, so this is not the end.
            0 => Err(io::ErrorKind::WouldBlock.into()),
            len => Ok(len),
        }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::readable;
    use std::fs::{File, OpenOptions};
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn terminal(backend: &PtyBackend) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(backend.path())
            .unwrap()
    }

    /// Waits until at least one is readable. The kernel moves bytes through a terminal in its own time.
    fn wait_for_either(first: impl AsFd, second: impl AsFd) -> [bool; 2] {
        let mut fds =
            [first.as_fd(), second.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let limit = Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        assert!(poll(&mut fds, Some(&limit)).unwrap() > 0, "nothing comes");
        fds.map(|fd| fd.revents().contains(PollFlags::IN))
    }

    /// Waits for input and reads it.
    fn read(backend: &mut PtyBackend) -> Vec<u8> {
        wait_for_either(&backend.epoll, &backend.epoll);
        let mut data = [0; 64];
        let len = backend.read(&mut data).unwrap();
        data[..len].to_vec()
    }

    fn would_block(backend: &mut PtyBackend) -> bool {
        let result = backend.read(&mut [0; 8]);
        result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    #[test]
    fn round_trip_raw_and_across_terminals() {
        let mut backend = PtyBackend::open().unwrap();
        assert!(backend.path().starts_with("/dev/pts"));
        assert!(would_block(&mut backend));
        for _ in 0..2 {
            let mut terminal = terminal(&backend);
            // Neither line editing, nor signals, nor newline translation.
            terminal.write_all(b"a\x03\x7f\r").unwrap();
            assert_eq!(read(&mut backend), b"a\x03\x7f\r");
            backend.write(b"b\n").unwrap();
            let mut data = [0; 2];
            terminal.read_exact(&mut data).unwrap();
            assert_eq!(&data, b"b\n");
            drop(terminal);
            assert!(would_block(&mut backend), "a hang-up is not the end");
            assert!(!readable(backend.poll_fd().unwrap()));
        }
    }

    #[test]
    fn without_a_reader_the_end_is_kept() {
        let mut backend = PtyBackend::open().unwrap();
        let line = b"0123456789abcde\n";
        for _ in 0..(4 * BACKLOG_BYTES / line.len()) {
            backend.write(line).unwrap();
        }
        backend.write(b"END").unwrap();
        assert!(!readable(backend.poll_fd().unwrap()));
        let mut terminal = terminal(&backend);
        let epoll = backend.epoll.try_clone().unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"END") {
            let [to_read, to_flush] = wait_for_either(&terminal, &epoll);
            if to_read {
                let mut data = [0; 4096];
                let len = terminal.read(&mut data).unwrap();
                seen.extend(&data[..len]);
            }
            if to_flush {
                assert!(would_block(&mut backend), "a read moves output along");
            }
        }
        assert!(seen.starts_with(line));
        assert!(seen.len() >= BACKLOG_BYTES);
        assert!(seen.len() < 4 * BACKLOG_BYTES, "{}", seen.len());
        assert!(!backend.watching_output);
    }
}
