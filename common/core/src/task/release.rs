//! Which parts of a task may begin: all at once, unless somebody holds it or it is rolled
//! out in portions.

use super::record::{Control, Part, Task};
use jiff::Timestamp;

/// Which parts may leave [`PartState::Pending`](super::PartState::Pending).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// All of them.
    All,
    /// None for now.
    None,
    /// Those with numbers up to this one. Called again when a part has changed, and at
    /// `again` if that is given.
    UpTo {
        /// The last of them.
        last: u32,
        /// When to ask again although no part has changed.
        again: Option<Timestamp>,
    },
}

impl Released {
    /// Whether part `n` may begin.
    pub fn allows(&self, n: u32) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::UpTo { last, .. } => n <= *last,
        }
    }
}

/// Which parts of `task` may begin at `now`. `part` looks up a part by its number; one that
/// has none yet is pending.
pub fn released<'a>(
    task: &Task,
    part: impl Fn(u32) -> Option<&'a Part>,
    now: Timestamp,
) -> Released {
    // Roll-outs plan here, from `task.policy.rollout`.
    let _ = (part, now);
    match task.control {
        Control::Active => Released::All,
        Control::Paused | Control::Cancelled | Control::Stopped => Released::None,
    }
}
