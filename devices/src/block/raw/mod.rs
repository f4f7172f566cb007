//! Raw files and block devices: byte `n` of the disk is byte `n` of the file.

mod bounce;
mod job;
mod open;
mod sync;
mod sys;
mod uring;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::{Arc, Once};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub use open::{DiskError, LockKind};

use self::job::Job;
use self::open::DirectAlignment;
use self::sync::SyncEngine;
use self::sys::HostBuffers;
use self::uring::Uring;
use super::{BlockBackend, BlockCompletion, BlockInfo, BlockOp, BlockRequest};

/// How to open a raw disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawOptions {
    /// Refuse writes, and lock the file shared instead of exclusive.
    pub read_only: bool,
    /// Bypass the host's page cache (`O_DIRECT`).
    pub direct: bool,
}

enum Engine {
    Uring(Box<Uring>),
    Sync(SyncEngine),
}

/// A raw file or a block device, locked while it is open. Dropping it waits for what is in flight.
pub struct RawFile {
    engine: Engine,
    info: BlockInfo,
    direct: Option<DirectAlignment>,
    block_device: bool,
    /// The flags for `preadv2(2)` with which a read does not wait for the medium, if there are any.
    now_flags: Option<i32>,
    /// Finished without the engine: refused, or nothing to do.
    ready: Vec<BlockCompletion>,
}

impl RawFile {
    /// Opens and locks the disk at `path`. It uses io_uring where the host has it.
    ///
    /// # Errors
    /// [`DiskError`], each a line for the user.
    pub fn open(path: &Path, options: RawOptions) -> Result<Self, DiskError> {
        Self::open_with(path, options, uring::ring())
    }

    fn open_with(
        path: &Path,
        options: RawOptions,
        ring: std::io::Result<io_uring::IoUring>,
    ) -> Result<Self, DiskError> {
        static NO_URING: Once = Once::new();
        let disk = open::open(path, options)?;
        let engine = match ring {
            Ok(ring) => Engine::Uring(Box::new(Uring::new(ring, disk.file))),
            Err(e) => {
                NO_URING.call_once(|| {
                    log::info!("no io_uring on this host ({e}); disks use plain system calls");
                });
                Engine::Sync(SyncEngine::new(disk.file))
            }
        };
        Ok(Self {
            engine,
            info: disk.info,
            direct: disk.direct,
            block_device: disk.block_device,
            now_flags: disk.now_flags,
            ready: Vec::new(),
        })
    }

    fn file(&self) -> &File {
        match &self.engine {
            Engine::Uring(uring) => uring.file(),
            Engine::Sync(sync) => sync.file(),
        }
    }
}

impl BlockBackend for RawFile {
    fn info(&self) -> &BlockInfo {
        &self.info
    }

    fn read_now(&mut self, request: &BlockRequest) -> bool {
        let (Some(flags), BlockOp::Read) = (self.now_flags, request.op) else {
            return false;
        };
        let (Ok(len), Ok(buffers)) = (
            request.check(&self.info),
            HostBuffers::guest(Arc::clone(&request.ram), &request.segments),
        ) else {
            return false;
        };
        match sys::read(self.file(), &buffers, request.offset_bytes, flags) {
            Ok(bytes) => bytes == len,
            Err(Errno::OPNOTSUPP) => {
                self.now_flags = None;
                false
            }
            Err(_) => false,
        }
    }

    fn submit(&mut self, request: BlockRequest) {
        let token = request.token;
        let flush = request.op == BlockOp::Flush;
        let job = match request.check(&self.info) {
            Ok(len) if if flush { self.info.read_only } else { len == 0 } => Ok(None),
            Ok(len) => Job::new(request, len, self.direct, self.block_device).map(Some),
            Err(e) => Err(e),
        };
        let result = match job {
            Ok(Some(job)) => {
                return match &mut self.engine {
                    Engine::Uring(uring) => uring.submit(job),
                    Engine::Sync(sync) => sync.submit(job),
                };
            }
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        self.ready.push(BlockCompletion { token, result });
    }

    fn poll(&mut self, done: &mut Vec<BlockCompletion>) {
        done.append(&mut self.ready);
        match &mut self.engine {
            Engine::Uring(uring) => uring.poll(done),
            Engine::Sync(sync) => sync.poll(done),
        }
    }

    fn completion_fd(&self) -> Option<RawFd> {
        match &self.engine {
            Engine::Uring(uring) => Some(uring.completion_fd()),
            Engine::Sync(_) => None,
        }
    }

    fn drain(&mut self, done: &mut Vec<BlockCompletion>) {
        done.append(&mut self.ready);
        match &mut self.engine {
            Engine::Uring(uring) => uring.drain(done),
            Engine::Sync(sync) => sync.poll(done),
        }
    }
}

impl Drop for RawFile {
    fn drop(&mut self) {
        let mut done = Vec::new();
        self.drain(&mut done);
        // The kernel may hold on to the file a moment longer; the next run should not have to wait for that.
        let _ = flock(self.file(), FlockOperation::Unlock);
    }
}
