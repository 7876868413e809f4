//! One thing that is not as it should be, as one rule tells of it: told when it begins, again
//! when it goes on for long, and when it is over.

use super::Kind;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What kind of trouble. Of each there is one incident at a time for a rule and a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Runs fail.
    Run,
    /// Slots are missed.
    Missed,
    /// No success for too long.
    Silence,
    /// A node is gone.
    Node,
    /// A part is buried.
    Buried,
}

/// What a happening means to an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is so (again).
    Bad,
    /// It is over, and that is worth telling.
    Good,
    /// Time has passed, and it is still so.
    Tick,
    /// What it was about is not there any more.
    Gone,
}

/// What is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Nothing.
    Nothing,
    /// What happened, for so many like it.
    Now,
    /// Nothing yet; it is counted for the next time.
    Counted,
}

/// An incident that is open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Since when, UTC.
    pub since: Timestamp,
    /// When it was told last, UTC.
    pub told_at: Timestamp,
    /// From when on it is worth telling again, if ever, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Timestamp>,
    /// How often it happened since.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub untold: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Where an incident stands, for the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// There is none.
    Clear,
    /// It is open and was told lately.
    Told,
    /// It is open and may be told again.
    Due,
}

/// What each turn does at each stage: whether it is open then, and what is told.
pub(super) const TRANSITIONS: [(Stage, Turn, bool, Told); 12] = [
    (Stage::Clear, Turn::Bad, true, Told::Now),
    (Stage::Clear, Turn::Good, false, Told::Nothing),
    (Stage::Clear, Turn::Tick, false, Told::Nothing),
    (Stage::Clear, Turn::Gone, false, Told::Nothing),
    (Stage::Told, Turn::Bad, true, Told::Counted),
    (Stage::Told, Turn::Good, false, Told::Now),
    (Stage::Told, Turn::Tick, true, Told::Nothing),
    (Stage::Told, Turn::Gone, false, Told::Nothing),
    (Stage::Due, Turn::Bad, true, Told::Now),
    (Stage::Due, Turn::Good, false, Told::Now),
    (Stage::Due, Turn::Tick, true, Told::Now),
    (Stage::Due, Turn::Gone, false, Told::Nothing),
];

/// What becomes of an incident, and what is told: `times` things have happened. `repeat` is
/// how long it is not told again.
pub(super) fn turn(
    there: Option<&Incident>,
    turn: Turn,
    times: u64,
    repeat: Duration,
    now: Timestamp,
) -> (Option<Incident>, Told, u64) {
    let stage = match there {
        None => Stage::Clear,
        Some(i) if now >= i.repeats_at(repeat) => Stage::Due,
        Some(_) => Stage::Told,
    };
    let row = TRANSITIONS.iter().find(|(s, t, _, _)| *s == stage && *t == turn);
    let (open, told) = row.map_or((false, Told::Nothing), |(_, _, open, told)| (*open, *told));
    let since = there.map_or(now, |i| i.since);
    let before = there.map_or(0, |i| i.untold);
    let times = if turn == Turn::Bad { before.saturating_add(times) } else { before.max(1) };
    let told_at = there.filter(|_| told != Told::Now).map_or(now, |i| i.told_at);
    let next = open.then(|| {
        let untold = match told {
            Told::Now => 0,
            Told::Counted => times,
            Told::Nothing => before,
        };
        let next = Incident { since, told_at, again: None, untold };
        let again = (!repeat.is_zero()).then(|| next.repeats_at(repeat));
        Incident { again, ..next }
    });
    (next, told, times)
}

impl Incident {
    /// From when on it may be told again.
    fn repeats_at(&self, repeat: Duration) -> Timestamp {
        self.told_at.checked_add(repeat).unwrap_or(Timestamp::MAX)
    }
}

impl Kind {
    /// What it is the beginning of; `None`: it stands for itself and is told each time, or is
    /// an end.
    pub(super) fn opens(self) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.kind() == self)
    }
}

impl Class {
    /// Every class.
    pub(super) const ALL: [Self; 5] =
        [Self::Run, Self::Missed, Self::Silence, Self::Node, Self::Buried];

    /// What is told when it begins, and again.
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Run => Kind::Failure,
            Self::Missed => Kind::Missed,
            Self::Silence => Kind::NoSuccess,
            Self::Node => Kind::NodeLost,
            Self::Buried => Kind::TaskBuried,
        }
    }

    /// Whether it lasts by itself, so that time alone makes it worth telling again. Of the
    /// others the next one reminds.
    pub(super) fn lasts(self) -> bool {
        matches!(self, Self::Silence | Self::Node | Self::Buried)
    }
}
