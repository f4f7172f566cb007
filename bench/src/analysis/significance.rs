//! Whether two sets of samples differ: the Mann-Whitney U test, two-sided.
//!
//! It assumes nothing about how samples are spread, only that each is independent of the others. Up to
//! [`MOST_FOR_EXACT`] samples a side, the probability is exact: that of all ways to deal out the ranks that were seen,
//! ties included. Beyond that it is the normal approximation with the corrections for ties and continuity.

use std::fmt;

use crate::stats::median;

/// Two sets of samples that differ by chance alone are called different this often.
pub const ALPHA: f64 = 0.05;
/// Medians that differ by less than this part are called the same whatever the test says: nobody should act on it.
pub const MINIMAL_EFFECT: f64 = 0.02;
/// With more samples than this on either side the normal approximation is used.
pub const MOST_FOR_EXACT: usize = 20;

/// What the test found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MannWhitney {
    /// The statistic of the first set: how many pairs it wins, a tie counting half.
    pub u: f64,
    /// How likely a U as far from its mean is, if both sets are of one kind.
    pub p: f64,
}

impl MannWhitney {
    /// Compares two sets; none if one is empty or has what is no number.
    #[must_use]
    pub fn of(a: &[f64], b: &[f64]) -> Option<Self> {
        if a.is_empty() || b.is_empty() || a.iter().chain(b).any(|sample| sample.is_nan()) {
            return None;
        }
        let ranks = Ranks::of(a, b);
        let pairs = to_f64(a.len()) * to_f64(b.len());
        // Twice the smallest sum of ranks that the first set can have is n (n + 1).
        let least = a.len() * (a.len() + 1);
        let u = to_f64(ranks.sum_of_first - least) / 2.0;
        let p = if a.len().max(b.len()) <= MOST_FOR_EXACT {
            ranks.exact_p(a.len())
        } else {
            ranks.normal_p(u, pairs, a.len() + b.len())
        };
        Some(Self { u, p })
    }
}

/// Twice the ranks of all samples, so that the ranks of ties, which are shared, are whole numbers.
struct Ranks {
    doubled: Vec<usize>,
    sum_of_first: usize,
    /// Sum of t³ - t over all groups of t equal samples.
    ties: f64,
}

impl Ranks {
    fn of(a: &[f64], b: &[f64]) -> Self {
        let mut samples: Vec<(f64, bool)> = a.iter().map(|sample| (*sample, true)).collect();
        samples.extend(b.iter().map(|sample| (*sample, false)));
        // Zeros of both signs are equal, which the total order does not know.
        samples.sort_by(|(a, _), (b, _)| (a + 0.0).total_cmp(&(b + 0.0)));
        let (mut doubled, mut sum_of_first, mut ties) = (Vec::new(), 0, 0.0);
        for group in samples.chunk_by(|(a, _), (b, _)| a == b) {
            // Ranks from first to last, counted from 1: twice their mean is first + last.
            let rank = 2 * doubled.len() + 1 + group.len();
            doubled.extend(group.iter().map(|_| rank));
            sum_of_first += rank * group.iter().filter(|(_, of_a)| *of_a).count();
            let t = to_f64(group.len());
            ties += t * t * t - t;
        }
        Self {
            doubled,
            sum_of_first,
            ties,
        }
    }

    /// The part of all choices of `n` ranks whose sum is as far from the mean as the one seen.
    fn exact_p(&self, n: usize) -> f64 {
        let total: usize = self.doubled.iter().sum();
        // ways[k][s]: in how many ways k of the ranks so far have the sum s. C(40, 20) is below 2^53: exact in f64.
        let mut ways = vec![vec![0.0_f64; total + 1]; n + 1];
        ways[0][0] = 1.0;
        for rank in &self.doubled {
            for k in (1..=n).rev() {
                let (fewer, here) = ways.split_at_mut(k);
                for sum in *rank..=total {
                    here[0][sum] += fewer[k - 1][sum - rank];
                }
            }
        }
        // Distances from the mean, times the number of samples so that they are whole numbers.
        let all = self.doubled.len();
        let distance = |sum: usize| (sum * all).abs_diff(total * n);
        let seen = distance(self.sum_of_first);
        let (mut extreme, mut every) = (0.0, 0.0);
        for (sum, count) in ways[n].iter().enumerate() {
            every += count;
            if distance(sum) >= seen {
                extreme += count;
            }
        }
        extreme / every
    }

