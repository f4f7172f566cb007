//! The partitions of a disk, GPT or MBR, numbered as Linux does.
//!
//! They are read here: of the crates, those for the MBR depend on an encoder that is no longer looked after, and that
//! for the GPT panics at a table whose entries are larger than usual.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::superblock::uuid_text;

const SECTOR_BYTES: u64 = 512;
const RECORD_BYTES: usize = 512;
/// Offsets in a boot record (UEFI specification 2.10, 5.2.1).
const SIGNATURE_AT: usize = 440;
const ENTRIES_AT: usize = 446;
const ENTRY_BYTES: usize = 16;
const MAGIC_AT: usize = 510;
/// Offsets in a GPT's header and entries (UEFI specification 2.10, 5.3.2 and 5.3.3), and how many entries are looked
/// at, which is as many as Linux has numbers for.
const GPT_MAGIC: &[u8] = b"EFI PART";
const GPT_ENTRIES_SECTOR_AT: usize = 72;
const GPT_COUNT_AT: usize = 80;
const GPT_ENTRY_BYTES_AT: usize = 84;
const GPT_FIRST_SECTOR_AT: usize = 32;
const GPT_ENTRY_USED_BYTES: usize = 40;
const MAX_GPT_ENTRIES: u32 = 256;
/// Beyond it no file has anything, and reading is an error.
const MAX_OFFSET: u64 = 1 << 62;
/// Kinds of partition that hold others.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The first number of those within an extended one, and how many records are looked at: they may form a circle.
const FIRST_LOGICAL: u32 = 5;
const MAX_LOGICAL: u32 = 60;

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// From 1.
    pub number: u32,
    /// Where it begins.
    pub offset_bytes: u64,
    /// Linux's `PARTUUID`.
    pub uuid: String,
}

/// Reads the table; no entries if there is none.
pub fn read(file: &File) -> io::Result<Vec<Entry>> {
    match read_gpt(file)? {
        Some(entries) => Ok(entries),
        None => read_mbr(file),
    }
}

/// Reads as much as fills `bytes`; false if the file ends before.
fn read_whole(file: &File, bytes: &mut [u8], offset_bytes: u64) -> io::Result<bool> {
    match file.read_exact_at(bytes, offset_bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        result => result.map(|()| true),
    }
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

/// The entries of a GPT; none if there is no GPT. Its checksums are the guest's kernel's to check: without them there
/// is no such partition in the guest, which says so.
fn read_gpt(file: &File) -> io::Result<Option<Vec<Entry>>> {
    let mut header = [0; RECORD_BYTES];
    if !read_whole(file, &mut header, SECTOR_BYTES)? || !header.starts_with(GPT_MAGIC) {
        return Ok(None);
    }
    let first = le64(&header, GPT_ENTRIES_SECTOR_AT).checked_mul(SECTOR_BYTES);
    let count = le32(&header, GPT_COUNT_AT).min(MAX_GPT_ENTRIES);
    let stride = u64::from(le32(&header, GPT_ENTRY_BYTES_AT));
    let mut entries = Vec::new();
    for index in 0..count {
        let mut bytes = [0; GPT_ENTRY_USED_BYTES];
        let at = first.and_then(|first| first.checked_add(u64::from(index) * stride));
        let Some(at) = at.filter(|&at| at < MAX_OFFSET) else {
            break;
        };
        if !read_whole(file, &mut bytes, at)? {
            break;
        }
        // An entry without a type is empty.
        if bytes[..16] == [0; 16] {
            continue;
        }
        let offset_bytes = le64(&bytes, GPT_FIRST_SECTOR_AT).checked_mul(SECTOR_BYTES);
        if let Some(offset_bytes) = offset_bytes.filter(|&at| at < MAX_OFFSET) {
            entries.push(Entry {
                number: index + 1,
                offset_bytes,
                uuid: guid_text(&bytes[16..32]),
            });
        }
    }
    Ok(Some(entries))
}

/// A GUID's first three parts are little-endian numbers (UEFI specification 2.10, appendix A).
fn guid_text(bytes: &[u8]) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    uuid_text(&order.map(|at| bytes[at]))
}

/// One of the four entries of a boot record.
struct Slot {
    kind: u8,
    first_sector: u64,
}

/// The signature and the entries of a boot record; none if it is none.
fn boot_record(file: &File, sector: u64) -> io::Result<Option<(u32, [Slot; 4])>> {
    let mut bytes = [0; RECORD_BYTES];
    if !read_whole(file, &mut bytes, sector * SECTOR_BYTES)? {
        return Ok(None);
    }
    if bytes[MAGIC_AT..] != [0x55, 0xaa] {
        return Ok(None);
    }
    let slots = [0, 1, 2, 3].map(|index| {
        let at = ENTRIES_AT + index * ENTRY_BYTES;
        let is_empty = le32(&bytes, at + 12) == 0;
        Slot {
            kind: if is_empty { 0 } else { bytes[at + 4] },
            first_sector: u64::from(le32(&bytes, at + 8)),
        }
    });
    Ok(Some((le32(&bytes, SIGNATURE_AT), slots)))
}

fn read_mbr(file: &File) -> io::Result<Vec<Entry>> {
    let Some((signature, slots)) = boot_record(file, 0)? else {
        return Ok(Vec::new());
    };
    let entry = |number, first_sector| Entry {
        number,
        offset_bytes: first_sector * SECTOR_BYTES,
        uuid: format!("{signature:08x}-{number:02x}"),
    };
    let mut entries = Vec::new();
    let mut extended = None;
    for (number, slot) in (1..).zip(&slots) {
        if EXTENDED.contains(&slot.kind) {
            extended = Some(slot.first_sector);
        } else if slot.kind != 0 {
            entries.push(entry(number, slot.first_sector));
        }
    }
    let Some(base) = extended else {
        return Ok(entries);
    };
    // Each logical one has a record before it, which has a slot for it, relative to the record, and one for the next
    // record, relative to the whole.
    let mut number = FIRST_LOGICAL;
    let mut next = Some(base);
    for _ in 0..MAX_LOGICAL {
        let Some(at) = next.take() else { break };
        let Some((_, slots)) = boot_record(file, at)? else {
            break;
        };
        for slot in &slots {
            if EXTENDED.contains(&slot.kind) {
                next = Some(base + slot.first_sector);
            } else if slot.kind != 0 {
                entries.push(entry(number, at + slot.first_sector));
                number += 1;
            }
        }
    }
    Ok(entries)
}
