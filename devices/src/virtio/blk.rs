//! The block device (virtio 1.3, 5.2).

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vmm_sys_util::epoll::EventSet;

use super::blk_request::Header;
use super::buffers::{ChainBuffers, Segments, put, take, total_bytes};
use super::device::copy_config;
use super::queue::{Chain, VirtQueue};
use super::{Activation, DeviceFailed, DeviceInfo, VirtioDevice};
use crate::block::{BlockBackend, BlockCompletion, BlockError, BlockInfo, BlockOp, BlockRequest};
use crate::dma::{DmaMem, GuestRam};
use crate::ratelimit::RateLimiter;
use crate::rerun::Rerun;

/// `VIRTIO_ID_BLOCK` (virtio 1.3, 5).
const DEVICE_ID: u16 = 2;
/// Descriptors in the queue.
const QUEUE_SIZE: u16 = 256;
/// Data buffers in a request: a full chain without its header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
const SECTOR_BYTES: u64 = 512;
/// What `VIRTIO_BLK_T_GET_ID` returns.
const ID_BYTES: u32 = 20;
/// `struct virtio_blk_config` up to `write_zeroes_may_unmap` and its padding.
const CONFIG_BYTES: u16 = 60;
/// The most that one discard or write-zeroes range may cover: 2 GiB.
const MAX_CLEAR_SECTORS: u32 = 1 << 22;
/// Ranges in one discard or write-zeroes request.
const MAX_CLEAR_RANGES: u32 = 16;
/// `struct virtio_blk_discard_write_zeroes`.
const CLEAR_RANGE_BYTES: usize = 16;
/// Its `unmap` flag; the others are reserved.
const CLEAR_UNMAP: u32 = 1;
/// How often a turn looks for new requests before the other devices have theirs.
const MAX_ROUNDS: u32 = 16;
/// Data moved or cleared in one turn before the other devices have theirs; the last request may exceed it.
const MAX_TURN_BYTES: u64 = 64 << 20;

/// A virtio disk with one queue.
///
/// Requests go to the backend with the guest's own buffers, as many as the queue holds at once; completions are
/// given back in batches with one interrupt each.
pub struct Blk {
    name: String,
    backend: Box<dyn BlockBackend>,
    id: [u8; ID_BYTES as usize],
    config: [u8; CONFIG_BYTES as usize],
    active: Option<Box<Active>>,
    rerun: Rerun,
    buffers: ChainBuffers,
    done: Vec<BlockCompletion>,
    host_errors: RateLimiter,
}

/// What a driver has set up, and its requests.
struct Active {
    dma: DmaMem,
    queue: VirtQueue,
    /// Without `VIRTIO_BLK_F_FLUSH` the driver takes a finished write for stable (5.2.6.2).
    writethrough: bool,
    /// Requests with the backend, by token. Free ones are listed in `free`.
    pending: Vec<Pending>,
    free: Vec<usize>,
    /// Chains were given back since the last interrupt.
    used: bool,
}

/// A chain whose request is with the backend.
#[derive(Debug, Clone, Copy)]
struct Pending {
    head: u16,
    status_addr: u64,
    /// Bytes written to the guest, status included, if all goes well.
    used_len: u32,
    /// Backend requests outstanding.
    parts: u32,
    status: u8,
    /// A flush follows before the request is complete.
    then_flush: bool,
}

/// What to do with the backend, and where on the medium, in bytes.
type Part = (BlockOp, u64);

/// What the backend is to do for one request.
struct Work {
    /// Done with `data`.
    first: Part,
    data: Segments,
    /// What else there is, without data: more ranges to clear.
    more: Vec<Part>,
    /// Bytes of `data` that the guest gets to read.
    read_bytes: u32,
}

