//! What can be wrong with what the user gave us to boot.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Which of the user's files an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootFile {
    /// `--kernel`.
    Kernel,
    /// `--initrd`.
    Initramfs,
}

impl fmt::Display for BootFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
        })
    }
}

/// Why a guest cannot be booted. All but [`BootError::Write`] are the user's to mend, and each says what to change.
#[derive(Debug, Error)]
pub enum BootError {
    /// It cannot be opened.
    #[error("{what} {}: {}", path.display(), open_problem(reason))]
    Open {
        /// Which file.
        what: BootFile,
        /// Its path.
        path: PathBuf,
        /// What the host said.
        reason: io::Error,
    },
    /// It is something other than a regular file.
    #[error("{what} {}: is {kind}, not a file", path.display())]
    NotAFile {
        /// Which file.
        what: BootFile,
        /// Its path.
        path: PathBuf,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// It has no content.
    #[error("{what} {}: is empty", path.display())]
    Empty {
        /// Which file.
        what: BootFile,
        /// Its path.
        path: PathBuf,
    },
    /// Reading failed.
    #[error("{what} {}: cannot be read: {reason}", path.display())]
    Read {
        /// Which file.
        what: BootFile,
        /// Its path.
        path: PathBuf,
        /// What the host said.
        reason: io::Error,
    },
    /// It is not a kernel that this machine can run.
    #[error("kernel {}: {problem}; give a bzImage, an x86-64 ELF vmlinux or a PVH kernel", path.display())]
    NotAKernel {
        /// The kernel's path.
        path: PathBuf,
        /// What the file is instead.
        problem: String,
    },
    /// The file ends before the kernel does.
    #[error(
        "kernel {}: is truncated: {part} ends at byte {needed_bytes}, the file at {actual_bytes}",
        path.display()
    )]
    Truncated {
        /// The kernel's path.
        path: PathBuf,
        /// What is cut off.
        part: &'static str,
        /// Length that the headers promise.
        needed_bytes: u64,
        /// Length of the file.
        actual_bytes: u64,
    },
    /// The headers contradict themselves, or the payload does not unpack.
    #[error("kernel {}: is damaged: {problem}", path.display())]
    Damaged {
        /// The kernel's path.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The kernel needs memory that the machine does not have.
    #[error(
        "kernel {}: occupies memory up to {}, the machine has {} there; give it more memory",
        path.display(), mib_up(*end), mib_down(*available_end)
    )]
    KernelTooLarge {
        /// The kernel's path.
        path: PathBuf,
        /// Guest-physical end of the kernel.
        end: u64,
        /// Guest-physical end of RAM below 4 GiB.
        available_end: u64,
    },
    /// A segment of an ELF kernel lies where there is no RAM for it.
    #[error("kernel {}: wants to be at {start:#x}..{end:#x}, where the machine has no free memory", path.display())]
    OutsideRam {
        /// The kernel's path.
        path: PathBuf,
        /// Guest-physical start of the segment.
        start: u64,
        /// Guest-physical end of the segment.
        end: u64,
    },
    /// The initramfs does not fit behind the kernel.
    #[error(
        "initramfs {}: needs {}, the kernel leaves {}; give the machine more memory",
        path.display(), mib_up(*needed_bytes), mib_down(*available_bytes)
    )]
    InitramfsTooLarge {
        /// The initramfs's path.
        path: PathBuf,
        /// Its size, in whole pages.
        needed_bytes: u64,
        /// Room between the kernel and the end of the RAM it can reach.
        available_bytes: u64,
    },
    /// The kernel would cut the command line short.
    #[error(
        "the kernel command line has {length_bytes} bytes; this kernel takes at most {max_bytes}"
    )]
    CommandLineTooLong {
        /// Length without the NUL.
        length_bytes: usize,
        /// Most that this kernel takes, without the NUL.
        max_bytes: u64,
    },
    /// The kernel would end the command line there.
    #[error("the kernel command line has a NUL character at byte {position}")]
    CommandLineNul {
        /// Offset of the NUL.
        position: usize,
    },
    /// Guest RAM lacks an address that every machine has: an error of the caller's.
    #[error("cannot write {what} to guest memory at {addr:#x}")]
    Write {
        /// What was to be written.
        what: &'static str,
        /// Where.
        addr: u64,
    },
}

impl BootError {
    pub(super) fn read(what: BootFile, path: &Path, reason: io::Error) -> Self {
        Self::Read {
            what,
            path: path.to_path_buf(),
            reason,
        }
    }

    pub(super) fn not_a_kernel(path: &Path, problem: impl Into<String>) -> Self {
        Self::NotAKernel {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }

    pub(super) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }
}

/// The usual reasons in words, without the error number.
fn open_problem(reason: &io::Error) -> String {
    match reason.kind() {
        io::ErrorKind::NotFound => "does not exist".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => reason.to_string(),
    }
}

/// Mebibytes, rounded up: what is needed.
fn mib_up(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Mebibytes, rounded down: what there is.
fn mib_down(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
