//! The life of one run, from its durable beginning to its durable end.
//!
//! ```text
//! journal + cursor → process → output to the spool as it comes →
//! end: journal closed and record spooled in one transaction
//! ```

use crate::{
    agent::succession,
    cronid,
    custody::Custody,
    drain::Asked,
    failpoint::{self, Place},
    http_run::{self, Call, Requests},
    metrics::Metrics,
    process::{
        Began, Cgroups, Command, Control, Ended, KillReason, Leftovers, OutputHub, Runner,
        RunnerOptions, Running, Surviving,
    },
    registry::Registry,
    secrets::{Secrets, Source},
    spans, spent, spooling,
    state::{Begin, Queued, SpoolItem, State, StateError, StateOptions, StateProblem, WaitEntry},
    trust::Trust,
};
use futures::FutureExt;
use jiff::Timestamp;
use meepo_coord::{Etcd, records::RerunRecord};
use meepo_core::{
    api::CronId,
    code::Code,
    duration::HumanDuration,
    id::{Name, NodeId, RunId},
    job::{Assignment, Executor},
    notify::{MAX_TAIL, Outcome, tail_of},
    run::{Cause, OutputChunk, RunRecord, RunState, to_millis},
    secret::fill_request,
};
use meepo_runtime::{backoff::Backoff, telemetry::trace};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::{runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, error, info, warn};

pub use crate::plan::Plan;

/// A run that ends within this time is told of once, by its end: most commands are over
/// by then, and each telling costs a write here, one in etcd and one in the log store.
/// Should the worker die before it has noted a process, recovery finds the process by
/// its environment.
pub const BRIEF: Duration = Duration::from_millis(100);

/// Bytes of output that are written together with the end of a brief run, at most.
const WITH_THE_END: usize = 64 * 1024;

/// A run that is over.
#[derive(Debug)]
pub struct Over {
    /// Its final record.
    pub record: Arc<RunRecord>,
    /// What was promised with its end.
    pub next: Option<WaitEntry>,
}

/// What it takes to tell others how a run has ended.
struct Told<'a> {
    assignment: &'a Assignment,
    /// What it wrote.
    said: Option<OutputHub>,
}

impl Told<'_> {
    /// `cut_off` is when the node last had no lease: what began before may have been told as
    /// lost.
    fn outcome(&self, record: &RunRecord, last: bool, cut_off: i64) -> Option<Outcome> {
        let doubted = record.started_at.is_some_and(|at| at.as_millisecond() < cut_off);
        let failed = !matches!(record.state, RunState::Success);
        let said = self.said.as_ref().filter(|_| failed && record.job.is_some());
        let tail = said.and_then(|hub| tail_of(&hub.end(MAX_TAIL)));
        Outcome::of(record, last, doubted || self.assignment.heeds_success(), tail)
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
    /// Makes requests.
    pub requests: Requests,
    /// Starts those that survive this worker.
    pub surviving: Surviving,
    /// Where the secrets of runs come from.
    pub secrets: Source,
    /// Runs by id.
    pub registry: Registry,
    /// Where states for etcd go.
    pub cronid: Arc<cronid::Board>,
    /// Where it is told which jobs have used up their runs.
    pub spent: Arc<spent::Board>,
    /// Keys of runs that are started again elsewhere should this node be lost.
    pub custody: Custody,
    /// What this node believes and runs.
    pub trust: Trust,
    /// When this node last had no lease, in milliseconds since 1970; 0: never.
    pub cut_off: AtomicI64,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whether the node takes nothing new.
    pub drain: watch::Receiver<Asked>,
    /// For requests that have served.
    pub etcd: Etcd,
    /// Where tasks that wait for others live, whoever starts them.
    pub tasks: Handle,
    /// Cancelled when the worker shuts down.
    pub stop: CancellationToken,
}

impl Engine {
    /// Sends the beginning of a run to the journal. Beginnings take effect in the order
    /// in which they are sent, so cursors never move past a run that is yet to begin.
    pub async fn begin(&self, plan: &Plan) -> Result<Queued<Begin>, StateError> {
        failpoint::reach(Place::Decided, plan.job.as_ref());
        let record = plan.record(&self.node);
        // A claimed slot is guarded by the claim, a further attempt by its wait.
        let cursor = match (&plan.job, plan.cause, plan.fence) {
            (Some(job), Cause::Schedule | Cause::Misfire | Cause::Reboot, None)
                if plan.attempt == 1 =>
            {
                Some((job.clone(), record.slot))
            }
            _ => None,
        };
        self.registry.enter(&record);
        self.state.begin_run_queued(&record, cursor).await
    }

