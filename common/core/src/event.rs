//! What happens in the fleet, told to whoever listens.
//!
//! An event is made from one change in etcd and what stood there before, so that every
//! master tells the same ones under the same ids; nothing is stored for them.

mod filter;
#[cfg(test)]
mod tests;

pub use filter::Filter;

use crate::{
    code::Code,
    error::Invalid,
    id::{Name, NodeId, RunId},
};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Where an event stands: the revision of etcd that made it, and its place among those of
/// the same revision. `4711.0`, or `4711` for everything up to the end of that revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// Revision of etcd.
    pub revision: i64,
    /// Place within the revision, from 0; [`u32::MAX`] stands for all of it.
    pub index: u32,
}

impl EventId {
    /// The end of a revision: all its events are before this, those of later ones after.
    pub const fn through(revision: i64) -> Self {
        Self { revision, index: u32::MAX }
    }

    /// The last revision of which everything has been seen by whoever stands here.
    pub const fn complete(self) -> i64 {
        if self.index == u32::MAX { self.revision } else { self.revision - 1 }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            u32::MAX => write!(f, "{}", self.revision),
            index => write!(f, "{}.{index}", self.revision),
        }
    }
}

impl FromStr for EventId {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        let (revision, index) = s.split_once('.').map_or((s, None), |(r, i)| (r, Some(i)));
        let revision = Some(revision).filter(|r| digits(r)).and_then(|r| r.parse().ok());
        let index = match index {
            None => Some(u32::MAX),
            Some(i) => Some(i).filter(|i| digits(i)).and_then(|i| i.parse().ok()),
        };
        match (revision, index) {
            (Some(revision), Some(index)) => Ok(Self { revision, index }),
            _ => Err(Invalid::new(
                Code::BAD_VALUE,
                "after",
                format!("{s:?} is not the id of an event"),
                "an id as events have it, such as 4711.0",
            )),
        }
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(|e: Invalid| serde::de::Error::custom(e.problem))
    }
}

/// Makes [`What`] from the table of all events: kind, name, meaning.
macro_rules! events {
    ($($(#[$meta:meta])* $variant:ident = $kind:literal, $name:literal, $meaning:literal;)*) => {
        /// What happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum What {
            $(
                #[doc = $meaning]
                #[serde(rename = $name)]
                $variant,
            )*
        }

        impl What {
            /// Every event.
            pub const ALL: &'static [What] = &[$(Self::$variant),*];

            /// Its name: the kind, a dot, and what happened.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What it is about: the part of the name before the dot.
            pub const fn kind(self) -> &'static str {
                match self { $(Self::$variant => $kind),* }
            }

            /// What it means, in a sentence without a full stop.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),* }
            }
        }
    };
}

events! {
    JobCreated = "job", "job.created", "a definition was put where there was none";
    JobUpdated = "job", "job.updated", "a definition was replaced by a different one";
    JobPaused = "job", "job.paused", "its schedule is not followed any more";
    JobResumed = "job", "job.resumed", "its schedule is followed again";
    JobDeleted = "job", "job.deleted", "a definition was deleted";
    TaskCreated = "task", "task.created", "a task was handed in";
    TaskPaused = "task", "task.paused", "somebody holds a task: no further part begins";
    TaskResumed = "task", "task.resumed", "a task goes on, also a roll-out that had stopped";
    TaskCancelled = "task", "task.cancelled", "what of a task has not begun never will";
    TaskStopped = "task", "task.stopped", "a task is cancelled, and what has begun is ended";
    TaskPart = "task", "task.part", "a part of a task is in another `state`; once a run of it has ended, `code` says how";
    TaskEnded = "task", "task.ended", "a task is over and has gone to the log store";
    RunStarted = "run", "run.started", "a run began; those that end within 100 ms only have an end";
    RunEnded = "run", "run.ended", "a run ended; `state` and `code` say how";
    RunAway = "run", "run.away", "the worker that had the run is gone; how the run ends is not known yet";
    NodeRegistered = "node", "node.registered", "a node was seen for the first time";
    NodeForgotten = "node", "node.forgotten", "a node's record was deleted";
    NodeOnline = "node", "node.online", "a node's worker is there";
    NodeOffline = "node", "node.offline", "a node's worker ended or etcd does not hear from it any more";
    NodeRestarted = "node", "node.restarted", "another process of a worker took the place of one that had not been missed yet";
    NodeDraining = "node", "node.draining", "a node was asked to take nothing new";
    NodeDrained = "node", "node.drained", "nothing runs any more on a node that takes nothing new";
    NodeUndrained = "node", "node.undrained", "a node may take work again";
    NodeLabels = "node", "node.labels", "a node's labels changed; `labels` are the new ones";
    LeaderElected = "leader", "leader.elected", "a master leads, with this `term`";
    LeaderGone = "leader", "leader.gone", "the leading master stepped down, ended or was not heard from";
    Gap = "gap", "gap", "what happened between `after` and this id cannot be told any more";
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Something that happened. What does not apply is absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Give this as `after` to go on behind it.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "4711.0"))]
    pub id: EventId,
    /// What happened.
    #[serde(rename = "type")]
    pub what: What,
    /// When, as far as the record tells; else when this master saw it; absent in what is
    /// told from etcd's history. UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub at: Option<Timestamp>,
    /// The job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Name>,
    /// The node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Which part of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<u32>,
    /// The run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// The state it is in now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The outcome code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// The labels of that origin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// URL of the master's HTTP API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// The leader's term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<i64>,
    /// Of a gap: where it begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub after: Option<EventId>,
    /// More in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Event {
    /// One of which nothing more is known; it has no place yet.
    pub fn new(what: What) -> Self {
        Self {
            id: EventId { revision: 0, index: 0 },
            what,
            at: None,
            job: None,
            node: None,
            task: None,
            part: None,
            run_id: None,
            state: None,
            code: None,
            labels: None,
            master: None,
            term: None,
            after: None,
            message: None,
        }
    }

    /// The same, about a job.
    pub fn job(self, job: Option<Name>) -> Self {
        Self { job, ..self }
    }

    /// The same, about a node.
    pub fn node(self, node: Option<NodeId>) -> Self {
        Self { node, ..self }
    }

    /// The same, with a state.
    pub fn state(self, state: impl Into<String>) -> Self {
        Self { state: Some(state.into()), ..self }
    }
}
