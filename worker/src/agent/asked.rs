//! What others ask of this node by keys in etcd: runs on demand, and their end.

use super::{
    Agent,
    overlap::{Asked, Request},
};
use crate::{engine::Plan, process::KillReason};
use jiff::Timestamp;
use meepo_coord::{
    Entry, keys,
    records::{KillRecord, TriggerRecord, decode},
};
use meepo_core::{
    code::Code,
    error::Invalid,
    id::RunId,
    run::{Cause, RunState},
    signing::{Covered, Kind, Refusal},
};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{info, warn};

impl Agent {
    /// A run or an end asked for by key.
    pub(super) async fn asked(&mut self, entry: Entry) {
        let node = self.engine.node.clone();
        let own = |prefix: &str| entry.key.strip_prefix(prefix).map(str::parse::<RunId>);
        if let Some(run_id) = own(&keys::kills_of(&node)) {
            let believed = self.believed(Kind::Kill, &entry, decode::<KillRecord>).await;
            let ended = match run_id {
                Ok(_) if !believed => false,
                Ok(run_id) => {
                    let known = self.engine.registry.kill(run_id, KillReason::Requested)
                        || self.kill_waiting(run_id).await;
                    if !known {
                        self.early_kills.insert(run_id);
                    }
                    known
                }
                Err(_) => false,
            };
            info!(key = entry.key, ended, "asked to end a run");
            self.engine.delete_key(entry.key);
        } else if let Some(run_id) = own(&keys::triggers_of(&node)) {
            match (run_id, decode::<TriggerRecord>(&entry.value)) {
                (Ok(run_id), Ok(trigger)) => {
                    if let Err(e) = self.admitted(&entry.key, run_id, &trigger).await {
                        return self.turn_away(run_id, trigger, entry.key, &e);
                    }
                    let revision = entry.mod_revision;
                    self.triggered(run_id, trigger, entry.key, revision).await;
                }
                (Err(e), _) | (_, Err(e)) => {
                    warn!(key = entry.key, error = %e, "unreadable request dropped");
                    self.engine.delete_key(entry.key);
                }
            }
        }
    }

    /// Whether a master has asked for a run. One that is known already was looked at.
    async fn admitted(
        &self,
        key: &str,
        run_id: RunId,
        trigger: &TriggerRecord,
    ) -> Result<(), Refusal> {
        let known = self.overlap.knows(&trigger.job, run_id) || self.waits.knows(run_id);
        if known || self.hold.knows(run_id) {
            return Ok(());
        }
        let trust = &self.engine.trust;
        trust.admit(Kind::Trigger, key, &trigger.extra, || trigger.covered()).await
    }

    /// Records a request that is not believed.
    fn turn_away(&self, run_id: RunId, trigger: TriggerRecord, key: String, why: &Refusal) {
        let plan = Plan {
            run_id,
            job: Some(trigger.job),
            assignment: Arc::new(trigger.assignment),
            slot: trigger.requested_at,
            attempt: 1,
            cause: Cause::Trigger,
            fence: None,
            permit: None,
        };
        let why = why.to_string();
        self.engine.trust.note(Code::UNTRUSTED, plan.job.as_ref(), &why);
        let (state, code) = (RunState::Failed, Code::UNTRUSTED);
        self.engine.turn_down(plan.not_run(&self.engine.node, state, code, Some(why)), key);
    }

    /// Whether a request that is no run is believed; one that is not is logged.
    async fn believed<T: Covered>(
        &self,
        kind: Kind,
        entry: &Entry,
        read: impl FnOnce(&[u8]) -> Result<T, Invalid>,
    ) -> bool {
        if !self.engine.trust.is_strict() {
            return true;
        }
        let read = read(&entry.value).ok();
        let extra = serde_json::from_slice(&entry.value).unwrap_or_default();
        let covered = || read.map(|r| r.covered()).unwrap_or_default();
        match self.engine.trust.admit(kind, &entry.key, &extra, covered).await {
            Ok(()) => true,
            Err(e) => {
                warn!(key = entry.key, error = %e, "a request is not believed");
                false
            }
        }
    }

