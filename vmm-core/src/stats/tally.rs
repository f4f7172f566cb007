//! Times as one thread adds them while others read: [`Times`] without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Times;
use super::times::LONGEST_NS;

/// Bits of a time that tell buckets apart: they are as wide as those of [`Times`].
const BITS: u32 = 4;

/// Buckets of the times between one power of two and the next.
const OCTAVE: usize = 1 << BITS;

/// From the shortest time to the longest.
const OCTAVES: usize = (LONGEST_NS.ilog2() - BITS + 2) as usize;

/// Times, added by one thread, read by any. Two threads that add at once would lose counts, no more.
///
/// What is read while a time is added may have it in part.
pub(super) struct Tally {
    total_ns: AtomicU64,
    max_ns: AtomicU64,
    octaves: [OnceLock<Box<[AtomicU64; OCTAVE]>>; OCTAVES],
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            total_ns: AtomicU64::default(),
            max_ns: AtomicU64::default(),
            octaves: [const { OnceLock::new() }; OCTAVES],
        }
    }
}

impl Tally {
    /// Adds one time.
    pub(super) fn record(&self, ns: u64) {
        add(&self.total_ns, ns);
        if ns > self.max_ns.load(Relaxed) {
            self.max_ns.store(ns, Relaxed);
        }
        let (octave, bucket) = place_of(ns.min(LONGEST_NS));
        if let Some(octave) = self.octaves.get(octave) {
            add(&octave.get_or_init(Box::default)[bucket], 1);
        }
    }

    /// What was added up to now.
    pub(super) fn times(&self) -> Times {
        let octaves = self.octaves.iter().enumerate();
        let buckets = octaves.flat_map(|(octave, buckets)| {
            let buckets = buckets.get().into_iter().flat_map(|b| b.iter().enumerate());
            buckets.map(move |(bucket, count)| (shortest_of(octave, bucket), count.load(Relaxed)))
        });
        Times::of_buckets(
            self.total_ns.load(Relaxed),
            self.max_ns.load(Relaxed),
            buckets.filter(|(_, count)| *count > 0),
        )
    }
}

/// Cheaper than an addition that is one for all threads.
pub(super) fn add(sum: &AtomicU64, more: u64) {
    sum.store(sum.load(Relaxed).saturating_add(more), Relaxed);
}

/// Which octave, and which bucket of it: the bits that follow the highest.
fn place_of(ns: u64) -> (usize, usize) {
    let Some(shift) = ns.checked_ilog2().and_then(|log| log.checked_sub(BITS)) else {
        return (0, low_bits(ns));
    };
    (shift as usize + 1, low_bits(ns >> shift))
}

fn low_bits(value: u64) -> usize {
    usize::try_from(value % OCTAVE as u64).unwrap_or(0)
}

/// The shortest time in a bucket.
fn shortest_of(octave: usize, bucket: usize) -> u64 {
    match octave.checked_sub(1) {
        None => bucket as u64,
        Some(shift) => ((OCTAVE + bucket) as u64) << shift,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_times() {
        let values = (0..64).chain((5..64).flat_map(|log| {
            let power = 1_u64 << log;
            [power - 1, power, power + power / 16, power + power / 3]
        }));
        let values: Vec<u64> = values.chain([u64::MAX, LONGEST_NS]).collect();
        let (tally, mut times) = (Tally::default(), Times::default());
        for value in &values {
            tally.record(*value);
            times.record(*value);
        }
        assert_eq!(tally.times(), times);
        assert_eq!(times.count(), values.len() as u64);
    }

    #[test]
    fn nothing_is_kept_of_nothing() {
        assert_eq!(Tally::default().times(), Times::default());
    }

    #[test]
    fn another_thread_reads() {
        let tally = Tally::default();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..1000).for_each(|ns| tally.record(ns)));
        });
        let times = tally.times();
        assert_eq!((times.count(), times.total_ns()), (1000, 499_500));
    }
}
