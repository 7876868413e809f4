//! Whether and when a run that failed is tried again. Pure: the same policy, attempt
//! and seed give the same wait.

use crate::{code::Code, duration::HumanDuration, error::Invalid};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Most tries after the first.
pub const MAX_RETRIES: u32 = 1_000;
/// Wait before the first new try if the job does not say.
pub const DEFAULT_DELAY: Duration = Duration::from_secs(2);
/// Longest wait if the job does not say.
pub const DEFAULT_MAX_DELAY: Duration = Duration::from_secs(3600);
/// Longest wait that may be asked for.
pub const LONGEST_DELAY: Duration = Duration::from_secs(30 * 24 * 3600);

/// How a job's runs are tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// How often a slot is tried again after its first run, at most.
    pub max: u32,
    /// Wait before the first new try. Default 2s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<HumanDuration>,
    /// How the wait grows.
    #[serde(default)]
    pub backoff: Growth,
    /// Longest wait. Default 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_delay: Option<HumanDuration>,
    /// Up to this much is added to each wait, differently for each run, so that what
    /// failed together is not tried again together. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<HumanDuration>,
    /// Which outcomes are tried again. Default: all but `lost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<Vec<Outcome>>,
}

/// How the wait between tries grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Growth {
    /// It stays the same.
    Fixed,
    /// It doubles: 2s, 4s, 8s …
    #[default]
    Exponential,
}

/// How a run may end that can be tried again; the names are those of the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A non-zero exit status.
    ExitStatus,
    /// Ended by a signal that meepo did not send.
    Signaled,
    /// Killed for its timeout.
    TimedOut,
    /// The process could not be started.
    CannotStart,
    /// A request was answered with a status that was not expected.
    HttpStatus,
    /// A request was sent and not answered.
    NoResponse,
    /// The worker died while it ran.
    Lost,
}

impl Outcome {
    /// What is tried again if the job does not say.
    pub const DEFAULT: [Outcome; 6] = [
        Self::ExitStatus,
        Self::Signaled,
        Self::TimedOut,
        Self::CannotStart,
        Self::HttpStatus,
        Self::NoResponse,
    ];

    /// Its code.
    pub const fn code(self) -> Code {
        match self {
            Self::ExitStatus => Code::EXIT_STATUS,
            Self::Signaled => Code::SIGNALED,
            Self::TimedOut => Code::TIMED_OUT,
            Self::CannotStart => Code::CANNOT_START,
            Self::HttpStatus => Code::HTTP_STATUS,
            Self::NoResponse => Code::NO_RESPONSE,
            Self::Lost => Code::LOST,
        }
    }
}

impl Retry {
    pub(crate) fn validate(&self) -> Result<(), Invalid> {
        let bad = |field: &str, problem: String, expected: &str| {
            Err(Invalid::new(Code::BAD_VALUE, format!("retry.{field}"), problem, expected))
        };
        if !(1..=MAX_RETRIES).contains(&self.max) {
            return bad("max", format!("{} tries", self.max), "1 to 1000");
        }
        let waits = [("delay", self.delay), ("max_delay", self.max_delay), ("jitter", self.jitter)];
        for (field, wait) in waits {
            if wait.is_some_and(|w| w.0 > LONGEST_DELAY) {
                return bad(field, "out of range".into(), "a duration of at most 30 days");
            }
        }
        if self.on.as_ref().is_some_and(Vec::is_empty) {
            return bad("on", "names no outcome".into(), "at least one, or no `on`");
        }
        Ok(())
    }

