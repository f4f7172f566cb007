//! The entries of a directory, as FUSE has them: `struct fuse_dirent`, or `struct fuse_direntplus`, each with the name
//! behind it and padded to eight bytes (`linux/fuse.h`).

use fuse_abi::linux::fuse_entry_out;
use zerocopy::IntoBytes;

/// `struct fuse_dirent` without its name.
const DIRENT_BYTES: usize = 24;
/// Its alignment, `FUSE_DIRENT_ALIGN`.
const ALIGNMENT: usize = 8;

/// How much longer an entry with attributes is than the host's, which has none.
const PLUS_FACTOR: usize = 5;
/// A buffer in which any entry of the host fits, in bytes.
const MIN_HOST_BYTES: usize = 512;

/// One entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    /// Inode number.
    pub number: u64,
    /// Where the next entry is.
    pub next_offset: u64,
    /// Kind of file: bits 12 to 15 of its mode.
    pub kind: u32,
    pub name: &'a [u8],
}

/// A reply to `FUSE_READDIR` or `FUSE_READDIRPLUS` that is being filled.
#[derive(Debug)]
pub(super) struct Listing {
    bytes: Vec<u8>,
    room_bytes: usize,
    plus: bool,
}

impl Listing {
    /// Room for `room_bytes`; `plus` for entries that come with their attributes.
    pub fn new(room_bytes: usize, plus: bool) -> Self {
        Self {
            bytes: Vec::new(),
            room_bytes,
            plus,
        }
    }

    /// Whether an entry with a name of that length fits.
    pub fn fits(&self, name_bytes: usize) -> bool {
        let more = if self.plus {
            size_of::<fuse_entry_out>()
        } else {
            0
        };
        let len = (more + DIRENT_BYTES + name_bytes).next_multiple_of(ALIGNMENT);
        self.bytes.len() + len <= self.room_bytes
    }

    /// Adds an entry that fits, with `attributes` if they are wanted; the default says nothing of the file.
    pub fn push(&mut self, entry: Entry<'_>, attributes: fuse_entry_out) {
        if self.plus {
            self.bytes.extend_from_slice(attributes.as_bytes());
        }
        // Names have 255 bytes at most.
        let name_bytes = u32::try_from(entry.name.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(entry.number.as_bytes());
        self.bytes.extend_from_slice(entry.next_offset.as_bytes());
        self.bytes.extend_from_slice(name_bytes.as_bytes());
        self.bytes.extend_from_slice(entry.kind.as_bytes());
        self.bytes.extend_from_slice(entry.name);
        let padded = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(padded, 0);
    }

    /// Whether entries come with attributes.
    pub fn is_plus(&self) -> bool {
        self.plus
    }

    /// A good size for the buffer that the host's entries are read into: what does not fit here was read in vain.
    pub fn host_bytes(&self) -> usize {
        let factor = if self.plus { PLUS_FACTOR } else { 1 };
        (self.room_bytes / factor).max(MIN_HOST_BYTES)
    }

    /// Nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The reply.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
