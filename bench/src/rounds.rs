//! The order of measuring: each variant once a round, each round in an order of its own, so that what changes on the
//! host meanwhile meets all variants alike.

/// The orders of some rounds, the same for the same seed.
#[derive(Debug)]
pub struct Rounds<T> {
    variants: Vec<T>,
    left: u32,
    random: fastrand::Rng,
}

impl<T: Clone> Rounds<T> {
    /// So many rounds of these variants.
    #[must_use]
    pub fn new(variants: Vec<T>, count: u32, seed: u64) -> Self {
        Self {
            variants,
            left: count,
            random: fastrand::Rng::with_seed(seed),
        }
    }
}

impl<T: Clone> Iterator for Rounds<T> {
    type Item = Vec<T>;

    fn next(&mut self) -> Option<Vec<T>> {
        self.left = self.left.checked_sub(1)?;
        self.random.shuffle(&mut self.variants);
        Some(self.variants.clone())
    }
}

/// A seed for those who do not care which.
#[must_use]
pub fn any_seed() -> u64 {
    // Short enough to be typed.
    u64::from(fastrand::u16(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(seed: u64) -> Vec<Vec<u32>> {
        Rounds::new((0..6).collect(), 20, seed).collect()
    }

    #[test]
    fn every_variant_is_in_every_round() {
        let orders = orders(1);
        assert_eq!(orders.len(), 20);
        for mut order in orders {
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3, 4, 5]);
        }
    }

    #[test]
    fn a_seed_repeats_the_orders_and_another_does_not() {
        assert_eq!(orders(7), orders(7));
        assert_ne!(orders(7), orders(8));
        let different: std::collections::BTreeSet<_> = orders(7).into_iter().collect();
        assert!(different.len() > 10, "the rounds are all alike");
    }
}
