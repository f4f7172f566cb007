//! The image of a disk as the guest's root: which partition, and which file system is on it.
//!
//! The host looks, so that the guest's init needs to know nothing of partition tables and superblocks.

mod superblock;
mod table;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;

use thiserror::Error;

use super::error::{self, GuestError};
pub(super) use superblock::FileSystem;
use superblock::Superblock;

/// Which partition of a disk is the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Partition {
    /// The whole disk if a file system is on it, else the only partition with one that a root could be.
    #[default]
    Automatic,
    /// By its number, from 1.
    Number(u32),
    /// By the label of its file system.
    Label(String),
    /// By the UUID of its file system.
    Uuid(String),
    /// By its own UUID in the partition table; in an MBR the disk's signature and the number, `1a2b3c4d-01`.
    PartUuid(String),
}

/// A text that says no partition.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("partition {0}: expected a number from 1, LABEL=…, UUID=… or PARTUUID=…")]
pub struct PartitionError(String);

impl FromStr for Partition {
    type Err = PartitionError;

    fn from_str(text: &str) -> Result<Self, PartitionError> {
        let wrong = || PartitionError(text.to_owned());
        match text.split_once('=') {
            Some((_, "")) => Err(wrong()),
            Some(("LABEL", label)) => Ok(Self::Label(label.to_owned())),
            Some(("UUID", uuid)) => Ok(Self::Uuid(uuid.to_owned())),
            Some(("PARTUUID", uuid)) => Ok(Self::PartUuid(uuid.to_owned())),
            Some(_) => Err(wrong()),
            None => match text.parse() {
                Ok(0) | Err(_) => Err(wrong()),
                Ok(number) => Ok(Self::Number(number)),
            },
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Automatic => Ok(()),
            Self::Number(number) => number.fmt(f),
            Self::Label(label) => write!(f, "LABEL={label}"),
            Self::Uuid(uuid) => write!(f, "UUID={uuid}"),
            Self::PartUuid(uuid) => write!(f, "PARTUUID={uuid}"),
        }
    }
}

/// What becomes the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RootPartition {
    /// The partition's number; none for the whole disk.
    pub number: Option<u32>,
    /// What is on it.
    pub file_system: FileSystem,
}

/// A place on the disk where the root may be.
#[derive(Debug)]
struct Candidate {
    number: Option<u32>,
    part_uuid: Option<String>,
    superblock: Option<Superblock>,
}

/// Finds the partition.
pub(super) fn find_root(path: &Path, wanted: &Partition) -> Result<RootPartition, GuestError> {
    let file = File::open(path).map_err(error::read(path))?;
    if is_qcow2(&file).map_err(error::read(path))? {
        return Err(GuestError::Qcow2(path.to_owned()));
    }
    let candidates = candidates(&file).map_err(error::read(path))?;
    choose(path, wanted, &candidates)
}

fn is_qcow2(file: &File) -> io::Result<bool> {
    let mut magic = [0; 4];
    let len = file.read_at(&mut magic, 0)?;
    Ok(magic[..len] == *b"QFI\xfb")
}

/// The whole disk if there is a file system on it, else its partitions.
fn candidates(file: &File) -> io::Result<Vec<Candidate>> {
    let whole = superblock::probe(file, 0)?;
    if whole.is_some() {
        return Ok(vec![Candidate {
            number: None,
            part_uuid: None,
            superblock: whole,
        }]);
    }
    table::read(file)?
        .into_iter()
        .map(|entry| {
            Ok(Candidate {
                number: Some(entry.number),
                part_uuid: Some(entry.uuid),
                superblock: superblock::probe(file, entry.offset_bytes)?,
            })
        })
        .collect()
}

fn choose(
    image: &Path,
    wanted: &Partition,
    candidates: &[Candidate],
) -> Result<RootPartition, GuestError> {
    let matching: Vec<&Candidate> = candidates
        .iter()
        .filter(|candidate| candidate.is(wanted))
        .collect();
    let image = image.to_owned();
    match matching[..] {
        [one] => match &one.superblock {
            Some(superblock) => Ok(RootPartition {
                number: one.number,
                file_system: superblock.file_system,
            }),
            None => Err(GuestError::NoFileSystem {
                image,
                partition: one.text(),
            }),
        },
        [] => Err(GuestError::NoPartition {
            image,
            wanted: wanted.text(),
            found: text(candidates),
        }),
        _ => Err(GuestError::SeveralPartitions {
            image,
            wanted: wanted.text(),
            found: text(matching),
        }),
    }
}

impl Partition {
    fn text(&self) -> String {
        match self {
            Self::Automatic => {
                "file system of a known kind (ext2 to ext4, xfs, btrfs, squashfs, erofs)".to_owned()
            }
            Self::Number(number) => format!("partition {number}"),
            Self::Label(label) => format!("partition LABEL={label}"),
            Self::Uuid(uuid) => format!("partition UUID={uuid}"),
            Self::PartUuid(uuid) => format!("partition PARTUUID={uuid}"),
        }
    }
}

impl Candidate {
    fn is(&self, wanted: &Partition) -> bool {
        let of_superblock =
            |part: fn(&Superblock) -> Option<&String>| self.superblock.as_ref().and_then(part);
        let is_uuid = |known: Option<&String>, wanted: &str| {
            known.is_some_and(|known| plain(known) == plain(wanted))
        };
        match wanted {
            Partition::Automatic => self.superblock.is_some(),
            Partition::Number(number) => self.number == Some(*number),
            Partition::Label(label) => of_superblock(|block| block.label.as_ref()) == Some(label),
            Partition::Uuid(uuid) => is_uuid(of_superblock(|block| block.uuid.as_ref()), uuid),
            Partition::PartUuid(uuid) => is_uuid(self.part_uuid.as_ref(), uuid),
        }
    }

    fn text(&self) -> String {
        let place = match self.number {
            None => "the whole disk".to_owned(),
            Some(number) => format!("partition {number}"),
        };
        let Some(block) = &self.superblock else {
            return place;
        };
        let kind = block.file_system.name();
        match &block.label {
            Some(label) => format!("{place} ({kind}, LABEL={label})"),
            None => format!("{place} ({kind})"),
        }
    }
}

/// UUIDs are written with and without capitals.
fn plain(uuid: &str) -> String {
    uuid.to_ascii_lowercase()
}

fn text<'a>(candidates: impl IntoIterator<Item = &'a Candidate>) -> String {
    let texts: Vec<String> = candidates.into_iter().map(Candidate::text).collect();
    match texts.is_empty() {
        true => "no partition".to_owned(),
        false => texts.join(", "),
    }
}

#[cfg(test)]
mod tests;
