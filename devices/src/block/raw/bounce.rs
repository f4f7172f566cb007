//! Buffers that direct I/O accepts, for when the guest's own does not.

use super::open::DirectAlignment;

/// A zeroed buffer of our own, aligned for direct I/O. Its bytes stay where they are when it moves.
#[derive(Debug)]
pub(super) struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` bytes that satisfy `alignment`.
    pub fn new(len: usize, alignment: DirectAlignment) -> Self {
        let align = alignment.memory_bytes.max(alignment.length_bytes) as usize;
        let bytes = vec![0; len + align];
        let start = bytes.as_ptr().align_offset(align);
        Self { bytes, start, len }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zero() {
        for bytes in [512, 4096] {
            let alignment = DirectAlignment {
                memory_bytes: bytes,
                length_bytes: 512,
            };
            let mut buffer = AlignedBuffer::new(1024, alignment);
            let slice = buffer.as_mut_slice();
            assert_eq!(slice.as_ptr() as usize % bytes as usize, 0);
            assert_eq!(slice, [0; 1024]);
        }
    }
}
