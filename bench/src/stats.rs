//! Summaries of samples.

use serde::Serialize;

/// A result whose median absolute deviation is more than this part of its median is marked as unsteady.
pub const UNSTEADY: f64 = 0.05;

/// What is said of several samples of one quantity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// How many samples there were.
    pub samples: usize,
    /// Half of them are below, half above.
    pub median: f64,
    /// The median of their distances from the median: what a single sample differs by, outliers aside.
    pub mad: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of these samples; none if there is none, or one that is no number.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        if samples.iter().any(|sample| sample.is_nan()) {
            return None;
        }
        let sorted = sorted(samples.iter().copied());
        let median = middle(&sorted)?;
        let distances = sorted.iter().map(|sample| (sample - median).abs());
        Some(Self {
            samples: sorted.len(),
            median,
            mad: middle(&self::sorted(distances))?,
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }

    /// The median absolute deviation as a part of the median. One sample has none, nor has a median of 0.
    #[must_use]
    pub fn spread(&self) -> Option<f64> {
        (self.samples > 1 && self.median != 0.0).then(|| self.mad / self.median.abs())
    }

    /// Whether the samples differ so much that the median says little; see [`UNSTEADY`].
    #[must_use]
    pub fn is_unsteady(&self) -> bool {
        self.mad > UNSTEADY * self.median.abs()
    }
}

/// The median, which is between the two in the middle if their number is even; none of nothing.
#[must_use]
pub fn median(samples: &[f64]) -> Option<f64> {
    middle(&sorted(samples.iter().copied()))
}

fn sorted(samples: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = samples.collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn middle(sorted: &[f64]) -> Option<f64> {
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[half]),
        _ => Some(f64::midpoint(sorted[half - 1], sorted[half])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        let summary = Summary::of(&[5.0, 1.0, 2.0, 100.0, 4.0]).unwrap();
        assert_eq!(
            summary,
            Summary {
                samples: 5,
                median: 4.0,
                // Of 3, 2, 0, 1, 96.
                mad: 2.0,
                min: 1.0,
                max: 100.0,
            }
        );
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(summary.spread(), Some(0.5));
        let one = Summary::of(&[7.0]).unwrap();
        assert_eq!((one.mad, one.spread()), (0.0, None));
    }

    #[test]
    fn nothing_is_said_of_nothing() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn wide_spread_is_marked() {
        let steady = Summary::of(&[100.0, 101.0, 99.0, 104.0, 500.0]).unwrap();
        assert!(!steady.is_unsteady(), "one outlier is none");
        assert!(Summary::of(&[100.0, 110.0, 90.0]).unwrap().is_unsteady());
    }
}
