//! Reading and writing a disk or file.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use fastrand::Rng;
use io_uring::{IoUring, opcode, types};
use rustix::fs::{OFlags, fdatasync};
use tripath_load::latency::new_histogram;
use tripath_load::spec::{BlockOperation, Load, Pattern};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Outcome, Work, nanoseconds};
use crate::error::{LoadError, io as failed};

/// More than any device takes at once.
const MAX_DEPTH: u32 = 4096;

/// All buffers together.
const MAX_BUFFER_BYTES: u64 = 1 << 30;

const PAGE_BYTES: usize = 4096;

/// Memory as `O_DIRECT` wants it.
#[derive(Clone, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// A file, where in it, and with what.
struct Target {
    file: File,
    name: String,
    size_bytes: u32,
    /// One buffer after the other, each from a page's start.
    pages: Vec<Page>,
    pages_each: usize,
    blocks: u64,
    next: u64,
    pattern: Pattern,
    rng: Rng,
}

impl Target {
    /// Where the next operation is.
    fn offset(&mut self) -> u64 {
        let block = match self.pattern {
            Pattern::Random => self.rng.u64(..self.blocks),
            Pattern::Sequential => {
                let block = self.next;
                self.next = (block + 1) % self.blocks;
                block
            }
        };
        block * u64::from(self.size_bytes)
    }

    fn buffer(&self, slot: usize) -> &[u8] {
        let pages = &self.pages[slot * self.pages_each..(slot + 1) * self.pages_each];
        &pages.as_bytes()[..self.size_bytes as usize]
    }
}

/// Opens a [`Load::Block`].
pub fn open(load: &Load, seed: u64) -> Result<Box<dyn Work>, LoadError> {
    let wrong = |text: &str| Err(LoadError::Spec(text.to_owned()));
    let Load::Block {
        path,
        operation,
        pattern,
        size_bytes,
        depth,
        span_bytes,
        direct,
    } = load
    else {
        return wrong("it is none of a disk");
    };
    let (size, depth) = (u64::from(*size_bytes), *depth);
    if size == 0 || size % 512 != 0 {
        return wrong("the size of an operation is no multiple of 512");
    }
    if depth == 0 || depth > MAX_DEPTH || u64::from(depth) * size > MAX_BUFFER_BYTES {
        return wrong("no operation is under way at once, or too many");
    }
    if *operation == BlockOperation::Flush && depth != 1 {
        return wrong("flushes are done one after the other, with a depth of 1");
    }
    let name = path.display().to_string();
    let flags = if *direct {
        OFlags::DIRECT
    } else {
        OFlags::empty()
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(*operation != BlockOperation::Read)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(failed("open", &name))?;
    let length = file
        .seek(SeekFrom::End(0))
        .map_err(failed("ask for the size of", &name))?;
    if *span_bytes < size || *span_bytes > length {
        return Err(LoadError::Spec(format!(
            "{span_bytes} bytes are to be used of {name}, which has {length}, in steps of {size}"
        )));
    }
    let pages_each = (*size_bytes as usize).div_ceil(PAGE_BYTES);
    let mut rng = Rng::with_seed(seed);
    let mut pages = vec![Page([0; PAGE_BYTES]); pages_each * depth as usize];
    // Neither compressible nor all the same.
    rng.fill(pages.as_mut_bytes());
    let target = Target {
        file,
        name,
        size_bytes: *size_bytes,
        pages,
        pages_each,
        blocks: span_bytes / size,
        next: 0,
        pattern: *pattern,
        rng,
    };
    match operation {
        BlockOperation::Flush => Ok(Box::new(Flushes(target))),
        operation => Ok(Box::new(Queue {
            ring: ring(depth).map_err(failed("set up", "io_uring"))?,
            is_read: *operation == BlockOperation::Read,
            target,
            submitted: vec![Instant::now(); depth as usize],
            completed: Vec::with_capacity(depth as usize),
            under_way: 0,
        })),
    }
}

/// With what spares interruptions, where the kernel has it (6.1).
fn ring(depth: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_defer_taskrun()
        .build(depth)
        .or_else(|_| IoUring::new(depth))
}

/// Reads or writes through `io_uring`.
struct Queue {
    ring: IoUring,
    is_read: bool,
    target: Target,
    /// When, by slot.
    submitted: Vec<Instant>,
    /// Slots and what came of them.
    completed: Vec<(usize, i32)>,
    under_way: u32,
}

impl Queue {
    /// Begins an operation, at the latest with the next call of this or of `wait`. Each has a call of the kernel of its
    /// own, as those of other programs have: it keeps what comes by one call until all of that is ready, the device
    /// gets it at once and ends it at once, and so on for ever, with pauses in between.
    fn push(&mut self, slot: usize, now: Instant) -> Result<(), LoadError> {
        if !self.ring.submission().is_empty() {
            self.enter(0)?;
        }
        let offset = self.target.offset();
        let file = types::Fd(self.target.file.as_raw_fd());
        let page = &raw mut self.target.pages[slot * self.target.pages_each];
        let (buffer, size) = (page.cast::<u8>(), self.target.size_bytes);
        let entry = if self.is_read {
            opcode::Read::new(file, buffer, size).offset(offset).build()
        } else {
            opcode::Write::new(file, buffer, size)
                .offset(offset)
                .build()
        };
        let entry = entry.user_data(slot as u64);
        // SAFETY: the file and the slot's pages, of at least `size` bytes, stay until the operation is over: `run`
        // waits for it, and if it cannot, the pages are never freed (see `drop`).
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| LoadError::Unexpected("the queue is full"))?;
        self.submitted[slot] = now;
        self.under_way += 1;
        Ok(())
    }

    /// Submits what has been pushed, and waits until `count` operations are over.
    fn enter(&mut self, count: usize) -> Result<(), LoadError> {
        loop {
            match self.ring.submit_and_wait(count) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("wait for", &self.target.name)(error)),
            }
        }
    }

    /// Submits, and waits for at least one; they are in `completed` then.
    fn wait(&mut self) -> Result<(), LoadError> {
        self.enter(1)?;
        self.completed.clear();
        for entry in self.ring.completion() {
            let slot = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            self.completed.push((slot, entry.result()));
        }
        self.under_way -= u32::try_from(self.completed.len()).unwrap_or(u32::MAX);
        Ok(())
    }

    fn check(&self, result: i32) -> Result<(), LoadError> {
        let what = if self.is_read { "read" } else { "write" };
        let Ok(moved) = u32::try_from(result) else {
            let error = io::Error::from_raw_os_error(-result);
            return Err(failed(what, &self.target.name)(error));
        };
        if moved != self.target.size_bytes {
            return Err(LoadError::Short {
                path: self.target.name.clone(),
                expected: self.target.size_bytes,
                moved,
            });
        }
        Ok(())
    }
}

