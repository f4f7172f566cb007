//! ELF kernels: `vmlinux` and PVH (System V ABI, chapters 4 and 5; Xen's `public/elfnote.h`).
//!
//! The headers are parsed from bytes rather than by linux-loader's `Elf`, which parses and loads in one go: here the
//! headers are judged before anything is created, and the same code serves a payload that is still being unpacked.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::identify::elf_machine;
use super::image::{Extent, Image};
use super::le::{le16, le32, le64};

const MAGIC: &[u8] = b"\x7fELF";
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// A kernel has half a dozen program headers.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// A kernel's notes take some hundred bytes.
const MAX_NOTES_BYTES: u64 = 1 << 16;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXEC: u16 = 2;
const TYPE_DYN: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Why an ELF file is not a kernel for us.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ElfProblem {
    /// It is for something else; said as in "is a 32-bit ELF file".
    Unsuitable(String),
    /// The file ends within this part, which reaches up to the given byte.
    Truncated(&'static str, u64),
    /// It contradicts itself.
    Damaged(String),
}

/// Program header of a segment to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where its content is in the file.
    pub file: Range<u64>,
    /// Guest-physical memory it occupies; its content comes first.
    pub memory: Range<u64>,
}

/// What the ELF header and the program headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Headers {
    /// `e_entry`.
    pub entry: u64,
    /// Segments with memory, in the order of the headers.
    pub segments: Vec<Segment>,
    /// Where the notes are.
    notes: Vec<Range<u64>>,
}

/// What the notes say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Notes {
    /// There is one by "Linux", which every Linux since 4.19 has.
    pub linux: bool,
    /// Guest-physical address of the 32-bit PVH entry point.
    pub pvh_entry: Option<u32>,
}

/// Whether this is the start of an ELF file.
pub(super) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

impl Headers {
    /// Parses the start of a file; it must hold all program headers.
    pub fn parse(head: &[u8]) -> Result<Self, ElfProblem> {
        let (entry, phoff, phnum) = parse_file_header(head)?;
        let mut headers = Self {
            entry,
            segments: Vec::new(),
            notes: Vec::new(),
        };
        for index in 0..usize::from(phnum) {
            let table = "its program header table";
            let start = usize::try_from(phoff)
                .ok()
                .and_then(|phoff| phoff.checked_add(index * PROGRAM_HEADER_BYTES));
            let bytes = start
                .and_then(|start| head.get(start..)?.get(..PROGRAM_HEADER_BYTES))
                .ok_or_else(|| {
                    let len = u64::from(phnum) * PROGRAM_HEADER_BYTES as u64;
                    ElfProblem::Truncated(table, phoff.saturating_add(len))
                })?;
            headers.add(bytes)?;
        }
        if headers.segments.is_empty() {
            return Err(ElfProblem::Unsuitable(
                "is an ELF file with nothing to load".into(),
            ));
        }
        Ok(headers)
    }

    fn add(&mut self, header: &[u8]) -> Result<(), ElfProblem> {
        let [offset, _vaddr, paddr, filesz, memsz] = [8, 16, 24, 32, 40].map(|at| le64(header, at));
        let end = |what: &str, start: u64, len: u64| {
            start.checked_add(len).map(|end| start..end).ok_or_else(|| {
                ElfProblem::Damaged(format!("the {what} of a segment wraps around: {start:#x}"))
            })
        };
        match le32(header, 0) {
            PT_LOAD if memsz > 0 => {
                if filesz > memsz {
                    return Err(ElfProblem::Damaged(format!(
                        "a segment has {filesz:#x} bytes for {memsz:#x} bytes of memory"
                    )));
                }
                self.segments.push(Segment {
                    file: end("file range", offset, filesz)?,
                    memory: end("memory range", paddr, memsz)?,
                });
            }
            PT_NOTE => self.notes.push(end("notes", offset, filesz)?),
            _ => {}
        }
        Ok(())
    }