    /// Whether nothing is to be started at the moment: the node is drained, or its disk
    /// refuses writes.
    pub fn holds(&self) -> bool {
        self.drain.borrow().drain().is_some() || self.state.refuses()
    }

    /// The disk has refused the beginning of a run: it may begin later.
    pub fn refused(&self, run_id: RunId) {
        self.metrics.refused.inc();
        self.registry.forget(run_id);
    }

    /// Runs a plan whose beginning was sent, to its end. `request` is the key in etcd
    /// that asked for it: taken back once the run has durably begun. `next` is asked for
    /// a further attempt when the run has ended; what it promises is durable together
    /// with the end. Answers `None` when the run or its slot was begun in an earlier life.
    pub async fn execute(
        &self,
        plan: Plan,
        begun: Result<Queued<Begin>, StateError>,
        request: Option<String>,
        next: impl FnOnce(&RunRecord) -> Option<WaitEntry>,
    ) -> Option<Over> {
        let span = spans::run(&plan, &self.node);
        self.carry_out(plan, begun, request, next).instrument(span).await
    }

    async fn carry_out(
        &self,
        plan: Plan,
        begun: Result<Queued<Begin>, StateError>,
        request: Option<String>,
        next: impl FnOnce(&RunRecord) -> Option<WaitEntry>,
    ) -> Option<Over> {
        let begun = match begun {
            Ok(queued) => queued.instrument(spans::stage("journal")).await,
            Err(e) => Err(e),
        };
        match begun {
            Ok(Begin::New) => {
                failpoint::reach(Place::Begun, plan.job.as_ref());
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
                // started at all. There is nowhere to keep a record of this; the disk's own
                // watch logs it once. A request stays in etcd and is tried again.
                debug!(run_id = %plan.run_id, job = ?plan.job, error = %e, "cannot begin the run");
                self.metrics.refused.inc();
                let message = format!("the worker cannot write its journal: {e}");
                let (state, code) = (RunState::Failed, Code::CANNOT_START);
                let record = Arc::new(plan.not_run(&self.node, state, code, Some(message)));
                self.registry.ended(record.clone());
                return Some(Over { record, next: None });
            }
        }
        let mut record = plan.record(&self.node);
        if let Err((code, why)) = self.trust.allows(&plan.assignment) {
            self.trust.note(code, plan.job.as_ref(), &why);
            let ended = Ended { code, ..Ended::not_started(why, Timestamp::now()) };
            let told = Told { assignment: &plan.assignment, said: None };
            return Some(self.finish(record, (ended, Vec::new()), next, false, told).await);
        }
        let secrets = match self.secrets.of(&plan.assignment).await {
            Ok(secrets) => secrets,
            Err(why) => {
                let ended = Ended::not_started(why, Timestamp::now());
                let told = Told { assignment: &plan.assignment, said: None };
                return Some(self.finish(record, (ended, Vec::new()), next, false, told).await);
            }
        };
        if plan.assignment.executor == Executor::Http {
            let (ended, said) = self.request(&plan, &mut record, secrets).await;
            let told = Told { assignment: &plan.assignment, said };
            return Some(self.finish(record, ended, next, false, told).await);
        }
        let command = self.command(&plan, secrets);
        match self.start(&plan, command).instrument(spans::stage("spawn")).await {
            Ok(running) => {
                failpoint::reach(Place::Spawned, plan.job.as_ref());
                debug!(pid = running.pid, "process started");
                self.metrics.started.inc();
                self.attend(&plan.assignment, record, running, next).await
            }
            Err(ended) => {
                let survives = plan.assignment.survive_restart;
                let told = Told { assignment: &plan.assignment, said: None };
                Some(self.finish(record, (ended, Vec::new()), next, survives, told).await)
            }
        }
    }

    /// Starts the process of a run that has durably begun.
    async fn start(&self, plan: &Plan, command: Command) -> Result<Running, Ended> {
        let run_id = plan.run_id;
        if plan.assignment.survive_restart {
            return self.surviving.start(run_id, plan.assignment.clone(), command).await;
        }
        let started = self.runner.spawn_held(run_id, command).await;
        started.map_err(|e| e.ended(to_millis(Timestamp::now())))
    }

