//! The file system device (virtio 1.3, 5.11): a directory of the host that the guest mounts, and can only read.
//!
//! The guest's kernel is the FUSE client, with its requests in virtqueues in place of `/dev/fuse`; `server` is the other
//! side. Requests are served one after another on the event loop, so that an interrupt always comes too late and `hiprio`
//! is an ordinary queue. What is read goes from the file straight into the guest's buffers.
//!
//! Libraries were considered for the server: `virtiofsd` and `fuse-backend-rs` demand another version of the crates for
//! guest memory than all other devices have, and serve writing too; `fuser` reads from `/dev/fuse` only. `fuse-abi` has
//! the protocol's structures.

mod attributes;
mod directory;
mod nodes;
mod open_files;
mod server;
#[cfg(test)]
mod server_tests;
mod share;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use fuse_abi::linux::{fuse_in_header, fuse_out_header};
use rustix::io::Errno;
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};
use vmm_sys_util::epoll::EventSet;
use zerocopy::IntoBytes;

use self::server::{Reply, Server};
use super::buffers::{ChainBuffers, put, take, total_bytes};
use super::device::copy_config;
use super::queue::{Chain, VirtQueue};
use super::{Activation, DeviceFailed, DeviceInfo, VirtioDevice};
use crate::dma::DmaMem;
use crate::iovec::{IoVecs, MAX_SLICES};
use crate::rerun::Rerun;

pub use self::share::{ShareError, SharedDirectory};

/// `VIRTIO_ID_FS` (virtio 1.3, 5).
const DEVICE_ID: u16 = 26;
/// Length of the tag in the configuration space, in bytes (5.11.4).
const TAG_BYTES: usize = 36;
/// `struct virtio_fs_config` up to `num_request_queues`; the rest comes with a feature that is not offered.
const CONFIG_BYTES: u16 = 40;
const REQUEST_QUEUES: u32 = 1;
/// Descriptors in the queues `hiprio` and of requests. Linux makes a request of no more pages than its queue has
/// descriptors, less four.
const HIPRIO_SIZE: u16 = 128;
const REQUEST_SIZE: u16 = 1024;
/// The longest chain accepted, in descriptors (2.7.5.3.1).
const MAX_DESCRIPTORS: usize = REQUEST_SIZE as usize;
const IN_HEADER_BYTES: usize = size_of::<fuse_in_header>();
const OUT_HEADER_BYTES: usize = size_of::<fuse_out_header>();
/// What is looked at of a request. Only requests to write, which are refused, are longer.
const MAX_BODY_BYTES: usize = 64 << 10;
/// What one turn may do before the other devices have theirs; its last request may exceed it.
const MAX_TURN_REQUESTS: usize = 256;
const MAX_TURN_BYTES: usize = 16 << 20;
const MAX_TURN: Duration = Duration::from_millis(5);
/// A driver whose rings overlap can make each look at a queue find something new and nothing to take.
const MAX_ROUNDS: u32 = 16;

/// A tag that the configuration space cannot hold.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("tag {0:?} has {len} bytes: 1 to {TAG_BYTES} fit, none of them NUL", len = .0.len())]
struct TagError(String);

/// A directory of the host, for the guest to read.
///
/// A request may wait for the host's disk, and the other devices of the event loop wait with it.
pub struct Fs {
    name: String,
    config: [u8; CONFIG_BYTES as usize],
    server: Server,
    active: Option<Active>,
    rerun: Rerun,
    scratch: Scratch,
}

/// What a driver has set up.
struct Active {
    dma: DmaMem,
    queues: Vec<VirtQueue>,
}

/// Memory that is kept from request to request.
#[derive(Default)]
struct Scratch {
    buffers: ChainBuffers,
    body: Vec<u8>,
    iovecs: IoVecs,
}

/// What is left of a turn.
struct Turn {
    requests: usize,
    bytes: usize,
    end: Instant,
}

impl Turn {
    fn new() -> Self {
        Self {
            requests: MAX_TURN_REQUESTS,
            bytes: MAX_TURN_BYTES,
            end: Instant::now() + MAX_TURN,
        }
    }

    fn is_over(&self) -> bool {
        self.requests == 0 || self.bytes == 0 || Instant::now() >= self.end
    }

