//! Unpacks a bzImage's payload in the formats that Linux's build can choose and that crates know.
//!
//! Others (lzma, bzip2, lzo) are left to the kernel's own decompressor.

use std::io::{self, BufReader, ErrorKind, Read};

use lz4::block::decompress_to_buffer;

use super::BUFFER_BYTES;

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// gzip (RFC 1952).
    Gzip,
    /// lz4's legacy frames: independent blocks of 8 MiB.
    Lz4Legacy,
    /// xz, with the x86 filter.
    Xz,
    /// zstd (RFC 8878).
    Zstd,
}

const LZ4_MAGIC: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
const LZ4_BLOCK_BYTES: i32 = 8 << 20;
/// A block that does not compress grows by one byte in 255.
const LZ4_MAX_PACKED_BYTES: u64 = LZ4_BLOCK_BYTES as u64 * 256 / 255 + 16;

impl Format {
    /// Tells the format by its magic.
    pub fn detect(payload: &[u8]) -> Option<Self> {
        [
            (Self::Gzip, &b"\x1f\x8b"[..]),
            (Self::Lz4Legacy, &LZ4_MAGIC),
            (Self::Xz, b"\xfd7zXZ\0"),
            (Self::Zstd, b"\x28\xb5\x2f\xfd"),
        ]
        .into_iter()
        .find_map(|(format, magic)| payload.starts_with(magic).then_some(format))
    }

    /// Bytes at the payload's end that are not the compressed data's: its unpacked size. gzip's own trailer has it.
    pub fn trailer_bytes(self) -> u64 {
        match self {
            Self::Gzip => 0,
            _ => 4,
        }
    }

    /// Unpacks `packed`, without its trailer, and hands the result to `sink` in order, in pieces of at least
    /// [`BUFFER_BYTES`] except for the last.
    ///
    /// # Errors
    /// What is wrong with the data, or what `sink` or the reader said.
    pub fn unpack(
        self,
        packed: impl Read,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let packed = BufReader::with_capacity(BUFFER_BYTES, packed);
        match self {
            Self::Gzip => pump(flate2::bufread::GzDecoder::new(packed), sink),
            Self::Lz4Legacy => unpack_lz4(packed, sink),
            Self::Xz => pump(liblzma::bufread::XzDecoder::new(packed), sink),
            Self::Zstd => pump(
                zstd::stream::read::Decoder::with_buffer(packed)?.single_frame(),
                sink,
            ),
        }
    }
}

fn pump(mut reader: impl Read, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let len = fill(&mut reader, &mut buffer)?;
        if len > 0 {
            sink(&buffer[..len])?;
        }
        if len < buffer.len() {
            return Ok(());
        }
    }
}

/// Reads until `buffer` is full or the reader at its end; says how much there is.
pub(super) fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match reader.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// The crate knows lz4's frames of today, and the blocks that both kinds are made of.
fn unpack_lz4(
    mut packed: impl Read,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let bad = |text: &str| io::Error::new(ErrorKind::InvalidData, text);
    let mut block = Vec::new();
    let mut unpacked = vec![0; LZ4_BLOCK_BYTES as usize];
    loop {
        let mut size = [0; 4];
        match fill(&mut packed, &mut size)? {
            0 => return Ok(()),
            4 => {}
            _ => return Err(bad("the last lz4 block is cut short")),
        }
        // A new frame may begin anywhere.
        if size == LZ4_MAGIC {
            continue;
        }
        let size = u64::from(u32::from_le_bytes(size));
        if size > LZ4_MAX_PACKED_BYTES {
            return Err(bad("an lz4 block is too large"));
        }
        block.clear();
        if (&mut packed).take(size).read_to_end(&mut block)? as u64 != size {
            return Err(bad("the last lz4 block is cut short"));
        }
        let len = decompress_to_buffer(&block, Some(LZ4_BLOCK_BYTES), &mut unpacked)?;
        sink(&unpacked[..len])?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FORMATS, pack};
    use super::*;

    fn unpack(format: Format, packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut unpacked = Vec::new();
        format.unpack(packed, &mut |piece| {
            unpacked.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(unpacked)
    }

    fn sample() -> Vec<u8> {
        (0..2 * BUFFER_BYTES + 77)
            .map(|index| (index / 3 % 251) as u8)
            .collect()
    }

    #[test]
    fn each_format_is_detected_and_unpacked() {
        for format in FORMATS {
            let packed = pack(format, &sample());
            assert_eq!(Format::detect(&packed), Some(format));
            let len = packed.len() - format.trailer_bytes() as usize;
            assert!(
                unpack(format, &packed[..len]).unwrap() == sample(),
                "{format:?}"
            );
        }
        assert_eq!(Format::detect(b"BZh9"), None);
        assert_eq!(Format::detect(b""), None);
    }

    #[test]
    fn truncated_data_is_an_error() {
        for format in FORMATS {
            let packed = pack(format, &sample());
            let end = packed.len() - format.trailer_bytes() as usize;
            // An lz4 frame has no end mark: cut at a block's end, only the length is wrong, which the caller checks.
            for len in [end - 1, end / 2, 7] {
                let result = unpack(format, &packed[..len]);
                assert!(result.is_err(), "{format:?} cut at {len}");
            }
        }
    }

    #[test]
    fn lz4_blocks_of_absurd_size_are_refused() {
        let mut packed = LZ4_MAGIC.to_vec();
        packed.extend([0xff; 4]);
        let error = unpack(Format::Lz4Legacy, &packed).unwrap_err();
        assert_eq!(error.to_string(), "an lz4 block is too large");
        packed[4..].copy_from_slice(&3u32.to_le_bytes());
        packed.extend([0xf0, 0xff, 0xff]);
        assert!(unpack(Format::Lz4Legacy, &packed).is_err());
    }

    #[test]
    fn the_sinks_error_ends_it() {
        for format in FORMATS {
            let packed = pack(format, &sample());
            let error = format
                .unpack(&packed[..], &mut |_| Err(io::Error::other("full")))
                .unwrap_err();
            assert_eq!(error.to_string(), "full");
        }
    }
}
