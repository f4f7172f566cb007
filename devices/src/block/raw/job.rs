//! One request on its way: which system call comes next, and what its result means.
//!
//! The engines only carry out [`Step`]s; everything that must be decided (short transfers, retries, ways to
//! discard and to zero, buffers that direct I/O does not accept) is decided here, once.

use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress};

use super::bounce::AlignedBuffer;
use super::open::DirectAlignment;
use super::sys::{HostBuffers, ZERO_STEP_BYTES};
use crate::block::{BlockError, BlockOp, BlockRequest};
use crate::dma::GuestRam;

/// How much a request may have of our memory when the guest's buffers do not suit direct I/O; with all requests
/// in flight at once this makes 32 MiB.
const BOUNCE_BYTES: usize = 128 << 10;
/// How often a system call may be interrupted or find the host short of memory before the request fails.
const MAX_RETRIES: u8 = 64;

/// One system call.
pub(super) enum Step<'a> {
    /// `preadv(2)` or `pwritev(2)`.
    Transfer {
        write: bool,
        buffers: &'a HostBuffers,
        offset_bytes: u64,
    },
    /// `fallocate(2)`.
    Allocate {
        mode: FallocateFlags,
        offset_bytes: u64,
        len_bytes: u64,
    },
    /// `BLKDISCARD`. There is no asynchronous form of it.
    DiscardBlocks { offset_bytes: u64, len_bytes: u64 },
    /// `fdatasync(2)`.
    Sync,
}

/// Ways to make a range read as zeroes, or to forget it.
enum Method {
    Punch,
    ZeroRange,
    WriteZeroes(HostBuffers),
    DiscardBlocks,
}

enum Task {
    /// Between the disk and the guest's memory.
    Direct {
        write: bool,
        buffers: HostBuffers,
    },
    /// Between the disk and a buffer of ours.
    Bounced(Bounce),
    /// Discard or write zeroes.
    Clear {
        discard: bool,
        method: Method,
    },
    Flush,
}

/// A request that has been checked against the disk.
pub(super) struct Job {
    token: u64,
    task: Task,
    /// Where on the medium the next step starts.
    offset_bytes: u64,
    remaining_bytes: u64,
    retries: u8,
    block_device: bool,
}

impl Job {
    /// A job for `request`, which covers `len_bytes` of the disk.
    ///
    /// # Errors
    /// [`BlockError::BadBuffer`].
    pub fn new(
        request: BlockRequest,
        len_bytes: u64,
        direct: Option<DirectAlignment>,
        block_device: bool,
    ) -> Result<Self, BlockError> {
        let clear = |discard, method| Task::Clear { discard, method };
        let (offset_bytes, token) = (request.offset_bytes, request.token);
        let task = match request.op {
            BlockOp::Read => transfer(request, len_bytes, false, direct)?,
            BlockOp::Write => transfer(request, len_bytes, true, direct)?,
            BlockOp::Flush => Task::Flush,
            BlockOp::Discard { .. } => clear(true, Method::Punch),
            BlockOp::WriteZeroes { unmap: true, .. } => clear(false, Method::Punch),
            BlockOp::WriteZeroes { unmap: false, .. } => clear(false, Method::ZeroRange),
        };
        Ok(Self {
            token,
            task,
            offset_bytes,
            remaining_bytes: len_bytes,
            retries: 0,
            block_device,
        })
    }

