//! Heartbeats: how the host and the worker are.

use super::{Answer, Out, pb};
use crate::{
    facts::{self, CpuMeter, Moment},
    vitals::Vitals,
};
use jiff::Timestamp;
use meepo_core::id::RunId;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use uuid::Uuid;

/// Most runs a heartbeat names.
const MAX_RUNS: usize = 1024;

/// Where heartbeats come from. Cloning is cheap.
#[derive(Clone)]
pub struct Pulse {
    vitals: Vitals,
    every: Duration,
    cpu: Arc<Mutex<CpuMeter>>,
}

impl Pulse {
    /// A heartbeat every so often.
    pub fn new(vitals: Vitals, every: Duration) -> Self {
        Self { vitals, every, cpu: Arc::default() }
    }

    /// The time to the next heartbeat: about the interval, so that a fleet does not beat
    /// in step; after the first one of a session any time up to it.
    pub(super) fn wait(&self, first: bool) -> Duration {
        // The low bits are random.
        let share = (Uuid::now_v7().as_u128() & 0xffff) as f64 / f64::from(0xffff);
        self.every.mul_f64(if first { share } else { 0.8 + 0.4 * share })
    }

    /// Sends one.
    pub(super) fn beat(&self, out: Out) {
        let pulse = self.clone();
        tokio::task::spawn_blocking(move || {
            let frame = pb::WorkerFrame { frame: Some(Answer::Heartbeat(pulse.take())) };
            // A full stream carries what matters more.
            let _ = out.try_send(frame);
        });
    }

    fn take(&self) -> pb::Heartbeat {
        let Moment { load1, mem_total, mem_free, disk_total, disk_free } = facts::moment();
        let cpu_use = self.cpu.lock().unwrap_or_else(PoisonError::into_inner).since_last();
        let mut running = self.vitals.registry.active();
        let running_total = running.len() as u64;
        // Ids grow with time.
        running.sort_unstable();
        running.truncate(MAX_RUNS);
        let queue = self.vitals.progress.figures().queue;
        let held = self.vitals.progress.holdings();
        pb::Heartbeat {
            load1,
            mem_free,
            disk_free,
            running: running.iter().map(RunId::to_string).collect(),
            running_total,
            cpu_use,
            mem_total,
            disk_total,
            ready: queue.ready,
            waiting: queue.waiting,
            digest: held.map(|h| h.digest.to_string()).unwrap_or_default(),
            revision: held.map_or(0, |h| h.revision),
            at_ms: Timestamp::now().as_millisecond(),
        }
    }
}
