//! A file's attributes, as the guest is told them.

use std::collections::HashMap;

use fuse_abi::linux::{fuse_attr, fuse_kstatfs};
use rustix::fs::{StatFs, Statx};

/// Where the number of the file system begins in an inode number.
const DEVICE_SHIFT: u32 = 48;

/// The inode numbers that the guest sees. The share is one file system to it, whatever is mounted below it on the host:
/// numbers of those mounts are moved apart. (Sub-mounts, which FUSE has too, cannot be below an overlay.)
#[derive(Debug, Default)]
pub(super) struct InodeNumbers {
    by_device: HashMap<(u32, u32), u16>,
}

impl InodeNumbers {
    /// The number for inode `inode` of the file system with that device number. The first file system that is asked for
    /// keeps its numbers.
    pub fn number(&mut self, device: (u32, u32), inode: u64) -> u64 {
        // There are never that many file systems; those beyond would share a number.
        let next = u16::try_from(self.by_device.len()).unwrap_or(u16::MAX);
        let index = if next == u16::MAX {
            self.by_device.get(&device).copied().unwrap_or(next)
        } else {
            *self.by_device.entry(device).or_insert(next)
        };
        inode.wrapping_add(u64::from(index) << DEVICE_SHIFT)
    }
}

/// `struct fuse_attr` of a file with that status, which the guest sees as inode `number`.
pub(super) fn attributes(status: &Statx, number: u64) -> fuse_attr {
    fuse_attr {
        ino: number,
        size: status.stx_size,
        blocks: status.stx_blocks,
        // The guest takes them for signed again.
        atime: status.stx_atime.tv_sec.cast_unsigned(),
        mtime: status.stx_mtime.tv_sec.cast_unsigned(),
        ctime: status.stx_ctime.tv_sec.cast_unsigned(),
        atimensec: status.stx_atime.tv_nsec,
        mtimensec: status.stx_mtime.tv_nsec,
        ctimensec: status.stx_ctime.tv_nsec,
        mode: status.stx_mode.into(),
        nlink: status.stx_nlink,
        uid: status.stx_uid,
        gid: status.stx_gid,
        rdev: encode_device(status.stx_rdev_major, status.stx_rdev_minor),
        blksize: status.stx_blksize,
        flags: 0,
    }
}

/// A device number as Linux writes it in 32 bits (`new_encode_dev` of `linux/kdev_t.h`).
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// `struct fuse_kstatfs`. To the guest nothing is free, as it cannot write.
pub(super) fn file_system(status: &StatFs) -> fuse_kstatfs {
    // The kernel's fields are signed, its values are not.
    let narrow = |value: i64| u32::try_from(value).unwrap_or(4096);
    fuse_kstatfs {
        blocks: status.f_blocks,
        bfree: 0,
        bavail: 0,
        files: status.f_files,
        ffree: 0,
        bsize: narrow(status.f_bsize),
        namelen: narrow(status.f_namelen),
        frsize: narrow(status.f_frsize),
        ..fuse_kstatfs::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_those_of_the_host() {
        // 8:1 is 0x801 with 8 bits each, and the rest is above.
        assert_eq!(encode_device(8, 1), 0x801);
        assert_eq!(encode_device(259, 0x12345), 0x1231_0345);
    }

    #[test]
    fn file_systems_are_told_apart() {
        let mut numbers = InodeNumbers::default();
        assert_eq!(numbers.number((8, 1), 7), 7);
        assert_eq!(numbers.number((8, 2), 7), 7 + (1 << 48));
        assert_eq!(numbers.number((8, 1), 7), 7);
        for minor in 0..0x2_0000 {
            numbers.number((9, minor), u64::MAX);
        }
        assert_eq!(numbers.by_device.len(), usize::from(u16::MAX));
        assert_eq!(numbers.number((8, 2), 7), 7 + (1 << 48));
    }
}
