//! A file: output only.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, fcntl_setfl, flock};
use rustix::io::Errno;

use super::{CharBackend, CharError};

/// Writes to a file that is its own for as long as it lives.
#[derive(Debug)]
pub struct FileBackend {
    file: File,
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
        // Non-blocking while it is opened: a pipe that no one reads is an error then, not a wait.
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
        fcntl_setfl(&file, OFlags::empty()).map_err(|errno| error(errno.into()))?;
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
        Ok(Self { file })
    }
}

impl CharBackend for FileBackend {
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)
    }

    fn read(&mut self, _data: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
    fn what_cannot_be_written_is_an_error_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        for path in [dir.path(), &dir.path().join("no/such/dir"), &pipe] {
            let error = FileBackend::create(path).unwrap_err();
            assert!(matches!(error, CharError::File { .. }));
            let start = format!("cannot write to {}: ", path.display());
            assert!(error.to_string().starts_with(&start), "{error}");
        }
    }
}
