//! What the HTTP API takes and answers. The CLI and the master share these types.
//!
//! Unknown fields in requests are refused; clients must ignore unknown fields in
//! answers.

use crate::{
    code::Code,
    doctor::Finding,
    duration::HumanDuration,
    error::Invalid,
    id::{Name, NodeId, RunId},
    job::{Executor, JobSpec, JobStatus},
    node::{Facts, Problem, Work},
    run::{OutputChunk, RunRecord, RunState, Stream},
    tree::TreeDefinition,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Body of every answer with a status of 400 or above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorInfo,
}

/// What went wrong, for scripts and for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorInfo {
    /// The outcome code as a number, see the reference of codes.
    pub code: Code,
    /// The code's name, e.g. `bad_schedule`.
    pub name: String,
    /// A sentence for people.
    pub message: String,
    /// The field that is wrong, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What would be right, where that can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// Whether sending the same request again later can help.
    pub retry: bool,
}

impl From<&Invalid> for ErrorInfo {
    fn from(e: &Invalid) -> Self {
        Self {
            code: e.code,
            name: e.code.name(),
            message: e.problem.clone(),
            field: Some(e.field.clone()),
            expected: Some(e.expected.clone()),
            retry: false,
        }
    }
}

/// Where a job comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum JobSource {
    /// A definition applied through the API.
    Definition,
    /// Assignments put into etcd by hand; no master touches them.
    Etcd,
}

/// A job and how it stands on its nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobView {
    /// The job's name.
    pub name: Name,
    /// Where it comes from.
    pub source: JobSource,
    /// The definition; absent for [`JobSource::Etcd`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<JobSpec>,
    /// Revision of the definition in etcd; changes with every apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// The next slot on any node, UTC; absent when paused, only on demand, or when the
    /// schedule has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub next: Option<Timestamp>,
    /// What is defined at places in the product tree, besides the root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tree: Vec<TreeDefinition>,
    /// The nodes that hold it.
    pub nodes: Vec<JobOnNode>,
    /// The newest known run, where the log store could be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<RunRecord>,
}

/// How a job stands on one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobOnNode {
    /// The node.
    pub node: NodeId,
    /// Whether the node's worker is alive.
    pub online: bool,
    /// Whether the schedule is followed there.
    pub status: JobStatus,
    /// The expression as assigned; empty: only on demand.
    pub express: String,
    /// The command as assigned.
    pub cmd: String,
    /// Why the node cannot use the assignment, and what would be right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether as many slots have run there, or in the cluster, as `max_runs` allows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spent: bool,
    /// What runs now or how the last part ended, as the worker wrote it to
    /// `/cron/cronid/jobs/<ip>/<task_id>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<CronId>,
}

/// The value at `/cron/cronid/jobs/<ip>/<task_id>`: what runs now or how the last
/// run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CronId {
    /// The run's id.
    pub cronid: RunId,
    /// Where it stands.
    pub state: RunState,
    /// The slot it was started for, UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub slot: Timestamp,
    /// When its process was started, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub started_at: Option<Timestamp>,
    /// When it ended, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub ended_at: Option<Timestamp>,
    /// The outcome, once it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
}

/// Answer of `GET /v1/jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobList {
    /// One page of jobs, by name.
    pub jobs: Vec<JobSummary>,
    /// The `cursor` of the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A job in a list: all but its nodes one by one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobSummary {
    /// The job's name.
    pub name: Name,
    /// Where it comes from.
    pub source: JobSource,
    /// The definition; absent for [`JobSource::Etcd`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<JobSpec>,
    /// Revision of the definition in etcd; changes with every apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// The next slot on any node, UTC; absent when paused or only on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub next: Option<Timestamp>,
    /// What is defined at places in the product tree, besides the root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tree: Vec<TreeDefinition>,
    /// How many nodes hold it.
    pub counts: JobCounts,
    /// As it stands on the first of its nodes; only where there is no definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_hand: Option<JobByHand>,
    /// The newest known run, where the log store could be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<RunRecord>,
}

/// How many nodes hold a job. As this master's watch knows it, some milliseconds old.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobCounts {
    /// All of them.
    pub nodes: u64,
    /// Those whose worker is alive.
    pub online: u64,
    /// Those that cannot use what was put there by hand.
    pub problems: u64,
}

