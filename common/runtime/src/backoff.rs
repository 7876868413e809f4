//! Waits between tries: 0.2, 0.4, 0.8 … seconds up to a cap, each lengthened
//! at random by up to as much again, so that a fleet does not come back in step.

use backon::{BackoffBuilder, ExponentialBuilder};
use std::time::Duration;

/// An endless sequence of growing waits. [`Backoff::reset`] starts anew after a success.
pub struct Backoff {
    cap: Duration,
    inner: backon::ExponentialBackoff,
}

impl Backoff {
    /// Waits from 0.2 s up to `cap` (twice that with jitter).
    pub fn new(cap: Duration) -> Self {
        Self { cap, inner: Self::build(cap) }
    }

    fn build(cap: Duration) -> backon::ExponentialBackoff {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(cap)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times()
            .build()
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        self.inner.next().unwrap_or(self.cap)
    }

    /// Starts anew.
    pub fn reset(&mut self) {
        self.inner = Self::build(self.cap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_do_not_wait_in_step() {
        let waits = || {
            let mut b = Backoff::new(Duration::from_secs(5));
            [b.next_wait(), b.next_wait(), b.next_wait()]
        };
        assert_ne!(waits(), waits());
    }

    #[test]
    fn waits_grow_to_the_cap_and_start_anew() {
        let cap = Duration::from_secs(5);
        let mut b = Backoff::new(cap);
        let waits: Vec<_> = (0..50).map(|_| b.next_wait()).collect();
        assert!(waits[0] < Duration::from_millis(500));
        assert!(waits.iter().all(|w| *w <= cap * 2));
        assert!(waits[49] >= cap);
        b.reset();
        assert!(b.next_wait() < Duration::from_millis(500));
    }
}
