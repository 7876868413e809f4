//! How often somebody may ask: a bucket of tokens that fills at a steady rate.

use std::time::Duration;

/// How fast a bucket fills, and how much is in a full one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Requests per second.
    pub per_second: f64,
    /// Requests at once after a pause.
    pub burst: f64,
}

/// One client's bucket. Times are counted from any instant, the same for all calls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    level: f64,
    at: Duration,
}

impl Bucket {
    /// A full one.
    pub fn full(rate: Rate, now: Duration) -> Self {
        Self { level: rate.burst, at: now }
    }

    fn fill(&mut self, rate: Rate, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.level = (self.level + passed * rate.per_second).min(rate.burst);
        self.at = self.at.max(now);
    }

    /// Takes one out. `Err`: it is empty, and after so long there is one again.
    pub fn take(&mut self, rate: Rate, now: Duration) -> Result<(), Duration> {
        self.fill(rate, now);
        if self.level < 1.0 {
            let wait = (1.0 - self.level) / rate.per_second.max(1e-6);
            return Err(Duration::from_secs_f64(wait.min(3600.0)));
        }
        self.level -= 1.0;
        Ok(())
    }

    /// Whether there is one, without taking it.
    pub fn has(&mut self, rate: Rate, now: Duration) -> bool {
        self.fill(rate, now);
        self.level >= 1.0
    }

    /// Whether it is full again: nothing is lost by forgetting it.
    pub fn is_full(&self, rate: Rate, now: Duration) -> bool {
        let mut then = *self;
        then.fill(rate, now);
        then.level >= rate.burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_passes_and_then_as_many_as_flow_in() {
        let rate = Rate { per_second: 2.0, burst: 3.0 };
        let mut bucket = Bucket::full(rate, Duration::ZERO);
        assert!((0..3).all(|_| bucket.take(rate, Duration::ZERO).is_ok()));
        assert_eq!(bucket.take(rate, Duration::ZERO), Err(Duration::from_millis(500)));
        assert!(bucket.take(rate, Duration::from_millis(500)).is_ok());
        assert!(bucket.take(rate, Duration::from_millis(900)).is_err());
        assert!(!bucket.is_full(rate, Duration::from_secs(1)));
        assert!(bucket.is_full(rate, Duration::from_secs(10)));
        // A clock that goes back gives nothing.
        assert!(bucket.take(rate, Duration::from_secs(10)).is_ok());
        assert!(!bucket.is_full(rate, Duration::ZERO));
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_allows(times in proptest::collection::vec(0u64..5_000, 1..200)) {
            let rate = Rate { per_second: 10.0, burst: 5.0 };
            let mut times = times;
            times.sort_unstable();
            let mut bucket = Bucket::full(rate, Duration::ZERO);
            let passed = times.iter().filter(|t| bucket.take(rate, Duration::from_millis(**t)).is_ok()).count();
            let span = *times.last().unwrap() as f64 / 1000.0;
            prop_assert!(passed as f64 <= 5.0 + span * 10.0 + 1e-6, "{passed} in {span} s");
        }
    }
}