    /// Whether a segment has `addr`, as the entry point must.
    pub fn contains(&self, addr: u64) -> bool {
        self.segments
            .iter()
            .any(|segment| segment.memory.contains(&addr))
    }

    /// Where the file's last segment ends.
    pub fn file_end(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| segment.file.end)
            .max()
            .unwrap_or(0)
    }

    /// Reads the notes that the headers point to.
    pub fn read_notes(&self, file: &File) -> io::Result<Notes> {
        let mut notes = Notes::default();
        for range in &self.notes {
            let len = (range.end - range.start).min(MAX_NOTES_BYTES);
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            file.read_exact_at(&mut bytes, range.start)?;
            notes.parse(&bytes);
        }
        Ok(notes)
    }

    /// How the file is loaded as it is, entered at `entry`.
    pub fn image(&self, entry: u64) -> Image {
        Image {
            entry,
            segments: joined(self.segments.iter().map(|segment| segment.memory.clone())),
            extents: self
                .segments
                .iter()
                .filter(|segment| !segment.file.is_empty())
                .map(|segment| Extent {
                    addr: segment.memory.start,
                    offset: segment.file.start,
                    len: segment.file.end - segment.file.start,
                })
                .collect(),
        }
    }
}

/// The same memory in ascending order, with ranges that touch made one: content is copied in blocks, which know
/// nothing of the border between two segments.
fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = ranges.collect();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

impl Notes {
    fn parse(&mut self, mut bytes: &[u8]) {
        const NOTE_HEADER_BYTES: usize = 12;
        while bytes.len() >= NOTE_HEADER_BYTES {
            let [name_len, desc_len, kind] = [0, 4, 8].map(|at| le32(bytes, at));
            bytes = &bytes[NOTE_HEADER_BYTES..];
            let (Some(name), Some(desc)) = (
                take_padded(&mut bytes, name_len),
                take_padded(&mut bytes, desc_len),
            ) else {
                return;
            };
            self.linux |= name == b"Linux\0";
            if name == b"Xen\0" && kind == XEN_ELFNOTE_PHYS32_ENTRY && desc.len() >= 4 {
                self.pvh_entry = Some(le32(desc, 0));
            }
        }
    }
}

/// Takes `len` bytes and the padding to a multiple of four that follows them.
fn take_padded<'a>(bytes: &mut &'a [u8], len: u32) -> Option<&'a [u8]> {
    let len = usize::try_from(len).ok()?;
    let taken = bytes.get(..len)?;
    // The last note need not be padded.
    *bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    Some(taken)
}

