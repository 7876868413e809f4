//! Which node holds which job: a pure function from what is wanted and what is
//! there to the writes that make them agree.
//!
//! Invariants: an assignment without `spec_revision` was put by a person and is
//! never touched; the plan of an agreeing fleet is empty; every effect names the
//! revision it was decided on, so that the executor can refuse it when the key has
//! moved meanwhile; planning what has changed comes to the same as planning everything.
//!
//! The [`Fleet`] is kept up to date change by change and notes what each change may
//! touch, so that planning costs what has changed and not what is there. Each job is
//! planned by itself ([`Fleet::plan_job`]).

mod choose;
mod dirty;
mod expect;
mod explain;
mod explanation;
mod fleet;
#[cfg(test)]
mod tests;

pub use choose::{ONCE_HOLDERS, Waiting};
pub use dirty::Dirty;
pub use expect::Expected;
pub use explanation::{FieldOrigin, JobExplanation, NodeExplanation, Reason};
pub use fleet::{Fleet, Standing};

use crate::{
    id::{Name, NodeId},
    job::Assignment,
    tree::TreePath,
};
use std::sync::Arc;

/// A value read from etcd with the revision of its last change.
#[derive(Debug, Clone, PartialEq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// etcd's `mod_revision`.
    pub revision: i64,
}

/// What stands at an assignment's key, as far as placement cares.
#[derive(Debug, Clone, PartialEq)]
pub enum Held {
    /// Written by a master (it has a `spec_revision`). Shared between nodes where equal. It is
    /// to be written again from that time on, in seconds since 1970, as its signature runs out.
    Ours(Arc<Assignment>, u32),
    /// Put by hand, or not readable. Hands off.
    Foreign,
}

/// One write that brings a node's assignments nearer to the definitions.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Put the assignment, provided the key's revision is still `expect` (0: no key).
    Put {
        /// The node.
        node: NodeId,
        /// The job.
        job: Name,
        /// What to put.
        assignment: Arc<Assignment>,
        /// The definitions it was made from, with their revisions.
        made_from: Arc<[(TreePath, i64)]>,
        /// The revision this was decided on.
        expect: i64,
    },
    /// Delete the assignment, provided its revision is still `expect`.
    Delete {
        /// The node.
        node: NodeId,
        /// The job.
        job: Name,
        /// The revision this was decided on.
        expect: i64,
    },
}

impl Effect {
    /// Whose job.
    pub fn job(&self) -> &Name {
        match self {
            Self::Put { job, .. } | Self::Delete { job, .. } => job,
        }
    }
}
