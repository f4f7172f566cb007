//! Statistics (manual, 13.7): counters that stay at their maximum and are cleared by being read.

use super::registers::{STATISTICS, STATISTICS_END};

/// A counter of 32 bits, by its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Missed packets: dropped for want of room (13.7.3).
    Mpc = 0x4010,
    /// Packets received, 64 bytes; the classes up to 127, 255, 511, 1023 and the maximum follow (13.7.21).
    Prc64 = 0x405c,
    /// Good packets received (13.7.27).
    Gprc = 0x4074,
    /// Broadcast packets received (13.7.28).
    Bprc = 0x4078,
    /// Multicast packets received (13.7.29).
    Mprc = 0x407c,
    /// Good packets transmitted (13.7.30).
    Gptc = 0x4080,
    /// Receive no buffers (13.7.33).
    Rnbc = 0x40a0,
    /// Receive oversize (13.7.36).
    Roc = 0x40ac,
    /// Total packets received (13.7.43).
    Tpr = 0x40d0,
    /// Total packets transmitted (13.7.44).
    Tpt = 0x40d4,
    /// Packets transmitted, 64 bytes; the other classes follow (13.7.45).
    Ptc64 = 0x40d8,
    /// Multicast packets transmitted (13.7.51).
    Mptc = 0x40f0,
    /// Broadcast packets transmitted (13.7.52).
    Bptc = 0x40f4,
    /// TCP segmentation contexts transmitted (13.7.53).
    Tsctc = 0x40f8,
    /// TCP segmentation contexts that failed (13.7.54).
    Tsctfc = 0x40fc,
}

/// A counter of 64 bits, by the offset of its lower half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Octets {
    /// Good octets received (13.7.31).
    Gorc = 0x4088,
    /// Good octets transmitted (13.7.32).
    Gotc = 0x4090,
    /// Total octets received (13.7.41).
    Tor = 0x40c0,
    /// Total octets transmitted (13.7.42).
    Tot = 0x40c8,
}

const COUNT: usize = ((STATISTICS_END - STATISTICS) / 4) as usize;
/// The lower halves: the counter is cleared when its upper half is read.
const LOW_HALVES: [u32; 4] = [
    Octets::Gorc as u32,
    Octets::Gotc as u32,
    Octets::Tor as u32,
    Octets::Tot as u32,
];
/// The upper ends of the size classes, in bytes with the frame check sequence.
const CLASS_ENDS: [usize; 5] = [64, 127, 255, 511, 1023];

/// All of them.
#[derive(Debug)]
pub struct Statistics([u32; COUNT]);

/// The place of the register at `offset`, a multiple of 4 in the range of the statistics.
fn place(offset: u32) -> usize {
    usize::try_from(offset.saturating_sub(STATISTICS) / 4).unwrap_or(usize::MAX)
}

impl Statistics {
    /// All zero.
    pub fn new() -> Self {
        Self([0; COUNT])
    }

    /// Counts one.
    pub fn count(&mut self, counter: Counter) {
        self.add(counter as u32, 1);
    }

    /// Counts a frame of `bytes` with its frame check sequence in the class of its size; `first` is the class of the
    /// smallest.
    pub fn count_size(&mut self, first: Counter, bytes: usize) {
        let class = (0..)
            .zip(CLASS_ENDS)
            .find(|(_, end)| bytes <= *end)
            .map_or(5, |(class, _)| class);
        self.add(first as u32 + 4 * class, 1);
    }

    /// Counts bytes.
    pub fn count_octets(&mut self, counter: Octets, bytes: usize) {
        let low = place(counter as u32);
        if let Some([low, high]) = self.0.get_mut(low..low + 2) {
            let value = u64::from(*high) << 32 | u64::from(*low);
            let value = value.saturating_add(bytes as u64).to_le_bytes();
            let [a, b, c, d, e, f, g, h] = value;
            *low = u32::from_le_bytes([a, b, c, d]);
            *high = u32::from_le_bytes([e, f, g, h]);
        }
    }

    /// Reads the register at `offset`, which clears it.
    pub fn read(&mut self, offset: u32) -> u32 {
        let at = place(offset);
        let Some(value) = self.0.get(at).copied() else {
            return 0;
        };
        if LOW_HALVES.contains(&offset) {
            return value;
        }
        if LOW_HALVES.contains(&(offset - 4)) {
            self.0[at - 1] = 0;
        }
        self.0[at] = 0;
        value
    }

    fn add(&mut self, offset: u32, count: u32) {
        if let Some(value) = self.0.get_mut(place(offset)) {
            *value = value.saturating_add(count);
        }
    }
}