    fn spend(&mut self, bytes: usize) {
        self.requests = self.requests.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Fs {
    /// `share` as a file system that the guest mounts as `tag`, which is not empty and has at most 36 bytes, none of them
    /// NUL.
    ///
    /// # Errors
    /// `InvalidInput` for another tag; the host has no file descriptors left; the directory cannot be looked at any more.
    pub fn new(name: String, share: SharedDirectory, tag: &str) -> io::Result<Self> {
        Ok(Self {
            name,
            config: config_space(tag)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?,
            server: Server::new(share)?,
            active: None,
            rerun: Rerun::new()?,
            scratch: Scratch::default(),
        })
    }

    fn run(&mut self) -> Result<(), DeviceFailed> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let mut turn = Turn::new();
        let mut more = false;
        for queue in &mut active.queues {
            let (server, scratch) = (&mut self.server, &mut self.scratch);
            more |= serve_queue(queue, &active.dma, server, scratch, &mut turn)?;
        }
        if more {
            self.rerun.ask();
        }
        Ok(())
    }
}

/// Serves requests until the queue is empty or the turn is over; says whether there may be more.
fn serve_queue(
    queue: &mut VirtQueue,
    dma: &DmaMem,
    server: &mut Server,
    scratch: &mut Scratch,
    turn: &mut Turn,
) -> Result<bool, DeviceFailed> {
    let mut more = true;
    for _ in 0..MAX_ROUNDS {
        queue.disable_notification()?;
        while !turn.is_over()
            && let Some(chain) = queue.pop()?
        {
            let head = chain.head_index();
            let written = scratch.serve(chain, dma, server);
            turn.spend(written);
            // No reply has more than a header and a MiB.
            queue.add_used(head, u32::try_from(written).unwrap_or(0))?;
        }
        more = queue.enable_notification()?;
        if !more || turn.is_over() {
            break;
        }
    }
    queue.notify()?;
    Ok(more)
}

impl Scratch {
    /// Serves the request in `chain`; returns how many bytes were written to it.
    fn serve(&mut self, chain: Chain, dma: &DmaMem, server: &mut Server) -> usize {
        let mut header = [0; IN_HEADER_BYTES];
        // Without a header there is no one to answer.
        if self.buffers.collect(chain, MAX_DESCRIPTORS).is_none()
            || !take(&mut self.buffers.readable, dma, &mut header)
        {
            return 0;
        }
        let header: fuse_in_header = zerocopy::transmute!(header);
        let room = usize::try_from(total_bytes(&self.buffers.writable)).unwrap_or(usize::MAX);
        let reply = match (
            self.take_body(&header, dma),
            room.checked_sub(OUT_HEADER_BYTES),
        ) {
            // `FUSE_FORGET` has no room for a reply; a lack of it elsewhere costs the guest its answer.
            (true, room) => server.serve(&header, &self.body, room.unwrap_or(0)),
            (false, _) => Reply::Error(Errno::INVAL),
        };
        if room < OUT_HEADER_BYTES {
            return 0;
        }
        match reply {
            Reply::None => 0,
            Reply::Error(errno) => self.answer(dma, header.unique, Err(errno)),
            Reply::Data(data) => self.answer(dma, header.unique, Ok(&data)),
            Reply::Read {
                file,
                offset_bytes,
                len_bytes,
            } => match self.read(dma, file, offset_bytes, len_bytes as usize) {
                Ok(len) => self.answer_header(dma, header.unique, 0, len),
                Err(errno) => self.answer(dma, header.unique, Err(errno)),
            },
        }
    }

    /// Copies what follows the header of a request. False when there is less of it than the header says, or it is not in
    /// RAM.
    fn take_body(&mut self, header: &fuse_in_header, dma: &DmaMem) -> bool {
        self.body.clear();
        let Some(len) = (header.len as usize).checked_sub(IN_HEADER_BYTES) else {
            return false;
        };
        if len as u64 > total_bytes(&self.buffers.readable) {
            return false;
        }
        self.body.resize(len.min(MAX_BODY_BYTES), 0);
        take(&mut self.buffers.readable, dma, &mut self.body)
    }

    fn answer(&self, dma: &DmaMem, unique: u64, result: Result<&[u8], Errno>) -> usize {
        let (error, data) = match result {
            Ok(data) => (0, data),
            Err(errno) => (-errno.raw_os_error(), &[][..]),
        };
        let header = out_header(unique, error, data.len());
        let bytes = [header.as_bytes(), data].concat();
        if put(&self.buffers.writable, dma, &bytes) {
            bytes.len()
        } else {
            0
        }
    }

