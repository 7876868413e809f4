//! Counters and gauges, in the Prometheus text format at `/metrics`.

use meepo_coord::{Restart, Stats};
use meepo_core::run::RunState;
use meepo_runtime::metrics::{Calls, Operation, Seconds};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::sync::{Arc, atomic::AtomicU64};

/// A gauge that is no whole number.
type Real = Gauge<f64, AtomicU64>;

/// Label of an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// State of the run.
    pub state: &'static str,
}

/// Labels of a refused signature.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Refused {
    /// What was signed.
    pub kind: &'static str,
    /// Why it is not believed.
    pub reason: &'static str,
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
    spool_dropped: Counter = "spool_dropped_chunks", "Output chunks dropped for want of room or for their age";
    spool_dropped_bytes: Counter = "spool_dropped_bytes", "Bytes of output in them";
    spool_dropped_records: Counter = "spool_dropped_records", "Records of runs dropped because they alone had filled the spool, or for their age";
    spool_limit: Gauge = "spool_limit_bytes", "Bytes the spool may hold";
    spool_age: Real = "spool_age_seconds", "Age of the oldest item in the spool";
    log_store_refuses: Gauge = "log_store_refuses", "1 while the log store takes nothing";
    state_pending: Gauge = "state_pending", "Operations that wait for the state file";
    state_flush: Real = "state_flush_seconds", "How long the last flush to disk took";
    disk_refuses: Gauge = "disk_refuses", "1 while the disk takes no writes";
    running: Gauge = "running", "Runs that have begun and not ended";
    ready: Gauge = "ready", "Runs that wait for a place on the node";
    waiting: Gauge = "waiting", "Runs that wait for an earlier run of their job";
    drained: Gauge = "drained", "1 while the node takes nothing new";
    jobs: Gauge = "jobs", "Assignments held and usable";
    problems: Gauge = "job_problems", "Assignments held and not usable";
    fires: Counter = "fires", "Slots that came due and were to run, or to be claimed";
    lag: Seconds = "schedule_lag_seconds", "How late slots were looked at";
    lag_max: Real = "schedule_lag_max_seconds", "The largest such lag of the last minute";
    looked_age: Real = "schedule_idle_seconds", "Time since the scheduler last looked at what is due";
    orders_refused: Counter = "orders_refused", "Orders of a master that had been replaced, not carried out";
    signatures_refused: Family<Refused, Counter> = "signatures_refused", "Values in etcd and orders not believed, by kind and reason";
    commands_denied: Counter = "commands_denied", "Runs that the lists of this node do not allow";
    follows: Counter = "follows", "Streams of output begun to the leading master";
    follow_streams: Gauge = "follow_streams", "Streams of output to the leading master now: one for each followed run";
    session: Gauge = "session_up", "1 while the session stream to the leading master is up";
    etcd_duration: Family<Operation, Seconds> = "etcd_request_duration_seconds", "Calls to etcd";
    etcd_errors: Family<Operation, Counter> = "etcd_request_errors", "Calls to etcd that failed";
    watch_restarts: Family<Restart, Counter> = "etcd_watch_restarts", "Watches of etcd that were opened again";
    store_duration: Family<Operation, Seconds> = "log_store_request_duration_seconds", "Calls to the log store; none where a master is given what is to be kept";
    store_errors: Family<Operation, Counter> = "log_store_request_errors", "Calls to the log store that failed";
}

impl Metrics {
    /// Counts the end of a run.
    pub fn ended(&self, state: RunState) {
        self.runs.get_or_create(&Outcome { state: state.as_str() }).inc();
    }

    /// Counts something that is not believed.
    pub fn refused_signature(&self, kind: &'static str, reason: &'static str) {
        self.signatures_refused.get_or_create(&Refused { kind, reason }).inc();
    }

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
}
