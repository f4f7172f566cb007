//! The archive that the kernel unpacks into its first root: "newc" (kernel:
//! `driver-api/early-userspace/buffer-format.rst`).
//!
//! It is not compressed: unpacking would cost the guest more than copying costs the host.

use std::io::{self, Write};

use cpio::newc::{Builder, ModeFileType, trailer};

/// Archives begin at multiples of this, in bytes, when one follows another.
const ALIGNMENT_BYTES: u64 = 4;

/// Writes entries one after the other.
pub(super) struct Archive<W: Write> {
    writer: W,
    /// Distinct numbers: what has the same one would be links to one file.
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// An archive that begins where `writer` is, at a multiple of 4 bytes.
    pub fn new(writer: W) -> Self {
        Self { writer, entries: 0 }
    }

    fn builder(&mut self, path: &str, mode: u32, kind: ModeFileType) -> Builder {
        self.entries += 1;
        Builder::new(path.trim_start_matches('/'))
            .ino(self.entries)
            .mode(mode)
            .set_mode_file_type(kind)
    }

    /// Adds a folder. Those above it come before.
    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        let entry = self.builder(path, 0o755, ModeFileType::Directory);
        entry.nlink(2).write(&mut self.writer, 0).finish().map(drop)
    }

    /// Adds a file with those permissions.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        let len = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "4 GiB or more"))?;
        let entry = self.builder(path, permissions, ModeFileType::Regular);
        let mut entry = entry.write(&mut self.writer, len);
        entry.write_all(content)?;
        entry.finish().map(drop)
    }

    /// Adds the device file of a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        let entry = self.builder(path, 0o600, ModeFileType::Char);
        let entry = entry.rdev_major(major).rdev_minor(minor);
        entry.write(&mut self.writer, 0).finish().map(drop)
    }

    /// Ends the archive.
    pub fn finish(self) -> io::Result<W> {
        trailer(self.writer)
    }
}

/// How many zeros go between something of that length and an archive after it.
pub(super) fn padding_bytes(len: u64) -> u64 {
    len.next_multiple_of(ALIGNMENT_BYTES) - len
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::io::{Cursor, Read};

    #[test]
    fn what_is_written_is_read_back() {
        let mut archive = Archive::new(Vec::new());
        archive.folder("/tripath").unwrap();
        archive.file("/tripath/init", 0o755, b"12345").unwrap();
        archive.file("/tripath/empty", 0o644, b"").unwrap();
        archive.character_device("/dev/console", 5, 1).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);

        let mut rest = Cursor::new(bytes);
        let mut entries = Vec::new();
        loop {
            let mut entry = Reader::new(rest).unwrap();
            if entry.entry().is_trailer() {
                break;
            }
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let header = entry.entry().clone();
            let device = (header.rdev_major(), header.rdev_minor());
            entries.push((header.name().to_owned(), header.mode(), device, content));
            rest = entry.finish().unwrap();
        }
        let entry = |name: &str, mode, device, content: &[u8]| {
            (name.to_owned(), mode, device, content.to_vec())
        };
        assert_eq!(
            entries,
            [
                entry("tripath", 0o040_755, (0, 0), b""),
                entry("tripath/init", 0o100_755, (0, 0), b"12345"),
                entry("tripath/empty", 0o100_644, (0, 0), b""),
                entry("dev/console", 0o020_600, (5, 1), b""),
            ]
        );
    }

    #[test]
    fn archives_are_aligned() {
        assert_eq!([0, 1, 2, 3, 4, 5].map(padding_bytes), [0, 3, 2, 1, 0, 3]);
    }
}