    /// The request's token.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The system call to make next. Its result goes to [`Job::advance`].
    pub fn step(&self) -> Step<'_> {
        let offset_bytes = self.offset_bytes;
        let len_bytes = self.remaining_bytes;
        let allocate = |mode| Step::Allocate {
            mode: mode | FallocateFlags::KEEP_SIZE,
            offset_bytes,
            len_bytes,
        };
        let transfer = |write, buffers| Step::Transfer {
            write,
            buffers,
            offset_bytes,
        };
        match &self.task {
            Task::Direct { write, buffers } => transfer(*write, buffers),
            Task::Bounced(bounce) => transfer(bounce.write, &bounce.buffers),
            Task::Flush => Step::Sync,
            Task::Clear { method, .. } => match method {
                Method::Punch => allocate(FallocateFlags::PUNCH_HOLE),
                Method::ZeroRange => allocate(FallocateFlags::ZERO_RANGE),
                Method::WriteZeroes(buffers) => transfer(true, buffers),
                Method::DiscardBlocks => Step::DiscardBlocks {
                    offset_bytes,
                    len_bytes,
                },
            },
        }
    }

    /// Takes the result of the last step: the bytes transferred (0 where there are none) or the error. None when
    /// another step must follow.
    pub fn advance(&mut self, result: Result<u64, Errno>) -> Option<Result<(), BlockError>> {
        match result {
            Ok(bytes) => self.advanced(bytes),
            Err(Errno::INTR | Errno::AGAIN) if self.retries < MAX_RETRIES => {
                self.retries += 1;
                None
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY) => self.next_method(),
            Err(error) => Some(Err(BlockError::Io(error.into()))),
        }
    }

    fn advanced(&mut self, bytes: u64) -> Option<Result<(), BlockError>> {
        let moved = match &self.task {
            Task::Direct { .. } | Task::Bounced(_) => true,
            Task::Clear { method, .. } => matches!(method, Method::WriteZeroes(_)),
            Task::Flush => false,
        };
        if !moved {
            return Some(Ok(()));
        }
        let remaining = self.remaining_bytes.checked_sub(bytes);
        let (Some(remaining), Ok(len), true) = (remaining, usize::try_from(bytes), bytes > 0)
        else {
            // Nothing moved: the file was cut short behind our back.
            return Some(Err(BlockError::Io(
                std::io::ErrorKind::UnexpectedEof.into(),
            )));
        };
        self.retries = 0;
        self.offset_bytes += bytes;
        self.remaining_bytes = remaining;
        match &mut self.task {
            Task::Direct { buffers, .. } => buffers.advance(len),
            Task::Bounced(bounce) => {
                if let Err(error) = bounce.turn(len, remaining) {
                    return Some(Err(error));
                }
            }
            Task::Clear { method, .. } => *method = write_zeroes(remaining),
            Task::Flush => {}
        }
        (remaining == 0).then_some(Ok(()))
    }

    /// The host does not know how: what else is there?
    fn next_method(&mut self) -> Option<Result<(), BlockError>> {
        let Task::Clear { discard, method } = &mut self.task else {
            return Some(Err(BlockError::Unsupported));
        };
        *method = match (*discard, &method) {
            (true, Method::Punch) if self.block_device => Method::DiscardBlocks,
            // A discard is advice: who cannot follow it leaves the data where it is.
            (true, _) => return Some(Ok(())),
            (false, Method::Punch) => Method::ZeroRange,
            (false, Method::ZeroRange) => write_zeroes(self.remaining_bytes),
            (false, _) => return Some(Err(BlockError::Unsupported)),
        };
        None
    }
}

/// The first `remaining_bytes` of which one step can write.
fn write_zeroes(remaining_bytes: u64) -> Method {
    let len = usize::try_from(remaining_bytes).unwrap_or(ZERO_STEP_BYTES);
    Method::WriteZeroes(HostBuffers::zeroes(len))
}

fn transfer(
    request: BlockRequest,
    len_bytes: u64,
    write: bool,
    direct: Option<DirectAlignment>,
) -> Result<Task, BlockError> {
    let buffers = HostBuffers::guest(Arc::clone(&request.ram), &request.segments)?;
    match direct {
        Some(alignment) if !suits(&buffers, alignment) => Ok(Task::Bounced(Bounce::new(
            request, len_bytes, write, alignment,
        )?)),
        _ => Ok(Task::Direct { write, buffers }),
    }
}

fn suits(buffers: &HostBuffers, alignment: DirectAlignment) -> bool {
    let memory = alignment.memory_bytes as usize;
    let length = alignment.length_bytes as usize;
    buffers.all(|base, len| base.is_multiple_of(memory) && len.is_multiple_of(length))
}

/// A transfer in turns: fill our buffer, move it, empty it.
struct Bounce {
    write: bool,
    buffers: HostBuffers,
    ram: Arc<GuestRam>,
    segments: Vec<(u64, u32)>,
    /// The segment that the next turn starts in, and how many of its bytes are done.
    index: usize,
    within: u32,
}

impl Bounce {
    fn new(
        request: BlockRequest,
        len_bytes: u64,
        write: bool,
        alignment: DirectAlignment,
    ) -> Result<Self, BlockError> {
        let len = usize::try_from(len_bytes).map_or(BOUNCE_BYTES, |len| len.min(BOUNCE_BYTES));
        let mut bounce = Self {
            write,
            buffers: HostBuffers::bounce(AlignedBuffer::new(len, alignment), len),
            ram: request.ram,
            segments: request.segments,
            index: 0,
            within: 0,
        };
        if write {
            bounce.copy(len, false)?;
            bounce.buffers.rewind(len);
        }
        Ok(bounce)
    }

    /// `len` bytes have been moved and `remaining_bytes` are left: readies the next turn.
    fn turn(&mut self, len: usize, remaining_bytes: u64) -> Result<(), BlockError> {
        let (index, within) = self.copy(len, true)?;
        (self.index, self.within) = (index, within);
        let capacity = self.buffers.bounce_bytes().len();
        let next = usize::try_from(remaining_bytes).map_or(capacity, |left| left.min(capacity));
        if self.write {
            self.copy(next, false)?;
        }
        self.buffers.rewind(next);
        Ok(())
    }

