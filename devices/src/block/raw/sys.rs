//! Memory that the kernel reads and writes for us, and the system calls that take it.
//!
//! All raw pointers of the raw-file backend are made, kept and passed on here and in the one push of
//! `uring.rs`.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::io::Errno;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::bounce::AlignedBuffer;
use crate::block::BlockError;
use crate::dma::GuestRam;

/// `_IO(0x12, 119)` of `linux/fs.h`, which the libc crate does not have.
const BLKDISCARD: libc::Ioctl = 0x1277;
/// `UIO_MAXIOV`: the kernel takes no more buffers in one call.
const MAX_BUFFERS: usize = 1024;
/// How much one step writes when zeroes are to be written out.
pub(super) const ZERO_STEP_BYTES: usize = 1 << 20;

#[repr(C, align(4096))]
struct ZeroPage([u8; 4096]);

static ZERO_PAGE: ZeroPage = ZeroPage([0; 4096]);

/// What keeps the memory of [`HostBuffers`] alive.
enum Owner {
    Guest(#[expect(dead_code, reason = "held, not used")] Arc<GuestRam>),
    Bounce(AlignedBuffer),
    Static,
}

/// Host memory for one transfer, in order: guest RAM, a buffer of ours, or zeroes. Valid for reads and writes
/// (zeroes: for reads) as long as this value lives, wherever it is moved.
pub(super) struct HostBuffers {
    /// The buffer, when there is one only: the common case costs no allocation.
    one: libc::iovec,
    /// The buffers, when there are several; else empty.
    many: Vec<libc::iovec>,
    /// The first of `many` that has something left.
    first: usize,
    owner: Owner,
}

// SAFETY: the pointers lead to guest RAM, to a heap allocation or to a static, none of which is bound to a thread;
// `owner` keeps the first two alive.
unsafe impl Send for HostBuffers {}

const fn iovec(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: base.cast(),
        iov_len: len,
    }
}

impl HostBuffers {
    /// The guest's own memory.
    ///
    /// # Errors
    /// [`BlockError::BadBuffer`] when a segment is not inside one region of RAM.
    pub fn guest(ram: Arc<GuestRam>, segments: &[(u64, u32)]) -> Result<Self, BlockError> {
        let resolve = |&(addr, len): &(u64, u32)| {
            // A usize holds every u32 on x86-64.
            let len = len as usize;
            GuestMemoryBackend::get_slice(ram.as_ref(), GuestAddress(addr), len)
                .map(|slice| iovec(slice.ptr_guard_mut().as_ptr(), len))
                .map_err(|_| BlockError::BadBuffer)
        };
        let (one, many) = match segments {
            [segment] => (resolve(segment)?, Vec::new()),
            _ => (
                iovec(std::ptr::null_mut(), 0),
                segments
                    .iter()
                    .filter(|&&(_, len)| len > 0)
                    .map(resolve)
                    .collect::<Result<_, _>>()?,
            ),
        };
        Ok(Self {
            one,
            many,
            first: 0,
            owner: Owner::Guest(ram),
        })
    }

    /// The first `len` bytes of `buffer`, as [`HostBuffers::rewind`].
    pub fn bounce(buffer: AlignedBuffer, len: usize) -> Self {
        let mut buffers = Self {
            one: iovec(std::ptr::null_mut(), 0),
            many: Vec::new(),
            first: 0,
            owner: Owner::Bounce(buffer),
        };
        buffers.rewind(len);
        buffers
    }

    /// `len` zeroes, at most [`ZERO_STEP_BYTES`]; to be written to the disk, not read into.
    pub fn zeroes(len: usize) -> Self {
        let base = ZERO_PAGE.0.as_ptr().cast_mut();
        let page = ZERO_PAGE.0.len();
        let len = len.min(ZERO_STEP_BYTES);
        let mut many = vec![iovec(base, page); len / page];
        if !len.is_multiple_of(page) {
            many.push(iovec(base, len % page));
        }
        Self {
            one: iovec(std::ptr::null_mut(), 0),
            many,
            first: 0,
            owner: Owner::Static,
        }
    }

    /// The whole buffer given to [`HostBuffers::bounce`]; empty for others. Not while a transfer is under way, and
    /// [`HostBuffers::rewind`] before the next one.
    pub fn bounce_bytes(&mut self) -> &mut [u8] {
        match &mut self.owner {
            Owner::Bounce(buffer) => buffer.as_mut_slice(),
            Owner::Guest(_) | Owner::Static => &mut [],
        }
    }

    /// Starts again with the first `len` bytes (at most all) of the buffer given to [`HostBuffers::bounce`].
    pub fn rewind(&mut self, len: usize) {
        let bytes = self.bounce_bytes();
        self.one = iovec(bytes.as_mut_ptr(), len.min(bytes.len()));
    }

    /// What is left, as the kernel takes it: at most as many buffers as one call may have. The pointers are good
    /// until the value is advanced or dropped; it may move.
    pub fn iovecs(&self) -> &[libc::iovec] {
        if self.many.is_empty() {
            return std::slice::from_ref(&self.one);
        }
        let end = self.many.len().min(self.first + MAX_BUFFERS);
        &self.many[self.first..end]
    }

    /// Whether `suits` holds for the host address and length of each buffer.
    pub fn all(&self, suits: impl Fn(usize, usize) -> bool) -> bool {
        let buffers = if self.many.is_empty() {
            std::slice::from_ref(&self.one)
        } else {
            &self.many
        };
        buffers
            .iter()
            .all(|buffer| suits(buffer.iov_base.addr(), buffer.iov_len))
    }

