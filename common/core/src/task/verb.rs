//! What users do to parts.

use super::{
    record::{Ask, Control, Outcome, Part, Policy, Task},
    state::{Event, PartState},
};
use crate::{code::Code, error::Invalid, run::to_millis};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

/// What a user can do to a task or to one of its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Withdraw what has not begun.
    Cancel,
    /// … and end what has.
    Stop,
    /// Take it from its worker and give it back.
    Release,
    /// Take it from its worker and put it aside.
    Bury,
    /// Let what is buried or delayed begin now.
    Kick,
    /// Give what runs its whole time to run again.
    Touch,
    /// Give up what is buried or runs.
    Delete,
    /// Begin no further part for now.
    Pause,
    /// Go on.
    Resume,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Verb; 9] = [
        Self::Cancel,
        Self::Stop,
        Self::Release,
        Self::Bury,
        Self::Kick,
        Self::Touch,
        Self::Delete,
        Self::Pause,
        Self::Resume,
    ];

    /// Its name in paths and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Stop => "stop",
            Self::Release => "release",
            Self::Bury => "bury",
            Self::Kick => "kick",
            Self::Touch => "touch",
            Self::Delete => "delete",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Verb {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|v| v.as_str() == s).ok_or_else(|| {
            let names = Self::ALL.map(Verb::as_str).join(", ");
            Invalid::new(Code::BAD_VALUE, "verb", format!("unknown verb {s:?}"), names)
        })
    }
}

/// What a verb does to a part.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// It is like this now; an order for it is gone.
    Changed(Box<Part>),
    /// It stays with its worker, like this.
    Asked(Box<Part>),
    /// The part cannot do that; why.
    Refused(String),
}

impl Part {
    /// Does what a user wants to a part of `task`. `delay` is how much later a part that is
    /// released may begin.
    pub fn act(&self, verb: Verb, delay: Duration, task: &Task, now: Timestamp) -> Done {
        let mut part = self.clone();
        let held = part.state == PartState::Reserved;
        let begun = part.begun_at.is_some();
        let until = (!delay.is_zero()).then(|| now.checked_add(delay).ok()).flatten();
        let withdrawn = Outcome::new(Code::CANCELLED, None, now);
        let done = match (verb, held, begun) {
            // It would begin: its worker compares the task with the order, which is made anew.
            (Verb::Touch, true, false) if task.control != Control::Active => {
                let how = if task.control.revokes() { "withdrawn" } else { "paused" };
                return Done::Refused(format!("it has not begun, and its task is {how}"));
            }
            (Verb::Touch, true, _) => {
                part.touched += 1;
                part.deadline = deadline(&task.policy, now);
                return Done::Asked(Box::new(part));
            }
            // The worker that has it must end it first, so that it never runs twice at once.
            (Verb::Stop, true, true) => return asked(part, Ask::Stop),
            (Verb::Delete, true, true) => return asked(part, Ask::Delete),
            (Verb::Bury, true, true) => return asked(part, Ask::Bury),
            (Verb::Release, true, true) => {
                return asked(part, Ask::Release { not_before: until.map(to_millis) });
            }
            // A worker that finds its order gone does not begin it.
            (Verb::Cancel | Verb::Stop, true, false) => {
                part = part.taken_back(Duration::ZERO, now);
                part.outcome = Some(withdrawn);
                part.step(Event::Revoke, now)
            }
            (Verb::Release, true, false) => {
                part.undo_reserve();
                match until {
                    None => part.step(Event::Release, now),
                    Some(until) => part.delayed(Event::ReleaseDelayed, until, now),
                }
            }
            (Verb::Cancel | Verb::Stop, ..) => {
                part.outcome = Some(withdrawn);
                part.step(Event::Revoke, now)
            }
            (Verb::Bury, ..) => part.step(Event::Bury, now),
            (Verb::Delete, ..) => {
                part.outcome.get_or_insert(withdrawn);
                part.step(Event::Delete, now)
            }
            (Verb::Kick, ..) => {
                (part.failures, part.losses) = (0, 0);
                part.ready(Event::Kick, now)
            }
            _ => false,
        };
        match done {
            true => Done::Changed(Box::new(part)),
            false => Done::Refused(refusal(verb, self)),
        }
    }
}

/// When a part that is given to a worker now, or touched, must have ended.
pub(super) fn deadline(policy: &Policy, now: Timestamp) -> Option<Timestamp> {
    now.checked_add(policy.ttr.0).ok().map(to_millis)
}

fn asked(mut part: Part, ask: Ask) -> Done {
    part.ask = Some(ask);
    Done::Asked(Box::new(part))
}

fn refusal(verb: Verb, part: &Part) -> String {
    let state = part.state;
    if state.is_final() {
        return format!("it has ended already: {state}");
    }
    let instead = match (verb, state) {
        (Verb::Cancel, PartState::Reserved) => "a worker runs it; `stop` ends it",
        (Verb::Delete, _) => "it has not begun; `cancel` withdraws it",
        (Verb::Kick, _) => "only what is buried or delayed can be kicked",
        (Verb::Release | Verb::Bury | Verb::Touch, _) => "no worker has it",
        _ => "that does not go with its state",
    };
    format!("it is {state}: {instead}")
}
