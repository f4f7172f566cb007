//! The ring of coalesced writes that KVM shares with us (`KVM_CAP_COALESCED_MMIO`, `KVM_CAP_COALESCED_PIO`).

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::VcpuFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::param::page_size;

use super::KvmError;

/// A guest's write that waited.
#[derive(Debug, Clone, Copy)]
pub struct WaitingWrite {
    /// Whether `addr` is a port.
    pub pio: bool,
    /// Guest-physical address or port.
    pub addr: u64,
    data: [u8; 8],
    len: usize,
}

impl WaitingWrite {
    /// What was written.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data[..self.len]
    }
}

/// The ring: one per VM, filled by KVM on any vCPU's behalf, emptied by one reader at a time.
pub struct WriteRing {
    page: NonNull<kvm_coalesced_mmio_ring>,
    len_bytes: usize,
}

// SAFETY: the page is shared memory that lives until the drop; its two indices are accessed atomically, and entries
// only between them, where KVM no longer writes.
#[allow(unsafe_code)]
unsafe impl Send for WriteRing {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for WriteRing {}

#[allow(unsafe_code)]
impl WriteRing {
    /// Maps the ring of the VM that `vcpu` belongs to.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub(super) fn map(vcpu: &VcpuFd) -> Result<Self, KvmError> {
        let len_bytes = page_size();
        let offset = u64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * len_bytes as u64;
        // SAFETY: the descriptor is open as long as `vcpu` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let page = unsafe {
            mmap(
                ptr::null_mut(),
                len_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                offset,
            )
        };
        let page = page.map_err(|e| KvmError::Ioctl {
            what: "map the ring of coalesced writes",
            source: e.into(),
        })?;
        let page =
            NonNull::new(page.cast()).ok_or(KvmError::Lacks("a ring of coalesced writes"))?;
        Ok(Self { page, len_bytes })
    }

    fn capacity(&self) -> u32 {
        let entries = (self.len_bytes - size_of::<kvm_coalesced_mmio_ring>())
            / size_of::<kvm_coalesced_mmio>();
        u32::try_from(entries).unwrap_or(1)
    }

    fn index(&self, field: *mut u32) -> &AtomicU32 {
        // SAFETY: both fields are aligned `u32`s in the page, which lives as long as `self`, and everyone accesses
        // them atomically.
        unsafe { AtomicU32::from_ptr(field) }
    }

    fn first(&self) -> &AtomicU32 {
        // SAFETY: the page holds a ring.
        self.index(unsafe { &raw mut (*self.page.as_ptr()).first })
    }

    fn last(&self) -> &AtomicU32 {
        // SAFETY: the page holds a ring.
        self.index(unsafe { &raw mut (*self.page.as_ptr()).last })
    }

    /// How many writes wait. Any thread.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        let capacity = self.capacity();
        let (first, last) = (
            self.first().load(Ordering::Acquire),
            self.last().load(Ordering::Acquire),
        );
        (last % capacity + capacity - first % capacity) % capacity
    }

    /// Whether none waits: what each exit asks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first().load(Ordering::Acquire) == self.last().load(Ordering::Acquire)
    }

    /// The oldest write that waits. It stays until [`WriteRing::pop`]. One thread at a time.
    #[must_use]
    pub fn front(&self) -> Option<WaitingWrite> {
        if self.waiting() == 0 {
            return None;
        }
        let first = self.first().load(Ordering::Relaxed) % self.capacity();
        // SAFETY: entry `first` lies in the page, as it is below the capacity, and KVM does not write it before
        // `first` has moved on.
        let entry = unsafe {
            let entries = (*self.page.as_ptr()).coalesced_mmio.as_ptr();
            entries.add(first as usize).read_volatile()
        };
        // SAFETY: both members of the union are plain `u32`s.
        let pio = unsafe { entry.__bindgen_anon_1.pio } != 0;
        Some(WaitingWrite {
            pio,
            addr: entry.phys_addr,
            data: entry.data,
            len: (entry.len as usize).min(entry.data.len()),
        })
    }

    /// Gives the oldest entry back to KVM. One thread at a time.
    pub fn pop(&self) {
        if self.waiting() > 0 {
            let first = self.first();
            let next = (first.load(Ordering::Relaxed) + 1) % self.capacity();
            first.store(next, Ordering::Release);
        }
    }
}

impl Drop for WriteRing {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and no reference into it outlives `self`.
        if let Err(e) = unsafe { munmap(self.page.as_ptr().cast(), self.len_bytes) } {
            log::warn!("unmap the ring of coalesced writes: {e}");
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;
    use rustix::mm::mmap_anonymous;

    /// A ring that no KVM fills.
    fn ring() -> WriteRing {
        let len_bytes = page_size();
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let page = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                len_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .unwrap();
        WriteRing {
            page: NonNull::new(page.cast()).unwrap(),
            len_bytes,
        }
    }

    /// What KVM does; false when the ring is full and the write exits.
    fn post(ring: &WriteRing, addr: u64, pio: bool, data: &[u8]) -> bool {
        let last = ring.last().load(Ordering::Relaxed);
        let next = (last + 1) % ring.capacity();
        if next == ring.first().load(Ordering::Relaxed) {
            return false;
        }
        let mut entry = kvm_coalesced_mmio {
            phys_addr: addr,
            len: u32::try_from(data.len()).unwrap(),
            ..Default::default()
        };
        entry.data[..data.len()].copy_from_slice(data);
        entry.__bindgen_anon_1.pio = u32::from(pio);
        // SAFETY: `last` is below the capacity.
        unsafe {
            let entries = (*ring.page.as_ptr()).coalesced_mmio.as_mut_ptr();
            entries.add(last as usize).write(entry);
        }
        ring.last().store(next, Ordering::Relaxed);
        true
    }

    #[test]
    fn writes_come_out_in_order_across_the_wrap() {
        let ring = ring();
        assert!(ring.front().is_none());
        ring.pop();
        assert_eq!(ring.waiting(), 0);
        for round in 0..u64::from(ring.capacity()) {
            assert!(post(&ring, round, false, &[1, 2, 3, 4]));
            assert!(post(&ring, 0x3f8, true, &[5]));
            assert_eq!(ring.waiting(), 2);
            let write = ring.front().unwrap();
            assert_eq!((write.pio, write.addr), (false, round));
            assert_eq!(write.data(), [1, 2, 3, 4]);
            ring.pop();
            let write = ring.front().unwrap();
            assert_eq!(
                (write.pio, write.addr, write.data()),
                (true, 0x3f8, &[5][..])
            );
            ring.pop();
        }
        while post(&ring, 0, false, &[0]) {}
        assert_eq!(ring.waiting(), ring.capacity() - 1);
    }
}
