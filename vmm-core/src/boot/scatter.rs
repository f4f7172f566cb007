//! Puts an ELF kernel into guest memory, or into the cache, while it is being unpacked.
//!
//! One pass: neither the packed nor the unpacked kernel is ever whole in our own memory.

use std::fmt;
use std::io;
use std::ops::Range;

use devices::dma::GuestRam;

use super::cache::Draft;
use super::elf::{Headers, is_elf};
use super::image::{Extent, Image, RamState, ZEROS, write_ram};

/// Zeros are looked for in blocks of this size, aligned in guest memory. Smaller blocks find little more (in a
/// stock kernel, 22 MiB instead of 20 of 51), for many more extents.
const BLOCK_BYTES: u64 = ZEROS.len() as u64;

/// Why the unpacked content did not go to guest memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is no kernel that can be entered directly; nothing was written.
    NotDirect(&'static str),
    /// It is shorter or longer than its headers say.
    Damaged(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDirect(reason) => f.write_str(reason),
            Self::Damaged(problem) => f.write_str(problem),
        }
    }
}

/// Where the content goes.
enum Target<'a> {
    Ram { ram: &'a GuestRam, state: RamState },
    Draft(Draft),
}

/// Takes the unpacked kernel piece by piece.
pub(super) struct Scatter<'a> {
    target: Target<'a>,
    /// Memory set aside for the kernel, which must not be left.
    allowed: Range<u64>,
    headers: Option<Headers>,
    position: u64,
    extents: Vec<Extent>,
    stored_bytes: u64,
    refusal: Option<Refusal>,
}

impl<'a> Scatter<'a> {
    /// Scatters to `ram` within `allowed`.
    pub fn to_ram(ram: &'a GuestRam, state: RamState, allowed: Range<u64>) -> Self {
        Self::new(Target::Ram { ram, state }, allowed)
    }

    /// Collects in `draft` what goes to memory within `allowed`.
    pub fn to_draft(draft: Draft, allowed: Range<u64>) -> Self {
        Self::new(Target::Draft(draft), allowed)
    }

    fn new(target: Target<'a>, allowed: Range<u64>) -> Self {
        Self {
            target,
            allowed,
            headers: None,
            position: 0,
            extents: Vec::new(),
            stored_bytes: 0,
            refusal: None,
        }
    }

    /// Takes the next piece; the first must hold the program headers.
    ///
    /// # Errors
    /// That guest memory cannot be written, or that [`Scatter::refusal`] has an answer.
    pub fn feed(&mut self, piece: &[u8]) -> io::Result<()> {
        let headers = match self.headers.take() {
            Some(headers) => headers,
            None => match self.parse(piece) {
                Ok(headers) => headers,
                Err(reason) => {
                    self.refusal = Some(Refusal::NotDirect(reason));
                    return Err(io::Error::other(reason));
                }
            },
        };
        let piece_range = self.position..self.position + piece.len() as u64;
        for segment in &headers.segments {
            let start = piece_range.start.max(segment.file.start);
            let end = piece_range.end.min(segment.file.end);
            if start < end {
                let addr = segment.memory.start + (start - segment.file.start);
                let within = |position: u64| usize::try_from(position - piece_range.start);
                if let (Ok(from), Ok(to)) = (within(start), within(end)) {
                    self.store_nonzero(addr, &piece[from..to])?;
                }
            }
        }
        self.position = piece_range.end;
        self.headers = Some(headers);
        Ok(())
    }