    /// The header of a reply whose data are in place.
    fn answer_header(&self, dma: &DmaMem, unique: u64, error: i32, data_bytes: usize) -> usize {
        let header = out_header(unique, error, data_bytes);
        if put(&self.buffers.writable, dma, header.as_bytes()) {
            OUT_HEADER_BYTES + data_bytes
        } else {
            0
        }
    }

    /// Reads from `file` into the buffers after the header's place, `len` bytes or up to the end of the file: the guest
    /// takes less for the end.
    fn read(
        &mut self,
        dma: &DmaMem,
        file: &File,
        offset_bytes: u64,
        len: usize,
    ) -> Result<usize, Errno> {
        let ram = dma.ram().map_err(|_| Errno::IO)?;
        let mut slices = Vec::new();
        let (mut skip, mut left) = (OUT_HEADER_BYTES, len);
        for &(addr, segment_bytes) in &self.buffers.writable {
            let skipped = skip.min(segment_bytes as usize);
            skip -= skipped;
            let wanted = left.min(segment_bytes as usize - skipped);
            if wanted == 0 {
                continue;
            }
            left -= wanted;
            let at = addr.checked_add(skipped as u64).ok_or(Errno::FAULT)?;
            let slice = GuestMemoryBackend::get_slice(ram.as_ref(), GuestAddress(at), wanted);
            slices.push(slice.map_err(|_| Errno::FAULT)?);
        }
        read_all(&mut self.iovecs, file, &mut slices, offset_bytes)
    }
}

/// Reads until `slices` are full or the file is at its end.
fn read_all(
    iovecs: &mut IoVecs,
    file: &File,
    slices: &mut [VolatileSlice<'_>],
    offset_bytes: u64,
) -> Result<usize, Errno> {
    let mut done = 0;
    let mut rest = slices;
    while !rest.is_empty() {
        let now = rest.len().min(MAX_SLICES);
        let at = offset_bytes.saturating_add(done as u64);
        let mut count = match iovecs.read_at(file, &rest[..now], at) {
            Ok(0) => break,
            Ok(count) => count,
            // Also if some was read: the guest would take that for all there is.
            Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        };
        done += count;
        while let Some(first) = rest.first_mut() {
            if let Ok(left) = first.offset(count)
                && !left.is_empty()
            {
                *first = left;
                break;
            }
            count -= first.len();
            rest = &mut rest[1..];
        }
    }
    Ok(done)
}

fn out_header(unique: u64, error: i32, data_bytes: usize) -> fuse_out_header {
    fuse_out_header {
        // No reply has more than a MiB.
        len: u32::try_from(OUT_HEADER_BYTES + data_bytes).unwrap_or(u32::MAX),
        error,
        unique,
    }
}

/// `struct virtio_fs_config` (5.11.4).
fn config_space(tag: &str) -> Result<[u8; CONFIG_BYTES as usize], TagError> {
    let bytes = tag.as_bytes();
    if bytes.is_empty() || bytes.len() > TAG_BYTES || bytes.contains(&0) {
        return Err(TagError(tag.into()));
    }
    let mut config = [0; CONFIG_BYTES as usize];
    config[..bytes.len()].copy_from_slice(bytes);
    config[TAG_BYTES..].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
    Ok(config)
}

impl VirtioDevice for Fs {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_id: DEVICE_ID,
            name: self.name.clone(),
            features: 0,
            queue_sizes: vec![HIPRIO_SIZE, REQUEST_SIZE],
            config_len: CONFIG_BYTES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Nothing can be written.
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailed> {
        self.active = Some(Active {
            dma: activation.dma,
            queues: activation.queues,
        });
        Ok(())
    }

    fn deactivate(&mut self) {
        self.active = None;
        self.server.reset();
        self.scratch = Scratch::default();
    }

    fn process_queue(&mut self, _index: u16) -> Result<(), DeviceFailed> {
        self.run()
    }

    fn backend_events(&self) -> Vec<(RawFd, EventSet)> {
        vec![self.rerun.event()]
    }

    fn process_backend(&mut self, fd: RawFd, _events: EventSet) -> Result<(), DeviceFailed> {
        self.rerun.clear(fd);
        self.run()
    }
}
