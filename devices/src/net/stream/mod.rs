//! A connected stream socket as a backend, with QEMU's framing: each Ethernet frame behind its length, four bytes in
//! network order (QEMU, `-netdev stream`). The peer is a program such as passt, which is a network without root.

#[cfg(test)]
mod tests;

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use thiserror::Error;
use vm_memory::VolatileSlice;

use super::VnetHeader;
use super::backend::{NetBackend, NetOffloads, VNET_HEADER_BYTES};

/// Length of a frame's length.
const PREFIX_BYTES: usize = 4;
/// The header of Ethernet: no frame is shorter.
const MIN_FRAME_BYTES: usize = 14;
/// Longest frame in either direction; passt takes none that is longer (`ETH_MAX_MTU`).
const MAX_FRAME_BYTES: usize = 65_535;
/// Room for what has been read and not yet received: two of the longest frames.
const INPUT_BYTES: usize = 2 * (PREFIX_BYTES + MAX_FRAME_BYTES);

/// Why the link is gone.
#[derive(Debug, Error)]
enum LinkGone {
    #[error("it has ended")]
    Ended,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it announces a frame of {0} bytes, and the longest there are have {MAX_FRAME_BYTES}")]
    Absurd(u32),
}

/// A connected stream socket. Neither call blocks. Frames cross plain: the peer's have no offloads, and the guest's
/// checksums are completed here. A segment larger than the MTU is passed on as the one large frame that it is, since
/// a peer that ends the guest's connections itself, as passt does, has no use for smaller ones.
///
/// When the peer goes away or breaks the framing, one line is logged, and the guest is as if its cable were pulled:
/// what it sends is dropped and nothing comes.
pub struct StreamNet {
    socket: UnixStream,
    peer: String,
    input: Box<[u8]>,
    /// What of `input` has been read and not yet received.
    unread: std::ops::Range<usize>,
    /// So much more of a frame that is of no use comes.
    skip: usize,
    /// The frame that is being sent, behind its length.
    output: Vec<u8>,
    /// So much of it is sent.
    sent: usize,
    gone: bool,
}

