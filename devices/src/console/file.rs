//! A file: output only.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::outlet::Outlet;
use super::poll_set::{EventFlags, PollSet, Watched};
use super::{CharBackend, CharError, Interest};

/// Writes to a file that is its own for as long as it lives.
#[derive(Debug)]
pub struct FileBackend {
    file: Outlet,
    /// For a pipe or device that can be busy.
    poll: Option<PollSet>,
    watched: Watched,
}

impl FileBackend {
    /// Creates the file at `path` or empties the one that is there. A device or pipe is written to as it is. The
    /// file is locked (`flock`, exclusive) before it is touched, so that two ports or two runs never share one by
    /// accident.
    ///
    /// # Errors
    /// [`CharError::File`], [`CharError::FileLocked`].
    pub fn create(path: &Path) -> Result<Self, CharError> {
        let error = |source| CharError::File {
            path: path.to_path_buf(),
            source,
        };
        // A pipe that no one reads is an error now, not a wait, and one that is full is none later.
        let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        let file = {
            use std::os::unix::fs::OpenOptionsExt;
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(nonblock)
                .open(path)
                .map_err(error)?
        };
        if file.metadata().map_err(error)?.is_file() {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => file.set_len(0).map_err(error)?,
                Err(Errno::WOULDBLOCK) => {
                    return Err(CharError::FileLocked {
                        path: path.to_path_buf(),
                    });
                }
                Err(errno) => return Err(error(errno.into())),
            }
        }
        Self::over(file.into()).map_err(error)
    }

    fn over(file: OwnedFd) -> io::Result<Self> {
        let file = Outlet::own(file)?;
        Ok(Self {
            poll: file.can_be_busy().then(PollSet::new).transpose()?,
            file,
            watched: Watched::default(),
        })
    }
}

impl CharBackend for FileBackend {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        self.poll.as_ref().map(PollSet::fd)
    }

    fn set_interest(&mut self, interest: Interest) -> io::Result<()> {
        let Some(poll) = &self.poll else {
            return Ok(());
        };
        let output = interest.output.then_some(EventFlags::OUT);
        poll.watch(&self.file, &mut self.watched, output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::readable;
    use std::fs;
    use std::io::Read;

    fn make_pipe(path: &Path) {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    }

    #[test]
    fn empties_the_file_and_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "what an earlier run left behind").unwrap();
        let mut backend = FileBackend::create(&path).unwrap();
        backend.write(b"one ").unwrap();
        backend.write(b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one two");
        assert_eq!(backend.poll_fd(), None);
        assert_eq!(backend.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_file_in_use_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut first = FileBackend::create(&path).unwrap();
        first.write(b"mine").unwrap();
        let error = FileBackend::create(&path).unwrap_err();
        assert!(matches!(error, CharError::FileLocked { .. }));
        assert_eq!(
            error.to_string(),
            format!(
                "{} is written by another port or another run; give each a file of its own",
                path.display()
            )
        );
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        drop(first);
        FileBackend::create(&path).unwrap();
    }

    #[test]
    fn devices_are_written_as_they_are() {
        let mut first = FileBackend::create(Path::new("/dev/null")).unwrap();
        FileBackend::create(Path::new("/dev/null")).unwrap();
        first.write(b"x").unwrap();
    }

    #[test]
    fn a_pipe_that_is_full_refuses_until_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        make_pipe(&path);
        let mut reader = {
            use std::os::unix::fs::OpenOptionsExt;
            let flags = OFlags::NONBLOCK.bits() as i32;
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(flags).open(&path).unwrap()
        };
        let mut backend = FileBackend::create(&path).unwrap();
        let mut waiting = 0;
        let refused = loop {
            match backend.write(&[b'x'; 4096]) {
                Ok(len) => waiting += len,
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        let room = Interest {
            input: true,
            output: true,
        };
        backend.set_interest(room).unwrap();
        assert!(!readable(backend.poll_fd().unwrap()));
        reader.read_exact(&mut vec![0; waiting]).unwrap();
        assert!(readable(backend.poll_fd().unwrap()));
    }

    #[test]
    fn what_cannot_be_written_is_an_error_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        make_pipe(&pipe);
        for path in [dir.path(), &dir.path().join("no/such/dir"), &pipe] {
            let error = FileBackend::create(path).unwrap_err();
            assert!(matches!(error, CharError::File { .. }));
            let start = format!("cannot write to {}: ", path.display());
            assert!(error.to_string().starts_with(&start), "{error}");
        }
    }
}
