//! `readv`, `preadv` and `writev` on guest memory.
//!
//! The standard library's vectored I/O takes Rust slices, which guest memory can never be: the guest changes it at
//! any time.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::VolatileSlice;

/// Most slices in one call (Linux `UIO_MAXIOV`).
pub const MAX_SLICES: usize = 1024;

/// A list of `struct iovec` that is reused from call to call.
#[derive(Default)]
pub struct IoVecs(Vec<libc::iovec>);

// SAFETY: the pointers in the list are used only within one call of `read` or `write`, which fills the list first; no
// other thread gets at them meanwhile, since both take `&mut self`.
unsafe impl Send for IoVecs {}

impl IoVecs {
    /// Reads from `fd` into `slices`, in order; returns how many bytes.
    ///
    /// # Errors
    /// What `readv` said; `InvalidInput` for more than [`MAX_SLICES`].
    pub fn read(&mut self, fd: impl AsFd, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let count = self.fill(slices)?;
        let fd = fd.as_fd().as_raw_fd();
        retry_interrupted(|| {
            // SAFETY: the list has `count` entries. Each points to memory that is mapped writable for as long as its
            // slice lives, which is longer than this call, and that is never seen as a Rust reference: the kernel
            // may write to it whatever else happens to it.
            unsafe { libc::readv(fd, self.0.as_ptr(), count) }
        })
    }

    /// As [`IoVecs::read`], from `offset_bytes` on in a file.
    ///
    /// # Errors
    /// What `preadv` said; `InvalidInput` for more than [`MAX_SLICES`] and for an offset that no file has.
    pub fn read_at(
        &mut self,
        fd: impl AsFd,
        slices: &[VolatileSlice<'_>],
        offset_bytes: u64,
    ) -> io::Result<usize> {
        let count = self.fill(slices)?;
        let fd = fd.as_fd().as_raw_fd();
        let offset =
            libc::off_t::try_from(offset_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        retry_interrupted(|| {
            // SAFETY: as in `read`.
            unsafe { libc::preadv(fd, self.0.as_ptr(), count, offset) }
        })
    }

    /// Writes `slices` to `fd`, in order; returns how many bytes.
    ///
    /// # Errors
    /// What `writev` said; `InvalidInput` for more than [`MAX_SLICES`].
    pub fn write(&mut self, fd: impl AsFd, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let count = self.fill(slices)?;
        let fd = fd.as_fd().as_raw_fd();
        retry_interrupted(|| {
            // SAFETY: the list has `count` entries, each to memory mapped for as long as its slice lives, which is
            // longer than this call; the kernel only reads it, and copes with its changing.
            unsafe { libc::writev(fd, self.0.as_ptr(), count) }
        })
    }

    fn fill(&mut self, slices: &[VolatileSlice<'_>]) -> io::Result<libc::c_int> {
        if slices.len() > MAX_SLICES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.0.clear();
        self.0.extend(slices.iter().map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        }));
        libc::c_int::try_from(self.0.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
    }
}

fn retry_interrupted(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        if let Ok(bytes) = usize::try_from(call()) {
            return Ok(bytes);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::pipe;

    #[test]
    fn what_is_gathered_is_scattered() {
        let (reader, writer) = pipe().unwrap();
        let (mut one, mut two) = (*b"head", *b"-body");
        let mut vecs = IoVecs::default();
        let slices = [
            VolatileSlice::from(&mut one[..]),
            VolatileSlice::from(&mut two[..]),
        ];
        assert_eq!(vecs.write(&writer, &slices).unwrap(), 9);
        let (mut three, mut four) = ([0; 2], [0; 16]);
        let slices = [
            VolatileSlice::from(&mut three[..]),
            VolatileSlice::from(&mut four[..]),
        ];
        assert_eq!(vecs.read(&reader, &slices).unwrap(), 9);
        assert_eq!((&three, &four[..7]), (b"he", &b"ad-body"[..]));
    }

    #[test]
    fn errors_and_too_many_slices_are_reported() {
        let (reader, _writer) = pipe().unwrap();
        let mut byte = [0; 1];
        let slice = VolatileSlice::from(&mut byte[..]);
        let mut vecs = IoVecs::default();
        assert_eq!(
            vecs.write(&reader, &[slice]).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        let slices = vec![slice; MAX_SLICES + 1];
        assert_eq!(
            vecs.read(&reader, &slices).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
