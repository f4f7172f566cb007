//! What every backend refuses, decided in one place.

use super::backend::{BlockError, BlockInfo, BlockOp, BlockRequest};

impl BlockRequest {
    /// How many bytes of the medium the request covers, if a medium described by `info` may carry it out: writes
    /// only to a writable one, whole blocks only, nothing beyond the end. Whether the segments are in RAM is not
    /// looked at. Called by backends in [`super::BlockBackend::submit`].
    ///
    /// # Errors
    /// [`BlockError::ReadOnly`], [`BlockError::Unsupported`], [`BlockError::Misaligned`] or
    /// [`BlockError::OutOfRange`].
    pub fn check(&self, info: &BlockInfo) -> Result<u64, BlockError> {
        let len_bytes = match self.op {
            BlockOp::Flush => return Ok(0),
            BlockOp::Read | BlockOp::Write => self
                .segments
                .iter()
                .fold(0u64, |sum, &(_, len)| sum.saturating_add(u64::from(len))),
            BlockOp::Discard { len_bytes } | BlockOp::WriteZeroes { len_bytes, .. } => len_bytes,
        };
        if info.read_only && self.op != BlockOp::Read {
            return Err(BlockError::ReadOnly);
        }
        let supported = match self.op {
            BlockOp::Discard { .. } => info.discard,
            BlockOp::WriteZeroes { .. } => info.write_zeroes,
            BlockOp::Read | BlockOp::Write | BlockOp::Flush => true,
        };
        if !supported {
            return Err(BlockError::Unsupported);
        }
        let block_bytes = u64::from(info.logical_block_bytes);
        if !self.offset_bytes.is_multiple_of(block_bytes) || !len_bytes.is_multiple_of(block_bytes)
        {
            return Err(BlockError::Misaligned {
                offset_bytes: self.offset_bytes,
                len_bytes,
                block_bytes: info.logical_block_bytes,
            });
        }
        match self.offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= info.size_bytes => Ok(len_bytes),
            _ => Err(BlockError::OutOfRange {
                offset_bytes: self.offset_bytes,
                len_bytes,
                size_bytes: info.size_bytes,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::test_ram;

    const INFO: BlockInfo = BlockInfo {
        size_bytes: 8192,
        logical_block_bytes: 512,
        physical_block_bytes: 4096,
        read_only: false,
        discard: true,
        write_zeroes: true,
    };

    fn request(op: BlockOp, offset_bytes: u64, lens: &[u32]) -> BlockRequest {
        BlockRequest {
            op,
            offset_bytes,
            segments: lens.iter().map(|&len| (0, len)).collect(),
            ram: test_ram(4096),
            token: 0,
        }
    }

    #[test]
    fn the_length_is_that_of_the_segments_or_of_the_range() {
        let check = |op, lens: &[u32]| request(op, 512, lens).check(&INFO).unwrap();
        assert_eq!(check(BlockOp::Read, &[100, 412, 512]), 1024);
        assert_eq!(check(BlockOp::Write, &[7680]), 7680);
        assert_eq!(check(BlockOp::Discard { len_bytes: 512 }, &[]), 512);
        assert_eq!(check(BlockOp::Flush, &[]), 0);
    }

    #[test]
    fn ranges_beyond_the_end_or_around_the_end_of_numbers_are_refused() {
        for (offset, len) in [(8192, 512), (7680, 1024), (u64::MAX - 511, 512)] {
            assert!(
                matches!(
                    request(BlockOp::Read, offset, &[len]).check(&INFO),
                    Err(BlockError::OutOfRange { .. })
                ),
                "{offset} {len}"
            );
        }
        let len_bytes = u64::MAX - 511;
        assert!(matches!(
            request(BlockOp::Discard { len_bytes }, 512, &[]).check(&INFO),
            Err(BlockError::OutOfRange { .. })
        ));
    }

    #[test]
    fn parts_of_blocks_are_refused() {
        let wide = BlockInfo {
            logical_block_bytes: 4096,
            ..INFO
        };
        for (info, offset, len) in [(&INFO, 1, 512), (&INFO, 0, 511), (&wide, 512, 4096)] {
            assert!(matches!(
                request(BlockOp::Read, offset, &[len]).check(info),
                Err(BlockError::Misaligned { .. })
            ));
        }
    }

    #[test]
    fn a_read_only_disk_takes_reads_and_flushes() {
        let info = BlockInfo {
            read_only: true,
            ..INFO
        };
        assert!(request(BlockOp::Read, 0, &[512]).check(&info).is_ok());
        assert!(request(BlockOp::Flush, 0, &[]).check(&info).is_ok());
        let zeroes = BlockOp::WriteZeroes {
            len_bytes: 512,
            unmap: true,
        };
        for op in [BlockOp::Write, BlockOp::Discard { len_bytes: 512 }, zeroes] {
            assert!(matches!(
                request(op, 0, &[512]).check(&info),
                Err(BlockError::ReadOnly)
            ));
        }
    }
}
