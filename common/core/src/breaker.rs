//! Circuit breakers: who has just failed several times in a row is left alone for a
//! while, and whoever asks meanwhile is told so at once instead of waiting in vain.
//!
//! | state | a call | success | failure |
//! |---|---|---|---|
//! | closed | is made | stays closed | opens after [`THRESHOLD`] in a row |
//! | open | is refused, with the time left | closes | nothing: the call was begun before |
//! | half open: the time is over | one is made as a probe, others are refused | closes | opens for twice as long |

use std::time::{Duration, Instant};

/// Failures in a row after which a breaker opens.
pub const THRESHOLD: u32 = 3;
/// How long it is open at first; then 4, 8 … seconds up to the cap.
pub const FIRST_WAIT: Duration = Duration::from_secs(2);
/// A probe that has said nothing for so long has been given up by whoever made it.
pub const PROBE: Duration = Duration::from_secs(10);
/// What is told to those who come while a probe is under way.
const SOON: Duration = Duration::from_secs(1);

/// How a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls are made.
    Closed,
    /// The next call is made, to see.
    HalfOpen,
    /// Calls are refused.
    Open,
}

/// A breaker. Its owner tells it the time, and throws its dice.
#[derive(Debug, Clone)]
pub struct Breaker {
    cap: Duration,
    failures: u32,
    /// How often it opened since the last success.
    trips: u32,
    until: Option<Instant>,
    probe: Option<Instant>,
}

impl Breaker {
    /// A closed one that never stays open for longer than `cap`, and half of it again.
    pub const fn new(cap: Duration) -> Self {
        Self { cap, failures: 0, trips: 0, until: None, probe: None }
    }

    /// Whether a call may be made.
    ///
    /// # Errors
    /// The time after which it is worth asking again.
    pub fn allow(&mut self, now: Instant) -> Result<(), Duration> {
        let Some(until) = self.until else { return Ok(()) };
        if now < until {
            return Err(until - now);
        }
        if self.probe.is_some_and(|at| now < at + PROBE) {
            return Err(SOON);
        }
        self.probe = Some(now);
        Ok(())
    }

    /// A call was answered, whoever made it.
    pub fn success(&mut self) {
        *self = Self::new(self.cap);
    }

    /// A call was not answered. `dice` is any random number: several processes must not
    /// come back in step.
    pub fn failure(&mut self, now: Instant, dice: u16) {
        self.failures = self.failures.saturating_add(1);
        let trips = match self.until {
            None => self.failures >= THRESHOLD,
            Some(_) => self.probe.is_some(),
        };
        if trips {
            let wait = (FIRST_WAIT * (1 << self.trips.min(10))).min(self.cap);
            self.trips = self.trips.saturating_add(1);
            self.until = Some(now + wait + wait * u32::from(dice) / (2 * u32::from(u16::MAX)));
            self.probe = None;
        }
    }

    /// How it stands.
    pub fn state(&self, now: Instant) -> State {
        match self.until {
            None => State::Closed,
            Some(until) if now < until => State::Open,
            Some(_) => State::HalfOpen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAP: Duration = Duration::from_secs(8);

    fn open(now: Instant) -> Breaker {
        let mut b = Breaker::new(CAP);
        for _ in 0..THRESHOLD {
            assert_eq!(b.allow(now), Ok(()));
            b.failure(now, 0);
        }
        assert_eq!(b.state(now), State::Open);
        b
    }

    #[test]
    fn a_success_in_between_keeps_it_closed() {
        let (mut b, now) = (Breaker::new(CAP), Instant::now());
        for _ in 0..10 {
            for _ in 1..THRESHOLD {
                b.failure(now, 0);
            }
            b.success();
        }
        assert_eq!((b.state(now), b.allow(now)), (State::Closed, Ok(())));
    }

    #[test]
    fn it_is_open_for_2_4_8_seconds_and_no_longer_than_the_cap() {
        let mut now = Instant::now();
        let mut b = open(now);
        for wait in [2, 4, 8, 8, 8] {
            let wait = Duration::from_secs(wait);
            assert_eq!(b.allow(now), Err(wait));
            now += wait;
            assert_eq!(b.state(now), State::HalfOpen);
            assert_eq!(b.allow(now), Ok(()));
            assert_eq!(b.allow(now), Err(SOON), "one probe at a time");
            b.failure(now, 0);
        }
        b.success();
        assert_eq!(b.state(now), State::Closed);
    }

    #[test]
    fn late_failures_do_not_prolong_it_and_a_lost_probe_does_not_block_it() {
        let now = Instant::now();
        let mut b = open(now);
        // A thousand calls that were under way when it opened.
        (0..1000).for_each(|_| b.failure(now, u16::MAX));
        let later = now + FIRST_WAIT;
        assert_eq!(b.allow(later), Ok(()));
        assert_eq!(b.allow(later + PROBE), Ok(()));
    }

    proptest! {
        /// Whatever happens, it lets a call through within the cap, half of it again and
        /// the time of a probe.
        #[test]
        fn it_never_stays_shut(events in prop::collection::vec((0..4u8, 0..5000u64, any::<u16>()), 0..200)) {
            let (mut b, mut now) = (Breaker::new(CAP), Instant::now());
            for (event, after, dice) in events {
                now += Duration::from_millis(after);
                match event {
                    0 => b.success(),
                    1 => b.failure(now, dice),
                    _ => { let _ = b.allow(now); }
                }
            }
            prop_assert!(b.allow(now + CAP * 3 / 2 + PROBE).is_ok());
        }
    }
}