impl Work for Queue {
    fn run(&mut self, time: Duration) -> Result<Outcome, LoadError> {
        let mut latency = new_histogram()?;
        let mut operations = 0;
        let mut failure = None;
        let start = Instant::now();
        // One look at the clock for all that has come at once: in a guest it may be a slow one.
        let mut now = start;
        for slot in 0..self.submitted.len() {
            self.push(slot, now)?;
        }
        while self.under_way > 0 {
            self.wait()?;
            now = Instant::now();
            let is_over = now.duration_since(start) >= time || failure.is_some();
            for index in 0..self.completed.len() {
                let (slot, result) = self.completed[index];
                if let Err(error) = self.check(result) {
                    failure.get_or_insert(error);
                    continue;
                }
                latency.saturating_record(nanoseconds(now - self.submitted[slot]));
                operations += 1;
                if !is_over && failure.is_none() {
                    self.push(slot, now)?;
                }
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        Ok(Outcome {
            operations,
            bytes: operations * u64::from(self.target.size_bytes),
            elapsed: now - start,
            latency: Some(latency),
            ..Outcome::default()
        })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.under_way > 0 {
            // The kernel may still write to them.
            std::mem::forget(std::mem::take(&mut self.target.pages));
        }
    }
}

/// Writes, each followed by a flush.
struct Flushes(Target);

impl Work for Flushes {
    fn run(&mut self, time: Duration) -> Result<Outcome, LoadError> {
        let mut latency = new_histogram()?;
        let mut operations = 0;
        let start = Instant::now();
        let mut now = start;
        while now.duration_since(start) < time {
            let offset = self.0.offset();
            self.0
                .file
                .write_all_at(self.0.buffer(0), offset)
                .map_err(failed("write", &self.0.name))?;
            let written = Instant::now();
            fdatasync(&self.0.file).map_err(failed("flush", &self.0.name))?;
            now = Instant::now();
            latency.saturating_record(nanoseconds(now - written));
            operations += 1;
        }
        Ok(Outcome {
            operations,
            bytes: operations * u64::from(self.0.size_bytes),
            elapsed: now - start,
            latency: Some(latency),
            ..Outcome::default()
        })
    }
}
