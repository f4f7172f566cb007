//! Guest RAM: how it is laid out around the 32-bit hole, and where it comes from.

use std::fs::File;
use std::io;
use std::ptr;
use std::sync::Arc;

use devices::dma::GuestRam;
use rustix::fs::MemfdFlags;
use thiserror::Error;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use crate::config::MemoryConfig;
use crate::layout;

/// Regions start on huge-page boundaries on the host, as they do in the guest, so that the two can match.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Why there is no guest RAM.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// More than the processor can address.
    #[error(
        "{asked_mib} MiB of memory are too much: this processor's guests can address {limit_mib} MiB beside the PCI window; give --memory less"
    )]
    TooMuch {
        /// What was asked for.
        asked_mib: u64,
        /// What is possible.
        limit_mib: u64,
    },
    /// The host does not give so much address space.
    #[error("the host refuses {size_mib} MiB of memory: {source}; give --memory less")]
    Refused {
        /// What was asked for.
        size_mib: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The mapping cannot be used as guest RAM.
    #[error("guest memory: {0}")]
    Mapping(#[from] MmapRegionError),
    /// The regions do not fit together.
    #[error("guest memory: {0}")]
    Regions(String),
}

/// The guest-physical ranges `(start, length in bytes)` of `size_bytes` of RAM: one below the 32-bit hole, one above
/// 4 GiB for what does not fit.
#[must_use]
pub fn ranges(size_bytes: u64) -> Vec<(u64, u64)> {
    let low = size_bytes.min(layout::LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if size_bytes > low {
        ranges.push((layout::RAM_ABOVE_4G, size_bytes - low));
    }
    ranges
}

/// One past the last guest-physical address of RAM.
#[must_use]
pub fn end(size_bytes: u64) -> u64 {
    ranges(size_bytes)
        .last()
        .map_or(0, |(start, len)| start + len)
}

/// The 64-bit PCI window above `size_bytes` of RAM, with room for `bars_bytes` of large BARs beside the usual ones,
/// each a power of two. Never beyond 2^63.
#[must_use]
pub fn pci_window(size_bytes: u64, bars_bytes: u64) -> std::ops::Range<u64> {
    let bytes = window_bytes(bars_bytes);
    let start = end(size_bytes)
        .max(layout::RAM_ABOVE_4G)
        .checked_next_multiple_of(bytes)
        .unwrap_or(bytes);
    start..start.saturating_add(bytes)
}

/// Powers of two from large to small fit into the next power of two of their sum; as much again is for the others.
fn window_bytes(bars_bytes: u64) -> u64 {
    let bars = bars_bytes.min(1 << 60).next_power_of_two();
    (bars * 2).max(layout::PCI_MMIO64_BYTES)
}

/// Checks that RAM and the PCI window above it fit into `physical_bits` of guest-physical address.
///
/// # Errors
/// [`MemoryError::TooMuch`].
pub fn check_fits(size_bytes: u64, bars_bytes: u64, physical_bits: u32) -> Result<(), MemoryError> {
    let limit = 1u64.checked_shl(physical_bits).unwrap_or(u64::MAX);
    if pci_window(size_bytes, bars_bytes).end <= limit {
        return Ok(());
    }
    let hole = layout::RAM_ABOVE_4G - layout::LOW_RAM_END;
    let room = limit.saturating_sub(window_bytes(bars_bytes) + hole);
    Err(MemoryError::TooMuch {
        asked_mib: size_bytes >> 20,
        limit_mib: room >> 20,
    })
}

/// Maps guest RAM. No page of it is populated: the guest's first touch does that.
///
/// # Errors
/// [`MemoryError`].
pub fn create(config: &MemoryConfig) -> Result<Arc<GuestRam>, MemoryError> {
    let size_mib = config.size_bytes >> 20;
    let refused = |source: io::Error| MemoryError::Refused { size_mib, source };
    let memfd = config
        .memfd
        .then(|| memfd(config.size_bytes))
        .transpose()
        .map_err(refused)?;
    let mut regions = Vec::new();
    let mut file_offset = 0;
    for (start, len) in ranges(config.size_bytes) {
        let len_bytes = usize::try_from(len).map_err(|_| MemoryError::Refused {
            size_mib,
            source: io::ErrorKind::OutOfMemory.into(),
        })?;
        let file = memfd
            .as_ref()
            .map(|file| FileOffset::from_arc(Arc::clone(file), file_offset));
        regions.push(region(
            GuestAddress(start),
            len_bytes,
            file,
            config.thp,
            &refused,
        )?);
        file_offset += len;
    }
    let ram = GuestRam::from_regions(regions).map_err(|e| MemoryError::Regions(e.to_string()))?;
    Ok(Arc::new(ram))
}

fn memfd(size_bytes: u64) -> io::Result<Arc<File>> {
    let file = File::from(rustix::fs::memfd_create(
        "tripath-ram",
        MemfdFlags::CLOEXEC,
    )?);
    file.set_len(size_bytes)?;
    Ok(Arc::new(file))
}

/// Maps one region at a huge-page boundary, which a plain `mmap` promises only on newer kernels.
#[allow(unsafe_code)]
fn region(
    start: GuestAddress,
    len_bytes: usize,
    file: Option<FileOffset>,
    thp: bool,
    refused: &dyn Fn(io::Error) -> MemoryError,
) -> Result<GuestRegionMmap<()>, MemoryError> {
    let reserve_bytes = len_bytes
        .checked_add(HUGE_PAGE_BYTES)
        .ok_or_else(|| refused(io::ErrorKind::OutOfMemory.into()))?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // Without MAP_NORESERVE the kernel's overcommit heuristic refuses a guest larger than what is free now.
    let flags = libc::MAP_NORESERVE
        | if file.is_some() {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS
        };
    // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
    let reserved = unsafe {
        libc::mmap(
            ptr::null_mut(),
            reserve_bytes,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if reserved == libc::MAP_FAILED {
        return Err(refused(io::Error::last_os_error()));
    }
    let reserved = reserved.cast::<u8>();
    let aligned = reserved.wrapping_add(reserved.align_offset(HUGE_PAGE_BYTES));
    let (fd, offset) = file.as_ref().map_or((-1, 0), |f| {
        (
            std::os::fd::AsRawFd::as_raw_fd(f.file()),
            i64::try_from(f.start()).unwrap_or(i64::MAX),
        )
    });
    // SAFETY: MAP_FIXED over `aligned..aligned + len_bytes`, which lies within the reservation made above: it is
    // shorter than that by the most that alignment can take.
    let mapped = unsafe {
        libc::mmap(
            aligned.cast(),
            len_bytes,
            prot,
            flags | libc::MAP_FIXED,
            fd,
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(refused(io::Error::last_os_error()));
    }
    let advice = if thp {
        libc::MADV_HUGEPAGE
    } else {
        libc::MADV_NOHUGEPAGE
    };
    // SAFETY: advice on our own mapping. A kernel without huge pages says no; then there are none.
    unsafe { libc::madvise(mapped, len_bytes, advice) };
    let mut builder = MmapRegionBuilder::new(len_bytes)
        .with_mmap_prot(prot)
        .with_mmap_flags(flags);
    if let Some(file) = file {
        builder = builder.with_file_offset(file);
    }
    // SAFETY: the mapping is present, of that length, and never unmapped: guest RAM lives as long as the process.
    let mapping = unsafe { builder.with_raw_mmap_pointer(mapped.cast()) }.build()?;
    GuestRegionMmap::new(mapping, start)
        .ok_or_else(|| MemoryError::Regions("region wraps around".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_is_split_around_the_hole() {
        assert_eq!(ranges(GIB), [(0, GIB)]);
        assert_eq!(ranges(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(ranges(5 * GIB), [(0, 3 * GIB), (4 * GIB, 2 * GIB)]);
        assert_eq!(end(5 * GIB), 6 * GIB);
    }

    #[test]
    fn the_pci_window_is_above_ram_and_aligned() {
        for size in [GIB, 5 * GIB, 15 * GIB, 16 * GIB, 1000 * GIB] {
            let window = pci_window(size, 0);
            assert!(window.start >= end(size) && window.start >= 4 * GIB);
            assert_eq!(window.start % layout::PCI_MMIO64_BYTES, 0);
        }
    }

    #[test]
    fn large_bars_make_a_large_window() {
        for bars in [1, 8 * GIB, 9 * GIB, 80 * GIB, 1000 * GIB, u64::MAX] {
            let window = pci_window(5 * GIB, bars);
            let bytes = window.end - window.start;
            assert!(bytes >= bars.min(1 << 60) && bytes >= layout::PCI_MMIO64_BYTES);
            assert!(bytes.is_power_of_two() && window.start.is_multiple_of(bytes));
            assert!(window.start >= 6 * GIB);
        }
        assert!(check_fits(GIB, 80 * GIB, 40).is_ok());
        assert!(check_fits(GIB, 80 * GIB, 36).is_err());
    }

    #[test]
    fn too_much_is_refused_with_what_is_possible() {
        check_fits(GIB, 0, 36).unwrap();
        let error = check_fits(64 * GIB, 0, 36).unwrap_err().to_string();
        assert!(
            error.contains("65536 MiB") && error.contains("--memory"),
            "{error}"
        );
        // What the message allows is indeed allowed.
        let MemoryError::TooMuch { limit_mib, .. } = check_fits(u64::MAX >> 4, 0, 36).unwrap_err()
        else {
            panic!("expected TooMuch")
        };
        check_fits(limit_mib << 20, 0, 36).unwrap();
    }

    #[test]
    fn regions_are_aligned_and_hold_data() {
        for memfd in [false, true] {
            let ram = create(&MemoryConfig {
                size_bytes: 64 << 20,
                memfd,
                thp: true,
            })
            .unwrap();
            for region in ram.iter() {
                assert_eq!(region.as_ptr() as usize % HUGE_PAGE_BYTES, 0);
                assert_eq!(region.file_offset().is_some(), memfd);
            }
            ram.write_obj(0x1122_3344_u32, GuestAddress(0x1000))
                .unwrap();
            assert_eq!(
                ram.read_obj::<u32>(GuestAddress(0x1000)).unwrap(),
                0x1122_3344
            );
        }
    }
}