impl Work {
    /// What it moves or clears.
    fn bytes(&self) -> u64 {
        let moved: u64 = self.data.iter().map(|(_, len)| u64::from(*len)).sum();
        let cleared = std::iter::once(&self.first)
            .chain(&self.more)
            .map(|(op, _)| match op {
                BlockOp::Discard { len_bytes } | BlockOp::WriteZeroes { len_bytes, .. } => {
                    *len_bytes
                }
                BlockOp::Read | BlockOp::Write | BlockOp::Flush => 0,
            });
        cleared.fold(moved, u64::saturating_add)
    }

    fn without_data(first: Part, more: Vec<Part>) -> Self {
        Self {
            first,
            data: Vec::new(),
            more,
            read_bytes: 0,
        }
    }
}

/// What a request leads to.
enum Action {
    /// It is complete, with so many bytes of data for the guest.
    Answer { status: u8, data_bytes: u32 },
    /// It goes to the backend.
    Submit(Work),
}

fn status(code: u32) -> u8 {
    code.to_le_bytes()[0]
}

fn answer(code: u32) -> Action {
    Action::Answer {
        status: status(code),
        data_bytes: 0,
    }
}

impl Blk {
    /// The disk behind `backend`. The driver can read `serial`, cut to 20 bytes; it is empty when there is none.
    ///
    /// # Errors
    /// The host has no file descriptors left.
    pub fn new(
        name: String,
        backend: Box<dyn BlockBackend>,
        serial: Option<&str>,
    ) -> io::Result<Self> {
        let mut id = [0; ID_BYTES as usize];
        let serial = serial.unwrap_or_default().as_bytes();
        let len = serial.len().min(id.len());
        id[..len].copy_from_slice(&serial[..len]);
        let config = config_space(backend.info());
        Ok(Self {
            name,
            backend,
            id,
            config,
            active: None,
            rerun: Rerun::new()?,
            buffers: ChainBuffers::default(),
            done: Vec::new(),
            host_errors: RateLimiter::default(),
        })
    }

    /// Takes what has finished, starts what is new, tells the driver.
    fn run(&mut self) -> Result<(), DeviceFailed> {
        let Some(mut active) = self.active.take() else {
            self.backend.poll(&mut self.done);
            self.done.clear();
            return Ok(());
        };
        self.rounds(&mut active)?;
        // A queue that is broken beyond use is not touched again.
        self.active = Some(active);
        Ok(())
    }

    fn rounds(&mut self, active: &mut Active) -> Result<(), DeviceFailed> {
        let Ok(ram) = active.dma.ram().cloned() else {
            // The driver cannot be told. What finishes is kept until it has switched bus mastering on again, which
            // brings us back.
            self.backend.poll(&mut self.done);
            return Ok(());
        };
        let mut bytes = 0u64;
        for _ in 0..MAX_ROUNDS {
            active.queue.disable_notification()?;
            while bytes < MAX_TURN_BYTES
                && !active.free.is_empty()
                && let Some(chain) = active.queue.pop()?
            {
                bytes = bytes.saturating_add(self.start(active, chain, &ram)?);
            }
            self.complete(active, &ram)?;
            if std::mem::take(&mut active.used) {
                active.queue.notify()?;
            }
            if active.free.is_empty() {
                // The next completion brings us back.
                return Ok(());
            }
            if bytes >= MAX_TURN_BYTES {
                break;
            }
            if !active.queue.enable_notification()? {
                return Ok(());
            }
        }
        self.rerun.ask();
        Ok(())
    }

    /// Hands one chain's request to the backend, or answers it; says how many bytes it moves or clears.
    fn start(
        &mut self,
        active: &mut Active,
        chain: Chain,
        ram: &Arc<GuestRam>,
    ) -> Result<u64, DeviceFailed> {
        let head = chain.head_index();
        let Some(parts) = self.buffers.split(chain, &active.dma) else {
            active.used = true;
            return active.queue.add_used(head, 0).map(|()| 0);
        };
        let action = match parts.header {
            Some(header) => self.decide(&active.dma, header),
            None => answer(VIRTIO_BLK_S_IOERR),
        };
        let mut pending = Pending {
            head,
            status_addr: parts.status_addr,
            used_len: 1,
            parts: 0,
            status: status(VIRTIO_BLK_S_OK),
            then_flush: false,
        };
        match action {
            Action::Answer { status, data_bytes } => {
                pending.status = status;
                pending.used_len += data_bytes;
                active.finish(&pending).map(|()| 0)
            }
            Action::Submit(work) => {
                let bytes = work.bytes();
                pending.used_len = pending.used_len.saturating_add(work.read_bytes);
                pending.then_flush = active.writethrough
                    && matches!(work.first.0, BlockOp::Write | BlockOp::WriteZeroes { .. });
                self.submit(active, pending, work, ram).map(|()| bytes)
            }
        }
    }

