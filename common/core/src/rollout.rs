//! In which portions the parts of a task are let go, and when it is time to stop.
//!
//! Parts are let go in their order: a canary if there is one, then batch after batch. A
//! batch begins when all parts before it have come to an end and the pause after that is
//! over. Nothing is remembered between two plans: the same records give the same plan, so a
//! master that has just begun to lead goes on where another was.

#[cfg(test)]
mod tests;

use crate::{code::Code, duration::HumanDuration, error::Invalid};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr, time::Duration};

/// Longest pause and soak.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30 * 24 * 3600);

/// A number of parts, or a share of all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// So many, at least one.
    Parts(u32),
    /// So many per cent, 1 to 100, rounded up.
    Percent(u32),
}

impl Amount {
    /// How many of `all`: at least one.
    pub fn of(self, all: u32) -> u32 {
        match self {
            Self::Parts(n) => n.max(1),
            // At most `all`, for a share of at most the whole.
            Self::Percent(p) => {
                let n = (u64::from(all) * u64::from(p)).div_ceil(100);
                u32::try_from(n).unwrap_or(u32::MAX).max(1)
            }
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parts(n) => write!(f, "{n}"),
            Self::Percent(p) => write!(f, "{p}%"),
        }
    }
}

impl FromStr for Amount {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = |problem: String| {
            Err(Invalid::new(Code::BAD_VALUE, "amount", problem, "a number such as 5, or 10%"))
        };
        let s = s.trim();
        let (digits, percent) = s.strip_suffix('%').map_or((s, false), |p| (p.trim_end(), true));
        match digits.parse::<u32>() {
            Ok(0) => bad(format!("{s:?} is nothing")),
            Ok(p) if percent && p > 100 => bad(format!("{s:?} is more than all")),
            Ok(p) if percent => Ok(Self::Percent(p)),
            Ok(n) if !digits.starts_with('+') => Ok(Self::Parts(n)),
            _ => bad(format!("{s:?} is not an amount")),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Parts(n) => s.serialize_u32(*n),
            Self::Percent(_) => s.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number such as 5, or text such as \"10%\"")]
        enum Either {
            Number(u32),
            Text(String),
        }
        let text = match Either::deserialize(d)? {
            Either::Number(n) => n.to_string(),
            Either::Text(text) => text,
        };
        text.parse().map_err(|e: Invalid| {
            serde::de::Error::custom(format!("{}; expected {}", e.problem, e.expected))
        })
    }
}

/// The first portion, on which the rest depends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// How many parts, as `1` or `"2%"`.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "1"))]
    pub size: Amount,
    /// How long to wait after they have ended. Default: the `pause`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soak: Option<HumanDuration>,
}

/// In which portions a task is rolled out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Parts let go at once, as `5` or `"10%"` of all. Default: all that are left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "10%"))]
    pub batch: Option<Amount>,
    /// How long to wait after a batch has ended. Default: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<HumanDuration>,
    /// The first portion. If any of its parts fails, the roll-out stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// When so many parts have failed, as `2` or `"10%"` of all, the roll-out stops.
    /// Default: it goes on whatever fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "10%"))]
    pub max_failures: Option<Amount>,
}

impl Rollout {
    /// Names of the fields, for messages.
    pub const FIELDS: &'static [&'static str] = &["batch", "pause", "canary", "max_failures"];

    /// Refuses what makes no sense; the field of the error begins with `rollout`.
    pub fn validate(&self) -> Result<(), Invalid> {
        let soak = self.canary.as_ref().and_then(|c| c.soak);
        for (field, wait) in [("pause", self.pause), ("canary.soak", soak)] {
            if wait.is_some_and(|w| w.0 > LONGEST_PAUSE) {
                let expected = "a duration of at most 30 days";
                let field = format!("rollout.{field}");
                return Err(Invalid::new(Code::BAD_VALUE, field, "out of range", expected));
            }
        }
        if *self == Self::default() {
            let expected = "at least one of batch, canary, max_failures";
            return Err(Invalid::new(Code::BAD_VALUE, "rollout", "says nothing", expected));
        }
        Ok(())
    }
}

/// How a part stands, as far as a roll-out cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    /// Nobody has let it go yet.
    Held,
    /// It was let go and has not come to an end; one that waits for another try, too.
    Open,
    /// It came to an end.
    Ended {
        /// When. UTC.
        at: Timestamp,
        /// Whether it counts as failed.
        failed: bool,
    },
}

/// What a roll-out does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its time has not come.
    Waiting,
    /// A batch is under way.
    Running,
    /// It waits after a batch.
    Pausing,
    /// Somebody holds it.
    Paused,
    /// It stopped because of failures; `resume` lets it go on.
    Stopped,
    /// Every part has come to an end.
    Done,
}

impl Phase {
    /// The name as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Done => "done",
        }
    }
}

