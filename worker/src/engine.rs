//! The life of one run, from its durable beginning to its durable end.
//!
//! ```text
//! journal + cursor → process → output to the
//! spool as it comes → end: journal closed and record spooled in one transaction
//! ```

use crate::{
    cronid,
    metrics::Metrics,
    process::{Command, Ended, KillReason, Runner},
    registry::Registry,
    state::{Begin, Queued, SpoolItem, State, StateError, StateProblem},
};
use jiff::Timestamp;
use meepo_coord::Etcd;
use meepo_core::{
    api::CronId,
    code::Code,
    id::{Name, NodeId, RunId},
    job::Assignment,
    run::{Cause, RunRecord, RunState, to_millis},
};
use meepo_runtime::backoff::Backoff;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

/// What a run needs to start.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its id.
    pub run_id: RunId,
    /// The job; none for synchronous commands.
    pub job: Option<Name>,
    /// What to run and how.
    pub assignment: Arc<Assignment>,
    /// The scheduled instant, or the submission.
    pub slot: Timestamp,
    /// Why.
    pub cause: Cause,
    /// The fencing token, once claimed.
    pub fence: Option<i64>,
}

impl Plan {
    /// The record of a run that has only just been decided on.
    pub fn record(&self, node: &NodeId) -> RunRecord {
        RunRecord {
            run_id: self.run_id,
            job: self.job.clone(),
            node: node.clone(),
            slot: to_millis(self.slot),
            attempt: 1,
            cause: self.cause,
            executor: self.assignment.executor,
            cmd: self.assignment.cmd.clone(),
            state: RunState::Running,
            code: Code::OK,
            message: None,
            exit_code: None,
            signal: None,
            fence: self.fence,
            pid: None,
            started_at: None,
            ended_at: None,
            output_bytes: 0,
            dropped_bytes: 0,
        }
    }

    /// The record of a run that never got a process.
    pub fn not_run(
        &self,
        node: &NodeId,
        state: RunState,
        code: Code,
        message: Option<String>,
    ) -> RunRecord {
        RunRecord {
            state,
            code,
            message,
            ended_at: Some(to_millis(Timestamp::now())),
            ..self.record(node)
        }
    }
}

/// Runs plans. Shared by everything in the worker.
pub struct Engine {
    /// This node.
    pub node: NodeId,
    /// Journal, cursors and spool.
    pub state: State,
    /// Starts processes.
    pub runner: Runner,
    /// Runs by id.
    pub registry: Registry,
    /// Where states for etcd go.
    pub cronid: Arc<cronid::Board>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// For requests that have served.
    pub etcd: Etcd,
    /// Cancelled when the worker shuts down.
    pub stop: CancellationToken,
}

impl Engine {
    /// Sends the beginning of a run to the journal. Beginnings take effect in the order
    /// in which they are sent, so cursors never move past a run that is yet to begin.
    pub async fn begin(&self, plan: &Plan) -> Result<Queued<Begin>, StateError> {
        let record = plan.record(&self.node);
        // A claimed slot is guarded by the claim.
        let cursor = match (&plan.job, plan.cause, plan.fence) {
            (Some(job), Cause::Schedule | Cause::Misfire | Cause::Reboot, None) => {
                Some((job.clone(), record.slot))
            }
            _ => None,
        };
        self.registry.enter(record.clone());
        self.state.begin_run_queued(&record, cursor).await
    }

    /// Runs a plan whose beginning was sent, to its end. `request` is the key in etcd
    /// that asked for it: taken back once the run has durably begun. Answers the final
    /// record, or `None` when the run or its slot was begun in an earlier life.
    pub async fn execute(
        &self,
        plan: Plan,
        begun: Result<Queued<Begin>, StateError>,
        request: Option<String>,
    ) -> Option<Arc<RunRecord>> {
        let begun = match begun {
            Ok(queued) => queued.await,
            Err(e) => Err(e),
        };
        match begun {
            Ok(Begin::New) => {
                if let Some(key) = request {
                    self.delete_key(key);
                }
            }
            Ok(known) => {
                info!(run_id = %plan.run_id, ?known, "not started again");
                self.registry.forget(plan.run_id);
                if let Begin::SlotTaken { cursor } = known {
                    let why = format!("the slots up to {cursor} have been dealt with already");
                    let (state, code) = (RunState::Skipped, Code::CONFLICT);
                    self.settle(&[plan.not_run(&self.node, state, code, Some(why))], None).await;
                }
                if let Some(key) = request {
                    self.delete_key(key);
                }
                return None;
            }
            Err(e) => {
                // Without a durable beginning the run might be started twice: it is not
                // started at all. There is nowhere to keep a record of this but the log;
                // a request stays in etcd and is tried again.
                error!(run_id = %plan.run_id, job = ?plan.job, error = %e, "cannot begin the run");
                self.metrics.refused.inc();
                let message = format!("the worker cannot write its journal: {e}");
                let (state, code) = (RunState::Failed, Code::CANNOT_START);
                let record = Arc::new(plan.not_run(&self.node, state, code, Some(message)));
                self.registry.ended(record.clone());
                return Some(record);
            }
        }
        let mut record = plan.record(&self.node);
        let ended = self.run(&plan, &mut record).await;
        Some(self.finish(record, ended).await)
    }

