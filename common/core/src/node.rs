//! What a node says of itself.

use crate::{digest::Digest, duration::HumanDuration, id::NodeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Most problems a health record lists; more are counted in `problems_total`.
pub const MAX_PROBLEMS: usize = 50;

/// [`Health::status`] of a worker that takes work.
pub const ONLINE: &str = "Online";
/// … of one that takes nothing new, while something still runs.
pub const DRAINING: &str = "Draining";
/// … of one that takes nothing new, once nothing runs any more.
pub const DRAINED: &str = "Drained";

/// Facts about a host. Sizes are in bytes. Targets name them with dots:
/// `disk.free > 1TB`, `os = debian`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Facts {
    /// Host name.
    #[serde(default)]
    pub hostname: String,
    /// Distribution id, e.g. `debian`.
    #[serde(default)]
    pub os: String,
    /// Distribution version, e.g. `12`.
    #[serde(default)]
    pub os_version: String,
    /// Kernel release.
    #[serde(default)]
    pub kernel: String,
    /// CPU architecture, e.g. `x86_64`.
    #[serde(default)]
    pub arch: String,
    /// Logical CPUs.
    #[serde(default)]
    pub cpu_cores: u64,
    /// Load average over one minute.
    #[serde(default)]
    pub load1: f64,
    /// Memory in all.
    #[serde(default)]
    pub mem_total: u64,
    /// Memory a new process could get.
    #[serde(default)]
    pub mem_free: u64,
    /// Size of the file system at `/`.
    #[serde(default)]
    pub disk_total: u64,
    /// Free bytes of the file system at `/`.
    #[serde(default)]
    pub disk_free: u64,
    /// Processor time in use, in per cent of all processors. Known from heartbeats only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_use: Option<f64>,
    /// Runs under way. Known from heartbeats only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u64>,
}

impl Facts {
    /// These facts with what a heartbeat told since.
    pub fn with(&self, live: &Live) -> Self {
        Self {
            load1: live.load1,
            mem_total: live.mem_total,
            mem_free: live.mem_free,
            disk_total: live.disk_total,
            disk_free: live.disk_free,
            cpu_use: live.cpu_use,
            running: Some(live.running),
            ..self.clone()
        }
    }

    /// How busy the host is, 1 being fully: its load per processor, or the share of
    /// processor time in use where that is more. `None` without a heartbeat.
    pub fn load(&self) -> Option<f64> {
        self.running?;
        let load = self.load1 / self.cpu_cores.max(1) as f64;
        Some(load.max(self.cpu_use.unwrap_or(0.0) / 100.0))
    }
}

/// The value at `/agent/health/<ip>`, bound to the worker's lease: it is there
/// while the worker lives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// [`ONLINE`], or [`DRAINING`] or [`DRAINED`] while the node takes nothing new; a
    /// worker that is away has no record.
    pub status: String,
    /// Version of the worker.
    pub version: String,
    /// Random per worker process, so that a restart can be told from a long life.
    #[serde(default)]
    pub instance: String,
    /// When the worker process started, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Labels from the worker's configuration, e.g. `group=web`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Facts about the host at the time of writing.
    #[serde(default)]
    pub facts: Facts,
    /// Valid assignments held.
    #[serde(default)]
    pub jobs: u64,
    /// What the worker holds but cannot use, at most [`MAX_PROBLEMS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// All of them counted.
    #[serde(default)]
    pub problems_total: u64,
    /// When the drain that the status speaks of was asked for, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_requested_at: Option<Timestamp>,
    /// How the worker got on at the time of writing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// What the worker held of its assignments at the time of writing; its heartbeats tell
    /// what it holds now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Parts of tasks it takes at once; 0 of a worker that knows no tasks.
    #[serde(default)]
    pub task_slots: u32,
    /// How long the worker's lease lives: so much later it has ended what others may be
    /// given. Absent of workers that do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ttl: Option<HumanDuration>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// What changes on a host from moment to moment, as the worker's last heartbeat told it.
/// Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Live {
    /// When the heartbeat came, UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub at: Timestamp,
    /// Processor time in use since the heartbeat before, in per cent of all processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_use: Option<f64>,
    /// Load average over one minute.
    pub load1: f64,
    /// Memory in all.
    pub mem_total: u64,
    /// Memory a new process could get.
    pub mem_free: u64,
    /// Size of the file system at `/`.
    pub disk_total: u64,
    /// Free bytes of the file system at `/`.
    pub disk_free: u64,
    /// Runs that have begun and not ended, synchronous commands among them.
    pub running: u64,
    /// How much the worker's clock was ahead of that of whoever took the heartbeat, in
    /// milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_ms: Option<i64>,
}

/// How a worker gets on with its work.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Work {
    /// When the scheduler last looked at what is due, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub looked_at: Option<Timestamp>,
    /// How late the last slot was looked at, in milliseconds.
    pub lag_ms: u64,
    /// The largest such lag of the last minute.
    pub lag_max_ms: u64,
    /// Runs that have begun and not ended, synchronous commands among them.
    pub running: u64,
    /// Runs of jobs that wait for a place on the node.
    pub ready: u64,
    /// Runs of jobs that wait for an earlier run of the same job.
    pub waiting: u64,
    /// Records and pieces of output that wait in the spool.
    pub spool_items: u64,
    /// Their bytes.
    pub spool_bytes: u64,
    /// When the oldest of them was put in, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "date-time"))]
    pub spool_oldest: Option<Timestamp>,
    /// Bytes of output that the spool has dropped since the worker started.
    pub spool_dropped_bytes: u64,
    /// How long the last flush of the journal took, in milliseconds.
    pub flush_ms: u64,
}

/// Something on a node that needs a person: a malformed assignment, for example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// Where, e.g. the etcd key.
    pub subject: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

/// The value at `/meepo/nodes/<ip>`: a node that was ever seen, so that an unknown
/// host can be told from one that is away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Last known labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Facts when it last registered.
    #[serde(default)]
    pub facts: Facts,
    /// Version when it last registered.
    #[serde(default)]
    pub version: String,
    /// When it last registered, UTC.
    pub registered_at: Timestamp,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// A node as targets and placement see it.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeInfo {
    /// Its id.
    pub id: NodeId,
    /// Whether its health record is there.
    pub online: bool,
    /// Whether it has been asked to take nothing new.
    pub drained: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its facts.
    pub facts: Facts,
}