    /// Attends a run whose process was started, now or in an earlier life of the worker, to
    /// its durable end. Answers `None` if it survives this worker, which ends before it.
    /// `next` as in [`execute`](Self::execute).
    pub async fn attend(
        &self,
        assignment: &Assignment,
        mut record: RunRecord,
        mut running: Running,
        next: impl FnOnce(&RunRecord) -> Option<WaitEntry>,
    ) -> Option<Over> {
        let survives = running.control.survives();
        let gone = async {
            match survives {
                true => self.stop.cancelled().await,
                false => std::future::pending().await,
            }
        };
        record.pid = Some(running.pid);
        record.started_at = Some(running.started_at);
        let (control, output) = (running.control.clone(), running.output.clone());
        let told = Told { assignment, said: Some(output.clone()) };
        let warn = assignment.warn_after;
        let began = std::mem::replace(&mut running.began, Began::Known(None));
        let long = began.long(BRIEF);
        let accompany = self.accompany(&record, long, control, output, running.wait(), warn);
        let ended = tokio::select! {
            () = gone => return None,
            ended = accompany.instrument(spans::stage("process")) => ended,
        };
        Some(self.finish(record, ended, next, survives, told).await)
    }

    async fn request(
        &self,
        plan: &Plan,
        record: &mut RunRecord,
        secrets: Secrets,
    ) -> ((Ended, Vec<Arc<OutputChunk>>), Option<OutputHub>) {
        let a = &plan.assignment;
        let timeout = a.timeout.map(Into::into);
        let output = (a.output_limit(), a.output_keep);
        let request = a.http.clone().unwrap_or_default();
        let request = fill_request(&request, secrets.values());
        let call = request.and_then(|request| {
            let call = Call::new(&a.cmd, request, self.facts(plan), timeout, output);
            // What is wrong with a value may quote it.
            call.map_err(|e| secrets.masks().text(&e.to_string()))
        });
        let http_run::Running { started_at, control, output, ended } = match call {
            Ok(call) => self.requests.start(plan.run_id, call.with_secrets(secrets)),
            Err(why) => {
                let ended = Ended::not_started(why, Timestamp::now());
                return ((ended, Vec::new()), None);
            }
        };
        tokio::pin!(ended);
        self.metrics.started.inc();
        record.started_at = Some(started_at);
        let long = tokio::time::sleep(BRIEF).map(|()| None);
        let said = Some(output.clone());
        (self.accompany(record, long, control, output, ended, a.warn_after).await, said)
    }

    /// Makes a run known that has started, and keeps its output until it ends. Answers the
    /// end with the output that is yet to be kept. `long` tells that the run is not brief,
    /// with the start time of its process; it is told of if it takes longer than `warn_after`.
    async fn accompany(
        &self,
        record: &RunRecord,
        long: impl Future<Output = Option<u64>>,
        control: Control,
        output: OutputHub,
        end: impl Future<Output = Ended>,
        warn_after: Option<HumanDuration>,
    ) -> (Ended, Vec<Arc<OutputChunk>>) {
        self.registry.started(record.run_id, control, output.clone());
        tokio::pin!(end);
        let spooling = || spooling::output(&self.state, output.follow(0), &self.metrics);
        let began = tokio::select! {
            biased;
            mut ended = &mut end => {
                // Little output goes with the end, which saves a write.
                let Some(all) = output.complete(WITH_THE_END) else {
                    ended.dropped_bytes += spooling().await;
                    return (ended, Vec::new());
                };
                return (ended, all);
            }
            began = long => began,
        };
        let telling = async {
            if let Err(e) = self.note_started(record, began).await {
                // The journal knows the run without its pid; see `recover`.
                let run_id = record.run_id;
                warn!(%run_id, error = %e, "cannot note the process in the journal");
            }
            self.publish(record);
            spooling().await
        };
        // Whatever the disk does, the run is accompanied.
        let both = async { tokio::join!(end, telling) };
        let (mut ended, lost) = tokio::select! {
            both = both => both,
            never = self.warn(record, warn_after) => match never {},
        };
        ended.dropped_bytes += lost;
        (ended, Vec::new())
    }

    /// Notes that a run takes longer than it should, once it does. Never returns.
    async fn warn(&self, record: &RunRecord, after: Option<HumanDuration>) -> Infallible {
        if let (Some(after), Some(job)) = (after, &record.job) {
            let began = record.started_at.unwrap_or_else(Timestamp::now);
            let due = began.checked_add(after.0).unwrap_or(Timestamp::MAX);
            let wait = due.duration_since(Timestamp::now());
            tokio::time::sleep(wait.try_into().unwrap_or_default()).await;
            let outcome = Outcome::long(record, to_millis(Timestamp::now()));
            if let Some(outcome) = outcome
                && let Err(e) = self.state.note_outcome(job.clone(), outcome).await
            {
                warn!(run_id = %record.run_id, error = %e, "cannot note that a run takes long");
            }
        }
        std::future::pending().await
    }

