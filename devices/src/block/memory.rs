//! A disk in memory, for tests: what was asked of it can be looked at, and it can be made to fail or to stall.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{BlockBackend, BlockCompletion, BlockError, BlockInfo, BlockOp, BlockRequest};
use crate::sync::lock;

#[derive(Default)]
struct State {
    data: Vec<u8>,
    flushes: u32,
    fail: Option<i32>,
    stalled: bool,
    cached: bool,
}

/// A disk in memory. Requests complete in order: in the next `poll`, unless it is stalled.
pub struct MemoryDisk {
    info: BlockInfo,
    state: Arc<Mutex<State>>,
    event: Arc<EventFd>,
    waiting: VecDeque<BlockRequest>,
}

/// The test's hold on a [`MemoryDisk`].
#[derive(Clone)]
pub struct MemoryControl {
    state: Arc<Mutex<State>>,
    event: Arc<EventFd>,
}

impl MemoryControl {
    /// The bytes of the disk now.
    #[must_use]
    pub fn data(&self) -> Vec<u8> {
        lock(&self.state).data.clone()
    }

    /// Puts `bytes` on the disk at `offset`.
    ///
    /// # Panics
    /// Beyond its end.
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        lock(&self.state).data[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// How many flushes completed.
    #[must_use]
    pub fn flushes(&self) -> u32 {
        lock(&self.state).flushes
    }

    /// The next request fails with the host error `errno`.
    pub fn fail_next(&self, errno: i32) {
        lock(&self.state).fail = Some(errno);
    }

    /// Whether reads need not wait for the medium.
    pub fn set_cached(&self, cached: bool) {
        lock(&self.state).cached = cached;
    }

    /// While stalled, only [`BlockBackend::drain`] completes requests. Going on makes the completion fd readable.
    ///
    /// # Panics
    /// When the host takes the event away.
    pub fn stall(&self, stalled: bool) {
        lock(&self.state).stalled = stalled;
        if !stalled {
            self.event.write(1).expect("eventfd");
        }
    }
}

impl MemoryDisk {
    /// A zeroed disk with the size and properties of `info`, and the hold on it.
    ///
    /// # Panics
    /// When the host has no memory or descriptors left.
    #[must_use]
    pub fn new(info: BlockInfo) -> (Self, MemoryControl) {
        let size = usize::try_from(info.size_bytes).expect("size");
        let state = Arc::new(Mutex::new(State {
            data: vec![0; size],
            ..State::default()
        }));
        let event = Arc::new(EventFd::new(EFD_NONBLOCK).expect("eventfd"));
        let control = MemoryControl {
            state: Arc::clone(&state),
            event: Arc::clone(&event),
        };
        let disk = Self {
            info,
            state,
            event,
            waiting: VecDeque::new(),
        };
        (disk, control)
    }

    /// A writable disk of `size_bytes` with blocks of 512 bytes that can do everything.
    #[must_use]
    pub fn with_size(size_bytes: u64) -> (Self, MemoryControl) {
        Self::new(BlockInfo {
            size_bytes,
            logical_block_bytes: 512,
            physical_block_bytes: 512,
            read_only: false,
            discard: true,
            write_zeroes: true,
        })
    }

    fn execute(&self, request: &BlockRequest) -> Result<(), BlockError> {
        let len = request.check(&self.info)?;
        let mut state = lock(&self.state);
        if let Some(errno) = state.fail.take() {
            return Err(BlockError::Io(io::Error::from_raw_os_error(errno)));
        }
        let range = usize::try_from(request.offset_bytes).expect("checked")
            ..usize::try_from(request.offset_bytes + len).expect("checked");
        match request.op {
            BlockOp::Flush => state.flushes += 1,
            BlockOp::Discard { .. } | BlockOp::WriteZeroes { .. } => state.data[range].fill(0),
            BlockOp::Read | BlockOp::Write => {
                let mut medium = &mut state.data[range];
                for &(addr, len) in &request.segments {
                    let (chunk, rest) = medium.split_at_mut(len as usize);
                    let addr = GuestAddress(addr);
                    match request.op {
                        BlockOp::Read => request.ram.write_slice(chunk, addr),
                        _ => request.ram.read_slice(chunk, addr),
                    }
                    .map_err(|_| BlockError::BadBuffer)?;
                    medium = rest;
                }
            }
        }
        Ok(())
    }
}

impl BlockBackend for MemoryDisk {
    fn info(&self) -> &BlockInfo {
        &self.info
    }

    fn read_now(&mut self, request: &BlockRequest) -> bool {
        let cached = lock(&self.state).cached;
        cached && request.op == BlockOp::Read && self.execute(request).is_ok()
    }

    fn submit(&mut self, request: BlockRequest) {
        self.waiting.push_back(request);
    }

    fn poll(&mut self, done: &mut Vec<BlockCompletion>) {
        // Nothing to read is fine.
        let _ = self.event.read();
        if !lock(&self.state).stalled {
            self.drain(done);
        }
    }

    fn completion_fd(&self) -> Option<RawFd> {
        Some(self.event.as_raw_fd())
    }

    fn drain(&mut self, done: &mut Vec<BlockCompletion>) {
        while let Some(request) = self.waiting.pop_front() {
            done.push(BlockCompletion {
                token: request.token,
                result: self.execute(&request),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::test_ram;

    #[test]
    fn a_stalled_disk_completes_when_it_goes_on_or_is_drained() {
        let (mut disk, control) = MemoryDisk::with_size(1024);
        let flush = |token| BlockRequest {
            op: BlockOp::Flush,
            offset_bytes: 0,
            segments: Vec::new(),
            ram: test_ram(4096),
            token,
        };
        let mut done = Vec::new();
        control.stall(true);
        disk.submit(flush(1));
        disk.poll(&mut done);
        assert!(done.is_empty());
        control.stall(false);
        disk.poll(&mut done);
        control.stall(true);
        disk.submit(flush(2));
        disk.drain(&mut done);
        assert_eq!(done.iter().map(|d| d.token).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(control.flushes(), 2);
    }
}
