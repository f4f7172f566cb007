//! The io_uring engine: one `io_uring_enter` for a whole batch of requests, and none to take what has finished.
//!
//! The ring's own descriptor says when completions wait: it is readable (level-triggered) exactly while the
//! completion queue holds entries. An eventfd would have to be read, and would also be signalled by what finished
//! within the `io_uring_enter` that started it and was taken on the spot.
//!
//! The ring is set up so that any thread may submit and wait: a reset drains on a vCPU thread. That rules out
//! `SINGLE_ISSUER` and `DEFER_TASKRUN`. With `COOP_TASKRUN` the kernel does not interrupt the event loop to post
//! completions but does so at its next system call; if it sleeps in `epoll_wait`, that call returns `EINTR` first.
//!
//! The file is not registered with the ring: the kernel takes a ring down some time after the death of its process,
//! and a registered file would stay locked until then.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::io::Errno;

use super::job::{Job, Step};
use super::sync::execute;
use crate::block::{BlockCompletion, BlockError};
use crate::ratelimit::RateLimiter;

/// Requests that the kernel has at a time; the rest queues here. The largest virtqueue of a disk fits.
const DEPTH: u16 = 256;
/// How long to wait before the kernel is asked again when it cannot take requests and has none.
const TROUBLE_PAUSE: Duration = Duration::from_millis(1);
/// How often it is asked.
const TROUBLE_ATTEMPTS: u32 = 1000;

/// Up to [`DEPTH`] requests in the kernel.
pub(super) struct Uring {
    ring: IoUring,
    file: File,
    /// The requests in the kernel, by the `user_data` of their entry.
    slots: Vec<Option<Job>>,
    free: Vec<u16>,
    waiting: VecDeque<Job>,
    trouble: RateLimiter,
}

/// A ring that can do all that the engine asks.
///
/// # Errors
/// The kernel has no io_uring, forbids it, is out of memory or too old.
pub(super) fn ring() -> io::Result<IoUring> {
    let ring = IoUring::builder()
        .setup_coop_taskrun()
        .setup_submit_all()
        .build(DEPTH.into())
        // Before Linux 5.19 these are not known.
        .or_else(|_| IoUring::new(DEPTH.into()))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
    ];
    let complete = ring.params().is_feature_nodrop() && ring.params().is_feature_submit_stable();
    if !complete || !needed.iter().all(|&code| probe.is_supported(code)) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(ring)
}

