//! When an assignment fires.

use crate::calendar::Schedule;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use std::hash::{Hash, Hasher};

/// A schedule with the zone and the dates that bound it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct When {
    /// The compiled expression.
    pub schedule: Schedule,
    /// The zone its fields are read in.
    pub timezone: TimeZone,
    /// Apart, as few have them and a worker may hold a million of these.
    dates: Option<Box<Dates>>,
}

/// Between which instants slots exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Dates {
    start: Option<Timestamp>,
    end: Option<Timestamp>,
}

impl Hash for When {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.schedule, self.timezone.iana_name(), &self.dates).hash(state);
    }
}

impl When {
    /// A schedule without bounds.
    pub fn new(schedule: Schedule, timezone: TimeZone) -> Self {
        Self { schedule, timezone, dates: None }
    }

    /// The same with slots from `start` to `end` only; both count.
    #[must_use]
    pub fn between(mut self, start: Option<Timestamp>, end: Option<Timestamp>) -> Self {
        let dated = start.is_some() || end.is_some();
        self.dates = dated.then(|| Box::new(Dates { start, end }));
        self
    }

    fn start(&self) -> Option<Timestamp> {
        self.dates.as_ref()?.start
    }

    fn end(&self) -> Option<Timestamp> {
        self.dates.as_ref()?.end
    }

    /// The first slot strictly after `after`, `None` when there are no more.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        // A slot at the very instant of the start counts.
        let before_start = |s: Timestamp| s.checked_sub(SignedDuration::from_nanos(1)).ok();
        let start = self.start().and_then(before_start);
        let after = start.map_or(after, |s| s.max(after));
        let slot = self.schedule.next_after(after, &self.timezone)?;
        self.end().is_none_or(|end| slot <= end).then_some(slot)
    }

    /// Whether the dates that bound it admit an instant.
    pub fn holds_at(&self, instant: Timestamp) -> bool {
        self.start().is_none_or(|start| start <= instant)
            && self.end().is_none_or(|end| instant <= end)
    }

    /// All slots strictly after `after`, ascending.
    pub fn iter_after(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> {
        std::iter::successors(self.next_after(after), |slot| self.next_after(*slot))
    }
}