/// What was put into etcd by hand, on one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobByHand {
    /// Whether the schedule is followed.
    pub status: JobStatus,
    /// The expression; empty: only on demand.
    pub express: String,
    /// The command.
    pub cmd: String,
}

/// Answer of `PUT /v1/jobs/{name}` and `POST /v1/jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Applied {
    /// The job's name.
    pub name: Name,
    /// What happened to it.
    pub action: Action,
    /// Revision of the definition in etcd.
    pub revision: i64,
}

/// What applying a definition did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// There was none of that name.
    Created,
    /// It replaced another definition.
    Updated,
    /// The same definition was there already; nothing was written.
    Unchanged,
    /// It is gone.
    Deleted,
}

/// Body of `POST /v1/jobs/{name}/trigger`; may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TriggerRequest {
    /// Run only on those of the job's nodes that match. Default: all of them, or
    /// one for a job placed `once`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Drop the request if it has not started so long after it could. Default `1h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<HumanDuration>,
    /// Start no sooner than this long from now, at most 30 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<HumanDuration>,
    /// Start no sooner than at this instant, at most 30 days from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub at: Option<Timestamp>,
}

/// Answer of `POST /v1/jobs/{name}/trigger`: the runs that will be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Triggered {
    /// One per node.
    pub runs: Vec<RunRef>,
}

/// A run and its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunRef {
    /// The run.
    pub run_id: RunId,
    /// The node it runs on.
    pub node: NodeId,
}

/// Answer of `GET /v1/runs`, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunList {
    /// The runs.
    pub runs: Vec<RunRecord>,
    /// Give this as `cursor` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A piece of output as text. Bytes that are not UTF-8 come as base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutputView {
    /// Position within the run, from 0.
    pub seq: u64,
    /// Where it was written.
    pub stream: Stream,
    /// When it was read, UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub at: Timestamp,
    /// The text, if it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Otherwise the bytes in base64 (RFC 4648 §4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

impl OutputView {
    /// The chunk as text where it is UTF-8, else as base64 made by `encode`.
    pub fn new(chunk: OutputChunk, encode: impl FnOnce(&[u8]) -> String) -> Self {
        let (text, base64) = match String::from_utf8(chunk.data) {
            Ok(text) => (Some(text), None),
            Err(e) => (None, Some(encode(e.as_bytes()))),
        };
        Self { seq: chunk.seq, stream: chunk.stream, at: chunk.at, text, base64 }
    }
}

/// Answer of `GET /v1/runs/{id}/output`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutputPage {
    /// The pieces, in order.
    pub chunks: Vec<OutputView>,
    /// Give this as `after` to go on; absent when there was nothing new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_after: Option<u64>,
    /// Whether the run has ended and nothing follows.
    pub complete: bool,
}

/// One line of `GET /v1/runs/{id}/output?follow=true` (`application/x-ndjson`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum FollowEvent {
    /// A piece of output.
    Output(OutputView),
    /// The run has ended; nothing follows.
    End(Box<RunRecord>),
    /// The stream broke; the run may go on. Ask again with `after`.
    Error(ErrorInfo),
}

/// A node and how it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeView {
    /// The node's id.
    pub id: NodeId,
    /// Whether its worker is alive.
    pub online: bool,
    /// Whether its session stream reaches the leading master, so that synchronous
    /// commands and live output work. Absent while no leader can be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected: Option<bool>,
    /// Version of the worker.
    pub version: String,
    /// The labels that count: those of the worker's configuration, and over them those set
    /// by the API.
    pub labels: BTreeMap<String, String>,
    /// Those of the worker's configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels_configured: BTreeMap<String, String>,
    /// Those set by the API.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels_set: BTreeMap<String, String>,
    /// Facts: with what the last heartbeat told, or else as the worker last wrote them to
    /// etcd.
    pub facts: Facts,
    /// When that heartbeat came, UTC. Absent: the facts are from etcd and may be old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub facts_at: Option<Timestamp>,
    /// When the worker started, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub started_at: Option<Timestamp>,
    /// When the node last registered, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub registered_at: Option<Timestamp>,
    /// Valid assignments it holds.
    pub jobs: u64,
    /// What it holds but cannot use, and what else is wrong with it.
    pub problems: Vec<Problem>,
    /// Present while the node is asked to take nothing new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainView>,
    /// How its worker got on when it last wrote its health record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// Since when it is offline, UTC; absent where this master has not seen it go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub offline_since: Option<Timestamp>,
    /// How much its clock is ahead of the leading master's, in milliseconds; the way of the
    /// heartbeat there is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_ms: Option<i64>,
    /// What is to be said of it, the gravest first. Only where one node is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnosis: Vec<Finding>,
}