    fn normal_p(&self, u: f64, pairs: f64, all: usize) -> f64 {
        let all = to_f64(all);
        let variance = pairs / 12.0 * (all + 1.0 - self.ties / (all * (all - 1.0)));
        if variance <= 0.0 {
            return 1.0;
        }
        let distance = ((u - pairs / 2.0).abs() - 0.5).max(0.0);
        complementary_error(distance / variance.sqrt() / std::f64::consts::SQRT_2)
    }
}

/// erfc(x) for x >= 0, within 1.2e-7 of its value (Numerical Recipes' Chebyshev fit).
fn complementary_error(x: f64) -> f64 {
    const COEFFICIENTS: [f64; 10] = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_87,
        -1.135_203_98,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_68,
        -1.265_512_23,
    ];
    let t = 1.0 / (1.0 + 0.5 * x);
    let fit = COEFFICIENTS.iter().fold(0.0, |sum, c| sum * t + c);
    (t * (fit - x * x).exp()).min(1.0)
}

/// Which of two is faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The second is: the test says so, and by [`MINIMAL_EFFECT`] at least.
    Faster,
    /// The second is slower, likewise.
    Slower,
    /// No difference that matters was found.
    Same,
    /// There are too few samples for the test to ever find one.
    Undecided,
}

impl Verdict {
    /// Of two sets of rates, of which more is better.
    #[must_use]
    pub fn of(first: &[f64], second: &[f64]) -> Self {
        if least_p(first.len(), second.len()) > ALPHA {
            return Self::Undecided;
        }
        let found = MannWhitney::of(first, second).zip(median(first).zip(median(second)));
        let Some((test, (from, to))) = found else {
            return Self::Undecided;
        };
        if test.p > ALPHA || (to - from).abs() < MINIMAL_EFFECT * from.abs() {
            Self::Same
        } else if to > from {
            Self::Faster
        } else {
            Self::Slower
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::Same => "no difference found",
            Self::Undecided => "undecided: too few rounds",
        })
    }
}

/// The smallest probability that so many samples can have: 2 of all C(n + m, n) orders are as far apart.
fn least_p(n: usize, m: usize) -> f64 {
    let choices = (1..=n).fold(1.0, |ways, k| ways * to_f64(m + k) / to_f64(k));
    (2.0 / choices).min(1.0)
}

