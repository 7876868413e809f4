//! Counters and gauges, in the Prometheus text format at `/metrics`.

use crate::{tasks::Board, view::View};
use meepo_coord::{Restart, Stats};
use meepo_core::task::PartState;
use meepo_runtime::metrics::{Calls, Operation, Seconds};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::sync::Arc;

/// Labels of a request over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Request {
    /// Method of HTTP.
    pub method: &'static str,
    /// The path as `/openapi.json` has it, or `other`.
    pub route: String,
    /// Status of the answer.
    pub status: u16,
}

/// Labels of a call over gRPC.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Call {
    /// `meepo.v1.Jobs/Apply`, or `other`.
    pub method: String,
    /// The status the answer began with, as in `NotFound`.
    pub code: String,
}

/// Label of what lasts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// `events`, `exec`, `output` or `tasks`.
    pub kind: &'static str,
}

/// Label of something in a state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct State {
    /// The state.
    pub state: &'static str,
}

/// Label of what came of something.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `ok`, `refused`, `failed` or `unknown`.
    pub result: &'static str,
}

/// Labels of a circuit breaker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Dependency {
    /// `etcd`, `log_store` or `leader`.
    pub of: String,
}

/// Labels of a notification.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Channel {
    /// Name of the channel.
    pub channel: String,
}

/// Labels of a mismatch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Mismatch {
    /// Its name in [`meepo_core::mismatch::TABLE`].
    pub kind: String,
}

/// Labels of what is removed because of its age.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Swept {
    /// `runs`, `output` or `tasks`.
    pub what: String,
}

meepo_runtime::metrics! {
    /// What the master counts.
    pub Metrics, "meepo_master";
    http_duration: Family<Request, Seconds> = "http_request_duration_seconds", "Requests over HTTP: until the answer begins";
    grpc: Family<Call, Counter> = "grpc_requests", "Calls over gRPC";
    turned_away: Counter = "requests_turned_away", "Requests beyond what is served at once";
    streams: Family<Kind, Gauge> = "streams", "Requests under way that last as long as what they look at";
    breaker: Family<Dependency, Gauge> = "breaker", "Circuit breakers: 0 closed, 1 about to try, 2 open";
    leading: Gauge = "leading", "1 while this master leads";
    sessions: Gauge = "sessions", "Workers with a session to this master";
    nodes: Family<State, Gauge> = "nodes", "Nodes ever seen: online, offline, and drained among the online ones";
    placements: Counter = "placements", "Assignments written or deleted";
    placements_refused: Counter = "placements_refused", "Assignments that etcd refused: this master did not lead any more, or what they were decided on had changed";
    tasks: Gauge = "tasks", "Tasks that are not over, and those about to leave etcd";
    parts: Family<State, Gauge> = "task_parts", "Their parts by state";
    tasks_submitted: Counter = "tasks_submitted", "Tasks accepted";
    part_writes: Counter = "part_writes", "Parts of tasks written by this leader";
    events: Counter = "events", "Events told by what changes in etcd";
    listeners: Gauge = "event_listeners", "Those who listen to events now";
    listeners_cut: Counter = "event_listeners_cut", "Listeners that were cut off because they were too slow";
    followers: Gauge = "followers", "Those who follow the output of a run at this master";
    feeds: Gauge = "feeds", "Streams of output to this master, from workers or from the leader: one for each followed run";
    reconciled: Family<Mismatch, Counter> = "reconciled", "Mismatches between workers and records, by kind, that were dealt with";
    swept: Family<Swept, Counter> = "retention_removed", "What was removed from the log store because of its age: runs, output (pieces), tasks";
    notified: Family<Channel, Counter> = "notifications_sent", "Notifications that their channel has taken";
    notify_failed: Family<Channel, Counter> = "notifications_failed", "Notifications that were given up";
    notify_retried: Family<Channel, Counter> = "notifications_retried", "Tries of notifications that failed and are repeated";
    notify_throttled: Family<Channel, Counter> = "notifications_throttled", "Notifications that a channel's limit held back for a later one";
    received: Counter = "received_items", "Runs and pieces of output taken for the log store";
    receiving: Gauge = "receiving_bytes", "Bytes of batches from workers on their way to the log store";
    receiving_refused: Counter = "receiving_refused", "Batches from workers refused because too many were on their way";
    audited: Family<Outcome, Counter> = "audit_records", "Requests that were to change something, by what came of them";
    audit_spill: Gauge = "audit_spill_bytes", "What waits of the audit for the log store";
    audit_dropped: Counter = "audit_dropped", "Records of the audit that are in the log of this master alone";
    etcd_duration: Family<Operation, Seconds> = "etcd_request_duration_seconds", "Calls to etcd";
    etcd_errors: Family<Operation, Counter> = "etcd_request_errors", "Calls to etcd that failed";
    watch_restarts: Family<Restart, Counter> = "etcd_watch_restarts", "Watches of etcd that were opened again";
    store_duration: Family<Operation, Seconds> = "log_store_request_duration_seconds", "Calls to the log store";
    store_errors: Family<Operation, Counter> = "log_store_request_errors", "Calls to the log store that failed";
}

impl Metrics {
    /// Where calls to etcd are counted.
    pub fn etcd(&self) -> Stats {
        let calls =
            Calls { duration: self.etcd_duration.clone(), errors: self.etcd_errors.clone() };
        Stats { calls, restarts: self.watch_restarts.clone() }
    }

    /// Where calls to the log store are counted.
    pub fn store(&self) -> meepo_logstore::Observer {
        let calls =
            Calls { duration: self.store_duration.clone(), errors: self.store_errors.clone() };
        Arc::new(move |op, took, ok| calls.observe(op, took, ok))
    }

    /// Sets the gauges of what is known of the fleet, for somebody who is about to read them.
    pub fn observe(&self, view: &View, board: &Board) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let (mut online, mut drained, mut all) = (0, 0, 0);
        for node in view.read().fleet.nodes().values() {
            all += 1;
            online += usize::from(node.online);
            drained += usize::from(node.online && node.drained);
        }
        for (state, n) in [("online", online), ("offline", all - online), ("drained", drained)] {
            self.nodes.get_or_create(&State { state }).set(count(n));
        }
        let tasks = board.read();
        self.tasks.set(count(tasks.tasks.len()));
        let mut parts = [0usize; PartState::ALL.len()];
        for part in tasks.parts.values() {
            parts[part.value.state as usize] += 1;
        }
        drop(tasks);
        for state in PartState::ALL {
            let label = State { state: state.as_str() };
            self.parts.get_or_create(&label).set(count(parts[state as usize]));
        }
    }
}
