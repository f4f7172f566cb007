//! A kernel as it lies in guest memory, and how it gets there from a file.
//!
//! linux-loader's `Elf` loader reads each segment whole and leaves the rest of `p_memsz` as it finds it. Here a
//! segment may be cut into extents with zeros between them: 40 % of a stock kernel's pages are zero, and skipping them
//! saves copying them and populating the guest's pages. A restart finds the previous kernel's memory there, so then
//! the zeros are written.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;

use devices::dma::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile, VolatileMemoryError};

/// What guest RAM holds when a kernel is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RamState {
    /// Zeros, as the host's kernel gave it to us.
    Fresh,
    /// Anything, as a guest left it.
    Used,
}

/// Bytes of a file that go to one place in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Guest-physical address.
    pub addr: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// For comparing with and for writing.
pub(super) static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Where a kernel goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    /// Guest-physical entry point.
    pub entry: u64,
    /// Memory that belongs to the kernel; zero where no extent says otherwise.
    pub segments: Vec<Range<u64>>,
    /// Its content, in the order of the file.
    pub extents: Vec<Extent>,
}

impl Image {
    /// Loads the content from `file`, whose offset it moves.
    pub fn load(&self, file: &File, ram: &GuestRam, state: RamState) -> io::Result<()> {
        for extent in &self.extents {
            read_file(file, extent.offset, ram, extent.addr, extent.len)?;
        }
        self.zero_gaps(ram, state)
    }

    /// Makes the kernel's memory zero where it has no content, if it may not be zero already.
    pub fn zero_gaps(&self, ram: &GuestRam, state: RamState) -> io::Result<()> {
        if state == RamState::Fresh {
            return Ok(());
        }
        let mut extents = self.extents.clone();
        extents.sort_unstable_by_key(|extent| extent.addr);
        for segment in &self.segments {
            let mut done = segment.start;
            for extent in &extents {
                if extent.addr > done {
                    zero(ram, done..extent.addr.min(segment.end))?;
                }
                done = done.max(extent.addr + extent.len);
            }
            zero(ram, done..segment.end)?;
        }
        Ok(())
    }

    /// Whether every address lies in `ram`, and every extent within a segment.
    pub fn fits(&self, ram: &GuestRam) -> bool {
        let in_ram = |start: u64, len: u64| {
            usize::try_from(len).is_ok_and(|len| ram.check_range(GuestAddress(start), len))
        };
        let in_segment = |extent: &Extent| {
            extent.addr.checked_add(extent.len).is_some_and(|end| {
                self.segments
                    .iter()
                    .any(|segment| segment.start <= extent.addr && end <= segment.end)
            })
        };
        self.segments.iter().all(|segment| {
            segment.start <= segment.end && in_ram(segment.start, segment.end - segment.start)
        }) && self.extents.iter().all(in_segment)
    }
}

/// Reads `len` bytes of `file` at `offset` straight into guest memory at `addr`.
///
/// # Errors
/// The host's, `UnexpectedEof` when the file is too short, `InvalidInput` when there is no such guest memory.
pub(super) fn read_file(
    mut file: &File,
    offset: u64,
    ram: &GuestRam,
    addr: u64,
    len: u64,
) -> io::Result<()> {
    let outside = || io::Error::new(io::ErrorKind::InvalidInput, "outside guest RAM");
    let len = usize::try_from(len).map_err(|_| outside())?;
    // One slice, as all RAM below 4 GiB is one region: `read_exact_volatile` repeats short reads only within a slice.
    let mut slice = ram
        .get_slice(GuestAddress(addr), len)
        .map_err(|_| outside())?;
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact_volatile(&mut slice)
        .map_err(|error| match error {
            VolatileMemoryError::IOError(error) => error,
            other => io::Error::other(other),
        })
}

/// Pieces in which [`write_ram`] copies.
pub(super) const PIECE_BYTES: usize = 1024;

/// Copies to guest memory.
///
/// In pieces for which `memcpy` uses vector moves: where string instructions are slow, under emulation above all, one
/// long `rep movsb` takes several times as long.
///
/// # Errors
/// There is no such guest memory.
pub(super) fn write_ram(ram: &GuestRam, mut addr: u64, bytes: &[u8]) -> io::Result<()> {
    for piece in bytes.chunks(PIECE_BYTES) {
        ram.write_slice(piece, GuestAddress(addr))
            .map_err(io::Error::other)?;
        addr += piece.len() as u64;
    }
    Ok(())
}

/// Zeroes guest memory; nothing when the range is empty or backwards.
pub(super) fn zero(ram: &GuestRam, range: Range<u64>) -> io::Result<()> {
    let mut addr = range.start;
    while addr < range.end {
        let len = usize::try_from(range.end - addr).map_or(ZEROS.len(), |len| len.min(ZEROS.len()));
        ram.write_slice(&ZEROS[..len], GuestAddress(addr))
            .map_err(io::Error::other)?;
        addr += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::testing::test_ram;
    use std::io::Write;

    fn image() -> Image {
        Image {
            entry: 0x1000,
            segments: vec![0x1000..0x4000, 0x6000..0x6800],
            extents: vec![
                Extent {
                    addr: 0x2000,
                    offset: 4,
                    len: 0x10,
                },
                Extent {
                    addr: 0x1000,
                    offset: 0,
                    len: 4,
                },
            ],
        }
    }

    fn content(ram: &GuestRam) -> Vec<u8> {
        let mut bytes = vec![0; 0x8000];
        ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    #[test]
    fn a_restart_gives_the_same_memory_as_a_start() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&(1..=20).collect::<Vec<u8>>()).unwrap();
        let fresh = test_ram(0x8000);
        image().load(&file, &fresh, RamState::Fresh).unwrap();
        let used = test_ram(0x8000);
        used.write_slice(&[0xaa; 0x8000], GuestAddress(0)).unwrap();
        image().load(&file, &used, RamState::Used).unwrap();
        let (fresh, used) = (content(&fresh), content(&used));
        assert_eq!(fresh[0x1000..0x1004], [1, 2, 3, 4]);
        assert_eq!(fresh[0x2000], 5);
        for segment in image().segments {
            let range = segment.start as usize..segment.end as usize;
            assert!(fresh[range.clone()] == used[range.clone()], "{range:#x?}");
        }
        assert_eq!(used[0x4000], 0xaa, "not the kernel's");
    }

    #[test]
    fn a_file_cut_short_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 19]).unwrap();
        let error = image()
            .load(&file, &test_ram(0x8000), RamState::Fresh)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn addresses_are_checked_against_ram_and_segments() {
        let ram = test_ram(0x8000);
        assert!(image().fits(&ram));
        assert!(!image().fits(&test_ram(0x6000)));
        let mut stray = image();
        stray.extents[0].addr = 0x5000;
        assert!(!stray.fits(&ram));
        stray.extents[0].addr = u64::MAX - 1;
        assert!(!stray.fits(&ram));
        let mut backwards = image();
        backwards.segments[0] = Range {
            start: 0x4000,
            end: 0x1000,
        };
        assert!(!backwards.fits(&ram));
    }
}
