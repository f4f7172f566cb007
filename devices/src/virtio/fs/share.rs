//! The host's side of a share: how its files are reached, and that nothing else is.
//!
//! Files are named by their path below the shared directory and looked up with `openat2(2)`, which follows no link and
//! leaves the directory in no way, whatever happens on the host meanwhile. What is found is opened without effect
//! first (`O_PATH`), looked at, and opened for reading only if it is a regular file or a directory: no device, pipe or
//! socket of the host is ever touched. Nothing is opened for writing.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, fstatfs, openat,
    openat2, statx,
};
use rustix::io::Errno;
use thiserror::Error;

/// Longest part of a path that is looked up at a time, in bytes: below `PATH_MAX` with its NUL.
const MAX_STEP_BYTES: usize = 4000;
/// How often a look-up is repeated that was disturbed by the host's renaming (`EAGAIN` of `openat2(2)`).
const MAX_DISTURBANCES: u32 = 8;
/// `STATX_MNT_ID` of `linux/stat.h`, which rustix does not name.
const STATX_MNT_ID: u32 = 0x1000;

/// File systems that show the kernel and not files, by their magic numbers (`linux/magic.h`, and the kernel's sources
/// where that lacks them). Reading there waits, has effects, or tells about the host what is not in any file.
const KERNEL_FILE_SYSTEMS: &[u32] = &[
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6165_676c, // pstore
    0xcafe_4a11, // bpf
    0xde5e_81e4, // efivarfs
    0x6265_6570, // configfs
    0x0000_1cd1, // devpts
    0x1980_0202, // mqueue
    0x9584_58f6, // hugetlbfs
    0x4249_4e4d, // binfmt_misc
    0x6573_5543, // fusectl
    0xf97c_ff8c, // selinuxfs
    0x6e73_6673, // nsfs
    0x6759_6969, // rpc_pipefs
    0x0765_5821, // resctrl
    0x0000_0187, // autofs: looking into it mounts
];

/// Why a directory cannot be shared.
#[derive(Debug, Error)]
pub enum ShareError {
    /// It is not there, or may not be read.
    #[error("cannot share {}: {source}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A file.
    #[error("cannot share {}: it is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// A kernel before 5.6, or a sandbox that forbids it.
    #[error(
        "cannot share {}: this host does not allow openat2, which Linux has since 5.6; update the kernel, or allow it in the sandbox",
        .0.display()
    )]
    NoOpenat2(PathBuf),
    /// Files are opened by way of it.
    #[error("cannot share {}: /proc is not mounted ({source})", path.display())]
    NoProc {
        /// The directory.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// What makes a file that file and no other, as long as it exists. The mount belongs to it: a directory that is mounted
/// in two places is two directories, as the guest's kernel wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    mount: u64,
    /// Device number of its file system, major and minor.
    pub device: (u32, u32),
    inode: u64,
}

impl Identity {
    fn of(status: &Statx) -> Self {
        Self {
            mount: status.stx_mnt_id,
            device: (status.stx_dev_major, status.stx_dev_minor),
            inode: status.stx_ino,
        }
    }

    /// For tests of what knows no files.
    #[cfg(test)]
    pub fn numbered(inode: u64) -> Self {
        Self {
            mount: 0,
            device: (0, 0),
            inode,
        }
    }
}

/// A file of the share that was looked up; what it contains is not accessible by it.
pub(super) struct Found {
    path_fd: OwnedFd,
    pub status: Statx,
    pub identity: Identity,
}

impl Found {
    fn new(path_fd: OwnedFd) -> Result<Self, Errno> {
        let status = status_of(path_fd.as_fd())?;
        Ok(Self {
            path_fd,
            identity: Identity::of(&status),
            status,
        })
    }

    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.status.stx_mode.into())
    }

    /// Whether it is on a file system that shows the kernel.
    pub fn shows_kernel(&self) -> Result<bool, Errno> {
        // The kernel's type is a long, of which file systems use 32 bits.
        let magic = fstatfs(&self.path_fd)?.f_type.cast_unsigned() & u64::from(u32::MAX);
        Ok(KERNEL_FILE_SYSTEMS
            .iter()
            .any(|known| u64::from(*known) == magic))
    }
}

impl AsFd for Found {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.path_fd.as_fd()
    }
}

/// The status of an open file.
pub(super) fn status_of(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::from_bits_retain(STATX_MNT_ID);
    // Without AT_NO_AUTOMOUNT: there is no name left to mount at.
    statx(fd, c"", AtFlags::EMPTY_PATH, mask)
}

/// A directory of the host that can be given to [`Fs`](super::Fs). It stays the same one, whatever its path comes to
/// mean.
pub struct SharedDirectory {
    root: OwnedFd,
    /// `/proc/self/fd`: the way to open what an `O_PATH` descriptor stands for.
    own_fds: OwnedFd,
}