/// How far a roll-out is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Progress {
    /// What it does.
    pub phase: Phase,
    /// The batch that is under way or comes next, from 1; the canary is the first.
    pub batch: u32,
    /// All batches.
    pub batches: u32,
    /// Parts that have come to an end.
    pub ended: u32,
    /// … and those of them that failed.
    pub failed: u32,
    /// All parts.
    pub parts: u32,
    /// Waiting, pausing: until when, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub until: Option<Timestamp>,
    /// Stopped: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl fmt::Display for Progress {
    /// As in `batch 2 of 5, 20 of 100 done, 1 failed`, without the phase.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, batches, ended, parts, failed, .. } = self;
        write!(f, "batch {batch} of {batches}, {ended} of {parts} done, {failed} failed")
    }
}

/// What may begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Parts with numbers up to this one, from 1.
    pub last: u32,
    /// When to plan again although no part has changed.
    pub again: Option<Timestamp>,
    /// For those who look.
    pub progress: Progress,
}

/// What else decides beside the policy and the parts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Control {
    /// Nothing begins before. UTC.
    pub start_at: Option<Timestamp>,
    /// Somebody holds it.
    pub paused: bool,
    /// So many failures were there when somebody last let it go on: they do not stop it
    /// again.
    pub pardoned: u32,
}

/// The sizes of all batches of `parts` parts.
fn sizes(policy: &Rollout, parts: u32) -> impl Iterator<Item = u32> {
    let canary = policy.canary.as_ref().map(|c| c.size.of(parts));
    let batch = policy.batch.map_or(u32::MAX, |b| b.of(parts));
    let mut left = parts;
    let mut first = canary;
    std::iter::from_fn(move || {
        let size = first.take().unwrap_or(batch).min(left);
        left -= size;
        (size > 0).then_some(size)
    })
}

/// What may begin at `now`. `parts` are all parts in their order.
pub fn plan(policy: &Rollout, parts: &[Stand], control: &Control, now: Timestamp) -> Plan {
    let all = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    let ended = |s: &&Stand| matches!(s, Stand::Ended { .. });
    let failed = |s: &&Stand| matches!(s, Stand::Ended { failed: true, .. });
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    // The first batch of which not all has ended, and what lies before it.
    let (mut begin, mut batch, mut size) = (0_usize, 0, 0);
    let mut batches = 0;
    for some in sizes(policy, all) {
        batches += 1;
        if batch == 0 {
            let end = begin + some as usize;
            if parts[begin..end].iter().all(|s| ended(&s)) {
                begin = end;
            } else {
                (batch, size) = (batches, some);
            }
        }
    }
    let mut progress = Progress {
        phase: Phase::Done,
        batch: if batch == 0 { batches } else { batch },
        batches,
        ended: count(parts.iter().filter(ended).count()),
        failed: count(parts.iter().filter(failed).count()),
        parts: all,
        until: None,
        why: None,
    };
    if batch == 0 {
        return Plan { last: all, again: None, progress };
    }
    let none = |progress: Progress, again| Plan { last: 0, again, progress };
    if control.paused {
        progress.phase = Phase::Paused;
        return none(progress, None);
    }
    let canary = policy.canary.as_ref().map_or(0, |c| c.size.of(all)).min(all) as usize;
    let canary = count(parts[..canary].iter().filter(failed).count());
    let limit = policy.max_failures.map(|m| m.of(all));
    let new = progress.failed.saturating_sub(control.pardoned);
    progress.why = match limit.filter(|limit| new >= *limit) {
        _ if canary > control.pardoned => Some("the canary failed".to_owned()),
        Some(limit) => Some(format!("{new} failed, at most {} may", limit - 1)),
        None => None,
    };
    if progress.why.is_some() {
        progress.phase = Phase::Stopped;
        return none(progress, None);
    }
    if let Some(start) = control.start_at.filter(|at| *at > now) {
        (progress.phase, progress.until) = (Phase::Waiting, Some(start));
        return none(progress, Some(start));
    }
    let end = begin + size as usize;
    // A batch that has begun goes on, whatever became of the clock since.
    let begun = parts[begin..end].iter().any(|s| *s != Stand::Held);
    let soak = policy.canary.as_ref().filter(|_| batch == 2).and_then(|c| c.soak);
    let pause = soak.or(policy.pause).map_or(Duration::ZERO, |p| p.0);
    let before = parts[..begin].iter().filter_map(|s| match s {
        Stand::Ended { at, .. } => Some(*at),
        _ => None,
    });
    let over = before.max().and_then(|at| at.checked_add(pause).ok());
    if let Some(over) = over.filter(|over| !begun && !pause.is_zero() && *over > now) {
        (progress.phase, progress.until) = (Phase::Pausing, Some(over));
        return none(progress, Some(over));
    }
    progress.phase = Phase::Running;
    Plan { last: count(end), again: None, progress }
}
