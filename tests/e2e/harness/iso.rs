//! A CD image with files in its root folder (ECMA-119), so that no tool for making one is needed.

use std::path::Path;

use anyhow::{Result, ensure};

const BLOCK: usize = 2048;
const TERMINATOR: usize = 17;
const PATH_TABLE: usize = 18;
const ROOT: usize = 20;
const FIRST_FILE: usize = 21;

/// A number in both byte orders (ECMA-119, 7.3.3).
fn both(value: usize) -> Result<[u8; 8]> {
    let value = u32::try_from(value)?;
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_be_bytes());
    Ok(bytes)
}

/// A directory record (9.1).
fn record(name: &[u8], block: usize, len: usize, folder: bool) -> Result<Vec<u8>> {
    let size = (33 + name.len()).next_multiple_of(2);
    let mut record = vec![0; size];
    record[0] = u8::try_from(size)?;
    record[2..10].copy_from_slice(&both(block)?);
    record[10..18].copy_from_slice(&both(len)?);
    // 1 January 2026.
    record[18..21].copy_from_slice(&[126, 1, 1]);
    record[25] = if folder { 2 } else { 0 };
    record[28..32].copy_from_slice(&[1, 0, 0, 1]);
    record[32] = u8::try_from(name.len())?;
    record[33..33 + name.len()].copy_from_slice(name);
    Ok(record)
}

/// Writes an image of `files`, whose names are like `NAME.TXT`, in alphabetical order.
pub fn write(path: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    let mut image = vec![0; FIRST_FILE * BLOCK];
    let mut root = record(&[0], ROOT, BLOCK, true)?;
    root.extend(record(&[1], ROOT, BLOCK, true)?);
    for (name, content) in files {
        let block = image.len() / BLOCK;
        root.extend(record(
            format!("{name};1").as_bytes(),
            block,
            content.len(),
            false,
        )?);
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(BLOCK), 0);
    }
    ensure!(root.len() <= BLOCK, "too many files");
    image[ROOT * BLOCK..][..root.len()].copy_from_slice(&root);
    let blocks = image.len() / BLOCK;

    // The primary volume descriptor (8.4) in block 16, and the end of the descriptors.
    let volume = &mut image[16 * BLOCK..17 * BLOCK];
    volume[..7].copy_from_slice(b"\x01CD001\x01");
    volume[8..72].fill(b' ');
    volume[40..47].copy_from_slice(b"TRIPATH");
    volume[80..88].copy_from_slice(&both(blocks)?);
    for at in [120, 124] {
        volume[at..at + 4].copy_from_slice(&[1, 0, 0, 1]);
    }
    volume[128..132].copy_from_slice(&[0, 8, 8, 0]);
    volume[132..140].copy_from_slice(&both(10)?);
    volume[140] = u8::try_from(PATH_TABLE)?;
    volume[151] = u8::try_from(PATH_TABLE + 1)?;
    volume[156..190].copy_from_slice(&record(&[0], ROOT, BLOCK, true)?);
    volume[190..813].fill(b' ');
    volume[881] = 1;
    image[TERMINATOR * BLOCK..][..7].copy_from_slice(b"\xffCD001\x01");
    // The path tables (6.9), little and big endian.
    let root_block = u8::try_from(ROOT)?;
    image[PATH_TABLE * BLOCK..][..10].copy_from_slice(&[1, 0, root_block, 0, 0, 0, 1, 0, 0, 0]);
    image[(PATH_TABLE + 1) * BLOCK..][..10]
        .copy_from_slice(&[1, 0, 0, 0, 0, root_block, 0, 1, 0, 0]);
    std::fs::write(path, image)?;
    Ok(())
}
