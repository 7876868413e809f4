//! Work that is done over and over: so many times, or every so often until it is withdrawn.

use super::record::{Ask, Part};
use crate::{code::Code, duration::HumanDuration, error::Invalid, job::MAX_TIMEOUT};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Most rounds that can be asked for; without a number there is no end.
pub const MAX_TIMES: u32 = 1_000_000;

/// How often each part is run. At least one of the fields is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Repeat {
    /// So many rounds in all. Default: until the task is withdrawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// From the beginning of one round to that of the next, which waits for the end of the
    /// first. Default: at once after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<HumanDuration>,
}

impl Repeat {
    /// Checks what a user asked for.
    ///
    /// # Errors
    /// When a field is out of range, or none is given.
    pub fn validate(&self) -> Result<(), Invalid> {
        let bad = |field: &str, problem: &str, expected: &str| {
            let field = format!("repeat{field}");
            Err(Invalid::new(Code::BAD_VALUE, field, problem, expected))
        };
        match (self.times, self.every) {
            (None, None) => bad("", "says neither how often nor when", "`times`, `every` or both"),
            (Some(n), _) if n == 0 || n > MAX_TIMES => {
                bad(".times", "out of range", "a number from 1 to 1000000")
            }
            (_, Some(d)) if d.0 < Duration::from_secs(1) || d.0 > MAX_TIMEOUT => {
                bad(".every", "out of range", "a duration from 1s to a year")
            }
            _ => Ok(()),
        }
    }

    /// When a part whose run has just succeeded is to begin again; `None` if it is done.
    pub(super) fn next(&self, part: &Part, now: Timestamp) -> Option<Timestamp> {
        let goes_on = matches!(part.ask, None | Some(Ask::Release { .. }));
        let left = self.times.is_none_or(|times| part.rounds.saturating_add(1) < times);
        if !(goes_on && left) {
            return None;
        }
        let from = part.begun_at.unwrap_or(now);
        let next = self.every.and_then(|every| from.checked_add(every.0).ok());
        // What took longer than that is not made up for.
        Some(next.unwrap_or(now).max(now))
    }
}
