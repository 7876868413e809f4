//! What others ask of this node by keys in etcd: runs on demand, and their end.

use super::Agent;
use crate::{engine::Plan, process::KillReason};
use jiff::Timestamp;
use meepo_coord::{
    Entry, keys,
    records::{TriggerRecord, decode},
};
use meepo_core::{
    code::Code,
    id::RunId,
    run::{Cause, RunState},
};
use std::sync::Arc;
use tracing::{info, warn};

impl Agent {
    /// A run or an end asked for by key.
    pub(super) async fn asked(&mut self, entry: Entry) {
        let node = self.engine.node.clone();
        let own = |prefix: &str| entry.key.strip_prefix(prefix).map(str::parse::<RunId>);
        if let Some(run_id) = own(&keys::kills_of(&node)) {
            let ended = match run_id {
                Ok(run_id) => {
                    self.engine.registry.kill(run_id, KillReason::Requested)
                        || self.kill_waiting(run_id).await
                }
                Err(_) => false,
            };
            info!(key = entry.key, ended, "asked to end a run");
            self.engine.delete_key(entry.key);
        } else if let Some(run_id) = own(&keys::triggers_of(&node)) {
            match (run_id, decode::<TriggerRecord>(&entry.value)) {
                (Ok(run_id), Ok(trigger)) => {
                    self.triggered(run_id, trigger, entry.key).await;
                }
                (Err(e), _) | (_, Err(e)) => {
                    warn!(key = entry.key, error = %e, "unreadable request dropped");
                    self.engine.delete_key(entry.key);
                }
            }
        }
    }

    async fn triggered(&mut self, run_id: RunId, trigger: TriggerRecord, key: String) {
        let plan = Plan {
            run_id,
            job: Some(trigger.job),
            assignment: Arc::new(trigger.assignment),
            slot: trigger.requested_at,
            cause: Cause::Trigger,
            fence: None,
        };
        if Timestamp::now() > trigger.expires_at {
            let record = plan.not_run(&self.engine.node, RunState::Missed, Code::EXPIRED, None);
            self.engine.settle(&[record], None).await;
            self.engine.delete_key(key);
        } else {
            self.start(plan, Some(key)).await;
        }
    }
}