/// Entry point, offset and number of program headers.
fn parse_file_header(head: &[u8]) -> Result<(u64, u64, u16), ElfProblem> {
    let unsuitable = |text: &str| Err(ElfProblem::Unsuitable(text.into()));
    if head.len() < HEADER_BYTES {
        return Err(ElfProblem::Truncated("its ELF header", HEADER_BYTES as u64));
    }
    if head[5] != LITTLE_ENDIAN {
        return unsuitable("is a big-endian ELF file");
    }
    let machine = le16(head, 18);
    if machine != MACHINE_X86_64 {
        return Err(ElfProblem::Unsuitable(format!(
            "is an ELF file for {}",
            elf_machine(machine)
        )));
    }
    if head[4] != CLASS_64 {
        return unsuitable("is a 32-bit ELF file");
    }
    match le16(head, 16) {
        TYPE_EXEC | TYPE_DYN => {}
        1 => return unsuitable("is an ELF object file, such as a kernel module"),
        4 => return unsuitable("is a core dump"),
        _ => return unsuitable("is an ELF file, but no executable"),
    }
    let phnum = le16(head, 56);
    if usize::from(le16(head, 54)) != PROGRAM_HEADER_BYTES || phnum > MAX_PROGRAM_HEADERS {
        return Err(ElfProblem::Damaged(format!(
            "{phnum} program headers of {} bytes",
            le16(head, 54)
        )));
    }
    Ok((le64(head, 24), le64(head, 32), phnum))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ElfFile, note};
    use super::*;

    fn headers(file: &ElfFile) -> Result<Headers, ElfProblem> {
        Headers::parse(&file.build())
    }

    fn problem(change: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut bytes = ElfFile::kernel().build();
        change(&mut bytes);
        match Headers::parse(&bytes).unwrap_err() {
            ElfProblem::Unsuitable(text) | ElfProblem::Damaged(text) => text,
            ElfProblem::Truncated(part, end) => format!("{part} {end}"),
        }
    }

    #[test]
    fn segments_become_extents() {
        let file = ElfFile::kernel();
        let headers = headers(&file).unwrap();
        let image = headers.image(headers.entry);
        assert_eq!(image.entry, file.entry);
        assert_eq!(
            image.segments,
            std::slice::from_ref(&(0x10_0000..0x13_8000)),
            "segments that touch are one"
        );
        for (segment, extent) in file.segments.iter().zip(&image.extents) {
            assert_eq!(extent.addr, segment.paddr);
            assert_eq!(extent.len, segment.content.len() as u64);
            let start = extent.offset as usize;
            assert_eq!(
                file.build()[start..][..segment.content.len()],
                segment.content
            );
        }
    }

    #[test]
    fn says_what_it_is_instead() {
        assert_eq!(problem(|elf| elf[5] = 2), "is a big-endian ELF file");
        assert_eq!(problem(|elf| elf[18] = 183), "is an ELF file for arm64");
        assert_eq!(problem(|elf| elf[18] = 3), "is an ELF file for 32-bit x86");
        assert_eq!(problem(|elf| elf[4] = 1), "is a 32-bit ELF file");
        assert_eq!(
            problem(|elf| elf[16] = 1),
            "is an ELF object file, such as a kernel module"
        );
        assert_eq!(problem(|elf| elf[16] = 4), "is a core dump");
        assert_eq!(
            problem(|elf| elf[56..58].fill(0)),
            "is an ELF file with nothing to load"
        );
        assert_eq!(
            problem(|elf| elf[57] = 0x7f),
            format!("{} program headers of 56 bytes", 0x7f00 + 4)
        );
        assert_eq!(
            problem(|elf| elf[64 + 24..64 + 32].fill(0xff)),
            "the memory range of a segment wraps around: 0xffffffffffffffff"
        );
        assert!(
            problem(|elf| elf[64 + 40..64 + 48].copy_from_slice(&1u64.to_le_bytes()))
                .contains("for 0x1 bytes of memory")
        );
    }

    #[test]
    fn truncated_headers_say_where_they_end() {
        assert_eq!(problem(|elf| elf.truncate(63)), "its ELF header 64");
        let end = 64 + 4 * 56;
        assert_eq!(
            problem(|elf| elf.truncate(end - 1)),
            format!("its program header table {end}")
        );
        assert_eq!(
            problem(|elf| elf[32..40].fill(0xff)),
            format!("its program header table {}", u64::MAX)
        );
    }

    #[test]
    fn notes_name_linux_and_the_pvh_entry() {
        let mut notes = Notes::default();
        notes.parse(&note(b"GNU\0", 3, &[1; 20]));
        assert_eq!(notes, Notes::default());
        notes.parse(
            &[
                note(b"Linux\0", 0x100, &[0; 5]),
                note(b"Xen\0", 6, b"linux\0"),
            ]
            .concat(),
        );
        assert!(notes.linux && notes.pvh_entry.is_none());
        notes.parse(&note(b"Xen\0", 18, &0x0100_0850u64.to_le_bytes()));
        assert_eq!(notes.pvh_entry, Some(0x0100_0850));
    }

    #[test]
    fn broken_notes_end_the_search() {
        let whole = note(b"Xen\0", 18, &[1; 4]);
        for len in 0..whole.len() {
            let mut notes = Notes::default();
            notes.parse(&whole[..len]);
            assert_eq!(notes, Notes::default(), "{len}");
        }
        let mut notes = Notes::default();
        notes.parse(&[0xff; 64]);
        assert_eq!(notes, Notes::default());
    }
}