impl Uring {
    pub fn new(ring: IoUring, file: File) -> Self {
        Self {
            ring,
            file,
            slots: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).rev().collect(),
            waiting: VecDeque::new(),
            trouble: RateLimiter::default(),
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Readable while completions wait.
    pub fn completion_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    pub fn submit(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    /// As [`crate::block::BlockBackend::poll`].
    pub fn poll(&mut self, done: &mut Vec<BlockCompletion>) {
        loop {
            self.start_waiting(done);
            if !self.ring.submission().is_empty() {
                self.enter(0);
            }
            let reaped = self.reap(done);
            let more = !self.waiting.is_empty() || !self.ring.submission().is_empty();
            if reaped == 0 || !more {
                return;
            }
        }
    }

    /// As [`crate::block::BlockBackend::drain`].
    pub fn drain(&mut self, done: &mut Vec<BlockCompletion>) {
        loop {
            self.start_waiting(done);
            if self.in_flight() == 0 {
                return;
            }
            if self.ring.completion().is_empty() {
                self.enter(1);
            }
            self.reap(done);
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn start_waiting(&mut self, done: &mut Vec<BlockCompletion>) {
        while let Some(slot) = self.free.pop() {
            let Some(job) = self.waiting.pop_front() else {
                self.free.push(slot);
                return;
            };
            self.launch(slot, job, done);
        }
    }

    /// Puts the job's next step into the submission queue, and the job into its slot.
    fn launch(&mut self, slot: u16, mut job: Job, done: &mut Vec<BlockCompletion>) {
        let result = loop {
            let step = job.step();
            let Some(entry) = entry(&self.file, &step) else {
                // No asynchronous form: on the spot.
                let result = execute(&self.file, &step);
                match job.advance(result) {
                    Some(result) => break result,
                    None => continue,
                }
            };
            if push(&mut self.ring, &entry.user_data(slot.into())) {
                self.slots[usize::from(slot)] = Some(job);
                return;
            }
            // There is an entry for each slot, so this cannot be.
            break Err(BlockError::Io(io::ErrorKind::WouldBlock.into()));
        };
        self.free.push(slot);
        done.push(BlockCompletion {
            token: job.token(),
            result,
        });
    }

    /// Takes what has finished, without a system call; returns how many entries there were.
    fn reap(&mut self, done: &mut Vec<BlockCompletion>) -> usize {
        let mut reaped = 0;
        while let Some((slot, mut job, result)) = self.next_completion() {
            reaped += 1;
            match job.advance(result) {
                Some(result) => {
                    self.free.push(slot);
                    done.push(BlockCompletion {
                        token: job.token(),
                        result,
                    });
                }
                None => self.launch(slot, job, done),
            }
        }
        reaped
    }

    fn next_completion(&mut self) -> Option<(u16, Job, Result<u64, Errno>)> {
        let cqe = self.ring.completion().next()?;
        let slot = u16::try_from(cqe.user_data()).ok()?;
        let job = self.slots.get_mut(usize::from(slot))?.take()?;
        let result = u64::try_from(cqe.result())
            .map_err(|_| Errno::from_raw_os_error(cqe.result().saturating_neg()));
        Some((slot, job, result))
    }

    /// Hands the submission queue to the kernel and waits for `want` completions.
    ///
    /// When the kernel cannot take requests now, they stay in the queue for the next call: at once if the kernel
    /// has others, whose completions will cause it; else the host gets a little time first.
    fn enter(&mut self, want: usize) {
        for _ in 0..TROUBLE_ATTEMPTS {
            let error = match self.ring.submit_and_wait(want) {
                Ok(_) if self.ring.submission().is_empty() => return,
                Ok(1..) => continue,
                Ok(_) => io::ErrorKind::WouldBlock.into(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => e,
            };
            if self.in_flight() > self.ring.submission().len() && want == 0 {
                return;
            }
            if self.trouble.allow() {
                log::warn!("io_uring takes no requests: {error}");
            }
            std::thread::sleep(TROUBLE_PAUSE);
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // What the kernel has not seen it shall not see; what it has it must finish before its memory goes.
        self.waiting.clear();
        let mut attempts = 0;
        while self.in_flight() > 0 && attempts < TROUBLE_ATTEMPTS {
            self.enter(1);
            attempts += 1;
            while let Some((slot, _, _)) = self.next_completion() {
                self.free.push(slot);
                attempts = 0;
            }
        }
        if self.in_flight() > 0 {
            log::error!("io_uring does not finish its requests; their memory is not given back");
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

/// The submission entry for `step`; none if there is no asynchronous form.
fn entry(file: &File, step: &Step<'_>) -> Option<squeue::Entry> {
    let fd = types::Fd(file.as_raw_fd());
    Some(match *step {
        Step::Transfer {
            write,
            buffers,
            offset_bytes,
        } => {
            let iovecs = buffers.iovecs();
            let count = u32::try_from(iovecs.len()).unwrap_or(u32::MAX);
            let single = match iovecs {
                [one] => u32::try_from(one.iov_len)
                    .ok()
                    .map(|len| (one.iov_base.cast::<u8>(), len)),
                _ => None,
            };
            match (write, single) {
                (false, Some((base, len))) => opcode::Read::new(fd, base, len)
                    .offset(offset_bytes)
                    .build(),
                (true, Some((base, len))) => opcode::Write::new(fd, base, len)
                    .offset(offset_bytes)
                    .build(),
                (false, None) => opcode::Readv::new(fd, iovecs.as_ptr(), count)
                    .offset(offset_bytes)
                    .build(),
                (true, None) => opcode::Writev::new(fd, iovecs.as_ptr(), count)
                    .offset(offset_bytes)
                    .build(),
            }
        }
        Step::Allocate {
            mode,
            offset_bytes,
            len_bytes,
        } => opcode::Fallocate::new(fd, len_bytes)
            .offset(offset_bytes)
            .mode(mode.bits().cast_signed())
            .build(),
        Step::Sync => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Step::DiscardBlocks { .. } => return None,
    })
}

/// Puts `entry`, made by [`entry()`] from a job that goes into a slot until it completes, into the submission
/// queue. False when the queue is full.
#[allow(unsafe_code)]
fn push(ring: &mut IoUring, entry: &squeue::Entry) -> bool {
    // SAFETY: the memory that the entry points to belongs to the job's `HostBuffers`, which stay valid wherever
    // they are moved. The job is kept in its slot until the entry's completion is taken, by `Drop` too, which
    // leaks what never completes. A list of iovecs is on the heap and, with `submit_stable`, read before
    // `io_uring_enter` returns; the one buffer that is kept inline is passed by value.
    unsafe { ring.submission().push(entry) }.is_ok()
}