    /// From the durable beginning to the end of the process.
    async fn run(&self, plan: &Plan, record: &mut RunRecord) -> Ended {
        let mut running = match self.runner.spawn(plan.run_id, self.command(plan)).await {
            Ok(running) => running,
            Err(e) => return e.ended(to_millis(Timestamp::now())),
        };
        self.metrics.started.inc();
        record.pid = Some(running.pid);
        record.started_at = Some(running.started_at);
        self.registry.started(record, running.control.clone(), running.output.clone());
        if let Err(e) = self.note_started(record, running.pid_start_time).await {
            // The journal knows the run without its pid: after a crash it is reported
            // lost, but a process left over could not be found.
            warn!(run_id = %plan.run_id, error = %e, "cannot note the process in the journal");
        }
        self.publish(record);
        let mut output = running.output.follow(0);
        let spooling = async {
            while let Some(chunks) = output.next().await {
                if let Err(e) = self.state.spool_output(&chunks).await {
                    self.metrics.spool_errors.inc();
                    warn!(run_id = %plan.run_id, error = %e, "output lost: cannot write the spool");
                }
            }
        };
        tokio::join!(running.wait(), spooling).0
    }

    async fn note_started(&self, record: &RunRecord, start: Option<u64>) -> Result<(), StateError> {
        self.state.spool_later(&[SpoolItem::Record(record.clone())]).await?;
        if let (Some(pid), Some(start)) = (record.pid, start) {
            self.state.started_later(record.run_id, pid, start).await?;
        }
        Ok(())
    }

    async fn finish(&self, mut record: RunRecord, ended: Ended) -> Arc<RunRecord> {
        record.state = ended.state;
        record.code = ended.code;
        record.exit_code = ended.exit_code;
        record.signal = ended.signal;
        record.message = ended.message;
        record.ended_at = Some(ended.ended_at);
        record.output_bytes = ended.output_bytes;
        record.dropped_bytes = ended.dropped_bytes;
        self.metrics.ended(record.state);
        let durable = match self.state.end_run(&record).await {
            Ok(refused) => {
                record.dropped_bytes += refused;
                Ok(())
            }
            Err(e) => Err(e),
        };
        // Who waits for the end is told all the same.
        self.publish(&record);
        let record = Arc::new(record);
        self.registry.ended(record.clone());
        if let Err(e) = durable {
            self.end_later(&record, e).await;
        }
        record
    }

    /// Tries to record the end of a run until it succeeds. Should the worker end before,
    /// the run stays in the journal and counts as lost in its next life.
    async fn end_later(&self, record: &RunRecord, mut error: StateError) {
        let mut backoff = Backoff::new(Duration::from_secs(5));
        while error.problem != StateProblem::Closed {
            self.metrics.spool_errors.inc();
            let (run_id, wait) = (record.run_id, backoff.next_wait());
            error!(%run_id, %error, ?wait, "cannot record the end of the run, will try again");
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            match self.state.end_run(record).await {
                Ok(_) => return,
                Err(e) => error = e,
            }
        }
    }

    /// Records runs that never got a process, and moves the job's cursor, without
    /// waiting for the disk; in order with [`Engine::begin`].
    pub async fn settle(&self, records: &[RunRecord], cursor: Option<(Name, Timestamp)>) {
        for r in records {
            self.metrics.ended(r.state);
        }
        if let Err(e) = self.state.note_runs_later(records, cursor).await {
            self.metrics.spool_errors.inc();
            error!(error = %e, "cannot record slots that were not run");
        }
    }