    fn submit(
        &mut self,
        active: &mut Active,
        mut pending: Pending,
        work: Work,
        ram: &Arc<GuestRam>,
    ) -> Result<(), DeviceFailed> {
        let Some(index) = active.free.pop() else {
            return Err(DeviceFailed("more requests than the queue holds".into()));
        };
        let mut data = work.data;
        for (op, offset_bytes) in std::iter::once(work.first).chain(work.more) {
            pending.parts += 1;
            self.backend.submit(BlockRequest {
                op,
                offset_bytes,
                segments: std::mem::take(&mut data),
                ram: Arc::clone(ram),
                token: index as u64,
            });
        }
        active.pending[index] = pending;
        Ok(())
    }

    /// What to do about the request whose data buffers are in `self.buffers`.
    fn decide(&mut self, dma: &DmaMem, header: Header) -> Action {
        match header.kind {
            VIRTIO_BLK_T_IN => {
                let data = &self.buffers.writable;
                transfer(BlockOp::Read, header.sector, data)
            }
            VIRTIO_BLK_T_OUT => {
                let data = &self.buffers.readable;
                transfer(BlockOp::Write, header.sector, data)
            }
            VIRTIO_BLK_T_FLUSH => {
                Action::Submit(Work::without_data((BlockOp::Flush, 0), Vec::new()))
            }
            VIRTIO_BLK_T_GET_ID => {
                if put(&self.buffers.writable, dma, &self.id) {
                    Action::Answer {
                        status: status(VIRTIO_BLK_S_OK),
                        data_bytes: ID_BYTES,
                    }
                } else {
                    answer(VIRTIO_BLK_S_IOERR)
                }
            }
            VIRTIO_BLK_T_DISCARD if self.backend.info().discard => self.clear(dma, true),
            VIRTIO_BLK_T_WRITE_ZEROES if self.backend.info().write_zeroes => self.clear(dma, false),
            _ => answer(VIRTIO_BLK_S_UNSUPP),
        }
    }

    /// Discard or write zeroes: the data is a list of ranges, all of which are checked before the first is acted
    /// on.
    fn clear(&mut self, dma: &DmaMem, discard: bool) -> Action {
        let ranges = &mut self.buffers.readable;
        let total = total_bytes(ranges);
        let most = u64::from(MAX_CLEAR_RANGES) * CLEAR_RANGE_BYTES as u64;
        if total > most || !total.is_multiple_of(CLEAR_RANGE_BYTES as u64) {
            return answer(VIRTIO_BLK_S_IOERR);
        }
        let mut first = None;
        let mut more = Vec::new();
        while !ranges.is_empty() {
            let mut range = [0; CLEAR_RANGE_BYTES];
            if !take(ranges, dma, &mut range) {
                return answer(VIRTIO_BLK_S_IOERR);
            }
            match clear_range(&range, discard, self.backend.info()) {
                Ok(part) if first.is_none() => first = Some(part),
                Ok(part) => more.push(part),
                Err(code) => return answer(code),
            }
        }
        match first {
            Some(first) => Action::Submit(Work::without_data(first, more)),
            None => answer(VIRTIO_BLK_S_IOERR),
        }
    }

