//! Parts of a BAR that the guest reaches without an exit: pages of the host behind guest-physical addresses.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Pages in our address space that a guest may be given, a device's registers for example. They are never touched
/// here, and stay until the last owner is gone.
pub struct HostPages {
    start: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the pages are only handed on by address; nobody in this process reads or writes through the pointer.
#[allow(unsafe_code)]
unsafe impl Send for HostPages {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for HostPages {}

#[allow(unsafe_code)]
impl HostPages {
    /// Maps `len_bytes` of `fd` at `offset`, shared. Both are multiples of the page size.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn map(
        fd: BorrowedFd<'_>,
        offset: u64,
        len_bytes: u64,
        writable: bool,
    ) -> io::Result<Self> {
        let len_bytes =
            usize::try_from(len_bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let mut prot = ProtFlags::READ;
        prot.set(ProtFlags::WRITE, writable);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                len_bytes,
                prot,
                MapFlags::SHARED,
                fd,
                offset,
            )
        }?;
        Self::own(start.cast(), len_bytes)
    }

    /// Memory of nobody else, for tests.
    ///
    /// # Errors
    /// What the kernel said.
    #[cfg(any(test, feature = "testing"))]
    pub fn anonymous(len_bytes: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), len_bytes, prot, MapFlags::SHARED)
        }?;
        Self::own(start.cast(), len_bytes)
    }

    fn own(start: *mut u8, len_bytes: usize) -> io::Result<Self> {
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len_bytes })
    }

    /// Where they are in our address space.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes as u64
    }
}

#[allow(unsafe_code)]
impl Drop for HostPages {
    fn drop(&mut self) {
        // SAFETY: our own mapping of that length, and no owner is left.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), self.len_bytes) } {
            log::error!("cannot unmap a device's pages: {error}");
        }
    }
}

/// Pages at an offset in a memory BAR that the guest reaches without an exit.
#[derive(Clone)]
pub struct BarMapping {
    /// Offset in the BAR in bytes, a multiple of the page size.
    pub offset: u64,
    /// What is there.
    pub pages: Arc<HostPages>,
}

/// Puts pages into the guest-physical address space. The hypervisor side implements it.
pub trait BarMapper: Send + Sync {
    /// From now on the guest reaches `pages` at `addr`, a multiple of the page size, without an exit. The mapper
    /// owns the pages as long as that is so. Called by the root bus with its decoders locked, on a vCPU thread or
    /// before there are any.
    ///
    /// # Errors
    /// What the hypervisor said, also if something else is there. The accesses then exit, as to any BAR.
    fn map(&self, addr: u64, pages: &Arc<HostPages>) -> io::Result<()>;

    /// Undoes [`BarMapper::map`]: the next access of any vCPU exits.
    ///
    /// # Errors
    /// What the hypervisor said.
    fn unmap(&self, addr: u64) -> io::Result<()>;
}
