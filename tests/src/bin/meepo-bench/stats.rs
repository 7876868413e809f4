//! Samples and what can be said of them.

/// What one path yielded in one round.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    /// Milliseconds each operation took.
    pub(crate) samples: Vec<f64>,
    /// Operations per second.
    pub(crate) rate: f64,
}

/// What one path yielded in all rounds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series {
    pub(crate) rounds: Vec<Round>,
}

impl Series {
    /// The quantile `q` (0 to 1) of all samples, in milliseconds.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        quantile(self.rounds.iter().flat_map(|r| r.samples.iter().copied()).collect(), q)
    }

    /// The median of each round, in milliseconds.
    pub(crate) fn medians(&self) -> Vec<f64> {
        self.rounds.iter().map(|r| quantile(r.samples.clone(), 0.5)).collect()
    }

    /// Operations per second in each round.
    pub(crate) fn rates(&self) -> Vec<f64> {
        self.rounds.iter().map(|r| r.rate).collect()
    }

    /// The median of the rounds' rates.
    pub(crate) fn rate(&self) -> f64 {
        quantile(self.rates(), 0.5)
    }

    /// Number of operations.
    pub(crate) fn count(&self) -> usize {
        self.rounds.iter().map(|r| r.samples.len()).sum()
    }
}

/// How far apart the smallest and the largest are, relative to the median.
pub(crate) fn spread(values: &[f64]) -> f64 {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    (high - low) / quantile(values.to_vec(), 0.5)
}

/// The nearest-rank quantile `q` (0 to 1); NaN of nothing.
pub(crate) fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let rank = (q * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let v: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(v.clone(), 0.5), 50.0);
        assert_eq!(quantile(v.clone(), 0.99), 99.0);
        assert_eq!((quantile(v.clone(), 0.0), quantile(v, 1.0)), (1.0, 100.0));
        assert!(quantile(vec![], 0.5).is_nan());
    }

    #[test]
    fn the_spread_is_relative_to_the_median() {
        assert_eq!(spread(&[1.0, 2.0, 3.0]), 1.0);
        assert_eq!(spread(&[5.0]), 0.0);
    }
}
