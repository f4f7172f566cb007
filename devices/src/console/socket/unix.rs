//! Where a Unix socket's file comes from and goes to.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::console::CharError;

/// Most bytes of a path in `sockaddr_un`, without the NUL.
const PATH_BYTES_MAX: usize = 107;

/// The file of a socket that listens, removed when this is dropped.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: it is removed only while it is the one that we made.
    identity: (u64, u64),
}

/// Listens on `path`, in place of a socket there on which no one listens.
pub(super) fn listen(path: &Path) -> Result<(OwnedFd, SocketFile), CharError> {
    if path.as_os_str().as_bytes().len() > PATH_BYTES_MAX {
        return Err(CharError::SocketPathTooLong {
            path: path.to_path_buf(),
            max: PATH_BYTES_MAX,
        });
    }
    make_way(path)?;
    bind(path).map_err(|source| match source.kind() {
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

fn bind(path: &Path) -> io::Result<(OwnedFd, SocketFile)> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    let file = SocketFile {
        identity: identity(path)?,
        path: path.to_path_buf(),
    };
    Ok((listener.into(), file))
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
    let probe = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&probe, &SocketAddrUnix::new(path)?)
}
