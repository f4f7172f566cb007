//! How long things took: a count, a sum, and a histogram from which percentiles come.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longer times are counted as this long, so that a histogram stays small: a quarter of an hour in nanoseconds.
pub(super) const LONGEST_NS: u64 = 900_000_000_000;

/// Significant decimal digits of a time in the histogram: percentiles are at most 1/16 too high.
const DIGITS: u8 = 1;

/// Times of one kind of thing. Nothing is allocated before the first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Times {
    total_ns: u64,
    max_ns: u64,
    histogram: Option<Histogram<u64>>,
}

impl Times {
    /// What was counted elsewhere: `(time, how many)`.
    pub(super) fn of_buckets(
        total_ns: u64,
        max_ns: u64,
        buckets: impl IntoIterator<Item = (u64, u64)>,
    ) -> Self {
        let mut times = Self {
            total_ns,
            max_ns,
            histogram: None,
        };
        for (ns, count) in buckets {
            times.add(ns, count);
        }
        times
    }

    /// Adds one time.
    pub fn record(&mut self, ns: u64) {
        self.total_ns = self.total_ns.saturating_add(ns);
        self.max_ns = self.max_ns.max(ns);
        self.add(ns, 1);
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.as_ref().map_or(0, Histogram::len)
    }

    /// All of them together, in nanoseconds.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.total_ns
    }

    /// The longest, in nanoseconds; 0 if there is none.
    #[must_use]
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// The time that so many percent do not exceed, in nanoseconds, at most 1/16 too high; 0 if there is none.
    #[must_use]
    pub fn percentile_ns(&self, percent: f64) -> u64 {
        let histogram = self.histogram.as_ref();
        let value = histogram.map_or(0, |histogram| histogram.value_at_percentile(percent));
        value.min(self.max_ns)
    }

    /// Adds those of another.
    pub fn merge(&mut self, other: &Self) {
        self.total_ns = self.total_ns.saturating_add(other.total_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        for (ns, count) in other.buckets() {
            self.add(ns, count);
        }
    }

    /// Those that came after `earlier`, which is what this was once. Their longest is exact if it is the longest of
    /// all, and otherwise as exact as a percentile.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut this = Self {
            total_ns: self.total_ns.saturating_sub(earlier.total_ns),
            ..Self::default()
        };
        for (ns, count) in self.buckets() {
            let before = earlier.histogram.as_ref().map_or(0, |old| old.count_at(ns));
            if count > before {
                this.add(ns, count - before);
                this.max_ns = ns.min(self.max_ns);
            }
        }
        if self.max_ns > earlier.max_ns {
            this.max_ns = self.max_ns;
        }
        this
    }

    fn add(&mut self, ns: u64, count: u64) {
        if self.histogram.is_none() {
            // It fails for other numbers of digits only.
            self.histogram = Histogram::new(DIGITS).ok();
        }
        if let Some(histogram) = &mut self.histogram {
            // It grows on demand.
            let _ = histogram.record_n(ns.min(LONGEST_NS), count);
        }
    }

    /// `(longest time, how many)` of each bucket that is not empty, from the shortest on.
    fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.histogram.iter().flat_map(|histogram| {
            histogram
                .iter_recorded()
                .map(|step| (step.value_iterated_to(), step.count_at_value()))
        })
    }
}

/// The form for programs. The percentiles are for readers; they follow from the buckets.
#[derive(Serialize, Deserialize)]
struct Written {
    count: u64,
    total_ns: u64,
    #[serde(default)]
    p50_ns: u64,
    #[serde(default)]
    p99_ns: u64,
    max_ns: u64,
    buckets: Vec<(u64, u64)>,
}

impl From<Times> for Written {
    fn from(times: Times) -> Self {
        Self {
            count: times.count(),
            total_ns: times.total_ns,
            p50_ns: times.percentile_ns(50.0),
            p99_ns: times.percentile_ns(99.0),
            max_ns: times.max_ns,
            buckets: times.buckets().collect(),
        }
    }
}

impl From<Written> for Times {
    fn from(written: Written) -> Self {
        Self::of_buckets(written.total_ns, written.max_ns, written.buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(times: impl IntoIterator<Item = u64>) -> Times {
        let mut this = Times::default();
        for ns in times {
            this.record(ns);
        }
        this
    }

    /// At most 1/16 more than `exact`, and not less.
    fn about(value: u64, exact: u64) -> bool {
        (exact..=exact + exact / 16).contains(&value)
    }

    #[test]
    fn percentiles_are_known() {
        let times = of((1..=1000).map(|i| i * 1000));
        assert_eq!(
            (times.count(), times.total_ns(), times.max_ns()),
            (1000, 500_500_000, 1_000_000)
        );
        assert!(about(times.percentile_ns(50.0), 500_000), "{times:?}");
        assert!(about(times.percentile_ns(99.0), 990_000), "{times:?}");
        assert_eq!(times.percentile_ns(100.0), 1_000_000);
        assert_eq!(Times::default().percentile_ns(50.0), 0);
    }

    #[test]
    fn what_is_longer_than_any_is_counted() {
        let times = of([u64::MAX, 1]);
        assert_eq!((times.count(), times.max_ns()), (2, u64::MAX));
        assert!(about(times.percentile_ns(99.0), LONGEST_NS));
    }

    #[test]
    fn merged_as_if_recorded_in_one() {
        let mut a = of([10, 2_000_000, 500]);
        a.merge(&of([7, 80_000]));
        assert_eq!(a, of([10, 2_000_000, 500, 7, 80_000]));
        a.merge(&Times::default());
        assert_eq!(a.count(), 5);
    }

    #[test]
    fn the_difference_is_what_came_in_between() {
        let earlier = of([100, 5_000, 1_000_000]);
        let mut later = earlier.clone();
        for ns in [100, 100, 30_000] {
            later.record(ns);
        }
        let between = later.since(&earlier);
        assert_eq!((between.count(), between.total_ns()), (3, 30_200));
        assert!(about(between.max_ns(), 30_000), "{between:?}");
        assert_eq!(later.since(&later), Times::default());
        assert_eq!(later.since(&Times::default()), later);
        later.record(2_000_000);
        assert_eq!(later.since(&earlier).max_ns(), 2_000_000);
    }

    #[test]
    fn written_and_read_they_are_the_same() {
        let times = of([3, 100, 100, 5_000, 123_456_789]);
        let text = serde_json::to_string(&times).unwrap();
        assert_eq!(serde_json::from_str::<Times>(&text).unwrap(), times);
        assert!(text.contains("\"count\":5"), "{text}");
        assert!(text.contains("\"max_ns\":123456789"), "{text}");
    }
}