    /// Drops the first `len` bytes: they have been transferred.
    pub fn advance(&mut self, mut len: usize) {
        let Self {
            one, many, first, ..
        } = self;
        let buffers = if many.is_empty() {
            std::slice::from_mut(one)
        } else {
            &mut many[*first..]
        };
        for buffer in buffers {
            let taken = len.min(buffer.iov_len);
            // SAFETY: `taken` is no more than the buffer's length, so the pointer stays within it or one past it.
            buffer.iov_base = unsafe { buffer.iov_base.cast::<u8>().add(taken) }.cast();
            buffer.iov_len -= taken;
            len -= taken;
            if buffer.iov_len > 0 {
                break;
            }
            *first += 1;
        }
    }
}

/// `preadv(2)` or `pwritev(2)`; returns the bytes transferred.
pub(super) fn transfer(
    file: &File,
    write: bool,
    buffers: &HostBuffers,
    offset_bytes: u64,
) -> Result<u64, Errno> {
    let iovecs = buffers.iovecs();
    let count = libc::c_int::try_from(iovecs.len()).map_err(|_| Errno::INVAL)?;
    let offset = libc::off_t::try_from(offset_bytes).map_err(|_| Errno::INVAL)?;
    // SAFETY: `buffers` keeps the memory behind its iovecs alive; zeroes are used for writes to the disk only. The
    // memory is guest RAM or ours and no Rust reference to it is held during the call.
    let result = unsafe {
        if write {
            libc::pwritev(file.as_raw_fd(), iovecs.as_ptr(), count, offset)
        } else {
            libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), count, offset)
        }
    };
    u64::try_from(result).map_err(|_| last_errno())
}

/// `preadv2(2)` with `flags` (`RWF_*`); returns the bytes read, which may be fewer than there is room for.
pub(super) fn read(
    file: &File,
    buffers: &HostBuffers,
    offset_bytes: u64,
    flags: i32,
) -> Result<u64, Errno> {
    let iovecs = buffers.iovecs();
    let count = libc::c_int::try_from(iovecs.len()).map_err(|_| Errno::INVAL)?;
    let offset = libc::off_t::try_from(offset_bytes).map_err(|_| Errno::INVAL)?;
    // SAFETY: `buffers` keeps the memory behind its iovecs alive, and that may be written: zeroes are never read into.
    // No Rust reference to it is held during the call.
    let result = unsafe { libc::preadv2(file.as_raw_fd(), iovecs.as_ptr(), count, offset, flags) };
    u64::try_from(result).map_err(|_| last_errno())
}

/// `BLKDISCARD`: the block device may forget the range.
pub(super) fn discard_blocks(file: &File, offset_bytes: u64, len_bytes: u64) -> Result<u64, Errno> {
    let range = [offset_bytes, len_bytes];
    // SAFETY: BLKDISCARD reads two u64 from its argument and touches no other memory of ours.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if result < 0 {
        return Err(last_errno());
    }
    Ok(0)
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::test_ram;

    fn lens(buffers: &HostBuffers) -> Vec<usize> {
        buffers.iovecs().iter().map(|iovec| iovec.iov_len).collect()
    }

    #[test]
    fn advancing_crosses_buffers_and_ends() {
        let segments = [(0, 100), (0x800, 0), (0x400, 50), (0x200, 10)];
        let mut buffers = HostBuffers::guest(test_ram(0x1000), &segments).unwrap();
        let start = buffers.iovecs()[0].iov_base as usize;
        assert_eq!(lens(&buffers), [100, 50, 10]);
        buffers.advance(120);
        assert_eq!(lens(&buffers), [30, 10]);
        assert_eq!(buffers.iovecs()[0].iov_base as usize - start, 0x400 + 20);
        buffers.advance(40);
        assert_eq!(lens(&buffers), [0; 0]);
        buffers.advance(1);
    }

    #[test]
    fn one_buffer_advances_too() {
        let mut buffers = HostBuffers::guest(test_ram(0x1000), &[(0, 100)]).unwrap();
        buffers.advance(60);
        assert_eq!(lens(&buffers), [40]);
        buffers.advance(40);
        assert_eq!(lens(&buffers), [0]);
    }

    #[test]
    fn segments_outside_ram_are_refused() {
        let ram = test_ram(0x1000);
        for segment in [(0xfff, 2), (0x1000, 1), (u64::MAX, 1), (u64::MAX, 2)] {
            for segments in [vec![segment], vec![(0, 1), segment]] {
                assert!(matches!(
                    HostBuffers::guest(ram.clone(), &segments),
                    Err(BlockError::BadBuffer)
                ));
            }
        }
    }

    #[test]
    fn no_more_buffers_at_a_time_than_the_kernel_takes() {
        let segments = vec![(0, 1); MAX_BUFFERS + 5];
        let mut buffers = HostBuffers::guest(test_ram(0x1000), &segments).unwrap();
        assert_eq!(buffers.iovecs().len(), MAX_BUFFERS);
        buffers.advance(MAX_BUFFERS);
        assert_eq!(buffers.iovecs().len(), 5);
    }

    #[test]
    fn zeroes_add_up() {
        for len in [512, 4096, 5120, ZERO_STEP_BYTES] {
            assert_eq!(lens(&HostBuffers::zeroes(len)).iter().sum::<usize>(), len);
        }
        let most = HostBuffers::zeroes(ZERO_STEP_BYTES + 1);
        assert_eq!(lens(&most).iter().sum::<usize>(), ZERO_STEP_BYTES);
    }
}