    /// Tells the journal and the log store that a run goes on.
    async fn note_started(&self, record: &RunRecord, start: Option<u64>) -> Result<(), StateError> {
        self.state.spool_later(&[SpoolItem::Record(record.clone())]).await?;
        if let (Some(pid), Some(start)) = (record.pid, start) {
            self.state.started_later(record.run_id, pid, start).await?;
        }
        Ok(())
    }

    async fn finish(
        &self,
        mut record: RunRecord,
        (ended, output): (Ended, Vec<Arc<OutputChunk>>),
        next: impl FnOnce(&RunRecord) -> Option<WaitEntry>,
        survives: bool,
        told: Told<'_>,
    ) -> Over {
        failpoint::reach(Place::Exited, record.job.as_ref());
        ended.enter(&mut record);
        self.metrics.ended(record.state);
        Span::current().record("state", record.state.as_str());
        debug!(state = %record.state, code = %record.code, "run ended");
        let next = next(&record);
        let outcome = told.outcome(&record, next.is_none(), self.cut_off.load(Ordering::Relaxed));
        let outcome = outcome.as_ref();
        let recording = self.state.end_run_with(&record, &output, next.as_ref(), outcome);
        let durable = match recording.instrument(spans::stage("record")).await {
            Ok(refused) => {
                failpoint::reach(Place::Ended, record.job.as_ref());
                record.dropped_bytes += refused;
                Ok(())
            }
            Err(e) => Err(e),
        };
        // Who waits for the end is told all the same.
        self.publish(&record);
        let record = Arc::new(record);
        self.registry.ended(record.clone());
        let recorded = match durable {
            Ok(()) => true,
            Err(e) => self.end_later(&record, &output, next.as_ref(), outcome, e).await,
        };
        if recorded {
            match next.as_ref().and_then(succession) {
                Some((of, plan)) => self.hand_on(of, &plan),
                None => self.release(&record),
            }
        }
        if survives && recorded {
            self.surviving.forget(record.run_id).await;
        }
        Over { record, next }
    }

