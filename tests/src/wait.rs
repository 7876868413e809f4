//! Waiting on a condition with a deadline.

use std::{
    panic::Location,
    time::{Duration, Instant},
};

/// First pause between two looks.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// `n` seconds.
pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// `n` milliseconds.
pub const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Calls `check` until it answers `Ok` and returns what that holds.
///
/// A check that hangs counts as failed at the deadline. Panics at the deadline, with
/// `what` was awaited, the caller's place and the last reason for which it was not so.
#[track_caller]
pub fn eventually<T>(
    deadline: Duration,
    what: impl Into<String>,
    mut check: impl AsyncFnMut() -> Result<T, String>,
) -> impl Future<Output = T> {
    let (caller, what) = (Location::caller(), what.into());
    async move {
        let end = Instant::now() + deadline;
        let mut pause = FIRST_PAUSE;
        let mut reason = "the condition was never evaluated to its end".to_owned();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left.max(FIRST_PAUSE), check()).await {
                Ok(Ok(value)) => return value,
                Ok(Err(r)) => reason = r,
                Err(_) => reason = format!("the check itself hung; before that: {reason}"),
            }
            assert!(
                Instant::now() + pause < end,
                "{caller}: waited {deadline:?} in vain until {what}: {reason}"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }
}
