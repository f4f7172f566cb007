//! The partitions of a disk, GPT or MBR, numbered as Linux does.
//!
//! The MBR is read here: the crates for it depend on an encoder that is no longer looked after.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use gpt::GptConfig;

const SECTOR_BYTES: u64 = 512;
const RECORD_BYTES: usize = 512;
/// Offsets in a boot record (UEFI specification 2.10, 5.2.1).
const SIGNATURE_AT: usize = 440;
const ENTRIES_AT: usize = 446;
const ENTRY_BYTES: usize = 16;
const MAGIC_AT: usize = 510;
/// Kinds of partition that hold others.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The first number of those within an extended one, and how many are looked at: the chain may be a circle.
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
    let gpt = GptConfig::new()
        .writable(false)
        .open_from_device(file.try_clone()?);
    let Ok(gpt) = gpt else {
        return read_mbr(file);
    };
    let entries = gpt.partitions().iter().filter_map(|(&number, partition)| {
        Some(Entry {
            number,
            offset_bytes: partition.first_lba.checked_mul(SECTOR_BYTES)?,
            uuid: partition.part_guid.to_string(),
        })
    });
    Ok(entries.collect())
}

/// One of the four entries of a boot record.
struct Slot {
    kind: u8,
    first_sector: u64,
}

/// The signature and the entries of a boot record; none if it is none.
fn boot_record(file: &File, sector: u64) -> io::Result<Option<(u32, [Slot; 4])>> {
    let mut bytes = [0; RECORD_BYTES];
    match file.read_exact_at(&mut bytes, sector * SECTOR_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    if bytes[MAGIC_AT..] != [0x55, 0xaa] {
        return Ok(None);
    }
    let number =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let slots = [0, 1, 2, 3].map(|index| {
        let at = ENTRIES_AT + index * ENTRY_BYTES;
        let is_empty = number(at + 12) == 0;
        Slot {
            kind: if is_empty { 0 } else { bytes[at + 4] },
            first_sector: u64::from(number(at + 8)),
        }
    });
    Ok(Some((number(SIGNATURE_AT), slots)))
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
    let mut record = Some(base);
    while let Some(at) = record.take()
        && number < FIRST_LOGICAL + MAX_LOGICAL
    {
        let Some((_, slots)) = boot_record(file, at)? else {
            break;
        };
        for slot in &slots {
            if EXTENDED.contains(&slot.kind) {
                record = Some(base + slot.first_sector);
            } else if slot.kind != 0 {
                entries.push(entry(number, at + slot.first_sector));
                number += 1;
            }
        }
    }
    Ok(entries)
}
