//! What file system begins at a place of a disk, with its label and UUID.
//!
//! The crates that know this are bindings of libblkid; the few kinds that a root may have need little.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A kind of file system that the guest's root may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext2, ext3 or ext4: one driver.
    Ext,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// Squashfs 4, always read-only.
    Squashfs,
    /// EROFS, always read-only.
    Erofs,
}

impl FileSystem {
    /// Whether no guest can write to it.
    pub fn is_always_read_only(self) -> bool {
        matches!(self, Self::Squashfs | Self::Erofs)
    }

    /// The kernel's name for it, which is that of its module too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
        }
    }
}

/// What a superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The kind.
    pub file_system: FileSystem,
    /// The user's name for it, if it has one.
    pub label: Option<String>,
    /// In the usual form with hyphens; none if the kind has none.
    pub uuid: Option<String>,
}

/// Where a kind keeps what; offsets in bytes from the beginning of the file system.
struct Layout {
    file_system: FileSystem,
    magic: (usize, &'static [u8]),
    uuid: Option<usize>,
    /// Offset, and length at most.
    label: Option<(usize, usize)>,
}

/// Kernel: `Documentation/filesystems/ext4/super.rst`; `fs/xfs/libxfs/xfs_format.h`, `xfs_dsb`;
/// `include/uapi/linux/btrfs_tree.h`, `btrfs_super_block`; `fs/squashfs/squashfs_fs.h`; `fs/erofs/erofs_fs.h`.
const LAYOUTS: [Layout; 5] = [
    Layout {
        file_system: FileSystem::Ext,
        magic: (0x438, b"\x53\xef"),
        uuid: Some(0x468),
        label: Some((0x478, 16)),
    },
    Layout {
        file_system: FileSystem::Xfs,
        magic: (0, b"XFSB"),
        uuid: Some(32),
        label: Some((108, 12)),
    },
    Layout {
        file_system: FileSystem::Btrfs,
        magic: (0x1_0040, b"_BHRfS_M"),
        uuid: Some(0x1_0020),
        label: Some((0x1_012b, 256)),
    },
    Layout {
        file_system: FileSystem::Squashfs,
        magic: (0, b"hsqs"),
        uuid: None,
        label: None,
    },
    Layout {
        file_system: FileSystem::Erofs,
        magic: (0x400, b"\xe2\xe1\xf5\xe0"),
        uuid: Some(0x430),
        label: Some((0x440, 16)),
    },
];

/// The last of the superblocks, Btrfs's, ends before.
const PROBE_BYTES: usize = 0x1_1000;

/// Looks for a superblock at that offset. What lies behind the file's end is zeros.
pub fn probe(file: &File, offset_bytes: u64) -> io::Result<Option<Superblock>> {
    let mut bytes = vec![0; PROBE_BYTES];
    let mut len = 0;
    while len < bytes.len() {
        let Some(at) = offset_bytes.checked_add(len as u64) else {
            break;
        };
        match file.read_at(&mut bytes[len..], at)? {
            0 => break,
            read => len += read,
        }
    }
    let layout = LAYOUTS.iter().find(|layout| {
        let (at, magic) = layout.magic;
        bytes[at..].starts_with(magic)
    });
    Ok(layout.map(|layout| Superblock {
        file_system: layout.file_system,
        label: layout
            .label
            .and_then(|(at, len)| label_text(&bytes[at..at + len])),
        uuid: layout.uuid.map(|at| uuid_text(&bytes[at..at + 16])),
    }))
}

fn label_text(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|&byte| byte == 0).next()?;
    let text = String::from_utf8_lossy(text);
    (!text.is_empty()).then(|| text.into_owned())
}

/// 16 bytes in the usual form with hyphens.
pub fn uuid_text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
