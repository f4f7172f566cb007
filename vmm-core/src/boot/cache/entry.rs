//! One cached kernel: the file's format, and loading it.
//!
//! The file is the kernel's content, the zero blocks left out, then a table of where it goes, then a footer:
//!
//! | bytes | what |
//! | --- | --- |
//! | content | extents one after the other |
//! | 16 each | segments: guest-physical start and end |
//! | 16 each | extents: guest-physical address, length |
//! | 8 | magic, with the format's version |
//! | 8, 16 | length and XXH3-128 of the bzImage |
//! | 16 | XXH3-128 of the content |
//! | 8 | entry point |
//! | 4, 4 | number of segments, of extents |
//! | 8 | XXH3-64 of table and footer up to here |
//!
//! The table comes last because it is known last. Its own hash is checked before any of it is used, so that a damaged
//! entry writes nowhere but into the kernel's own memory.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use devices::dma::GuestRam;
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, VolatileMemory};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::Key;
use super::ident::Ident;
use crate::boot::image::{Extent, Image, PIECE_BYTES, RamState, write_ram};
use crate::boot::le::{le32, le64, le128};

const MAGIC: [u8; 8] = *b"TRIPKRN1";
const FOOTER_BYTES: usize = 72;
const RANGE_BYTES: usize = 16;
/// Far more than any kernel needs.
const MAX_RANGES: u32 = 1 << 16;

/// A cached kernel, open.
#[derive(Debug)]
pub(in crate::boot) struct Entry {
    file: File,
    image: Image,
    content_hash: u128,
    /// What is in the cache under this name.
    pub(super) key: Key,
    /// The file when its content was last found to be right; none when that was never tried.
    pub(super) verified: Option<Ident>,
    /// Whether a record leads from the bzImage to this entry, so that the next run need not read either.
    pub(super) recorded: bool,
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text)
}

/// Writes table and footer behind the content that is in `file`.
pub(super) fn write_footer(
    file: &mut File,
    key: Key,
    image: &Image,
    content_hash: u128,
) -> io::Result<()> {
    let mut tail = Vec::new();
    for segment in &image.segments {
        put_pair(&mut tail, segment.start, segment.end);
    }
    for extent in &image.extents {
        put_pair(&mut tail, extent.addr, extent.len);
    }
    let count = |len: usize| {
        u32::try_from(len)
            .ok()
            .filter(|count| *count <= MAX_RANGES)
            .ok_or_else(|| invalid("too many ranges"))
    };
    tail.extend_from_slice(&MAGIC);
    tail.extend_from_slice(&key.len.to_le_bytes());
    tail.extend_from_slice(&key.hash.to_le_bytes());
    tail.extend_from_slice(&content_hash.to_le_bytes());
    tail.extend_from_slice(&image.entry.to_le_bytes());
    tail.extend_from_slice(&count(image.segments.len())?.to_le_bytes());
    tail.extend_from_slice(&count(image.extents.len())?.to_le_bytes());
    let hash = xxh3_64(&tail);
    tail.extend_from_slice(&hash.to_le_bytes());
    file.write_all(&tail)
}

fn put_pair(bytes: &mut Vec<u8>, first: u64, second: u64) {
    bytes.extend_from_slice(&first.to_le_bytes());
    bytes.extend_from_slice(&second.to_le_bytes());
}

impl Entry {
    /// Reads table and footer of `file`, which must be the entry of `key`.
    ///
    /// # Errors
    /// What the host said, or `InvalidData`.
    pub fn open(file: File, key: Key) -> io::Result<Self> {
        let file_bytes = file.metadata()?.len();
        let footer_at = file_bytes
            .checked_sub(FOOTER_BYTES as u64)
            .ok_or_else(|| invalid("too short"))?;
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact_at(&mut footer, footer_at)?;
        if footer[..8] != MAGIC {
            return Err(invalid("not in this version's format"));
        }
        if (le64(&footer, 8), le128(&footer, 16)) != (key.len, key.hash) {
            return Err(invalid("made from another kernel"));
        }
        let (segments, extents) = (le32(&footer, 56), le32(&footer, 60));
        if segments > MAX_RANGES || extents > MAX_RANGES {
            return Err(invalid("absurd number of ranges"));
        }
        let segments = segments as usize * RANGE_BYTES;
        let table_bytes = segments + extents as usize * RANGE_BYTES;
        let content_bytes = footer_at
            .checked_sub(table_bytes as u64)
            .ok_or_else(|| invalid("too short"))?;
        let mut tail = vec![0; table_bytes];
        file.read_exact_at(&mut tail, content_bytes)?;
        tail.extend_from_slice(&footer[..FOOTER_BYTES - 8]);
        if xxh3_64(&tail) != le64(&footer, FOOTER_BYTES - 8) {
            return Err(invalid("damaged table"));
        }
        let image = parse_table(
            &tail[..segments],
            &tail[segments..table_bytes],
            le64(&footer, 48),
        );
        let described = image
            .extents
            .last()
            .map_or(0, |last| last.offset.saturating_add(last.len));
        if described != content_bytes {
            return Err(invalid("content and table do not agree"));
        }
        Ok(Self {
            file,
            image,
            content_hash: le128(&footer, 32),
            key,
            verified: None,
            recorded: false,
        })
    }