    /// Gives back what the backend has finished.
    fn complete(&mut self, active: &mut Active, ram: &Arc<GuestRam>) -> Result<(), DeviceFailed> {
        loop {
            self.backend.poll(&mut self.done);
            let mut done = std::mem::take(&mut self.done);
            let mut again = false;
            let mut result = Ok(());
            for completion in done.drain(..) {
                match self.complete_part(active, completion, ram) {
                    Ok(submitted) => again |= submitted,
                    Err(e) => result = Err(e),
                }
            }
            self.done = done;
            result?;
            if !again {
                return Ok(());
            }
        }
    }

    /// One backend request has finished. True when another took its place.
    fn complete_part(
        &mut self,
        active: &mut Active,
        completion: BlockCompletion,
        ram: &Arc<GuestRam>,
    ) -> Result<bool, DeviceFailed> {
        let Some((index, pending)) = usize::try_from(completion.token)
            .ok()
            .and_then(|index| Some((index, active.pending.get_mut(index)?)))
        else {
            return Ok(false);
        };
        if let Err(error) = completion.result {
            if matches!(error, BlockError::Io(_)) && self.host_errors.allow() {
                log::warn!("{}: {error}", self.name);
            }
            pending.status = status(match error {
                BlockError::Unsupported => VIRTIO_BLK_S_UNSUPP,
                _ => VIRTIO_BLK_S_IOERR,
            });
            // How much of the data has been written is not known.
            pending.used_len = 1;
            pending.then_flush = false;
        }
        pending.parts = pending.parts.saturating_sub(1);
        if pending.parts > 0 {
            return Ok(false);
        }
        if pending.then_flush {
            pending.then_flush = false;
            pending.parts = 1;
            self.backend.submit(BlockRequest {
                op: BlockOp::Flush,
                offset_bytes: 0,
                segments: Vec::new(),
                ram: Arc::clone(ram),
                token: completion.token,
            });
            return Ok(true);
        }
        let pending = *pending;
        active.free.push(index);
        active.finish(&pending)?;
        Ok(false)
    }
}

impl Active {
    /// Writes the status and gives the chain back.
    fn finish(&mut self, pending: &Pending) -> Result<(), DeviceFailed> {
        // A status outside RAM, or bus mastering switched off: then the driver does without.
        let _ = self.dma.write(pending.status_addr, &[pending.status]);
        self.used = true;
        self.queue.add_used(pending.head, pending.used_len)
    }
}

/// A read or write of `data` at `sector`.
fn transfer(op: BlockOp, sector: u64, data: &Segments) -> Action {
    let total = total_bytes(data);
    let (Some(offset_bytes), Ok(data_bytes)) =
        (sector.checked_mul(SECTOR_BYTES), u32::try_from(total))
    else {
        return answer(VIRTIO_BLK_S_IOERR);
    };
    if total == 0 || !total.is_multiple_of(SECTOR_BYTES) {
        return answer(VIRTIO_BLK_S_IOERR);
    }
    Action::Submit(Work {
        first: (op, offset_bytes),
        data: data.clone(),
        more: Vec::new(),
        read_bytes: if op == BlockOp::Read { data_bytes } else { 0 },
    })
}

/// One range of a discard or write-zeroes request (5.2.6.2), or the status that refuses it.
fn clear_range(
    range: &[u8; CLEAR_RANGE_BYTES],
    discard: bool,
    info: &BlockInfo,
) -> Result<(BlockOp, u64), u32> {
    let word =
        |at: usize| u32::from_le_bytes([range[at], range[at + 1], range[at + 2], range[at + 3]]);
    let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
    let (sectors, flags) = (word(8), word(12));
    let allowed = if discard { 0 } else { CLEAR_UNMAP };
    if flags & !allowed != 0 {
        return Err(VIRTIO_BLK_S_UNSUPP);
    }
    let len_bytes = u64::from(sectors) * SECTOR_BYTES;
    let within = sector.checked_mul(SECTOR_BYTES).filter(|offset| {
        offset
            .checked_add(len_bytes)
            .is_some_and(|end| end <= info.size_bytes)
    });
    let Some(offset_bytes) = within else {
        return Err(VIRTIO_BLK_S_IOERR);
    };
    if sectors == 0 || sectors > MAX_CLEAR_SECTORS {
        return Err(VIRTIO_BLK_S_IOERR);
    }
    let op = if discard {
        BlockOp::Discard { len_bytes }
    } else {
        BlockOp::WriteZeroes {
            len_bytes,
            unmap: flags & CLEAR_UNMAP != 0,
        }
    };
    Ok((op, offset_bytes))
}