    /// Tries to record the end of a run until it succeeds, and answers whether it has.
    /// Should the worker end before, the run stays in the journal and counts as lost in its
    /// next life, unless it survives.
    async fn end_later(
        &self,
        record: &RunRecord,
        output: &[Arc<OutputChunk>],
        next: Option<&WaitEntry>,
        outcome: Option<&Outcome>,
        mut error: StateError,
    ) -> bool {
        let mut backoff = Backoff::new(Duration::from_secs(5));
        while error.problem != StateProblem::Closed {
            self.metrics.spool_errors.inc();
            let (run_id, wait) = (record.run_id, backoff.next_wait());
            debug!(%run_id, %error, ?wait, "cannot record the end of the run, will try again");
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = tokio::time::sleep(wait) => {}
            }
            match self.state.end_run_with(record, output, next, outcome).await {
                Ok(_) => return true,
                Err(e) => error = e,
            }
        }
        false
    }

    /// Records runs that never got a process, and moves the job's cursor, without
    /// waiting for the disk; in order with [`Engine::begin`]. What a disk refuses is
    /// tried again until it takes it.
    pub async fn settle(&self, records: &[RunRecord], cursor: Option<(Name, Timestamp)>) {
        for r in records {
            self.metrics.ended(r.state);
        }
        let sent = spooling::settle(&self.state, records, cursor, &self.tasks, &self.stop);
        if let Err(e) = sent.await {
            self.metrics.spool_errors.inc();
            error!(error = %e, "cannot record slots that were not run");
            return;
        }
        for r in records {
            self.release(r);
        }
    }

    /// The end of a run is recorded: nobody else is to run it.
    fn release(&self, record: &RunRecord) {
        self.custody.release(record, &self.etcd, &self.tasks, &self.stop);
    }

    /// A further attempt takes the place of a run that may be run elsewhere.
    pub(crate) fn hand_on(&self, of: RunId, next: &Plan) {
        self.custody.hand_on(of, next, &self.etcd, &self.tasks, &self.stop);
    }

    /// The run of a claim that was not answered will not be: should its key be there, it goes,
    /// or with `to_others` is handed to the leader.
    pub(crate) fn give_up(&self, run_id: RunId, to_others: Option<RerunRecord>) {
        self.custody.give_up(run_id, to_others, &self.etcd, &self.tasks, &self.stop);
    }

    /// Records that a run asked for by a key in etcd is not run, unless it is known, and
    /// then deletes the key.
    pub fn turn_down(self: &Arc<Self>, record: RunRecord, key: String) {
        let this = self.clone();
        self.tasks.spawn(async move {
            let mut backoff = Backoff::new(Duration::from_secs(5));
            // The key stays meanwhile, and with it the request, should the worker end.
            while let Err(e) = this.state.note_runs(std::slice::from_ref(&record), None).await {
                this.metrics.spool_errors.inc();
                error!(run_id = %record.run_id, error = %e, "cannot record what was not run");
                tokio::select! {
                    () = this.stop.cancelled() => return,
                    () = tokio::time::sleep(backoff.next_wait()) => {}
                }
            }
            this.metrics.ended(record.state);
            this.delete_key(key);
            this.release(&record);
        });
    }

    /// Deletes a key that has served, trying until etcd answers.
    pub fn delete_key(&self, key: String) {
        let (etcd, stop) = (self.etcd.clone(), self.stop.clone());
        self.tasks.spawn(async move {
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
        // The part of a task says by itself where it stands; a key for each would stay in
        // etcd for minutes.
        if record.cause == Cause::Task {
            return;
        }
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

    /// What a run is told of itself, by the names of environment variables.
    fn facts(&self, plan: &Plan) -> Vec<(&'static str, String)> {
        let mut facts = vec![
            ("MEEPO_RUN_ID", plan.run_id.to_string()),
            ("MEEPO_NODE", self.node.to_string()),
            ("MEEPO_SLOT", to_millis(plan.slot).to_string()),
            ("MEEPO_ATTEMPT", plan.attempt.to_string()),
        ];
        facts.extend(plan.job.as_ref().map(|job| ("MEEPO_JOB", job.to_string())));
        facts.extend(plan.fence.or(plan.permit).map(|fence| ("MEEPO_FENCE", fence.to_string())));
        facts
    }

    fn command(&self, plan: &Plan, secrets: Secrets) -> Command {
        let a = &plan.assignment;
        let facts = self.facts(plan).into_iter();
        let mut env: BTreeMap<_, _> = facts.map(|(k, v)| (k.to_owned(), v)).collect();
        if let Some(traceparent) = trace::current() {
            env.insert("MEEPO_TRACEPARENT".to_owned(), traceparent.clone());
            env.insert("TRACEPARENT".to_owned(), traceparent);
        }
        env.extend(a.env.clone());
        Command {
            executor: a.executor,
            cmd: a.cmd.clone(),
            args: a.args.clone(),
            env,
            cwd: a.cwd.as_ref().map(PathBuf::from),
            user: a.user.clone(),
            group: a.group.clone(),
            umask: a.umask,
            nice: a.nice,
            rlimits: a.rlimits,
            session: a.session,
            cgroup: a.cgroup,
            kill: a.kill_plan.as_ref().map(Into::into).unwrap_or_default(),
            stdin: a.stdin.clone(),
            secrets,
            timeout: a.timeout.map(Into::into),
            output_limit: a.output_limit(),
            output_keep: a.output_keep,
        }
    }
}

impl Engine {
    /// An engine without a cluster, for tests and benchmarks: its files are in `dir`, and
    /// its etcd never answers. Errors: the files cannot be made.
    pub async fn alone(node: NodeId, dir: &std::path::Path) -> anyhow::Result<Arc<Self>> {
        let custody = Custody::new(node.clone(), String::new(), Duration::from_secs(10));
        let state = State::open(&StateOptions::new(dir))?;
        Ok(Arc::new(Self {
            trust: Trust::everything(node.clone(), state.clone(), Arc::default()),
            node,
            custody,
            cut_off: AtomicI64::new(0),
            state,
            runner: Runner::new(RunnerOptions { brief: BRIEF, ..RunnerOptions::default() })?,
            requests: Requests::default(),
            secrets: Source::default(),
            surviving: Surviving::new(dir, None, Leftovers::new(Cgroups::new(None, dir))),
            registry: Registry::default(),
            cronid: Arc::default(),
            spent: Arc::default(),
            metrics: Arc::default(),
            drain: watch::channel(Asked::default()).1,
            etcd: Etcd::connect(&["http://127.0.0.1:1".into()]).await?,
            tasks: Handle::current(),
            stop: CancellationToken::new(),
        }))
    }

    #[cfg(test)]
    pub(crate) async fn in_dir(dir: &std::path::Path) -> Arc<Self> {
        Self::alone(Name::new("127.0.0.9").unwrap(), dir).await.unwrap()
    }
}

#[cfg(test)]
mod tests;