    /// Deletes the requests for runs that were begun already: by a life that died before
    /// it did so. If they were found out only when they are begun again, what starts
    /// meanwhile would take them for active.
    pub(super) async fn without_served(&self, mut entries: Vec<Entry>) -> Vec<Entry> {
        let prefix = keys::triggers_of(&self.engine.node);
        let run_id = |e: &Entry| e.key.strip_prefix(&prefix)?.parse::<RunId>().ok();
        let ids: Vec<_> = entries.iter().filter_map(run_id).collect();
        if ids.is_empty() {
            return entries;
        }
        // If the disk does not answer, nothing begins anyway.
        let seen = self.engine.state.seen(ids).await.unwrap_or_default();
        let served = |e: &mut Entry| run_id(e).is_some_and(|id| seen.contains(&id));
        for entry in entries.extract_if(.., served) {
            info!(key = entry.key, "a request that was served in an earlier life");
            self.engine.delete_key(entry.key);
        }
        entries
    }

    async fn triggered(
        &mut self,
        run_id: RunId,
        trigger: TriggerRecord,
        key: String,
        revision: i64,
    ) {
        let known = self.overlap.knows(&trigger.job, run_id) || self.waits.knows(run_id);
        if known || self.hold.knows(run_id) {
            // Seen again; the key goes when it begins or is turned down.
            return;
        }
        let rerun = trigger.rerun;
        if let Some(rerun) = &rerun {
            let (job, assignment) = (&trigger.job, &trigger.assignment);
            self.engine.custody.asked(run_id, job, assignment, rerun.slot, rerun.attempt);
        }
        let plan = Plan {
            run_id,
            job: Some(trigger.job),
            assignment: Arc::new(trigger.assignment),
            slot: rerun.as_ref().map_or(trigger.requested_at, |r| r.slot),
            attempt: rerun.as_ref().map_or(1, |r| r.attempt),
            cause: Cause::Trigger,
            // Greater than that of every run before it: nobody else has the slot now.
            fence: rerun.map(|_| revision),
            permit: None,
        };
        let now = Timestamp::now();
        let not_run = |state, code, why: Option<&str>| {
            plan.not_run(&self.engine.node, state, code, why.map(str::to_owned))
        };
        // Should the run be known from an earlier life, only the key goes.
        if self.early_kills.remove(run_id) {
            let why = Some("ended on request before it started");
            let record = not_run(RunState::Killed, Code::KILLED, why);
            self.engine.turn_down(record, key);
        } else if now > trigger.expires_at {
            let record = not_run(RunState::Missed, Code::EXPIRED, None);
            self.engine.turn_down(record, key);
        } else {
            let request = Some(Request { key, expires_at: trigger.expires_at });
            let asked = Asked { plan, request, lock: None };
            match trigger.not_before.filter(|at| *at > now) {
                Some(_) if self.waits.is_full() => {
                    let why = "too many runs wait for their time on this node";
                    self.skip(asked, Code::BUSY, why).await;
                }
                Some(at) => self.waits.enter(at, asked),
                None => self.start(asked).await,
            }
        }
    }
}

/// Requests to end runs that are not known yet: the watches of the two kinds of keys
/// may be resumed in any order, so an end may come before its beginning.
#[derive(Default)]
pub(super) struct EarlyKills(VecDeque<(RunId, Instant)>);

impl EarlyKills {
    /// How long the beginning may take to come.
    const KEPT: Duration = Duration::from_secs(60);
    const MOST: usize = 10_000;

    pub(super) fn insert(&mut self, run_id: RunId) {
        let now = Instant::now();
        let old = |at: &Instant| now.duration_since(*at) > Self::KEPT;
        while self.0.len() >= Self::MOST || self.0.front().is_some_and(|(_, at)| old(at)) {
            self.0.pop_front();
        }
        self.0.push_back((run_id, now));
    }

    /// Takes a request out; answers whether there was one.
    pub(super) fn remove(&mut self, run_id: RunId) -> bool {
        let at = self.0.iter().position(|(id, at)| *id == run_id && at.elapsed() <= Self::KEPT);
        at.and_then(|at| self.0.remove(at)).is_some()
    }
}
