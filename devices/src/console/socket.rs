//! A socket that we listen on: in the file system, or TCP.

mod tcp;
mod unix;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with};

use super::backlog::{BACKLOG_BYTES, Backlog};
use super::poll_set::{EventFlags, PollSet, Watched};
use super::{CharBackend, CharError, Interest};

pub use unix::{SocketAccess, SocketFile, listen_unix};

/// Connections dealt with in one call, so that a flood of them does not hold up the caller.
const ACCEPTS_PER_CALL: usize = 16;
/// What a second client is told.
const BUSY: &[u8] = b"Another client is connected.\r\n";

/// A listening socket with one client at a time; others are turned away with a line that says why.
///
/// The last 64 KiB of output are kept for a client that comes late, or comes back: on connecting it gets all of
/// them. A client that does not read holds the output back when it lacks that much; without a client, the oldest
/// goes. Input never ends.
#[derive(Debug)]
pub struct SocketBackend {
    listener: OwnedFd,
    /// Goes with the backend.
    _file: Option<SocketFile>,
    /// Watches the listener and the client.
    poll: PollSet,
    client: Option<Client>,
    input_wanted: bool,
    backlog: Backlog,
}

#[derive(Debug)]
struct Client {
    stream: OwnedFd,
    watched: Watched,
    /// The client may still send. One that has shut down its side may yet be reading.
    sends: bool,
}

impl SocketBackend {
    /// Listens on a Unix socket at `path`. A socket there on which no one listens is replaced; the file is removed
    /// when the backend is dropped.
    ///
    /// # Errors
    /// [`CharError::SocketPathTooLong`], [`CharError::NotASocket`], [`CharError::SocketInUse`],
    /// [`CharError::Socket`].
    pub fn listen(path: &Path) -> Result<Self, CharError> {
        let (listener, file) = listen_unix(path, SocketAccess::Umask)?;
        Self::over(listener.into(), Some(file)).map_err(|source| CharError::Socket {
            path: path.to_path_buf(),
            source,
        })
    }

    /// Listens on TCP at `address`, `HOST:PORT`, and says where that is: for port 0 the host has chosen one.
    ///
    /// # Errors
    /// [`CharError::TcpInUse`], [`CharError::Tcp`].
    pub fn listen_tcp(address: &str) -> Result<(Self, SocketAddr), CharError> {
        let (listener, local) = tcp::listen(address)?;
        let backend = Self::over(listener, None).map_err(|source| CharError::Tcp {
            address: address.to_string(),
            source,
        })?;
        Ok((backend, local))
    }

    fn over(listener: OwnedFd, file: Option<SocketFile>) -> io::Result<Self> {
        let poll = PollSet::new()?;
        poll.watch(&listener, &mut Watched::default(), Some(EventFlags::IN))?;
        Ok(Self {
            listener,
            _file: file,
            poll,
            client: None,
            input_wanted: true,
            backlog: Backlog::new(BACKLOG_BYTES),
        })
    }

    /// Takes a waiting connection if there is no client, and turns the others away.
    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_CALL {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            // A connection that cannot be accepted now will be another time.
            let Ok(stream) = accept_with(&self.listener, flags) else {
                return;
            };
            if self.client.is_some() {
                // Best effort: the socket is new, so the line fits.
                let _ = rustix::net::send(&stream, BUSY, SendFlags::NOSIGNAL);
                continue;
            }
            tcp::tune(&stream);
            self.client = Some(Client {
                stream,
                watched: Watched::default(),
                sends: true,
            });
            self.backlog.rewind();
            self.flush();
        }
    }

    /// Sends what the client will take, and drops a client that is gone.
    fn flush(&mut self) {
        if let Some(client) = &mut self.client {
            let stream = &client.stream;
            let sent = self
                .backlog
                .flush(|data| Ok(rustix::net::send(stream, data, SendFlags::NOSIGNAL)?));
            if sent.is_err() {
                self.client = None;
            }
        }
        self.watch();
    }

    /// Adapts what is watched to what may come.
    fn watch(&mut self) {
        let Some(client) = &mut self.client else {
            return;
        };
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.input_wanted && client.sends);
        flags.set(EventFlags::OUT, self.backlog.has_unsent());
        // With no flags, still for a hang-up, unless there may be input before it that is not wanted yet.
        let watch = !flags.is_empty() || !client.sends;
        let watched = self
            .poll
            .watch(&client.stream, &mut client.watched, watch.then_some(flags));
        if watched.is_err() {
            self.client = None;
        }
    }

    /// Reads from the client; none if there is nothing or no client.
    fn receive(&mut self, data: &mut [u8]) -> Option<usize> {
        let client = self.client.as_mut()?;
        if client.sends {
            match rustix::io::read(&client.stream, data) {
                Ok(0) => client.sends = false,
                Ok(len) => return Some(len),
                Err(Errno::AGAIN | Errno::INTR) => return None,
                Err(_) => {
                    self.client = None;
                    return None;
                }
            }
        }
        if client.has_hung_up() {
            self.client = None;
        }
        self.watch();
        None
    }
}

impl Client {
    /// Whether both directions are shut.
    fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec::default())).is_ok()
            && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}

impl CharBackend for SocketBackend {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.client.is_some() && self.backlog.room() == 0 {
            self.flush();
        }
        let len = match &self.client {
            Some(_) => data.len().min(self.backlog.room()),
            None => data.len(),
        };
        if len == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.backlog.push(&data[..len]);
        self.flush();
        if self.client.is_none() {
            self.accept();
        }
        Ok(len)
    }

    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let received = self.receive(data);
        received.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.poll.fd())
    }

    /// Room is watched for whenever the client lacks something.
    fn set_interest(&mut self, interest: Interest) -> io::Result<()> {
        self.input_wanted = interest.input;
        self.watch();
        Ok(())
    }

    fn progress(&mut self) {
        self.flush();
        // Without a reader nobody else would notice.
        if let Some(client) = &self.client
            && !client.sends
            && client.has_hung_up()
        {
            self.client = None;
        }
        self.accept();
    }
}

#[cfg(test)]
mod tests;
