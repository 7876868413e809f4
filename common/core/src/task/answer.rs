//! What the HTTP API takes and answers about tasks.

use super::{
    id::{PartId, TaskId},
    record::Control,
    verb::Verb,
    view::{PartView, TaskView},
};
use crate::{api::ErrorInfo, duration::HumanDuration};
use serde::{Deserialize, Serialize};

/// Most refusals that an answer lists; more are counted.
pub const MAX_REFUSALS: usize = 100;

/// Answer of `GET /v1/tasks`, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TaskList {
    /// The tasks, without their parts.
    pub tasks: Vec<TaskView>,
    /// Give this as `cursor` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Body of `POST /v1/tasks/{id}/{verb}`; may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ActRequest {
    /// With `release`: begin again so much later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<HumanDuration>,
}

/// Answer of `POST /v1/tasks/{id}/{verb}`: kept by etcd's quorum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TaskActed {
    /// The task.
    pub task: TaskId,
    /// What was done.
    pub verb: Verb,
    /// What is wanted of the whole task by now.
    pub control: Control,
    /// Parts that have changed. Of a verb for the whole task the leader changes them next.
    pub changed: u32,
    /// Parts whose workers were asked to end them first.
    pub asked: u32,
    /// Parts that cannot do that, at most [`MAX_REFUSALS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<PartRefusal>,
    /// All of them counted.
    pub refused_total: u32,
}

/// A part that cannot do what was wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartRefusal {
    /// The part.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub part: PartId,
    /// Why.
    pub reason: String,
}

/// One line of `GET /v1/tasks/{id}/events` (`application/x-ndjson`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum TaskEvent {
    /// The task as it stands, without its parts.
    Start(Box<TaskView>),
    /// A part that has changed, or that stands so at the start. Changes that follow each
    /// other quickly may be told as one.
    Part(Box<PartView>),
    /// All parts have ended or are buried; nothing follows.
    End(Box<TaskView>),
    /// The stream broke; the task goes on. Ask again.
    Error(ErrorInfo),
}
