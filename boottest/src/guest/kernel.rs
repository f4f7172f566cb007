//! Which version a kernel is.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The header's magic and the offset of the version's text less 0x200 (kernel: `arch/x86/boot.rst`, "HdrS" and
/// `kernel_version`).
const MAGIC_AT: usize = 0x202;
const VERSION_AT: usize = 0x20e;
const HEADER_BYTES: usize = VERSION_AT + 2;
const SECTOR_BYTES: u64 = 0x200;
/// The text begins with what `uname -r` says, of at most 64 bytes.
const MAX_RELEASE_BYTES: usize = 64;
/// What every Linux says of itself, uncompressed, and how far an ELF file is looked through for it.
const BANNER: &[u8] = b"Linux version ";
const MAX_ELF_BYTES: u64 = 1 << 30;

/// What `uname -r` says on this kernel, as far as its file shows: a bzImage's header, or the text in an ELF `vmlinux`.
///
/// # Errors
/// The file cannot be read.
pub(super) fn release(path: &Path) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let mut header = [0; HEADER_BYTES];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    if header.starts_with(b"\x7fELF") {
        return banner(file);
    }
    let pointer = u16::from_le_bytes([header[VERSION_AT], header[VERSION_AT + 1]]);
    if &header[MAGIC_AT..MAGIC_AT + 4] != b"HdrS" || pointer == 0 {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(u64::from(pointer) + SECTOR_BYTES))?;
    let mut text = Vec::new();
    file.take(MAX_RELEASE_BYTES as u64 + 1)
        .read_to_end(&mut text)?;
    Ok(first_word(&text))
}

/// A version has no blanks and no slashes: it is part of a path.
fn first_word(text: &[u8]) -> Option<String> {
    let end = text
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\0' | b'\n'))?;
    let word = std::str::from_utf8(&text[..end]).ok()?;
    let is_version = word.starts_with(|first: char| first.is_ascii_digit()) && !word.contains('/');
    is_version.then(|| word.to_owned())
}

fn banner(file: File) -> io::Result<Option<String>> {
    let mut reader = BufReader::with_capacity(1 << 16, file.take(MAX_ELF_BYTES));
    let mut line = Vec::new();
    // Up to each space: the banner's words stand in one piece.
    loop {
        line.clear();
        if reader.by_ref().take(1 << 20).read_until(b' ', &mut line)? == 0 {
            return Ok(None);
        }
        if !line.ends_with(&BANNER[..6]) {
            continue;
        }
        line.clear();
        reader.by_ref().take(64).read_until(b' ', &mut line)?;
        if line != BANNER[6..] {
            continue;
        }
        line.clear();
        reader
            .by_ref()
            .take(MAX_RELEASE_BYTES as u64 + 1)
            .read_until(b' ', &mut line)?;
        if let Some(release) = first_word(&line) {
            return Ok(Some(release));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn release_of(content: &[u8]) -> Option<String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        release(file.path()).unwrap()
    }

    fn bzimage(version: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(b"HdrS");
        image[VERSION_AT..VERSION_AT + 2].copy_from_slice(&0x123_u16.to_le_bytes());
        image.truncate(0x323);
        image.extend(version);
        image
    }

    #[test]
    fn a_bzimages_header_says_it() {
        let image = bzimage(b"6.1.0-56-cloud-amd64 (debian@lists) #1 SMP\0");
        assert_eq!(release_of(&image).unwrap(), "6.1.0-56-cloud-amd64");
        assert_eq!(release_of(&bzimage(b"6.12.117\0")).unwrap(), "6.12.117");
    }

    #[test]
    fn an_elf_files_text_says_it() {
        let mut image = b"\x7fELF".to_vec();
        image.extend([b'.'; 0x10000 - 9]);
        image.extend(b"Linux Linux version %s Linux version 6.18.44+ (a@b) #1\n");
        assert_eq!(release_of(&image).unwrap(), "6.18.44+");
        image.truncate(image.len() - 24);
        assert_eq!(release_of(&image), None);
    }

    #[test]
    fn what_is_no_version_is_none() {
        for text in [
            &b""[..],
            b"../../etc \0",
            b"6.1/2 \0",
            &[b'6'; 80],
            b"\xff1 ",
        ] {
            assert_eq!(release_of(&bzimage(text)), None, "{text:?}");
        }
        assert_eq!(release_of(b"short"), None);
        assert_eq!(release_of(&vec![0; 0x1000]), None);
    }
}
