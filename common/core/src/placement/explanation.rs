//! What `meepo job explain` answers.

use crate::{
    id::{Name, NodeId},
    tree::TreePath,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Answer of `GET /v1/jobs/{name}/explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobExplanation {
    /// The job.
    pub job: Name,
    /// The nodes asked about, by id.
    pub nodes: Vec<NodeExplanation>,
}

/// What becomes of a job on a node, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeExplanation {
    /// The node.
    pub node: NodeId,
    /// Its place in the product tree: its label `tree`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Whether it is to have the job.
    pub gets: bool,
    /// Whether it has an assignment of the job now.
    pub holds: bool,
    /// Why, for scripts.
    pub reason: Reason,
    /// Why, for people.
    pub text: String,
    /// Where the definition stands that decides for the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<TreePath>,
    /// The fields of the job there.
    pub fields: Vec<FieldOrigin>,
}

/// Why a node gets a job or gets it not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It gets it.
    Placed,
    /// It was put into etcd by hand.
    ByHand,
    /// Nothing is defined at or above its place in the tree.
    NotDefined,
    /// Switched off at its place in the tree.
    Disabled,
    /// The definitions cannot be read or make no job; what is there stays.
    Unreadable,
    /// The target does not mean it.
    Target,
    /// It is drained, and others were chosen.
    Drained,
    /// Its worker is away, and others were chosen.
    Offline,
    /// Others were chosen.
    Others,
}

/// A field of a job, and where its value comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FieldOrigin {
    /// The field.
    pub field: String,
    /// Its value; `null` where a definition sets it back to its default.
    pub value: Value,
    /// The path of the definition, `/` for the root, or `default`.
    pub from: String,
}