impl StreamNet {
    /// A backend on a connected socket; `peer` is what the log calls the other end.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn new(socket: UnixStream, peer: String) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            peer,
            input: vec![0; INPUT_BYTES].into_boxed_slice(),
            unread: 0..0,
            skip: 0,
            output: Vec::with_capacity(PREFIX_BYTES + MAX_FRAME_BYTES),
            sent: 0,
            gone: false,
        })
    }

    fn lose(&mut self, why: &LinkGone) {
        if !self.gone {
            log::warn!("{}: {why}; the guest's network is cut off", self.peer);
        }
        self.gone = true;
        self.unread = 0..0;
        self.output.clear();
        self.sent = 0;
    }

    /// Puts a frame into `output`, its checksum complete.
    fn fill_output(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        let total: usize = frame.iter().map(VolatileSlice::len).sum();
        let frame_bytes = total.saturating_sub(VNET_HEADER_BYTES);
        if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&frame_bytes) {
            return Err(invalid("a frame has 14 to 65,535 bytes"));
        }
        // The header ends up where the prefix is to end, and the copy is ours: the guest cannot change it any more.
        let mut header = [0; VNET_HEADER_BYTES];
        self.output.clear();
        self.output.resize(PREFIX_BYTES + frame_bytes, 0);
        let mut header_room = &mut header[..];
        let mut frame_room = &mut self.output[PREFIX_BYTES..];
        for slice in frame {
            let (head, tail) = slice
                .split_at(header_room.len().min(slice.len()))
                .map_err(io::Error::other)?;
            let count = head.copy_to(&mut *header_room);
            header_room = &mut header_room[count..];
            let count = tail.copy_to(&mut *frame_room);
            frame_room = &mut frame_room[count..];
        }
        let prefix = u32::try_from(frame_bytes).map_err(io::Error::other)?;
        self.output[..PREFIX_BYTES].copy_from_slice(&prefix.to_be_bytes());
        VnetHeader::checksums_of(&header)
            .checksum
            .is_none_or(|checksum| checksum.complete(&mut self.output[PREFIX_BYTES..]))
            .then_some(())
            .ok_or_else(|| {
                self.output.clear();
                invalid("its checksum would be outside the frame")
            })
    }

    /// Sends what is left of `output`; `WouldBlock` if not all of it could be.
    fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.output.len() {
            match send(
                &self.socket,
                &self.output[self.sent..],
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    self.lose(&LinkGone::Ended);
                    break;
                }
                Err(error) => {
                    self.lose(&LinkGone::Io(error.into()));
                    break;
                }
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }

    /// The range in `input` of the next whole frame; none if its end has not been read.
    fn next_frame(&mut self) -> Result<Option<std::ops::Range<usize>>, LinkGone> {
        loop {
            let skipped = self.skip.min(self.unread.len());
            self.unread.start += skipped;
            self.skip -= skipped;
            let Some((prefix, rest)) =
                self.input[self.unread.clone()].split_first_chunk::<PREFIX_BYTES>()
            else {
                return Ok(None);
            };
            let announced = u32::from_be_bytes(*prefix);
            let len = usize::try_from(announced)
                .ok()
                .filter(|len| *len <= MAX_FRAME_BYTES)
                .ok_or(LinkGone::Absurd(announced))?;
            if len < MIN_FRAME_BYTES {
                // No frame, but the framing is intact.
                self.skip = PREFIX_BYTES + len;
                continue;
            }
            if rest.len() < len {
                return Ok(None);
            }
            let start = self.unread.start + PREFIX_BYTES;
            self.unread.start = start + len;
            return Ok(Some(start..start + len));
        }
    }

    /// Reads what the socket has, as far as there is room; `WouldBlock` if it has nothing.
    fn read_more(&mut self) -> Result<(), LinkGone> {
        // Less than a frame is left; at the front it has room for its rest and more.
        self.input.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        loop {
            return match self.socket.read(&mut self.input[self.unread.end..]) {
                Ok(0) => Err(LinkGone::Ended),
                Ok(count) => {
                    self.unread.end += count;
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    Err(LinkGone::Ended)
                }
                Err(error) => Err(LinkGone::Io(error)),
            };
        }
    }

    fn receive(&mut self) -> Result<std::ops::Range<usize>, LinkGone> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(frame);
            }
            self.read_more()?;
        }
    }
}

impl NetBackend for StreamNet {
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let total: usize = frame.iter().map(VolatileSlice::len).sum();
        if self.sent > 0 {
            // The peer must get the rest of a frame that it has the beginning of, whatever comes next.
            let begun = self.output.len() - PREFIX_BYTES + VNET_HEADER_BYTES;
            self.flush()?;
            if begun == total {
                return Ok(total);
            }
        }
        if self.gone {
            return Ok(total);
        }
        self.fill_output(frame)?;
        self.flush()?;
        Ok(total)
    }

    fn recv(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<usize> {
        if self.gone {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let range = match self.receive() {
            Ok(range) => range,
            Err(LinkGone::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(error);
            }
            Err(why) => {
                self.lose(&why);
                return Err(io::ErrorKind::WouldBlock.into());
            }
        };
        let mut done = 0;
        let mut parts = [&[0; VNET_HEADER_BYTES][..], &self.input[range]].into_iter();
        let mut part: &[u8] = parts.next().unwrap_or_default();
        for slice in frame {
            let mut room = *slice;
            while !room.is_empty() {
                if part.is_empty() {
                    let Some(next) = parts.next() else {
                        return Ok(done);
                    };
                    part = next;
                }
                let count = part.len().min(room.len());
                room.copy_from(&part[..count]);
                room = room.offset(count).map_err(io::Error::other)?;
                part = &part[count..];
                done += count;
            }
        }
        Ok(done)
    }

    fn set_offloads(&mut self, _offloads: NetOffloads) -> io::Result<()> {
        // The peer's frames need none.
        Ok(())
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.socket.as_raw_fd())
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