impl SharedDirectory {
    /// The directory at `path`; links in that are followed.
    ///
    /// # Errors
    /// [`ShareError`], each a line for the user.
    pub fn open(path: &Path) -> Result<Self, ShareError> {
        let refused = |errno: Errno| match errno {
            Errno::NOTDIR => ShareError::NotADirectory(path.into()),
            _ => ShareError::Open {
                path: path.into(),
                source: errno.into(),
            },
        };
        // For reading, which finds out whether that is allowed.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let root = openat(CWD, path, flags, Mode::empty()).map_err(refused)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let own_fds = openat(CWD, c"/proc/self/fd", flags, Mode::empty()).map_err(|errno| {
            ShareError::NoProc {
                path: path.into(),
                source: errno.into(),
            }
        })?;
        let share = Self { root, own_fds };
        match share.find_below(share.root.as_fd(), b".") {
            Ok(_) => Ok(share),
            // Sandboxes say EPERM.
            Err(Errno::NOSYS | Errno::PERM) => Err(ShareError::NoOpenat2(path.into())),
            Err(errno) => Err(refused(errno)),
        }
    }

    /// The file whose path from the root on has these components, none of them `..`; the root itself if there are none.
    pub(super) fn find(&self, components: &[&[u8]]) -> Result<Found, Errno> {
        let mut folder: Option<Found> = None;
        let mut rest = components;
        loop {
            let (step, count) = step_of(rest);
            let from = folder.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            let found = self.find_below(from, &step)?;
            rest = &rest[count..];
            if rest.is_empty() {
                return Ok(found);
            }
            folder = Some(found);
        }
    }

    /// The file at `path` below an open directory of the share.
    pub(super) fn find_below(&self, folder: BorrowedFd<'_>, path: &[u8]) -> Result<Found, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let mut disturbances = 0;
        loop {
            match openat2(folder, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if disturbances < MAX_DISTURBANCES => disturbances += 1,
                result => return result.and_then(Found::new),
            }
        }
    }

    /// Opens a directory or a regular file for reading.
    ///
    /// # Errors
    /// `ENXIO` for anything else.
    pub(super) fn open_for_reading(&self, found: &Found) -> Result<File, Errno> {
        let kind = match found.file_type() {
            FileType::RegularFile => OFlags::empty(),
            FileType::Directory => OFlags::DIRECTORY,
            _ => return Err(Errno::NXIO),
        };
        // Not to wait for whoever holds a lease.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | kind;
        let name = found.path_fd.as_raw_fd().to_string();
        openat(&self.own_fds, name, flags, Mode::empty()).map(File::from)
    }
}

/// As many components as one look-up takes, joined, and how many they are. At least one, if there are any.
fn step_of(components: &[&[u8]]) -> (Vec<u8>, usize) {
    let mut step = Vec::new();
    let mut count = 0;
    for component in components {
        if count > 0 {
            if step.len() + component.len() >= MAX_STEP_BYTES {
                break;
            }
            step.push(b'/');
        }
        step.extend_from_slice(component);
        count += 1;
    }
    if count == 0 {
        step.push(b'.');
    }
    (step, count)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn long_paths_are_taken_in_steps() {
        assert_eq!(step_of(&[]), (b".".to_vec(), 0));
        assert_eq!(step_of(&[b"a", b"b"]), (b"a/b".to_vec(), 2));
        let long = [b'x'; 255];
        let components = vec![&long[..]; 40];
        let (step, count) = step_of(&components);
        assert!(step.len() < MAX_STEP_BYTES && step.len() > MAX_STEP_BYTES - 256);
        assert_eq!(step.len(), count * 256 - 1);
    }

    #[test]
    fn a_file_deeper_than_a_path_can_say_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let name = "d".repeat(200);
        let mut fd = OwnedFd::from(File::open(folder.path()).unwrap());
        for _ in 0..30 {
            rustix::fs::mkdirat(&fd, name.as_str(), Mode::RWXU).unwrap();
            fd = openat(&fd, name.as_str(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let share = SharedDirectory::open(folder.path()).unwrap();
        let found = share.find(&[name.as_bytes(); 30]).unwrap();
        assert_eq!(
            found.identity,
            Identity::of(&status_of(fd.as_fd()).unwrap())
        );
        assert!(share.find(&[name.as_bytes(); 31]).is_err());
    }

    #[test]
    fn links_are_found_and_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        let folder = tempfile::tempdir().unwrap();
        symlink(outside.path(), folder.path().join("away")).unwrap();
        symlink("/proc/self/root", folder.path().join("magic")).unwrap();
        let share = SharedDirectory::open(folder.path()).unwrap();
        for name in [b"away".as_slice(), b"magic"] {
            let link = share.find(&[name]).unwrap();
            assert_eq!(link.file_type(), FileType::Symlink);
            assert_eq!(share.open_for_reading(&link).unwrap_err(), Errno::NXIO);
        }
        assert!(share.find(&[b"away", b"secret"]).is_err());
        assert!(share.find(&[b"magic", b"etc"]).is_err());
        assert!(share.find(&[b".."]).is_err());
        assert!(share.find(&[b"away", b".."]).is_err());
    }

    #[test]
    fn devices_pipes_and_sockets_are_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let _socket = UnixListener::bind(folder.path().join("socket")).unwrap();
        let share = SharedDirectory::open(folder.path()).unwrap();
        for name in [b"fifo".as_slice(), b"socket"] {
            let found = share.find(&[name]).unwrap();
            assert_eq!(share.open_for_reading(&found).unwrap_err(), Errno::NXIO);
        }
        let share = SharedDirectory::open(Path::new("/dev")).unwrap();
        let found = share.find(&[b"null"]).unwrap();
        assert_eq!(share.open_for_reading(&found).unwrap_err(), Errno::NXIO);
    }

    #[test]
    fn file_systems_of_the_kernel_are_known() {
        let share = SharedDirectory::open(Path::new("/")).unwrap();
        assert!(share.find(&[b"proc"]).unwrap().shows_kernel().unwrap());
        assert!(share.find(&[b"sys"]).unwrap().shows_kernel().unwrap());
        assert!(!share.find(&[]).unwrap().shows_kernel().unwrap());
        assert!(!share.find(&[b"usr"]).unwrap().shows_kernel().unwrap());
    }

    #[test]
    fn what_cannot_be_shared_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| SharedDirectory::open(path).err().unwrap().to_string();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(
            message(&file),
            format!("cannot share {}: it is not a directory", file.display())
        );
        assert_eq!(
            message(Path::new("/nowhere")),
            "cannot share /nowhere: No such file or directory (os error 2)"
        );
    }
}
