//! Counters and gauges, in the Prometheus text format at `/metrics`.

use meepo_core::run::RunState;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

/// Label of an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// State of the run.
    pub state: String,
}

meepo_runtime::metrics! {
    /// What the worker counts.
    pub Metrics, "meepo_worker";
    started: Counter = "processes_started", "Processes started";
    runs: Family<Outcome, Counter> = "runs", "Runs by state at their end";
    refused: Counter = "runs_refused", "Runs not started because the journal could not be written";
    spool_errors: Counter = "spool_errors", "Records or output that could not be spooled";
    delivered: Counter = "delivered_items", "Items delivered to the log store";
    delivery_errors: Counter = "delivery_errors", "Failed tries to deliver to the log store";
    delivery_refused: Counter = "delivery_refused_items", "Items that the log store refuses for good, dropped";
    claims_won: Counter = "claims_won", "Slots claimed by this node";
    claims_lost: Counter = "claims_lost", "Slots that another node had claimed";
    spool_items: Gauge = "spool_items", "Items waiting in the spool";
    spool_bytes: Gauge = "spool_bytes", "Bytes waiting in the spool";
    spool_backlog: Gauge = "spool_backlog_items", "Items among them that are the backlog of an outage";
    spool_dropped: Gauge = "spool_dropped_chunks", "Output chunks dropped for want of room or for their age";
    spool_dropped_bytes: Gauge = "spool_dropped_bytes", "Bytes of output in them";
    spool_dropped_records: Gauge = "spool_dropped_records", "Records of runs dropped because they alone had filled the spool, or for their age";
    spool_age: Gauge = "spool_age_seconds", "Age of the oldest item in the spool";
    log_store_refuses: Gauge = "log_store_refuses", "1 while the log store takes nothing";
    state_pending: Gauge = "state_pending", "Operations that wait for the state file";
    state_flush_ms: Gauge = "state_flush_milliseconds", "How long the last flush to disk took";
    disk_refuses: Gauge = "disk_refuses", "1 while the disk takes no writes";
    running: Gauge = "running", "Runs that have begun and not ended";
    ready: Gauge = "ready", "Runs that wait for a place on the node";
    waiting: Gauge = "waiting", "Runs that wait for an earlier run of their job";
    drained: Gauge = "drained", "1 while the node takes nothing new";
    jobs: Gauge = "jobs", "Assignments held and usable";
    problems: Gauge = "job_problems", "Assignments held and not usable";
    lag_ms: Gauge = "schedule_lag_milliseconds", "How late the last slot was looked at";
    lag_max_ms: Gauge = "schedule_lag_max_milliseconds", "The largest such lag of the last minute";
    looked_age: Gauge = "schedule_idle_seconds", "Time since the scheduler last looked at what is due";
    orders_refused: Counter = "orders_refused", "Orders of a master that had been replaced, not carried out";
    follows: Counter = "follows", "Streams of output begun to the leading master";
    follow_streams: Gauge = "follow_streams", "Streams of output to the leading master now: one for each followed run";
    session: Gauge = "session_up", "1 while the session stream to the leading master is up";
}

impl Metrics {
    /// Counts the end of a run.
    pub fn ended(&self, state: RunState) {
        self.runs.get_or_create(&Outcome { state: state.as_str().to_owned() }).inc();
    }
}
