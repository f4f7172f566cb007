//! Our own standard input and output.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::{CharBackend, CharError};

/// Standard input and output, or any two descriptors that may be shared with other processes: their file status
/// flags are left alone, so reads ask first whether there is anything, and writes block.
///
/// The terminal's mode is left alone too; whoever makes it raw restores it.
#[derive(Debug)]
pub struct StdioBackend {
    input: OwnedFd,
    output: OwnedFd,
    /// Stands in for an input that epoll does not take, such as a regular file: those never block. Always readable.
    always_ready: Option<EventFd>,
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
        let always_ready = if can_be_watched(&input).map_err(CharError::Stdio)? {
            None
        } else {
            let event = EventFd::new(0).map_err(CharError::Stdio)?;
            event.write(1).map_err(CharError::Stdio)?;
            Some(event)
        };
        Ok(Self {
            input,
            output,
            always_ready,
        })
    }
}

fn can_be_watched(fd: &OwnedFd) -> io::Result<bool> {
    let probe = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    match epoll::add(
        &probe,
        fd,
        epoll::EventData::new_u64(0),
        epoll::EventFlags::IN,
    ) {
        Ok(()) => Ok(true),
        Err(Errno::PERM) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Waits for `events`, for `timeout` or for ever.
fn wait_for(
    fd: impl AsFd,
    events: PollFlags,
    timeout: Option<&Timespec>,
) -> rustix::io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), events)];
    Ok(poll(&mut fds, timeout)? > 0)
}

impl CharBackend for StdioBackend {
    fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            match rustix::io::write(&self.output, data) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => data = &data[len..],
                Err(Errno::INTR) => {}
                // Someone who shares it has made it non-blocking.
                Err(Errno::AGAIN) => match wait_for(&self.output, PollFlags::OUT, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                },
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let now = Timespec::default();
        if self.always_ready.is_none() && !wait_for(&self.input, PollFlags::IN, Some(&now))? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(rustix::io::read(&self.input, data)?)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(match &self.always_ready {
            Some(event) => event.as_raw_fd(),
            None => self.input.as_raw_fd(),
        })
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
        backend.write(b"file").unwrap();
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
    fn output_that_someone_made_non_blocking_is_waited_for() {
        let (input, _typist) = UnixStream::pair().unwrap();
        let (output, mut screen) = UnixStream::pair().unwrap();
        output.set_nonblocking(true).unwrap();
        let mut backend = StdioBackend::from_fds(input.into(), output.into()).unwrap();
        let data = vec![7; 1 << 20];
        let expected = data.len();
        let reader = std::thread::spawn(move || {
            let mut data = Vec::new();
            screen.read_to_end(&mut data).unwrap();
            data.len()
        });
        backend.write(&data).unwrap();
        drop(backend);
        assert_eq!(reader.join().unwrap(), expected);
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
