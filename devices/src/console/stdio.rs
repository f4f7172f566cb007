//! Our own standard input and output.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::outlet::Outlet;
use super::poll_set::{EventFlags, PollSet, Watched, can_be_watched};
use super::{CharBackend, CharError, Interest};

/// Standard input and output, or any two descriptors that may be shared with other processes: their file status
/// flags are left alone, so reads ask first whether there is anything, and writes go as `Outlet::shared` says.
///
/// The terminal's mode is left alone too; whoever makes it raw restores it.
#[derive(Debug)]
pub struct StdioBackend {
    input: OwnedFd,
    output: Outlet,
    /// Stands in for an input that epoll does not take, such as a regular file: those never block. Always readable.
    always_ready: Option<OwnedFd>,
    poll: PollSet,
    watched_input: Watched,
    watched_output: Watched,
}

impl StdioBackend {
    /// Standard input and output.
    ///
    /// # Errors
    /// [`CharError::Stdio`].
    pub fn new() -> Result<Self, CharError> {
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(CharError::Stdio);
        let input = duplicate(rustix::stdio::stdin())?;
        let output = duplicate(rustix::stdio::stdout())?;
        Self::from_fds(input, output)
    }

    /// Input from one descriptor, output to another.
    ///
    /// # Errors
    /// [`CharError::Stdio`].
    pub fn from_fds(input: OwnedFd, output: OwnedFd) -> Result<Self, CharError> {
        Self::try_from_fds(input, output).map_err(CharError::Stdio)
    }

    fn try_from_fds(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        let always_ready = if can_be_watched(&input)? {
            None
        } else {
            Some(eventfd(1, EventfdFlags::CLOEXEC)?)
        };
        let mut backend = Self {
            input,
            output: Outlet::shared(output)?,
            always_ready,
            poll: PollSet::new()?,
            watched_input: Watched::default(),
            watched_output: Watched::default(),
        };
        backend.set_interest(Interest::default())?;
        Ok(backend)
    }
}

impl CharBackend for StdioBackend {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.output.write(data)
    }

    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let now = Timespec::default();
        if self.always_ready.is_none() {
            let mut fds = [PollFd::from_borrowed_fd(self.input.as_fd(), PollFlags::IN)];
            if poll(&mut fds, Some(&now))? == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        Ok(rustix::io::read(&self.input, data)?)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.poll.fd())
    }

    fn set_interest(&mut self, interest: Interest) -> io::Result<()> {
        let input = interest.input.then_some(EventFlags::IN);
        let source = self.always_ready.as_ref().unwrap_or(&self.input);
        self.poll.watch(source, &mut self.watched_input, input)?;
        let output = (interest.output && self.output.can_be_busy()).then_some(EventFlags::OUT);
        self.poll
            .watch(&self.output, &mut self.watched_output, output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::readable;
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn reads_only_what_is_there_and_leaves_the_flags_alone() {
        let (input, mut typist) = UnixStream::pair().unwrap();
        let (output, mut screen) = UnixStream::pair().unwrap();
        let mut backend = StdioBackend::from_fds(input.into(), output.into()).unwrap();
        let mut data = [0; 8];
        assert!(!readable(backend.poll_fd().unwrap()));
        assert_eq!(
            backend.read(&mut data).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        typist.write_all(b"ls").unwrap();
        assert!(readable(backend.poll_fd().unwrap()));
        assert_eq!(backend.read(&mut data).unwrap(), 2);
        let flags = rustix::fs::fcntl_getfl(&backend.input).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
        assert_eq!(backend.write(b"file").unwrap(), 4);
        screen.read_exact(&mut data[..4]).unwrap();
        assert_eq!(&data[..4], b"file");
        drop(typist);
        assert_eq!(backend.read(&mut data).unwrap(), 0, "the end");
    }

    #[test]
    fn a_regular_file_is_input_too() {
        let mut script = tempfile::tempfile().unwrap();
        script.write_all(b"reboot\n").unwrap();
        script.rewind().unwrap();
        let output = tempfile::tempfile().unwrap();
        let mut backend = StdioBackend::from_fds(script.into(), output.into()).unwrap();
        assert!(readable(backend.poll_fd().unwrap()));
        let mut data = [0; 16];
        assert_eq!(backend.read(&mut data).unwrap(), 7);
        assert_eq!(backend.read(&mut data).unwrap(), 0);
    }

    #[test]
    fn room_and_input_are_announced_as_far_as_they_are_waited_for() {
        let (input, mut typist) = UnixStream::pair().unwrap();
        let (screen, output) = rustix::pipe::pipe().unwrap();
        let mut screen = std::fs::File::from(screen);
        let mut backend = StdioBackend::from_fds(input.into(), output).unwrap();
        let mut waiting = 0;
        while let Ok(len) = backend.write(&[b'x'; 4096]) {
            waiting += len;
        }
        let ready = |backend: &StdioBackend| readable(backend.poll_fd().unwrap());
        let interest = |input, output| Interest { input, output };
        backend.set_interest(interest(true, true)).unwrap();
        assert!(!ready(&backend), "full, and nothing typed");
        screen.read_exact(&mut vec![0; waiting]).unwrap();
        assert!(ready(&backend));
        backend.set_interest(interest(true, false)).unwrap();
        assert!(!ready(&backend));
        typist.write_all(b"x").unwrap();
        assert!(ready(&backend));
        backend.set_interest(interest(false, false)).unwrap();
        drop(typist);
        assert!(!ready(&backend), "not even a hang-up");
    }

    #[test]
    fn a_screen_that_is_gone_is_an_error() {
        let (input, _typist) = UnixStream::pair().unwrap();
        let (output, screen) = UnixStream::pair().unwrap();
        let mut backend = StdioBackend::from_fds(input.into(), output.into()).unwrap();
        drop(screen);
        assert!(backend.write(b"x").is_err());
    }
}
