//! A Unix socket that we listen on.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::backlog::{BACKLOG_BYTES, Backlog};
use super::{CharBackend, CharError};

/// Most bytes of a path in `sockaddr_un`, without the NUL.
const PATH_BYTES_MAX: usize = 107;
/// Connections dealt with in one call, so that a flood of them does not hold up the caller.
const ACCEPTS_PER_CALL: usize = 16;
/// What a second client is told.
const BUSY: &[u8] = b"Another client is connected.\r\n";

/// A listening Unix socket with one client at a time; others are turned away with a line that says why.
///
/// The last 64 KiB of output are kept, for a client that is slow, comes late, or comes back: on connecting it gets
/// all of them. Neither reads nor writes block, and input never ends. The socket's file is removed when the backend
/// is dropped.
#[derive(Debug)]
pub struct SocketBackend {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file: it is removed only while it is the one that we made.
    identity: (u64, u64),
    /// Watches the listener and the client.
    epoll: OwnedFd,
    client: Option<Client>,
    backlog: Backlog,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// What the epoll watches.
    interest: epoll::EventFlags,
    /// The client may still send. One that has shut down its side may yet be reading.
    sends: bool,
}

impl SocketBackend {
    /// Listens on `path`. A socket there on which no one listens is replaced.
    ///
    /// # Errors
    /// [`CharError::SocketPathTooLong`], [`CharError::NotASocket`], [`CharError::SocketInUse`],
    /// [`CharError::Socket`].
    pub fn listen(path: &Path) -> Result<Self, CharError> {
        if path.as_os_str().as_bytes().len() > PATH_BYTES_MAX {
            return Err(CharError::SocketPathTooLong {
                path: path.to_path_buf(),
                max: PATH_BYTES_MAX,
            });
        }
        make_way(path)?;
        Self::bind(path).map_err(|source| match source.kind() {
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

    fn bind(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&epoll, &listener, epoll::EventFlags::IN)?;
        Ok(Self {
            identity: identity(path)?,
            listener,
            path: path.to_path_buf(),
            epoll,
            client: None,
            backlog: Backlog::new(BACKLOG_BYTES),
        })
    }

    /// Takes a waiting connection if there is no client, and turns the others away.
    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_CALL {
            // A connection that cannot be accepted now will be another time.
            let Ok((stream, _)) = self.listener.accept() else {
                return;
            };
            if self.client.is_some() {
                // Best effort: the socket is new, so the line fits.
                let _ = rustix::net::send(&stream, BUSY, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            } else if stream.set_nonblocking(true).is_ok()
                && watch(&self.epoll, &stream, epoll::EventFlags::IN).is_ok()
            {
                self.client = Some(Client {
                    stream,
                    interest: epoll::EventFlags::IN,
                    sends: true,
                });
                self.backlog.rewind();
                self.flush();
            }
        }
    }

    /// Sends what the client will take, and drops a client that is gone.
    fn flush(&mut self) {
        let Some(client) = &mut self.client else {
            return;
        };
        let stream = &client.stream;
        let sent = self
            .backlog
            .flush(|data| Ok(rustix::net::send(stream, data, SendFlags::NOSIGNAL)?));
        if sent.is_err()
            || client
                .update(&self.epoll, self.backlog.has_unsent())
                .is_err()
        {
            self.client = None;
        }
    }

    /// Reads from the client; none if there is nothing or no client.
    fn receive(&mut self, data: &mut [u8]) -> Option<usize> {
        let client = self.client.as_mut()?;
        if client.sends {
            match client.stream.read(data) {
                Ok(0) => client.sends = false,
                Ok(len) => return Some(len),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => return None,
                    _ => {
                        self.client = None;
                        return None;
                    }
                },
            }
        }
        let more = self.backlog.has_unsent();
        if client.has_hung_up() || client.update(&self.epoll, more).is_err() {
            self.client = None;
        }
        None
    }
}

impl Client {
    /// Adapts what is watched to what may come.
    fn update(&mut self, epoll: &OwnedFd, output_waits: bool) -> io::Result<()> {
        let mut interest = epoll::EventFlags::empty();
        interest.set(epoll::EventFlags::IN, self.sends);
        interest.set(epoll::EventFlags::OUT, output_waits);
        if interest != self.interest {
            self.interest = interest;
            epoll::modify(epoll, &self.stream, epoll::EventData::new_u64(0), interest)?;
        }
        Ok(())
    }

    /// Whether both directions are shut.
    fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec::default())).is_ok()
            && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}

impl CharBackend for SocketBackend {
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.backlog.push(data);
        if self.client.is_some() {
            self.flush();
        }
        // The event loop may have stopped watching because the guest reads no input; a client is to see the output
        // nevertheless.
        if self.client.is_none() {
            self.accept();
        }
        Ok(())
    }

    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.flush();
        let received = self.receive(data);
        self.accept();
        received.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }
}

impl Drop for SocketBackend {
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

fn watch(epoll: &OwnedFd, fd: impl std::os::fd::AsFd, events: epoll::EventFlags) -> io::Result<()> {
    Ok(epoll::add(epoll, fd, epoll::EventData::new_u64(0), events)?)
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

#[cfg(test)]
mod tests;
