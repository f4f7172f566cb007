//! A pseudo-terminal.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::backlog::{BACKLOG_BYTES, Backlog};
use super::poll_set::{EventFlags, PollSet, Watched};
use super::{CharBackend, CharError, Interest};

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
    poll: PollSet,
    watched: Watched,
    input_wanted: bool,
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
        let mut backend = Self {
            master,
            _slave: slave,
            path,
            poll: PollSet::new()?,
            watched: Watched::default(),
            input_wanted: true,
            backlog: Backlog::new(BACKLOG_BYTES),
        };
        backend.watch()?;
        Ok(backend)
    }

    fn flush(&mut self) -> io::Result<()> {
        let master = &self.master;
        self.backlog
            .flush(|data| Ok(rustix::io::write(master, data)?))?;
        self.watch()
    }

    fn watch(&mut self) -> io::Result<()> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.input_wanted);
        flags.set(EventFlags::OUT, self.backlog.has_unsent());
        let flags = (!flags.is_empty()).then_some(flags);
        self.poll.watch(&self.master, &mut self.watched, flags)
    }
}

impl CharBackend for PtyBackend {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.backlog.push(data);
        self.flush()?;
        Ok(data.len())
    }

    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        match rustix::io::read(&self.master, data)? {
            // A slave is open, so this is not the end.
            0 => Err(io::ErrorKind::WouldBlock.into()),
            len => Ok(len),
        }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.poll.fd())
    }

    fn set_interest(&mut self, interest: Interest) -> io::Result<()> {
        self.input_wanted = interest.input;
        self.watch()
    }

    fn progress(&mut self) {
        // An error comes again, and is told, with the next write.
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::readable;
    use std::fs::{File, OpenOptions};
    use std::io::{Read, Write};
    use std::time::Instant;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn terminal(backend: &PtyBackend) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(backend.path())
            .unwrap()
    }

    /// Waits until the terminal or the backend has something. The kernel moves bytes through a terminal in its own
    /// time.
    fn wait_for(terminal: Option<&File>, backend: &PtyBackend) -> [bool; 2] {
        let start = Instant::now();
        loop {
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 1_000_000,
            };
            let mut fds: Vec<_> = terminal
                .iter()
                .map(|fd| PollFd::new(*fd, PollFlags::IN))
                .collect();
            poll(&mut fds, Some(&now)).unwrap();
            let seen = [
                fds.iter().any(|fd| fd.revents().contains(PollFlags::IN)),
                readable(backend.poll_fd().unwrap()),
            ];
            if seen != [false; 2] {
                return seen;
            }
            assert!(start.elapsed().as_secs() < 10, "nothing comes");
        }
    }

    /// Waits for input and reads it.
    fn read(backend: &mut PtyBackend) -> Vec<u8> {
        assert!(wait_for(None, backend)[1]);
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
        let mut seen = Vec::new();
        while !seen.ends_with(b"END") {
            let [to_read, to_flush] = wait_for(Some(&terminal), &backend);
            if to_read {
                let mut data = [0; 4096];
                let len = terminal.read(&mut data).unwrap();
                seen.extend(&data[..len]);
            }
            if to_flush {
                backend.progress();
            }
        }
        assert!(seen.starts_with(line));
        assert!(seen.len() >= BACKLOG_BYTES);
        assert!(seen.len() < 4 * BACKLOG_BYTES, "{}", seen.len());
        assert!(!readable(backend.poll_fd().unwrap()));
    }
}
