//! Opening a disk: what kind of file it is, who else uses it, its size and its blocks.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, StatxFlags, flock, ioctl_blkpbszget, ioctl_blksszget};
use rustix::io::Errno;
use thiserror::Error;

use super::RawOptions;
use super::bounce::AlignedBuffer;
use crate::block::BlockInfo;

/// The block that the guest is told a file's storage writes whole: the host's page, the unit of its page cache and
/// of its file systems.
const FILE_PHYSICAL_BLOCK_BYTES: u32 = 4096;
/// udev locks a block device while it looks at it after a change; it is done within this many attempts.
const BLOCK_DEVICE_LOCK_ATTEMPTS: u32 = 25;
const BLOCK_DEVICE_LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How a disk is, or is to be, locked (`flock(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// Together with others that only read.
    Shared,
    /// Alone.
    Exclusive,
}

impl fmt::Display for LockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Exclusive => "exclusive",
        })
    }
}

/// Why a disk could not be opened. Each text is one line for the user and says what to change.
#[derive(Debug, Error)]
pub enum DiskError {
    /// No such file.
    #[error("{}: no such file", path.display())]
    NotFound {
        /// The disk.
        path: PathBuf,
    },
    /// A directory.
    #[error("{}: is a directory; a disk is a raw file or a block device", path.display())]
    Directory {
        /// The disk.
        path: PathBuf,
    },
    /// Neither a regular file nor a block device.
    #[error("{}: is a {kind}; a disk is a raw file or a block device", path.display())]
    NotADisk {
        /// The disk.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// This user may not read it.
    #[error("{}: permission denied; give this user access to it", path.display())]
    Permission {
        /// The disk.
        path: PathBuf,
    },
    /// It can be opened for reading only.
    #[error(
        "{}: can be read but not written; add readonly=on, or give this user write access",
        path.display()
    )]
    NotWritable {
        /// The disk.
        path: PathBuf,
    },
    /// No bytes.
    #[error("{}: is empty; give it a size with `truncate -s SIZE {}`", path.display(), path.display())]
    Empty {
        /// The disk.
        path: PathBuf,
    },
    /// Not whole sectors.
    #[error(
        "{}: is {size_bytes} bytes long, not a multiple of {multiple_bytes}; extend it with `truncate -s {} {}`",
        path.display(), size_bytes.next_multiple_of(u64::from(*multiple_bytes)), path.display()
    )]
    Size {
        /// The disk.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// What it must be a multiple of: 512, or the block that direct I/O takes.
        multiple_bytes: u32,
    },
    /// Someone else has it.
    #[error(
        "{}: is in use: another process holds {} lock on it and this run needs {} one{}",
        path.display(), article(*held), article(*wanted), hint(*held, *wanted)
    )]
    Locked {
        /// The disk.
        path: PathBuf,
        /// The lock of the other.
        held: LockKind,
        /// The lock asked for.
        wanted: LockKind,
    },
    /// Direct I/O is not to be had.
    #[error("{}: no direct I/O is possible on this file; leave out direct=on", path.display())]
    NoDirectIo {
        /// The disk.
        path: PathBuf,
    },
    /// A block size that guests cannot be told of.
    #[error("{}: has blocks of {block_bytes} bytes; only 512 and 4096 are supported", path.display())]
    BlockSize {
        /// The disk.
        path: PathBuf,
        /// Its blocks.
        block_bytes: u32,
    },
    /// The host refused something else.
    #[error("{}: cannot {action}", path.display())]
    Host {
        /// The disk.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

fn article(kind: LockKind) -> &'static str {
    match kind {
        LockKind::Shared => "a shared",
        LockKind::Exclusive => "an exclusive",
    }
}

fn hint(held: LockKind, wanted: LockKind) -> &'static str {
    match (held, wanted) {
        (LockKind::Shared, LockKind::Exclusive) => "; with readonly=on both can use it",
        _ => "",
    }
}

/// What direct I/O asks of buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DirectAlignment {
    /// Host addresses are multiples of this.
    pub memory_bytes: u32,
    /// Offsets, and the length of each buffer, are multiples of this.
    pub length_bytes: u32,
}

/// An opened and locked disk. The lock goes when the file is closed, if only by the death of the process.
pub(super) struct OpenDisk {
    pub file: File,
    pub info: BlockInfo,
    /// None when the page cache is used: any buffer will do.
    pub direct: Option<DirectAlignment>,
    pub block_device: bool,
    /// The flags for `preadv2(2)` with which a read does not wait for the medium, if there are any.
    pub now_flags: Option<i32>,
}

/// Opens, locks and measures the disk at `path`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn open(path: &Path, options: RawOptions) -> Result<OpenDisk, DiskError> {
    let host = |action| move |source: io::Error| host_error(path, action, source);
    // Asked before it is opened: opening a FIFO would block.
    let kind = std::fs::metadata(path).map_err(|e| open_error(path, e))?;
    check_kind(path, kind.file_type())?;
    let file = open_file(path, options)?;
    let file_type = file.metadata().map_err(host("stat it"))?.file_type();
    check_kind(path, file_type)?;
    let block_device = file_type.is_block_device();
    lock_file(path, &file, options.read_only, block_device)?;

    let size_bytes = (&file)
        .seek(SeekFrom::End(0))
        .map_err(host("find out its size"))?;
    if size_bytes == 0 {
        return Err(DiskError::Empty { path: path.into() });
    }
    let (mut logical, mut physical) = (512, FILE_PHYSICAL_BLOCK_BYTES);
    if block_device {
        let blocks = |e: Errno| host_error(path, "find out its block size", e.into());
        logical = ioctl_blksszget(&file).map_err(blocks)?;
        physical = ioctl_blkpbszget(&file).map_err(blocks)?;
    }
    let direct = if options.direct {
        let alignment = direct_alignment(path, &file, logical)?;
        logical = logical.max(alignment.length_bytes);
        Some(alignment)
    } else {
        None
    };
    if logical != 512 && logical != 4096 {
        return Err(DiskError::BlockSize {
            path: path.into(),
            block_bytes: logical,
        });
    }
    if !size_bytes.is_multiple_of(u64::from(logical)) {
        return Err(DiskError::Size {
            path: path.into(),
            size_bytes,
            multiple_bytes: logical,
        });
    }
    Ok(OpenDisk {
        info: BlockInfo {
            size_bytes,
            logical_block_bytes: logical,
            physical_block_bytes: physical_blocks(logical, physical),
            read_only: options.read_only,
            discard: !options.read_only,
            write_zeroes: !options.read_only,
        },
        now_flags: now_flags(&file, options.direct, block_device),
        file,
        direct,
        block_device,
    })
}

/// The flags for `preadv2(2)` with which a read does not wait for the medium. Direct I/O always does, but where the
/// files are in memory no read does, and there the kernel does not know the flag.
fn now_flags(file: &File, direct: bool, block_device: bool) -> Option<i32> {
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    let in_memory = || {
        rustix::fs::fstatfs(file)
            .is_ok_and(|fs| matches!(fs.f_type, libc::TMPFS_MAGIC | RAMFS_MAGIC))
    };
    // A block device's own file is in memory too.
    if !block_device && in_memory() {
        Some(0)
    } else if direct {
        None
    } else {
        Some(libc::RWF_NOWAIT)
    }
}

/// What the guest is told: a power of two, not less than a logical block, and not absurd.
fn physical_blocks(logical_bytes: u32, reported_bytes: u32) -> u32 {
    let plausible = reported_bytes.is_power_of_two() && reported_bytes <= 1 << 20;
    if plausible {
        reported_bytes.max(logical_bytes)
    } else {
        logical_bytes
    }
}

fn check_kind(path: &Path, kind: std::fs::FileType) -> Result<(), DiskError> {
    let name = if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else if kind.is_dir() {
        return Err(DiskError::Directory { path: path.into() });
    } else if kind.is_char_device() {
        "character device"
    } else if kind.is_fifo() {
        "named pipe"
    } else {
        "socket"
    };
    Err(DiskError::NotADisk {
        path: path.into(),
        kind: name,
    })
}

fn open_file(path: &Path, options: RawOptions) -> Result<File, DiskError> {
    let try_open = |write: bool, flags: i32| {
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(flags)
            .open(path)
    };
    let flags = if options.direct { libc::O_DIRECT } else { 0 };
    let write = !options.read_only;
    match try_open(write, flags) {
        Ok(file) => Ok(file),
        Err(e) if options.direct && e.raw_os_error() == Some(libc::EINVAL) => {
            Err(DiskError::NoDirectIo { path: path.into() })
        }
        Err(e) if write && forbids(&e) && try_open(false, 0).is_ok() => {
            Err(DiskError::NotWritable { path: path.into() })
        }
        Err(e) => Err(open_error(path, e)),
    }
}

fn forbids(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

fn open_error(path: &Path, source: io::Error) -> DiskError {
    let path = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::NotFound => DiskError::NotFound { path },
        io::ErrorKind::PermissionDenied => DiskError::Permission { path },
        _ => host_error(&path, "open it", source),
    }
}

fn host_error(path: &Path, action: &'static str, source: io::Error) -> DiskError {
    DiskError::Host {
        path: path.to_path_buf(),
        action,
        source,
    }
}

fn lock_file(
    path: &Path,
    file: &File,
    read_only: bool,
    block_device: bool,
) -> Result<(), DiskError> {
    let (wanted, operation) = if read_only {
        (LockKind::Shared, FlockOperation::NonBlockingLockShared)
    } else {
        (
            LockKind::Exclusive,
            FlockOperation::NonBlockingLockExclusive,
        )
    };
    let attempts = if block_device {
        BLOCK_DEVICE_LOCK_ATTEMPTS
    } else {
        1
    };
    for attempt in 1..=attempts {
        match flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if attempt < attempts => {
                std::thread::sleep(BLOCK_DEVICE_LOCK_PAUSE);
            }
            Err(Errno::WOULDBLOCK) => break,
            Err(e) => return Err(host_error(path, "lock it", e.into())),
        }
    }
    // Whoever lets us share it is sharing it.
    let shareable = flock(file, FlockOperation::NonBlockingLockShared).is_ok();
    Err(DiskError::Locked {
        path: path.into(),
        held: if shareable {
            LockKind::Shared
        } else {
            LockKind::Exclusive
        },
        wanted,
    })
}

/// Asks the kernel (Linux 6.1 and later), or tries.
fn direct_alignment(
    path: &Path,
    file: &File,
    logical_block_bytes: u32,
) -> Result<DirectAlignment, DiskError> {
    let none = || DiskError::NoDirectIo { path: path.into() };
    if let Ok(stat) = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN)
    {
        let alignment = DirectAlignment {
            memory_bytes: stat.stx_dio_mem_align,
            length_bytes: stat.stx_dio_offset_align.max(512),
        };
        let possible = stat.stx_dio_offset_align != 0
            && alignment.memory_bytes.is_power_of_two()
            && alignment.memory_bytes <= 4096;
        return if possible { Ok(alignment) } else { Err(none()) };
    }
    for bytes in [512, 4096] {
        let alignment = DirectAlignment {
            memory_bytes: bytes,
            length_bytes: bytes,
        };
        let mut buffer = AlignedBuffer::new(bytes as usize, alignment);
        if bytes >= logical_block_bytes && rustix::io::pread(file, buffer.as_mut_slice(), 0).is_ok()
        {
            return Ok(alignment);
        }
    }
    Err(none())
}