    /// The guest-physical address at which the kernel is entered.
    pub fn entry_point(&self) -> u64 {
        self.image.entry
    }

    /// What the host says the file is now.
    pub(super) fn ident(&self) -> io::Result<Ident> {
        Ident::of(&self.file)
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Loads the kernel into guest memory within `allowed`.
    ///
    /// A file that has not changed since its content was verified is read straight into guest memory; otherwise its
    /// content is hashed on the way.
    ///
    /// # Errors
    /// What the host said, or `InvalidData`; memory in `allowed` may be written then.
    pub fn load(
        &mut self,
        ram: &GuestRam,
        state: RamState,
        allowed: &Range<u64>,
    ) -> io::Result<()> {
        let inside = self
            .image
            .segments
            .iter()
            .all(|segment| allowed.start <= segment.start && segment.end <= allowed.end);
        if !inside || !self.image.fits(ram) {
            return Err(invalid("leaves the kernel's memory"));
        }
        let ident = self.ident()?;
        let verified = self.verified == Some(ident);
        let hash = self.copy(ram, !verified)?;
        if hash.is_some_and(|hash| hash != self.content_hash) {
            return Err(invalid("damaged content"));
        }
        self.verified = Some(ident);
        self.image.zero_gaps(ram, state)
    }

    /// Copies the content to guest memory and hashes it if asked to.
    ///
    /// From a mapping, which spares a copy: entries are ours alone, and replaced or removed but never cut short.
    fn copy(&self, ram: &GuestRam, hashed: bool) -> io::Result<Option<u128>> {
        let Some(last) = self.image.extents.last() else {
            return Ok(hashed.then(|| Xxh3::new().digest128()));
        };
        let len = usize::try_from(last.offset + last.len).map_err(|_| invalid("too large"))?;
        let file = FileOffset::new(self.file.try_clone()?, 0);
        let flags = libc::MAP_PRIVATE | libc::MAP_POPULATE;
        let mapping: MmapRegion =
            MmapRegion::build(Some(file), len, libc::PROT_READ, flags).map_err(io::Error::other)?;
        let mut hash = hashed.then(Xxh3::new);
        let mut buffer = [0; PIECE_BYTES];
        for extent in &self.image.extents {
            let mut done = 0;
            while done < extent.len {
                let piece =
                    usize::try_from(extent.len - done).map_or(PIECE_BYTES, |n| n.min(PIECE_BYTES));
                let offset =
                    usize::try_from(extent.offset + done).map_err(|_| invalid("too large"))?;
                mapping
                    .get_slice(offset, piece)
                    .map_err(io::Error::other)?
                    .copy_to(&mut buffer[..piece]);
                if let Some(hash) = &mut hash {
                    hash.update(&buffer[..piece]);
                }
                write_ram(ram, extent.addr + done, &buffer[..piece])?;
                done += piece as u64;
            }
        }
        Ok(hash.map(|hash| hash.digest128()))
    }
}

/// `segments` and `extents` are whole numbers of ranges. Sums that overflow saturate, and then fit nowhere.
fn parse_table(segments: &[u8], extents: &[u8], entry: u64) -> Image {
    let mut offset = 0u64;
    Image {
        entry,
        segments: segments
            .chunks_exact(RANGE_BYTES)
            .map(|range| le64(range, 0)..le64(range, 8))
            .collect(),
        extents: extents
            .chunks_exact(RANGE_BYTES)
            .map(|range| {
                let extent = Extent {
                    addr: le64(range, 0),
                    offset,
                    len: le64(range, 8),
                };
                offset = offset.saturating_add(extent.len);
                extent
            })
            .collect(),
    }
}
