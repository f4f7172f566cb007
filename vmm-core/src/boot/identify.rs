//! What a file is that is not a kernel, so that the user need not guess.

/// Bytes of the file's start that the guesses below look at.
pub(super) const HEAD_BYTES: usize = 4096;

const MAGICS: &[(usize, &[u8], &str)] = &[
    (0x38, b"ARM\x64", "an arm64 Linux image"),
    (0x38, b"RSC\x05", "a RISC-V Linux image"),
    (4, b"zimg", "an EFI zboot image, of another architecture"),
    (0, b"\x1f\x8b", "a gzip file: unpack it first"),
    (0, b"\xfd7zXZ\0", "an xz file: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file: unpack it first"),
    (0, b"\x02\x21\x4c\x18", "an lz4 file: unpack it first"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file: unpack it first"),
    (0, b"BZh", "a bzip2 file: unpack it first"),
    (0, b"PK\x03\x04", "a zip archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"070701", "a cpio archive, such as an initramfs"),
    (0, b"!<arch>\n", "a Debian package or ar archive"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"hsqs", "a squashfs file system"),
    (0x438, b"\x53\xef", "an ext file system"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"MZ", "an EFI or Windows program, not a bare kernel"),
    (0, b"#!", "a script"),
    (510, b"\x55\xaa", "a disk image or boot sector"),
];

/// Says what a file with this start is, as in "is a gzip file".
pub(super) fn looks_like(head: &[u8]) -> String {
    let known = MAGICS.iter().find(|(offset, magic, _)| {
        head.get(*offset..offset + magic.len())
            .is_some_and(|bytes| bytes == *magic)
    });
    if let Some((_, _, name)) = known {
        return format!("is {name}");
    }
    if head.iter().all(|&byte| byte == 0) {
        return "starts with zeros only".into();
    }
    if head
        .iter()
        .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    {
        return "is a text file".into();
    }
    let start: Vec<_> = head
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        "is of no known format (it starts with bytes {})",
        start.join(" ")
    )
}

/// Name of an ELF machine (`e_machine`), for those that a user may have at hand.
pub(super) fn elf_machine(machine: u16) -> String {
    match machine {
        3 => "32-bit x86".into(),
        8 => "MIPS".into(),
        20 | 21 => "PowerPC".into(),
        22 => "s390".into(),
        40 => "32-bit ARM".into(),
        183 => "arm64".into(),
        243 => "RISC-V".into(),
        258 => "LoongArch".into(),
        other => format!("machine type {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_users_confuse_with_a_kernel() {
        let at = |offset: usize, magic: &[u8]| {
            let mut head = vec![0x80; 2048];
            head[offset..offset + magic.len()].copy_from_slice(magic);
            looks_like(&head)
        };
        assert_eq!(at(0, b"\x1f\x8b"), "is a gzip file: unpack it first");
        assert_eq!(at(0x38, b"ARM\x64"), "is an arm64 Linux image");
        assert_eq!(at(0, b"QFI\xfb"), "is a qcow2 disk image");
        assert_eq!(at(510, b"\x55\xaa"), "is a disk image or boot sector");
        assert_eq!(at(0, b"070701"), "is a cpio archive, such as an initramfs");
        assert_eq!(looks_like(b"hello\n"), "is a text file");
        assert_eq!(looks_like(&[0; 64]), "starts with zeros only");
        assert_eq!(
            looks_like(&[1, 2, 3]),
            "is of no known format (it starts with bytes 01 02 03)"
        );
    }
}