    /// Walks over the next `len` bytes of the guest's segments and copies between them and the start of our
    /// buffer: for a write before it is `moved`, for a read after. Returns the place after them.
    fn copy(&mut self, len: usize, moved: bool) -> Result<(usize, u32), BlockError> {
        let (mut index, mut within) = (self.index, self.within);
        let mut bytes = self.buffers.bounce_bytes();
        bytes = bytes.get_mut(..len).ok_or(BlockError::BadBuffer)?;
        while !bytes.is_empty() {
            let &(addr, segment_len) = self.segments.get(index).ok_or(BlockError::BadBuffer)?;
            let left = segment_len - within;
            let now = bytes.len().min(left as usize);
            let (chunk, rest) = bytes.split_at_mut(now);
            let addr = GuestAddress(addr.saturating_add(u64::from(within)));
            let copied = match (self.write, moved) {
                (true, false) => self.ram.read_slice(chunk, addr),
                (false, true) => self.ram.write_slice(chunk, addr),
                _ => Ok(()),
            };
            copied.map_err(|_| BlockError::BadBuffer)?;
            if now == left as usize {
                (index, within) = (index + 1, 0);
            } else {
                within += u32::try_from(now).map_err(|_| BlockError::BadBuffer)?;
            }
            bytes = rest;
        }
        Ok((index, within))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::test_ram;

    fn job(op: BlockOp, len_bytes: u64, block_device: bool) -> Job {
        let segments = match op {
            BlockOp::Read | BlockOp::Write => vec![(0, u32::try_from(len_bytes).unwrap())],
            _ => Vec::new(),
        };
        let request = BlockRequest {
            op,
            offset_bytes: 4096,
            segments,
            ram: test_ram(0x10000),
            token: 1,
        };
        Job::new(request, len_bytes, None, block_device).unwrap()
    }

    /// The step in a word, where it starts and how long it is.
    fn step(job: &Job) -> (&'static str, u64, u64) {
        match job.step() {
            Step::Transfer {
                write,
                buffers,
                offset_bytes,
            } => {
                let len: usize = buffers.iovecs().iter().map(|iovec| iovec.iov_len).sum();
                (
                    if write { "write" } else { "read" },
                    offset_bytes,
                    len as u64,
                )
            }
            Step::Allocate {
                mode,
                offset_bytes,
                len_bytes,
            } => {
                assert!(mode.contains(FallocateFlags::KEEP_SIZE));
                let punch = mode.contains(FallocateFlags::PUNCH_HOLE);
                (
                    if punch { "punch" } else { "zero" },
                    offset_bytes,
                    len_bytes,
                )
            }
            Step::DiscardBlocks {
                offset_bytes,
                len_bytes,
            } => ("discard", offset_bytes, len_bytes),
            Step::Sync => ("sync", 0, 0),
        }
    }

    #[test]
    fn short_transfers_go_on_where_they_stopped() {
        let mut job = job(BlockOp::Read, 4096, false);
        assert_eq!(step(&job), ("read", 4096, 4096));
        assert!(job.advance(Ok(1000)).is_none());
        assert_eq!(step(&job), ("read", 5096, 3096));
        assert!(job.advance(Err(Errno::INTR)).is_none());
        assert_eq!(step(&job), ("read", 5096, 3096));
        assert!(matches!(job.advance(Ok(3096)), Some(Ok(()))));
    }

    #[test]
    fn transfers_that_get_nowhere_fail() {
        for result in [Ok(0), Ok(4097), Err(Errno::IO), Err(Errno::OPNOTSUPP)] {
            let mut job = job(BlockOp::Write, 4096, false);
            assert!(matches!(job.advance(result), Some(Err(_))), "{result:?}");
        }
        let mut job = job(BlockOp::Write, 4096, false);
        let tries = (0..1000).take_while(|_| job.advance(Err(Errno::AGAIN)).is_none());
        assert_eq!(tries.count(), usize::from(MAX_RETRIES));
    }

    #[test]
    fn zeroes_are_written_out_where_the_host_cannot_make_them() {
        let len_bytes = ZERO_STEP_BYTES as u64 + 512;
        let unmap = true;
        let mut job = job(BlockOp::WriteZeroes { len_bytes, unmap }, len_bytes, false);
        assert_eq!(step(&job), ("punch", 4096, len_bytes));
        assert!(job.advance(Err(Errno::OPNOTSUPP)).is_none());
        assert_eq!(step(&job), ("zero", 4096, len_bytes));
        assert!(job.advance(Err(Errno::OPNOTSUPP)).is_none());
        let first = ZERO_STEP_BYTES as u64;
        assert_eq!(step(&job), ("write", 4096, first));
        assert!(job.advance(Ok(first)).is_none());
        assert_eq!(step(&job), ("write", 4096 + first, 512));
        assert!(matches!(job.advance(Ok(512)), Some(Ok(()))));
    }

    #[test]
    fn a_discard_that_no_one_can_do_is_done() {
        let len_bytes = 4096;
        for block_device in [false, true] {
            let mut job = job(BlockOp::Discard { len_bytes }, len_bytes, block_device);
            assert_eq!(step(&job), ("punch", 4096, 4096));
            if block_device {
                assert!(job.advance(Err(Errno::OPNOTSUPP)).is_none());
                assert_eq!(step(&job), ("discard", 4096, 4096));
            }
            assert!(matches!(job.advance(Err(Errno::OPNOTSUPP)), Some(Ok(()))));
        }
    }
}
