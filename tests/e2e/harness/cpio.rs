//! Writes the "newc" archives that the kernel unpacks as an initramfs (kernel: `driver-api/early-userspace/
//! buffer-format.rst`). Several may follow one another, each at a multiple of 4 bytes; later files replace earlier.

/// Appends an archive with these files, all executable, to `image`.
pub fn append(image: &mut Vec<u8>, files: &[(&str, &str)]) {
    pad(image);
    for (index, (name, content)) in files.iter().enumerate() {
        entry(image, index + 1, name, 0o100_755, content.as_bytes());
    }
    entry(image, 0, "TRAILER!!!", 0, b"");
    pad(image);
}

fn entry(image: &mut Vec<u8>, inode: usize, name: &str, mode: u32, content: &[u8]) {
    // inode, mode, uid, gid, links, mtime, size, device ×2, special device ×2, length of the name, checksum
    let header = format!(
        "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
        0,
        0,
        1,
        0,
        content.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    );
    image.extend(header.as_bytes());
    image.extend(name.as_bytes());
    image.push(0);
    pad(image);
    image.extend(content);
    pad(image);
}

fn pad(image: &mut Vec<u8>) {
    image.resize(image.len().next_multiple_of(4), 0);
}
