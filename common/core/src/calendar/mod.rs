//! Cron expressions and the instants they name.
//!
//! The dialect is Vixie's as cronie has it, with the additions below. A
//! [`Schedule`] is parsed once into bit masks of a few dozen bytes and is evaluated
//! in civil time, which is then mapped to instants.
//!
//! | fields | meaning |
//! |---|---|
//! | 5 | minute, hour, day of month, month, weekday |
//! | 6 | seconds first |
//! | 7 | seconds first, year last |
//!
//! A field is a comma-separated list of `*`, `a`, `a-b`, `*/n`, `a-b/n` and `a/n`
//! (from `a` to the end of the field's range; cronie refuses this one). Weekdays are
//! 0 to 7, 0 and 7 both Sunday; months and weekdays have names of three letters.
//! Ranges do not wrap around, except that Sunday may end one (`fri-sun`). `?` is `*`
//! in the day fields. Further, in the day of month: `L` the last day, `L-3` the third
//! before it, `15W` the Monday-to-Friday day nearest to the 15th in the same month,
//! `LW` the last such day; in the weekday: `1#2` the second Monday, `5L` the last
//! Friday.
//!
//! If neither day field starts with `*`, a day matches when either matches; otherwise
//! both must match. So `0 0 1-7 * */2` means those of the first seven days that are
//! a Sunday, Tuesday, Thursday or Saturday.
//!
//! `@yearly` `@annually` `@monthly` `@weekly` `@daily` `@midnight` `@hourly` stand
//! for fields. `@every 90s` fires at the multiples of the duration counted from
//! 1970-01-01T00:00:00Z, so every node and every restart agree on its slots, whatever
//! the time zone. `@at 2026-12-24T18:00` fires once, at that civil time of the job's
//! zone (with `Z` or an offset at that instant); where clocks go forward over it, right
//! after the gap, where they go back, in the first pass. `@reboot` has no slots;
//! [`Schedule::is_reboot`] tells.
//!
//! **Clock changes.** A schedule whose minute or hour field starts with `*` follows
//! elapsed time: it fires at every instant whose civil time matches, so in both passes
//! of an hour that is repeated and never in one that is skipped. Any other schedule
//! is fixed-time: in a repeated stretch it fires in the first pass only, and all its
//! times within one skipped stretch become a single slot at the first instant after
//! it. Slots strictly increase in every case.
//!
//! Years run from 1970 to 2199. An expression that names no existing date within
//! them is refused when parsed; one whose dates have all passed is not, for parsing
//! knows no "now".

mod mask;
mod next;
#[cfg(test)]
mod oracle;
mod parse;
#[cfg(test)]
mod tests;

use crate::{code::Code, error::Invalid};
use jiff::{
    Timestamp,
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase},
};
use mask::Masks;
use std::{num::NonZeroU64, sync::LazyLock};

/// First year a schedule can name.
pub const FIRST_YEAR: i16 = 1970;
/// Last year a schedule can name.
pub const LAST_YEAR: i16 = 2199;
/// Longest expression in bytes.
pub const MAX_EXPRESSION: usize = 1024;

/// A compiled schedule; see the [module](self) for the language. It needs no more
/// than 48 bytes, and only `W`, `#`, `L-3`, `5L` and years put more on the heap,
/// which clones share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Schedule(Kind);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    Calendar(Masks),
    /// A number of seconds; slots are its multiples since the Unix epoch.
    Every(NonZeroU64),
    At(At),
    Reboot,
}

impl Schedule {
    /// Compiles an expression.
    ///
    /// Errors have the code [`Code::BAD_SCHEDULE`] and the field `schedule`; the
    /// problem names the part of the expression and its text.
    pub fn parse(expr: &str) -> Result<Self, Invalid> {
        parse::parse(expr).map(Self)
    }

    /// The first slot strictly after `after`, `None` when there are no more.
    ///
    /// It depends on nothing but its arguments: for every instant from one slot up to
    /// the next, excluding it, the answer is that next slot.
    pub fn next_after(&self, after: Timestamp, tz: &TimeZone) -> Option<Timestamp> {
        match &self.0 {
            Kind::Calendar(masks) => next::next_after(masks, after, tz),
            Kind::Every(seconds) => next::next_multiple(*seconds, after),
            Kind::At(at) => at.instant(tz).filter(|slot| *slot > after),
            Kind::Reboot => None,
        }
    }

    /// Whether this is `@at`, which has one slot only.
    pub fn is_at(&self) -> bool {
        matches!(self.0, Kind::At(_))
    }

    /// All slots strictly after `after`, ascending.
    pub fn iter_after<'a>(&'a self, after: Timestamp, tz: &'a TimeZone) -> Slots<'a> {
        Slots { schedule: self, tz, last: Some(after) }
    }

    /// Whether this is `@reboot`, which fires when the worker's host starts.
    pub fn is_reboot(&self) -> bool {
        matches!(self.0, Kind::Reboot)
    }
}

/// One instant, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Instant(Timestamp),
    /// In whatever zone the job has.
    Civil(DateTime),
}

impl At {
    fn instant(self, tz: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Instant(t) => Some(t),
            Self::Civil(civil) => match tz.to_ambiguous_timestamp(civil).offset() {
                AmbiguousOffset::Gap { before, after } => {
                    let early = after.to_timestamp(civil).ok()?;
                    next::change(tz, early, before.to_timestamp(civil).ok()?)
                }
                AmbiguousOffset::Unambiguous { offset }
                | AmbiguousOffset::Fold { before: offset, .. } => offset.to_timestamp(civil).ok(),
            },
        }
    }
}

/// The slots of a schedule; made by [`Schedule::iter_after`].
#[derive(Debug, Clone)]
pub struct Slots<'a> {
    schedule: &'a Schedule,
    tz: &'a TimeZone,
    last: Option<Timestamp>,
}

impl Iterator for Slots<'_> {
    type Item = Timestamp;

    fn next(&mut self) -> Option<Timestamp> {
        self.last = self.schedule.next_after(self.last?, self.tz);
        self.last
    }
}

impl std::iter::FusedIterator for Slots<'_> {}

/// The rules of every zone, compiled in. The host's own files are never read: nodes
/// must agree on slots, and hosts without time-zone files are common.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// Looks up a time zone by its IANA name (`Europe/London`, `UTC`; letter case does
/// not matter). The host's own zone has no name here: what a job means must not
/// depend on where it is read.
///
/// Errors have the code [`Code::BAD_SCHEDULE`] and the field `timezone`.
pub fn time_zone(name: &str) -> Result<TimeZone, Invalid> {
    if name.eq_ignore_ascii_case("utc") {
        return Ok(TimeZone::UTC);
    }
    ZONES.get(name).map_err(|_| {
        let shown: String = name.chars().take(60).collect();
        let problem = if name.eq_ignore_ascii_case("local") || name.eq_ignore_ascii_case("system") {
            format!("{shown:?} would mean something else on each host")
        } else {
            format!("unknown time zone {shown:?}")
        };
        Invalid::new(
            Code::BAD_SCHEDULE,
            "timezone",
            problem,
            "an IANA time zone such as UTC, Europe/London or Asia/Shanghai",
        )
    })
}