    /// Records that a run asked for by a key in etcd is not run, unless it is known, and
    /// then deletes the key.
    pub fn turn_down(self: &Arc<Self>, record: RunRecord, key: String) {
        let this = self.clone();
        tokio::spawn(async move {
            match this.state.note_runs(std::slice::from_ref(&record), None).await {
                Ok(_) => {
                    this.metrics.ended(record.state);
                    this.delete_key(key);
                }
                // The key stays, and with it the request.
                Err(e) => {
                    this.metrics.spool_errors.inc();
                    error!(run_id = %record.run_id, error = %e, "cannot record what was not run");
                }
            }
        });
    }

    /// Deletes a key that has served, trying until etcd answers.
    pub fn delete_key(&self, key: String) {
        let (etcd, stop) = (self.etcd.clone(), self.stop.clone());
        tokio::spawn(async move {
            let mut backoff = Backoff::new(Duration::from_secs(5));
            while let Err(e) = etcd.delete(&key).await {
                debug!(key, error = %e, "cannot delete a key, will try again");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(backoff.next_wait()) => {}
                }
            }
        });
    }

    /// Tells every run to end; [`Registry::active`] tells when they have.
    pub fn shut_down(&self) -> usize {
        self.registry.kill_all(KillReason::Shutdown)
    }

    fn publish(&self, record: &RunRecord) {
        let Some(job) = &record.job else { return };
        let id = CronId {
            cronid: record.run_id,
            state: record.state,
            slot: record.slot,
            started_at: record.started_at,
            ended_at: record.ended_at,
            code: record.state.is_final().then_some(record.code),
        };
        self.cronid.post(job.clone(), id);
    }

    fn command(&self, plan: &Plan) -> Command {
        let a = &plan.assignment;
        let mut env: BTreeMap<String, String> = [
            ("MEEPO_RUN_ID", plan.run_id.to_string()),
            ("MEEPO_NODE", self.node.to_string()),
            ("MEEPO_SLOT", to_millis(plan.slot).to_string()),
            ("MEEPO_ATTEMPT", "1".to_owned()),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into();
        if let Some(job) = &plan.job {
            env.insert("MEEPO_JOB".into(), job.to_string());
        }
        if let Some(fence) = plan.fence {
            env.insert("MEEPO_FENCE".into(), fence.to_string());
        }
        env.extend(a.env.clone());
        Command {
            executor: a.executor,
            cmd: a.cmd.clone(),
            args: a.args.clone(),
            env,
            cwd: a.cwd.as_ref().map(PathBuf::from),
            user: a.user.clone(),
            stdin: a.stdin.clone(),
            timeout: a.timeout.map(Into::into),
            output_limit: a.output_limit(),
            ..Command::new(a.executor, a.cmd.clone())
        }
    }
}

#[cfg(test)]
impl Engine {
    /// An engine with its files in `dir` and an etcd that never answers.
    pub(crate) async fn in_dir(dir: &std::path::Path) -> Arc<Self> {
        use crate::{process::RunnerOptions, state::StateOptions};
        Arc::new(Self {
            node: Name::new("127.0.0.9").unwrap(),
            state: State::open(&StateOptions::new(dir)).unwrap(),
            runner: Runner::new(RunnerOptions::default()).unwrap(),
            registry: Registry::default(),
            cronid: Arc::default(),
            metrics: Arc::default(),
            etcd: Etcd::connect(&["http://127.0.0.1:1".into()]).await.unwrap(),
            stop: CancellationToken::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(slot: Timestamp) -> Plan {
        Plan {
            run_id: RunId(uuid::Uuid::now_v7()),
            job: Some(Name::new("j").unwrap()),
            assignment: Arc::new(serde_json::from_str(r#"{"cmd":"true"}"#).unwrap()),
            slot,
            cause: Cause::Schedule,
            fence: None,
        }
    }

    #[tokio::test]
    async fn a_slot_that_is_taken_leaves_a_record_and_a_known_run_none() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::in_dir(dir.path()).await;
        let (first, second) = (plan(Timestamp::UNIX_EPOCH), plan(Timestamp::UNIX_EPOCH));
        for (plan, runs) in [(&first, true), (&first, false), (&second, false)] {
            let begun = engine.begin(plan).await;
            assert_eq!(engine.execute(plan.clone(), begun, None).await.is_some(), runs);
        }
        let items = engine.state.peek(10, usize::MAX).await.unwrap().items;
        let states: Vec<_> = items
            .iter()
            .filter_map(|item| match item {
                SpoolItem::Record(r) if r.state.is_final() => Some((r.run_id, r.state)),
                _ => None,
            })
            .collect();
        let want = [(first.run_id, RunState::Success), (second.run_id, RunState::Skipped)];
        assert_eq!(states, want);
    }
}