/// `struct virtio_blk_config` (5.2.4).
fn config_space(info: &BlockInfo) -> [u8; CONFIG_BYTES as usize] {
    let mut config = [0; CONFIG_BYTES as usize];
    let mut set = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    let logical = info.logical_block_bytes;
    let per_physical = (info.physical_block_bytes / logical).max(1);
    let alignment_sectors = info.physical_block_bytes / 512;
    set(0, &(info.size_bytes / SECTOR_BYTES).to_le_bytes()); // capacity
    set(12, &SEG_MAX.to_le_bytes()); // seg_max
    set(20, &logical.to_le_bytes()); // blk_size
    set(24, &per_physical.ilog2().to_le_bytes()[..1]); // topology.physical_block_exp
    set(26, &per_physical.to_le_bytes()[..2]); // topology.min_io_size
    if info.discard {
        set(36, &MAX_CLEAR_SECTORS.to_le_bytes()); // max_discard_sectors
        set(40, &MAX_CLEAR_RANGES.to_le_bytes()); // max_discard_seg
        set(44, &alignment_sectors.to_le_bytes()); // discard_sector_alignment
    }
    if info.write_zeroes {
        set(48, &MAX_CLEAR_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
        set(52, &MAX_CLEAR_RANGES.to_le_bytes()); // max_write_zeroes_seg
        set(56, &[1]); // write_zeroes_may_unmap
    }
    config
}

fn features(info: &BlockInfo) -> u64 {
    let mut features = 1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_TOPOLOGY
        | 1 << VIRTIO_BLK_F_FLUSH;
    for (there, bit) in [
        (info.read_only, VIRTIO_BLK_F_RO),
        (info.discard, VIRTIO_BLK_F_DISCARD),
        (info.write_zeroes, VIRTIO_BLK_F_WRITE_ZEROES),
    ] {
        features |= u64::from(there) << bit;
    }
    features
}

impl VirtioDevice for Blk {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_id: DEVICE_ID,
            name: self.name.clone(),
            features: features(self.backend.info()),
            queue_sizes: vec![QUEUE_SIZE],
            config_len: CONFIG_BYTES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Only `writeback` can be written, and only with VIRTIO_BLK_F_CONFIG_WCE.
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailed> {
        let Some(queue) = activation.queues.into_iter().next() else {
            return Err(DeviceFailed("no queue".into()));
        };
        let nothing = Pending {
            head: 0,
            status_addr: 0,
            used_len: 0,
            parts: 0,
            status: 0,
            then_flush: false,
        };
        let size = usize::from(queue.size());
        self.active = Some(Box::new(Active {
            dma: activation.dma,
            queue,
            writethrough: activation.features & 1 << VIRTIO_BLK_F_FLUSH == 0,
            pending: vec![nothing; size],
            free: (0..size).rev().collect(),
            used: false,
        }));
        Ok(())
    }

    fn deactivate(&mut self) {
        self.backend.drain(&mut self.done);
        self.done.clear();
        self.active = None;
    }

    fn process_queue(&mut self, _index: u16) -> Result<(), DeviceFailed> {
        self.run()
    }

    fn backend_events(&self) -> Vec<(RawFd, EventSet)> {
        let completions = self.backend.completion_fd().map(|fd| (fd, EventSet::IN));
        completions
            .into_iter()
            .chain([self.rerun.event()])
            .collect()
    }

    fn process_backend(&mut self, fd: RawFd, _events: EventSet) -> Result<(), DeviceFailed> {
        self.rerun.clear(fd);
        self.run()
    }
}
