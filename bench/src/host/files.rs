//! The files behind the guest's disks: without names, so that nothing of them is ever left.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fstatvfs};
use thiserror::Error;

/// Written at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Why there are no files.
#[derive(Debug, Error)]
pub enum FileError {
    /// The folder is of no use.
    #[error("cannot make files in {}: {source}; name another folder with --disk-folder DIR", folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// There is too little room.
    #[error(
        "{} has room for {free_mib} MiB, and the disks take {needed_mib}: name another folder with --disk-folder DIR, or \
         make the disks smaller with --disk-size SIZE",
        folder.display()
    )]
    Full {
        /// The folder.
        folder: PathBuf,
        /// What it has, in MiB.
        free_mib: u64,
        /// What is needed, in MiB.
        needed_mib: u64,
    },
    /// A file cannot be written.
    #[error("cannot write a disk's file in {}: {source}", folder.display())]
    Write {
        /// The folder.
        folder: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

/// Finds out whether `count` files of that size can be made in a folder; true if they can bypass the page cache. Nothing is
/// left there.
///
/// # Errors
/// [`FileError`].
pub fn check_folder(folder: &Path, count: u64, size_bytes: u64) -> Result<bool, FileError> {
    let failed = |source| FileError::Folder {
        folder: folder.to_owned(),
        source,
    };
    let file = tempfile::tempfile_in(folder).map_err(failed)?;
    let room = fstatvfs(&file).map_err(|error| failed(error.into()))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    let needed = count.saturating_mul(size_bytes);
    if free < needed {
        return Err(FileError::Full {
            folder: folder.to_owned(),
            free_mib: free >> 20,
            needed_mib: needed >> 20,
        });
    }
    let reopened = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok(reopened.is_ok())
}

/// The file behind a disk.
#[derive(Debug)]
pub struct BackingFile {
    file: File,
}

impl BackingFile {
    /// Makes one, all of it written: what was never written is read without its medium.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn make(folder: &Path, size_bytes: u64, seed: u64) -> Result<Self, FileError> {
        let write = || {
            let mut file = tempfile::tempfile_in(folder)?;
            let mut random = fastrand::Rng::with_seed(seed);
            let mut piece = vec![0; PIECE_BYTES];
            random.fill(&mut piece);
            let mut left = size_bytes;
            while left > 0 {
                let len = usize::try_from(left)
                    .unwrap_or(PIECE_BYTES)
                    .min(PIECE_BYTES);
                // No two alike, for media that would notice.
                piece[..8].copy_from_slice(&left.to_le_bytes());
                file.write_all(&piece[..len])?;
                left -= len as u64;
            }
            file.sync_all()?;
            Ok(file)
        };
        let file = write().map_err(|source| FileError::Write {
            folder: folder.to_owned(),
            source,
        })?;
        Ok(Self { file })
    }

    /// The open file, for children that are to inherit it.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its path for a process that has inherited it.
    #[must_use]
    pub fn path_for_heir(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

/// The folder for files of a user who names none: the cache's, else the one for what is temporary. It is made.
#[must_use]
pub fn default_folder() -> PathBuf {
    let cache = dirs::cache_dir().map(|folder| folder.join("tripath"));
    cache
        .filter(|folder| fs::create_dir_all(folder).is_ok())
        .unwrap_or_else(std::env::temp_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_and_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let size = (5 << 20) + 512;
        let file = BackingFile::make(folder.path(), size, 1).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let content = fs::read(file.path_for_heir()).unwrap();
        assert_eq!(content.len() as u64, size);
        assert!(content.iter().filter(|&&byte| byte == 0).count() < content.len() / 100);
        assert_ne!(content[..8], content[1 << 20..(1 << 20) + 8]);
    }

    #[test]
    fn a_folder_is_found_wanting() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_folder(folder.path(), 2, 1 << 20).is_ok());
        let error = check_folder(folder.path(), 1 << 20, 1 << 40).unwrap_err();
        assert!(matches!(error, FileError::Full { .. }), "{error}");
        let error = check_folder(Path::new("/nowhere"), 1, 1).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot make files in /nowhere: ")
        );
    }
}
