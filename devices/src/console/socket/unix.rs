//! Where a Unix socket's file comes from and goes to.
//!
//! The file of a run that was killed stays; it is replaced, since no one listens on it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::console::CharError;

/// Most bytes of a path in `sockaddr_un`, without the NUL.
const PATH_BYTES_MAX: usize = 107;

/// Clients that may wait to be accepted.
const QUEUE: i32 = 128;

/// The file of a socket that listens, removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: it is removed only while it is the one that we made.
    identity: (u64, u64),
}

/// Who may connect to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketAccess {
    /// Whom the process's `umask` lets.
    Umask,
    /// The user that the process is, and root.
    Owner,
}

/// Listens on `path`, in place of a socket there on which no one listens. Accepting does not wait. The file goes when
/// the [`SocketFile`] is dropped.
///
/// # Errors
/// [`CharError::SocketPathTooLong`], [`CharError::NotASocket`], [`CharError::SocketInUse`], [`CharError::Socket`].
pub fn listen_unix(
    path: &Path,
    access: SocketAccess,
) -> Result<(UnixListener, SocketFile), CharError> {
    if path.as_os_str().as_bytes().len() > PATH_BYTES_MAX {
        return Err(CharError::SocketPathTooLong {
            path: path.to_path_buf(),
            max: PATH_BYTES_MAX,
        });
    }
    make_way(path)?;
    bind(path, access).map_err(|source| match source.kind() {
        // Someone was faster.
        io::ErrorKind::AddrInUse => CharError::SocketInUse {
            path: path.to_path_buf(),
        },
        _ => CharError::Socket {
            path: path.to_path_buf(),
            source,
        },
    })
}

fn bind(path: &Path, access: SocketAccess) -> io::Result<(UnixListener, SocketFile)> {
    let socket = new_socket()?;
    if access == SocketAccess::Owner {
        // What the socket has, its file gets from the first moment on (Linux, `unix_bind`).
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    }
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let file = SocketFile {
        identity: identity(path)?,
        path: path.to_path_buf(),
    };
    rustix::net::listen(&socket, QUEUE)?;
    Ok((socket.into(), file))
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // Nothing to be done if it fails: the next run replaces the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes a socket on which no one listens.
fn make_way(path: &Path) -> Result<(), CharError> {
    let path_buf = || path.to_path_buf();
    let error = |source| CharError::Socket {
        path: path_buf(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(error(source)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(CharError::NotASocket { path: path_buf() });
        }
        Ok(_) => {}
    }
    match try_connect(path) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(error),
        // Gone in the meantime.
        Err(Errno::NOENT) => Ok(()),
        // Also a full queue, or a socket of another type: someone is there.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => {
            Err(CharError::SocketInUse { path: path_buf() })
        }
        Err(errno) => Err(error(errno.into())),
    }
}

/// Connects and hangs up, without waiting.
fn try_connect(path: &Path) -> rustix::io::Result<()> {
    let probe = new_socket()?;
    rustix::net::connect(&probe, &SocketAddrUnix::new(path)?)
}
