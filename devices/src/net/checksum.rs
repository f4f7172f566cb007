//! The Internet checksum (RFC 1071).

/// The ones' complement sum of `data` as big-endian 16-bit words, on top of `sum`; not complemented. A last odd byte
/// counts as the upper half of a word.
#[must_use]
pub fn add(sum: u16, data: &[u8]) -> u16 {
    let mut wide = u64::from(sum);
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        if let [a, b, c, d] = *chunk {
            // No frame is long enough to overflow this: 2^32 chunks.
            wide += u64::from(u32::from_be_bytes([a, b, c, d]));
        }
    }
    let mut last = [0; 4];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    wide += u64::from(u32::from_be_bytes(last));
    fold(wide)
}

/// The ones' complement sum of two sums.
#[must_use]
pub fn add_word(sum: u16, word: u16) -> u16 {
    fold(u64::from(sum) + u64::from(word))
}

fn fold(mut wide: u64) -> u16 {
    while wide > 0xffff {
        wide = (wide & 0xffff) + (wide >> 16);
    }
    // At most 16 bits are left.
    u16::try_from(wide).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        // RFC 1071, section 3.
        assert_eq!(
            add(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            0xddf2
        );
    }

    #[test]
    fn lengths_that_are_no_multiple_of_four() {
        assert_eq!(add(0, &[]), 0);
        assert_eq!(add(1, &[0x12]), 0x1201);
        assert_eq!(add(0, &[0x12, 0x34]), 0x1234);
        assert_eq!(add(0, &[0xff, 0xff, 0x00, 0x01, 0x80]), 0x8001);
    }

    #[test]
    fn carries_come_round() {
        assert_eq!(add(0xffff, &[0xff; 65_536]), 0xffff);
        assert_eq!(add_word(0xffff, 2), 2);
    }
}
