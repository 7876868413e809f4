//! Counters and gauges, in the Prometheus text format at `/metrics`.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Request {
    /// Method of HTTP.
    pub method: String,
    /// Status of the answer.
    pub status: u32,
}

/// Labels of a circuit breaker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Dependency {
    /// `etcd`, `log_store` or `leader`.
    pub of: String,
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
    requests: Family<Request, Counter> = "http_requests", "Requests by method and status";
    turned_away: Counter = "requests_turned_away", "Requests beyond what is served at once";
    breaker: Family<Dependency, Gauge> = "breaker", "Circuit breakers: 0 closed, 1 about to try, 2 open";
    leading: Gauge = "leading", "1 while this master leads";
    sessions: Gauge = "sessions", "Workers with a session to this master";
    placements: Counter = "placements", "Assignments written or deleted";
    placements_refused: Counter = "placements_refused", "Assignments that etcd refused: this master did not lead any more, or what they were decided on had changed";
    tasks_submitted: Counter = "tasks_submitted", "Tasks accepted";
    part_writes: Counter = "part_writes", "Parts of tasks written by this leader";
    events: Counter = "events", "Events told by what changes in etcd";
    listeners: Gauge = "event_listeners", "Those who listen to events now";
    listeners_cut: Counter = "event_listeners_cut", "Listeners that were cut off because they were too slow";
    followers: Gauge = "followers", "Those who follow the output of a run at this master";
    feeds: Gauge = "feeds", "Streams of output to this master, from workers or from the leader: one for each followed run";
    reconciled: Family<Mismatch, Counter> = "reconciled", "Mismatches between workers and records, by kind, that were dealt with";
    swept: Family<Swept, Counter> = "retention_removed", "What was removed from the log store because of its age: runs, output (pieces), tasks";
    received: Counter = "received_items", "Runs and pieces of output taken for the log store";
    receiving: Gauge = "receiving_bytes", "Bytes of batches from workers on their way to the log store";
    receiving_refused: Counter = "receiving_refused", "Batches from workers refused because too many were on their way";
}
