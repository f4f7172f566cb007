//! Small kernels for tests.

use std::io::Write;
use std::ops::Range;

use super::unpack::Format;

/// A segment of an [`ElfFile`].
pub(super) struct TestSegment {
    pub paddr: u64,
    pub content: Vec<u8>,
    pub memsz: u64,
}

impl TestSegment {
    pub fn new(paddr: u64, content: Vec<u8>, memsz: u64) -> Self {
        Self {
            paddr,
            content,
            memsz,
        }
    }
}

/// An x86-64 executable. Its notes come before its segments' content.
pub(super) struct ElfFile {
    pub entry: u64,
    pub segments: Vec<TestSegment>,
    pub notes: Vec<u8>,
}

impl ElfFile {
    /// What looks like a Linux kernel at 1 MiB.
    pub fn kernel() -> Self {
        let text = (0..0x2_0000u32).map(|i| (i % 251) as u8).collect();
        Self {
            entry: 0x10_0040,
            segments: vec![
                TestSegment::new(0x10_0000, text, 0x2_0000),
                TestSegment::new(0x12_0000, vec![0x22; 0x100], 0x1_0000),
                TestSegment::new(0x13_0000, Vec::new(), 0x8000),
            ],
            notes: note(b"Linux\0", 0x100, &[0; 4]),
        }
    }

    pub fn build(&self) -> Vec<u8> {
        let count = self.segments.len() as u16 + 1;
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend(2u16.to_le_bytes()); // e_type
        elf.extend(62u16.to_le_bytes()); // e_machine
        elf.extend(1u32.to_le_bytes());
        for field in [self.entry, 64, 0] {
            elf.extend(field.to_le_bytes());
        }
        elf.extend(0u32.to_le_bytes());
        for field in [64u16, 56, count, 0, 0, 0] {
            elf.extend(field.to_le_bytes());
        }
        let mut offset = 64 + u64::from(count) * 56;
        let mut header = |kind: u32, paddr: u64, len: usize, memsz: u64| {
            elf.extend(kind.to_le_bytes());
            elf.extend(7u32.to_le_bytes());
            for field in [offset, paddr, paddr, len as u64, memsz, 8] {
                elf.extend(field.to_le_bytes());
            }
            offset += len as u64;
        };
        // The first header is a segment's, the first content the notes'.
        let notes_len = self.notes.len();
        let mut segments = self.segments.iter();
        let mut placed = Vec::new();
        header(4, 0, notes_len, notes_len as u64);
        for segment in segments.by_ref() {
            header(1, segment.paddr, segment.content.len(), segment.memsz);
        }
        placed.extend_from_slice(&elf[64..120]);
        let end = elf.len();
        elf.copy_within(120..end, 64);
        elf[end - 56..].copy_from_slice(&placed);
        elf.extend(&self.notes);
        for segment in &self.segments {
            elf.extend(&segment.content);
        }
        elf
    }

    /// What guest memory must hold.
    pub fn memory(&self, range: Range<u64>) -> Vec<u8> {
        let mut memory = vec![0; (range.end - range.start) as usize];
        for segment in &self.segments {
            let start = (segment.paddr - range.start) as usize;
            memory[start..start + segment.content.len()].copy_from_slice(&segment.content);
        }
        memory
    }
}

/// One ELF note.
pub(super) fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend((name.len() as u32).to_le_bytes());
    note.extend((desc.len() as u32).to_le_bytes());
    note.extend(kind.to_le_bytes());
    for part in [name, desc] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// A bzImage of three setup sectors, a decompressor of 64 bytes, and a payload.
pub(super) struct BzImageFile {
    payload: Vec<u8>,
}

impl BzImageFile {
    pub fn new(payload: &[u8]) -> Self {
        Self {
            payload: payload.to_vec(),
        }
    }

    pub fn build(&self) -> Vec<u8> {
        let mut image = vec![0; 0x600];
        let mut set = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let protected_bytes = (0x40 + self.payload.len()).next_multiple_of(16);
        set(0, b"MZ");
        set(0x1f1, &[2]);
        set(0x1f4, &(protected_bytes as u32 / 16).to_le_bytes());
        set(0x1fe, b"\x55\xaa\xeb\x66HdrS\x0f\x02");
        set(0x211, &[1]); // loadflags
        set(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
        set(0x236, &[1]); // xloadflags
        set(0x238, &2047u32.to_le_bytes()); // cmdline_size
        set(0x248, &0x40u32.to_le_bytes()); // payload_offset
        set(0x24c, &(self.payload.len() as u32).to_le_bytes());
        set(0x258, &0x10_0000u64.to_le_bytes()); // pref_address
        set(0x260, &0x8_0000u32.to_le_bytes()); // init_size
        set(0x268, &[0xcc; 0x40]); // the decompressor's, not the header's
        image.extend([0xf4; 0x40]);
        image.extend(&self.payload);
        image.resize(0x600 + protected_bytes, 0);
        image
    }
}

/// A kernel for real mode: a boot sector, two sectors of setup code, 40 bytes of the rest, as iPXE's header is.
pub(super) fn real_mode_kernel() -> Vec<u8> {
    let mut image = vec![0; 0x600];
    let mut set = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    set(0x1f1, &[2]);
    set(0x1f4, &3u32.to_le_bytes()); // syssize: 48 bytes, eight more than there are
    set(0x1fe, b"\x55\xaa\xeb\x66HdrS\x07\x02");
    set(0x211, &[1]); // loadflags
    set(0x22c, &u32::MAX.to_le_bytes()); // initrd_addr_max
    set(0x238, &2047u32.to_le_bytes()); // cmdline_size
    image.extend([0x66; 40]);
    image
}

/// Every format that a kernel can be packed in.
pub(super) const FORMATS: [Format; 4] = [Format::Gzip, Format::Lz4Legacy, Format::Xz, Format::Zstd];

/// Compresses as Linux's build does, unpacked size included.
pub(super) fn pack(format: Format, content: &[u8]) -> Vec<u8> {
    let mut packed = match format {
        Format::Gzip => {
            let level = flate2::Compression::fast();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(content).unwrap();
            return encoder.finish().unwrap();
        }
        Format::Lz4Legacy => {
            let mut packed = 0x184c_2102u32.to_le_bytes().to_vec();
            for block in content.chunks(8 << 20) {
                let block = lz4::block::compress(block, None, false).unwrap();
                packed.extend((block.len() as u32).to_le_bytes());
                packed.extend(block);
            }
            packed
        }
        Format::Xz => {
            let options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
            let mut filters = liblzma::stream::Filters::new();
            filters.x86().lzma2(&options);
            let stream = liblzma::stream::Stream::new_stream_encoder(
                &filters,
                liblzma::stream::Check::Crc32,
            )
            .unwrap();
            let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        Format::Zstd => {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
    };
    packed.extend((content.len() as u32).to_le_bytes());
    packed
}