    fn parse(&self, piece: &[u8]) -> Result<Headers, &'static str> {
        if !is_elf(piece) {
            return Err("its payload is no ELF file");
        }
        let headers =
            Headers::parse(piece).map_err(|_| "its payload is no ELF file for this machine")?;
        let allowed = &self.allowed;
        let inside = headers.segments.iter().all(|segment| {
            allowed.start <= segment.memory.start && segment.memory.end <= allowed.end
        });
        if !inside {
            return Err("its payload leaves the memory that its header asks for");
        }
        if !headers.contains(headers.entry) {
            return Err("its payload has no entry point");
        }
        Ok(headers)
    }

    /// Stores the blocks of `bytes` that are not zero.
    fn store_nonzero(&mut self, addr: u64, bytes: &[u8]) -> io::Result<()> {
        let mut run = 0..0;
        while run.end < bytes.len() {
            let block_end = (addr + run.end as u64 + 1).next_multiple_of(BLOCK_BYTES) - addr;
            let end = usize::try_from(block_end).map_or(bytes.len(), |end| end.min(bytes.len()));
            let block = &bytes[run.end..end];
            if *block == ZEROS[..block.len()] {
                self.store(addr + run.start as u64, &bytes[run])?;
                run = end..end;
            } else {
                run.end = end;
            }
        }
        self.store(addr + run.start as u64, &bytes[run])
    }

    fn store(&mut self, addr: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        match &mut self.target {
            Target::Ram { ram, .. } => write_ram(ram, addr, bytes)?,
            Target::Draft(draft) => draft.write(bytes)?,
        }
        let len = bytes.len() as u64;
        match self.extents.last_mut() {
            Some(last) if last.addr + last.len == addr => last.len += len,
            _ => self.extents.push(Extent {
                addr,
                offset: self.stored_bytes,
                len,
            }),
        }
        self.stored_bytes += len;
        Ok(())
    }

    /// Why [`Scatter::feed`] failed, if that was the content's fault.
    pub fn refusal(&mut self) -> Option<Refusal> {
        self.refusal.take()
    }

    /// Ends the kernel: checks that all of it came, and zeroes the rest of its memory. The extents' offsets are those
    /// in the draft.
    ///
    /// # Errors
    /// [`Refusal`], in which case guest memory is partly written.
    pub fn finish(self, declared_bytes: u64) -> Result<(Image, Option<Draft>), Refusal> {
        let Some(headers) = self.headers else {
            return Err(Refusal::NotDirect("its payload is empty"));
        };
        if self.position != declared_bytes || self.position < headers.file_end() {
            return Err(Refusal::Damaged(format!(
                "its payload unpacks to {} bytes instead of {}",
                self.position,
                declared_bytes.max(headers.file_end())
            )));
        }
        let mut image = headers.image(headers.entry);
        image.extents = self.extents;
        match self.target {
            Target::Ram { ram, state } => image
                .zero_gaps(ram, state)
                .map(|()| (image, None))
                .map_err(|error| Refusal::Damaged(error.to_string())),
            Target::Draft(draft) => Ok((image, Some(draft))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ElfFile, TestSegment};
    use super::*;
    use devices::testing::test_ram;
    use vm_memory::{Bytes, GuestAddress};

    const RAM_BYTES: usize = 4 << 20;
    const ALLOWED: Range<u64> = 0x10_0000..0x30_0000;

    fn content(ram: &GuestRam) -> Vec<u8> {
        let mut bytes = vec![0; (ALLOWED.end - ALLOWED.start) as usize];
        ram.read_slice(&mut bytes, GuestAddress(ALLOWED.start))
            .unwrap();
        bytes
    }

    /// Zeros at the start, in the middle, unaligned, and at the end.
    fn sparse_kernel() -> ElfFile {
        let mut content = vec![0; 0x8_0123];
        content[0x1_0000..0x1_0010].fill(7);
        content[0x5_fff0..0x6_0001].fill(8);
        let mut file = ElfFile::kernel();
        file.entry = 0x10_0000;
        file.segments = vec![
            TestSegment::new(0x10_0000, content, 0x9_0000),
            TestSegment::new(0x1a_0040, vec![9; 5], 0x1000),
        ];
        file
    }

    #[test]
    fn segments_that_touch_may_share_a_block() {
        let mut file = ElfFile::kernel();
        file.entry = 0x10_0000;
        file.segments = vec![
            TestSegment::new(0x10_0000, vec![7; 0x1_8000], 0x1_8000),
            TestSegment::new(0x11_8000, vec![8; 0x1_8000], 0x1_8000),
        ];
        let ram = test_ram(RAM_BYTES);
        let image = scatter(&file.build(), 512, &ram, RamState::Fresh);
        assert!(image.fits(&ram), "{image:x?}");
    }

    fn scatter(elf: &[u8], piece_bytes: usize, ram: &GuestRam, state: RamState) -> Image {
        let mut scatter = Scatter::to_ram(ram, state, ALLOWED);
        for piece in elf.chunks(piece_bytes) {
            scatter.feed(piece).unwrap();
        }
        scatter.finish(elf.len() as u64).unwrap().0
    }

    #[test]
    fn zeros_are_skipped_and_memory_is_as_from_the_file() {
        let file = sparse_kernel();
        let elf = file.build();
        for piece_bytes in [512, 0x1_0001, elf.len()] {
            let ram = test_ram(RAM_BYTES);
            let image = scatter(&elf, piece_bytes, &ram, RamState::Fresh);
            assert!(content(&ram) == file.memory(ALLOWED), "{piece_bytes}");
            let stored: u64 = image.extents.iter().map(|extent| extent.len).sum();
            assert!(stored < 0x4_0000, "{:x?}", image.extents);
        }
    }

    #[test]
    fn used_memory_ends_up_the_same() {
        let file = sparse_kernel();
        let ram = test_ram(RAM_BYTES);
        ram.write_slice(&vec![0xaa; RAM_BYTES], GuestAddress(0))
            .unwrap();
        let image = scatter(&file.build(), 0x1_0000, &ram, RamState::Used);
        let (content, expected) = (content(&ram), file.memory(ALLOWED));
        for segment in &image.segments {
            let range =
                (segment.start - ALLOWED.start) as usize..(segment.end - ALLOWED.start) as usize;
            assert!(content[range.clone()] == expected[range]);
        }
    }

    #[test]
    fn refuses_what_cannot_be_entered_and_leaves_memory_alone() {
        let refused = |change: fn(&mut ElfFile)| {
            let mut file = sparse_kernel();
            change(&mut file);
            let ram = test_ram(RAM_BYTES);
            let mut scatter = Scatter::to_ram(&ram, RamState::Fresh, ALLOWED);
            scatter.feed(&file.build()).unwrap_err();
            assert!(content(&ram).iter().all(|&byte| byte == 0));
            scatter.refusal()
        };
        assert_eq!(
            refused(|file| file.entry = 0),
            Some(Refusal::NotDirect("its payload has no entry point"))
        );
        assert_eq!(
            refused(|file| file.segments[1].paddr = 0x2f_fff0),
            Some(Refusal::NotDirect(
                "its payload leaves the memory that its header asks for"
            ))
        );
        let ram = test_ram(RAM_BYTES);
        let mut scatter = Scatter::to_ram(&ram, RamState::Fresh, ALLOWED);
        scatter.feed(b"no ELF").unwrap_err();
        assert_eq!(
            scatter.refusal(),
            Some(Refusal::NotDirect("its payload is no ELF file"))
        );
    }

    #[test]
    fn too_short_or_too_long_is_damaged() {
        let elf = sparse_kernel().build();
        for (len, declared) in [(elf.len() - 1, elf.len() - 1), (elf.len(), elf.len() + 1)] {
            let ram = test_ram(RAM_BYTES);
            let mut scatter = Scatter::to_ram(&ram, RamState::Fresh, ALLOWED);
            scatter.feed(&elf[..len]).unwrap();
            assert!(matches!(
                scatter.finish(declared as u64),
                Err(Refusal::Damaged(_))
            ));
        }
    }
}