/// Numbers of samples and sums of their ranks, all far below 2^53.
fn to_f64(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn expect(a: &[f64], b: &[f64], u: f64, p: f64) {
        let found = MannWhitney::of(a, b).unwrap();
        assert_eq!(found.u, u);
        assert!((found.p - p).abs() < 1e-6, "p is {}, not {p}", found.p);
        let other = MannWhitney::of(b, a).unwrap();
        assert!((other.p - p).abs() < 1e-9, "not symmetric: {}", other.p);
    }

    #[test]
    fn by_hand() {
        // All of the first below all of the second: 2 of C(6, 3) = 20 orders are as far apart.
        expect(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0], 0.0, 0.1);
        // 2 of C(10, 5) = 252.
        let five = [1.0, 2.0, 3.0, 4.0, 5.0];
        expect(&five, &five.map(|x| x + 5.0), 0.0, 2.0 / 252.0);
        // U = 1 is reached by one order more on each side: 4 of C(8, 4) = 70.
        expect(
            &[1.0, 2.0, 3.0, 5.0],
            &[4.0, 6.0, 7.0, 8.0],
            1.0,
            4.0 / 70.0,
        );
    }

    #[test]
    fn aesops_race() {
        // The example of Wikipedia's "Mann-Whitney U test", tortoises against hares: U = 11 and 25. The probability is
        // of scipy.stats.mannwhitneyu(method="exact").
        let tortoises = [12.0, 6.0, 5.0, 4.0, 3.0, 2.0];
        let hares = [11.0, 10.0, 9.0, 8.0, 7.0, 1.0];
        expect(&tortoises, &hares, 11.0, 0.309_523_809_5);
    }

    #[test]
    fn ties_share_their_ranks() {
        // scipy.stats.permutation_test of U, all permutations.
        expect(
            &[1.0, 2.0, 2.0, 3.0],
            &[2.0, 4.0, 4.0, 5.0],
            2.0,
            0.114_285_714_3,
        );
        expect(&[7.0; 5], &[7.0; 5], 12.5, 1.0);
        expect(&[0.0], &[-0.0], 0.5, 1.0);
    }

    #[test]
    fn many_samples_are_approximated() {
        // scipy.stats.mannwhitneyu(method="asymptotic") of 0..24 and 6.5..30.5 by ones, and with ties of both by twos.
        let a: Vec<f64> = (0..25).map(f64::from).collect();
        let b: Vec<f64> = a.iter().map(|x| x + 6.5).collect();
        expect(&a, &b, 171.0, 0.006_222_848_5);
        let halves = |samples: &[f64]| {
            samples
                .iter()
                .map(|x| (x / 4.0).floor())
                .collect::<Vec<_>>()
        };
        expect(&halves(&a), &halves(&b), 184.0, 0.012_139_166_7);
        let same = [3.0; 30];
        expect(&same, &same, 450.0, 1.0);
    }

    #[test]
    fn exact_and_approximate_agree_where_they_meet() {
        let a: Vec<f64> = (0..20).map(f64::from).collect();
        let b: Vec<f64> = a.iter().map(|x| x + 5.5).collect();
        let exact = MannWhitney::of(&a, &b).unwrap();
        let ranks = Ranks::of(&a, &b);
        let normal = ranks.normal_p(exact.u, 400.0, 40);
        assert!((exact.p - normal).abs() < 0.002, "{} {normal}", exact.p);
    }

    #[test]
    fn too_few_rounds_decide_nothing() {
        let (slow, fast) = ([1.0, 1.1, 1.2], [9.0, 9.1, 9.2]);
        assert_eq!(Verdict::of(&slow, &fast), Verdict::Undecided);
        assert_eq!(Verdict::of(&slow, &slow), Verdict::Undecided);
        assert_eq!(Verdict::of(&[], &[1.0; 50]), Verdict::Undecided);
        assert_eq!(Verdict::of(&[1.0; 4], &[2.0; 4]), Verdict::Faster);
    }

    #[test]
    fn what_is_called_different() {
        let base = [100.0, 101.0, 99.0, 100.5, 99.5];
        let times = |by: f64| base.map(|x| x * by);
        assert_eq!(Verdict::of(&base, &times(1.1)), Verdict::Faster);
        assert_eq!(Verdict::of(&base, &times(0.9)), Verdict::Slower);
        assert_eq!(Verdict::of(&base, &base), Verdict::Same);
        // Surely different, and too little to matter.
        let close = [100.0, 100.01, 99.99, 100.02, 99.98];
        assert_eq!(Verdict::of(&close, &close.map(|x| x * 1.01)), Verdict::Same);
        // Much apart, but by chance as likely as not.
        let wild = [50.0, 150.0, 60.0, 140.0, 110.0];
        assert_eq!(Verdict::of(&base, &wild), Verdict::Same);
    }

    #[test]
    fn nothing_is_said_of_nothing() {
        assert_eq!(MannWhitney::of(&[], &[1.0]), None);
        assert_eq!(MannWhitney::of(&[f64::NAN], &[1.0]), None);
    }
}