    /// How long to wait before attempt `attempt + 1`, given that attempt number `attempt`
    /// (the first is 1) ended with `code`; `None`: it is not tried again. `seed` differs
    /// from run to run.
    pub fn wait(&self, attempt: u32, code: Code, seed: u64) -> Option<Duration> {
        let wanted = self.on.as_deref().unwrap_or(&Outcome::DEFAULT);
        if attempt > self.max || !wanted.iter().any(|o| o.code() == code) {
            return None;
        }
        let first = self.delay.map_or(DEFAULT_DELAY, |d| d.0);
        let grown = match self.backoff {
            Growth::Fixed => first,
            // 2^31 times anything but nothing is over every limit.
            Growth::Exponential => first.saturating_mul(1 << attempt.saturating_sub(1).min(31)),
        };
        let wait = grown.min(self.max_delay.map_or(DEFAULT_MAX_DELAY, |d| d.0).max(first));
        Some(wait + share(self.jitter.map_or(Duration::ZERO, |j| j.0), seed))
    }
}

/// The part of `whole` that `seed` stands for, in whole milliseconds: spread evenly from
/// nothing to all of it.
pub fn share(whole: Duration, seed: u64) -> Duration {
    let millis = u64::try_from(whole.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(((u128::from(millis) * u128::from(mix(seed))) >> 64) as u64)
}

/// Spreads the bits of a number (the finaliser of splitmix64), so that neighbours differ.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

/// A number made of names: the same on every machine and in every version (FNV-1a).
pub fn seed<'a>(names: impl IntoIterator<Item = &'a str>) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    let bytes = names.into_iter().flat_map(|name| name.bytes().chain([0]));
    bytes.fold(0xCBF2_9CE4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> Retry {
        serde_json::from_str(json).unwrap()
    }

    fn waits(retry: &Retry) -> Vec<u64> {
        let wait = |attempt| retry.wait(attempt, Code::EXIT_STATUS, 7);
        (1..).map_while(wait).map(|w| w.as_secs()).collect()
    }

    #[test]
    fn waits_double_up_to_the_cap_or_stay_the_same() {
        assert_eq!(waits(&policy(r#"{"max":5}"#)), [2, 4, 8, 16, 32]);
        assert_eq!(waits(&policy(r#"{"max":4,"delay":"1s","max_delay":"3s"}"#)), [1, 2, 3, 3]);
        assert_eq!(waits(&policy(r#"{"max":3,"delay":"9s","backoff":"fixed"}"#)), [9, 9, 9]);
        let long = policy(r#"{"max":1000,"delay":"30d","max_delay":"30d"}"#);
        assert_eq!(long.wait(1000, Code::LOST, 0), None);
        assert_eq!(long.wait(1000, Code::TIMED_OUT, 0), Some(LONGEST_DELAY));
    }

    #[test]
    fn only_chosen_outcomes_are_tried_again() {
        let usual = policy(r#"{"max":1}"#);
        for code in [Code::KILLED, Code::REPLACED, Code::SHUTDOWN, Code::LOST, Code::OK] {
            assert_eq!(usual.wait(1, code, 0), None, "{code}");
        }
        assert!(usual.wait(1, Code::CANNOT_START, 0).is_some());
        let lost = policy(r#"{"max":1,"on":["lost"]}"#);
        assert!(lost.wait(1, Code::LOST, 0).is_some());
        assert_eq!(lost.wait(1, Code::EXIT_STATUS, 0), None);
    }

    #[test]
    fn jitter_spreads_and_repeats() {
        let retry = policy(r#"{"max":1,"delay":"10s","jitter":"10s"}"#);
        let wait = |seed| retry.wait(1, Code::EXIT_STATUS, seed).unwrap();
        assert_eq!(wait(3), wait(3));
        let all: Vec<_> = (0..1000).map(wait).collect();
        let (low, high) = (all.iter().min().unwrap(), all.iter().max().unwrap());
        assert!(low.as_millis() < 10_200 && high.as_millis() > 19_800, "{low:?} {high:?}");
        assert!(all.iter().all(|w| (10..=20).contains(&w.as_secs())));
    }

    #[test]
    fn seeds_tell_names_apart() {
        assert_ne!(seed(["ab", "c"]), seed(["a", "bc"]));
        assert_eq!(seed(["a", "b"]), seed(["a", "b"]));
    }
}
