//! The engine for hosts without io_uring: every request runs to its end in `poll`.

use std::collections::VecDeque;
use std::fs::File;

use rustix::io::Errno;

use super::job::{Job, Step};
use super::sys;
use crate::block::BlockCompletion;

/// Plain system calls, one request after the other.
pub(super) struct SyncEngine {
    file: File,
    waiting: VecDeque<Job>,
}

impl SyncEngine {
    pub fn new(file: File) -> Self {
        Self {
            file,
            waiting: VecDeque::new(),
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn submit(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    pub fn poll(&mut self, done: &mut Vec<BlockCompletion>) {
        while let Some(mut job) = self.waiting.pop_front() {
            let result = loop {
                let result = execute(&self.file, &job.step());
                if let Some(result) = job.advance(result) {
                    break result;
                }
            };
            done.push(BlockCompletion {
                token: job.token(),
                result,
            });
        }
    }
}

/// Makes the system call now.
pub(super) fn execute(file: &File, step: &Step<'_>) -> Result<u64, Errno> {
    match *step {
        Step::Transfer {
            write,
            buffers,
            offset_bytes,
        } => sys::transfer(file, write, buffers, offset_bytes),
        Step::Allocate {
            mode,
            offset_bytes,
            len_bytes,
        } => rustix::fs::fallocate(file, mode, offset_bytes, len_bytes).map(|()| 0),
        Step::DiscardBlocks {
            offset_bytes,
            len_bytes,
        } => sys::discard_blocks(file, offset_bytes, len_bytes),
        Step::Sync => rustix::fs::fdatasync(file).map(|()| 0),
    }
}
