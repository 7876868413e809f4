//! Which parts of a task may begin: all at once, unless somebody holds it or it is rolled
//! out in portions.

use super::{
    record::{Control, Part, Task},
    state::PartState,
};
use crate::{
    code::Code,
    rollout::{self, Plan, Progress, Stand},
};
use jiff::Timestamp;

/// Which parts may leave [`PartState::Pending`].
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
    match (task.control, planned(task, part, now)) {
        (Control::Active, None) => Released::All,
        (Control::Active, Some(plan)) => Released::UpTo { last: plan.last, again: plan.again },
        (Control::Paused | Control::Cancelled | Control::Stopped, _) => Released::None,
    }
}

/// How far the roll-out of `task` is, if it is rolled out in portions.
pub fn progress<'a>(
    task: &Task,
    part: impl Fn(u32) -> Option<&'a Part>,
    now: Timestamp,
) -> Option<Progress> {
    planned(task, part, now).map(|plan| plan.progress)
}

/// How many parts of `task` have failed, as its roll-out counts them.
pub fn failures<'a>(task: &Task, part: impl Fn(u32) -> Option<&'a Part>) -> u32 {
    let failed = |n: &u32| matches!(stand(part(*n)), Stand::Ended { failed: true, .. });
    // The number of parts is bounded far below u32.
    task.part_ids().map(|id| id.n).filter(failed).count() as u32
}

fn planned<'a>(
    task: &Task,
    part: impl Fn(u32) -> Option<&'a Part>,
    now: Timestamp,
) -> Option<Plan> {
    let policy = task.policy.rollout.as_ref()?;
    let parts: Vec<Stand> = task.part_ids().map(|id| stand(part(id.n))).collect();
    let control = rollout::Control {
        start_at: task.policy.not_before,
        paused: task.control == Control::Paused,
        pardoned: task.pardoned,
    };
    Some(rollout::plan(policy, &parts, &control, now))
}

/// A part as its roll-out sees it. One that is buried has failed for the last time; one that
/// was not begun in time was not rolled out. What somebody withdrew is no failure.
fn stand(part: Option<&Part>) -> Stand {
    let Some(part) = part else { return Stand::Held };
    let at = part.since;
    match part.state {
        PartState::Pending => Stand::Held,
        PartState::Delayed | PartState::Ready | PartState::Reserved => Stand::Open,
        PartState::Success => Stand::Ended { at, failed: false },
        PartState::Buried | PartState::Failed => Stand::Ended { at, failed: true },
        PartState::Revoked => {
            let expired = part.outcome.as_ref().is_some_and(|o| o.code == Code::EXPIRED);
            Stand::Ended { at, failed: expired }
        }
    }
}
