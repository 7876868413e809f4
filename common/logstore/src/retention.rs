//! How long what is over is kept.
//!
//! Nothing expires by itself: somebody (the leading master) calls
//! [`LogStore::sweep`](crate::LogStore::sweep) again and again. So the settings stand in
//! one place, and a change of them holds at once for what is stored already.

use jiff::{SignedDuration, Timestamp};
use meepo_core::{code::Code, duration::HumanDuration, error::Invalid, run::RunState};
use serde::{Deserialize, Deserializer};
use std::{fmt, str::FromStr, time::Duration};

/// Shortest time anything is kept.
const LEAST: Duration = Duration::from_secs(1);

/// How long something is kept after its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It is never removed.
    Forever,
    /// It is removed once it is older.
    For(Duration),
}

impl Keep {
    const fn days(n: u64) -> Self {
        Self::For(Duration::from_secs(n * 24 * 3600))
    }

    /// What ended before this instant may go; `None`: nothing.
    pub(crate) fn cutoff(self, now: Timestamp) -> Option<Timestamp> {
        let Self::For(time) = self else { return None };
        now.checked_sub(SignedDuration::try_from(time).ok()?).ok()
    }
}

impl FromStr for Keep {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = |problem| {
            let expected = "a duration of a second or more such as 30d, or \"forever\"";
            Invalid::new(Code::BAD_VALUE, "retention", problem, expected)
        };
        if s.trim() == "forever" {
            return Ok(Self::Forever);
        }
        match s.parse::<HumanDuration>() {
            Ok(HumanDuration(time)) if time >= LEAST => Ok(Self::For(time)),
            Ok(_) => Err(bad(format!("{s:?} is too short"))),
            Err(e) => Err(bad(e.problem)),
        }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forever => f.write_str("forever"),
            Self::For(time) => HumanDuration(*time).fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Keep {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let wrong = |e: Invalid| {
            serde::de::Error::custom(format!("{}; expected {}", e.problem, e.expected))
        };
        text.parse().map_err(wrong)
    }
}

/// What is kept for a time of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Records of runs that succeeded.
    Success,
    /// Records of runs that failed, timed out, were killed or lost.
    Failed,
    /// Records of slots that were missed or skipped.
    Missed,
    /// Output. It never outlives the record of its run.
    Output,
    /// Tasks that are over.
    Tasks,
    /// The audit.
    Audit,
}

impl Class {
    /// Every class.
    pub const ALL: [Class; 6] =
        [Self::Success, Self::Failed, Self::Missed, Self::Output, Self::Tasks, Self::Audit];

    /// The name in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Missed => "missed",
            Self::Output => "output",
            Self::Tasks => "tasks",
            Self::Audit => "audit",
        }
    }
}

impl FromStr for Class {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|c| c.as_str() == s).ok_or_else(|| {
            let problem = format!("{s:?} is nothing that is kept for a time of its own");
            let expected = "success, failed, missed, output, tasks or audit";
            Invalid::new(Code::BAD_VALUE, "retention", problem, expected)
        })
    }
}

/// How long each class is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// [`Class::Success`]. Default 30 days.
    pub success: Keep,
    /// [`Class::Failed`]. Default 90 days.
    pub failed: Keep,
    /// [`Class::Missed`]. Default 30 days.
    pub missed: Keep,
    /// [`Class::Output`]. Default 30 days.
    pub output: Keep,
    /// [`Class::Tasks`]. Default 90 days.
    pub tasks: Keep,
    /// [`Class::Audit`]. Default 365 days.
    pub audit: Keep,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            success: Keep::days(30),
            failed: Keep::days(90),
            missed: Keep::days(30),
            output: Keep::days(30),
            tasks: Keep::days(90),
            audit: Keep::days(365),
        }
    }
}

impl Retention {
    /// Nothing is ever removed.
    pub const FOREVER: Self = Self {
        success: Keep::Forever,
        failed: Keep::Forever,
        missed: Keep::Forever,
        output: Keep::Forever,
        tasks: Keep::Forever,
        audit: Keep::Forever,
    };

    /// Sets the time of a class.
    pub fn set(&mut self, class: Class, keep: Keep) {
        *match class {
            Class::Success => &mut self.success,
            Class::Failed => &mut self.failed,
            Class::Missed => &mut self.missed,
            Class::Output => &mut self.output,
            Class::Tasks => &mut self.tasks,
            Class::Audit => &mut self.audit,
        } = keep;
    }

    /// The shortest time; none if all is kept for ever.
    pub fn shortest(&self) -> Option<Duration> {
        let all = [self.success, self.failed, self.missed, self.output, self.tasks, self.audit];
        let times = all.into_iter().filter_map(|k| match k {
            Keep::Forever => None,
            Keep::For(time) => Some(time),
        });
        times.min()
    }

    /// How long records in a state are kept. What runs still is.
    pub(crate) fn of_state(&self, state: RunState) -> Keep {
        match state {
            RunState::Running => Keep::Forever,
            RunState::Success => self.success,
            RunState::Failed | RunState::Timeout | RunState::Killed | RunState::Lost => self.failed,
            RunState::Missed | RunState::Skipped => self.missed,
        }
    }
}

/// What a step of sweeping removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Records of runs.
    pub runs: u64,
    /// Chunks of output, as far as they were counted.
    pub chunks: u64,
    /// Tasks.
    pub tasks: u64,
    /// Records of the audit.
    pub audit: u64,
    /// Whether there may be more to remove now.
    pub more: bool,
}

/// The first 16 bytes of ids (UUIDv7) that were made at `t` or later: smaller ones are
/// older.
pub(crate) fn first_id_of(t: Timestamp) -> [u8; 16] {
    // Nothing was made before 1970.
    let ms = u64::try_from(t.as_millisecond()).unwrap_or(0).min((1 << 48) - 1);
    let mut id = [0; 16];
    id[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, keep) in
            [("forever", Keep::Forever), ("30d", Keep::days(30)), ("1s", Keep::For(LEAST))]
        {
            assert_eq!(text.parse::<Keep>().unwrap(), keep);
            assert_eq!(keep.to_string().parse::<Keep>().unwrap(), keep);
        }
        for bad in ["", "0s", "never", "1mo", "-1d"] {
            let e = bad.parse::<Keep>().unwrap_err();
            assert!(e.expected.contains("forever"), "{bad:?}: {e}");
        }
        for class in Class::ALL {
            assert_eq!(class.as_str().parse::<Class>().unwrap(), class);
        }
    }

    #[test]
    fn ids_sort_like_the_time_they_were_made_at() {
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        let made = |ms: u64| {
            let stamp = uuid::Timestamp::from_unix(
                uuid::NoContext,
                ms / 1000,
                (ms % 1000) as u32 * 1_000_000,
            );
            *uuid::Uuid::new_v7(stamp).as_bytes()
        };
        for ms in [0_u64, 1, 999, 1_700_000_000_123] {
            assert!(made(ms) >= first_id_of(at(ms as i64)));
            assert!(made(ms) < first_id_of(at(ms as i64 + 1)));
        }
        assert_eq!(first_id_of(at(-5)), [0; 16]);
    }
}