/// A node that takes nothing new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DrainView {
    /// How far it is.
    pub state: DrainState,
    /// When it was asked for, UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub requested_at: Timestamp,
    /// What runs then is killed, UTC; absent: it may run to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub deadline: Option<Timestamp>,
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum DrainState {
    /// The worker has not confirmed it yet.
    Asked,
    /// Nothing new starts; something runs still.
    Draining,
    /// Nothing runs any more.
    Drained,
}

/// Body of `POST /v1/nodes/{id}/drain`; may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Kill what runs still after this time. Default: let it run to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<HumanDuration>,
}

/// Answer of `GET /v1/nodes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeList {
    /// All nodes ever seen, or those of the target; by id unless the target says
    /// `prefer`.
    pub nodes: Vec<NodeView>,
    /// Why the facts are not of this moment, if they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
}

/// Body of `PATCH /v1/nodes/{id}/labels`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct LabelsRequest {
    /// Values to set; `null` takes a label away that the API set. Others stay.
    pub labels: BTreeMap<String, Option<String>>,
}

/// Body of `POST /v1/exec`: one command on some hosts, answered when all have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The caller's id for the request, given back in the answer.
    pub id: String,
    /// Node ids.
    pub hosts: Vec<String>,
    /// `sync.` and an executor: `sync.bash`, `sync.sh`, `sync.exec`, `sync.python`.
    pub method: String,
    /// The command.
    pub cmd: String,
    /// Longest time it may take on a host. Default `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
}

/// Answer of `POST /v1/exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecResponse {
    /// The request's id.
    pub id: String,
    /// One answer per host, in the order asked.
    pub response: Vec<HostAnswer>,
}

/// One host's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostAnswer {
    /// The host as asked for.
    pub host: String,
    /// `success` or `failed`.
    pub resp: String,
    /// The outcome code, 0 for success.
    pub retcode: Code,
    /// The outcome in words.
    pub message: String,
    /// What the command wrote, both streams in the order read, as text (bytes that
    /// are not UTF-8 replaced). Absent when no process ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

/// Body of `POST /v1/exec/stream`: a command on a target, answered as it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ExecStreamRequest {
    /// Which nodes.
    pub target: String,
    /// The command. With a `probe` it may be empty: then it is only told who passed.
    pub cmd: String,
    /// A bash script that is run first, on all nodes of the target: `cmd` runs on those
    /// where it exits with 0, at most as many as the target's `limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<String>,
    /// Further arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// What turns `cmd` into a process.
    #[serde(default)]
    pub executor: Executor,
    /// Longest time it may take on a host. Default `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User to run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// One line of the answer of `POST /v1/exec/stream` (`application/x-ndjson`).
/// Every host gets exactly one [`ExecEvent::End`]; then the stream ends. With a probe the
/// answers to it come first, and only hosts that passed it get an end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ExecEvent {
    /// A host's answer to the probe; every host of the target gives one. `data` is what the
    /// probe wrote there, up to 4096 bytes.
    Probe(HostAnswer),
    /// The hosts that passed the probe, up to the limit: the command runs on these.
    Chosen {
        /// In the order of their preference.
        hosts: Vec<String>,
    },
    /// The hosts that will answer, in order, with the ids of their runs.
    Start {
        /// One per host; unknown and offline ones are among them.
        hosts: Vec<ExecHost>,
    },
    /// A host's output.
    Output {
        /// The host.
        host: String,
        /// The piece.
        #[serde(flatten)]
        output: OutputView,
    },
    /// A host is done.
    End {
        /// The host's answer, without `data`.
        #[serde(flatten)]
        answer: HostAnswer,
        /// The record of the run, if a process was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<Box<RunRecord>>,
    },
    /// The request broke off: no host will answer any more.
    Error(ErrorInfo),
}

/// A host of a synchronous command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecHost {
    /// The host.
    pub host: String,
    /// The run, unless the host is unknown or offline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
}
