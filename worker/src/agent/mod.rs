//! The heart of the worker: one task that owns the jobs, knows what is due and decides
//! what starts. Nothing in it waits for the network or for a process; runs are tasks
//! of their own and report back.

mod asked;
mod fire;
mod once;
mod overlap;
mod table;
#[cfg(test)]
mod tests;

use crate::{
    agenda::Agenda,
    agent::asked::EarlyKills,
    engine::{Engine, Plan},
    health::Registration,
    progress::Progress,
    state::SnapshotEntry,
    timer::{WallTimer, Woken},
};
use jiff::{SignedDuration, Timestamp};
use meepo_coord::{
    Entry, Etcd,
    claim::Claims,
    keys,
    records::ClaimRecord,
    watch::{Batch, Change},
};
use meepo_core::{
    code::Code,
    error::Invalid,
    id::{Name, RunId},
    job::Assignment,
    node::{MAX_PROBLEMS, Problem},
};
use once::{Once, Round};
use overlap::Overlap;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use table::{Job, Table, read};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How long a starting worker waits for etcd before it goes on with what it knew.
const SNAPSHOT_AFTER: Duration = Duration::from_secs(3);

/// A clock that goes back by more than this was wrong before.
const CORRECTION: SignedDuration = SignedDuration::from_hours(3);

/// What the agent tells the health record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Usable assignments.
    pub jobs: u64,
    /// What cannot be used, at most [`MAX_PROBLEMS`].
    pub problems: Vec<Problem>,
    /// All of them.
    pub problems_total: u64,
}

impl Status {
    /// Adds that the scheduler does not get on, before everything else.
    pub fn add(&mut self, trouble: Option<&String>) {
        if let Some(reason) = trouble {
            self.problems.truncate(MAX_PROBLEMS - 1);
            let problem = Problem { subject: "scheduler".to_owned(), reason: reason.clone() };
            self.problems.insert(0, problem);
            self.problems_total += 1;
        }
    }
}

/// What tasks report back.
#[derive(Debug)]
pub(crate) enum Report {
    /// A run of a job is over.
    Ended { job: Name, run_id: RunId },
    /// The last claim of a job that runs once, with its revision.
    Claimed { job: Name, claim: Option<Box<(ClaimRecord, i64)>> },
    /// A round of claims is over.
    Round { job: Name, round: Round },
    /// This node has claimed the slot of a plan.
    Won(Box<Plan>),
}

/// Where the agent shows how it is, and what it hears of the node's registration.
#[derive(Clone)]
pub struct Outlets {
    /// For the health record.
    pub status: watch::Sender<Status>,
    /// For the health check.
    pub progress: Arc<Progress>,
    /// Whether this node is this worker's.
    pub registration: watch::Receiver<Registration>,
}

/// The agent's parts.
pub struct Agent {
    engine: Arc<Engine>,
    etcd: Etcd,
    table: Table,
    agenda: Agenda,
    overlap: Overlap,
    once: Once,
    early_kills: EarlyKills,
    /// Processes that may run at the same time.
    places: Arc<Semaphore>,
    reports: mpsc::Sender<Report>,
    inbox: mpsc::Receiver<Report>,
    outlets: Outlets,
    /// Cursors of the last life of this worker, until etcd has been heard once.
    cursors: HashMap<Name, Timestamp>,
    /// Assignments of the last life.
    snapshot: BTreeMap<String, Vec<u8>>,
    /// When the host started.
    boot: Option<Timestamp>,
    stop: CancellationToken,
}

impl Agent {
    /// An agent that knows what the worker's state file knows.
    pub async fn new(
        engine: Arc<Engine>,
        etcd: Etcd,
        max_running: usize,
        outlets: Outlets,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let (reports, inbox) = mpsc::channel(1024);
        let cursors = engine.state.cursors().await?.into_iter().collect();
        let snapshot = engine.state.load_snapshot().await?;
        let snapshot = snapshot.into_iter().map(|e| (e.key, e.value)).collect();
        Ok(Self {
            engine,
            once: Once::new(Claims::new(etcd.clone())),
            early_kills: EarlyKills::default(),
            etcd,
            table: Table::default(),
            agenda: Agenda::default(),
            overlap: Overlap::default(),
            places: Arc::new(Semaphore::new(max_running)),
            reports,
            inbox,
            outlets,
            cursors,
            snapshot,
            boot: boot_time(),
            stop,
        })
    }

    /// Works until shutdown begins.
    ///
    /// # Errors
    /// When the kernel gives no timer.
    pub async fn run(mut self, mut etcd: mpsc::Receiver<Batch>) -> anyhow::Result<()> {
        let timer = WallTimer::new()?;
        let mut heard = false;
        let patience = tokio::time::sleep(SNAPSHOT_AFTER);
        tokio::pin!(patience);
        let stop = self.stop.clone();
        let mut registration = self.outlets.registration.clone();
        loop {
            let registered = registration.borrow_and_update().clone();
            // Two workers under one id would run everything twice.
            let taken = matches!(registered, Registration::Taken { .. });
            let head = self.agenda.head().filter(|_| !taken);
            self.outlets.progress.passed(Timestamp::now(), head);
            timer.set(head)?;
            tokio::select! {
                () = stop.cancelled() => break,
                changed = registration.changed() => if changed.is_err() { break },
                batch = etcd.recv(), if registered == Registration::Done => {
                    let Some(batch) = batch else { break };
                    heard = true;
                    self.heard(batch).await;
                }
                Some(report) = self.inbox.recv() => self.reported(report).await,
                () = &mut patience, if !heard && !taken => {
                    heard = true;
                    self.load_snapshot().await;
                }
                woken = timer.wait() => {
                    if woken == Woken::ClockSet {
                        warn!("the wall clock was set; looking at all schedules anew");
                        self.reschedule().await;
                    }
                }
            }
            if !taken {
                self.fire_due().await;
            }
        }
        self.wind_up().await;
        Ok(())
    }

    /// Goes on with the assignments of the last life, as etcd cannot be heard.
    async fn load_snapshot(&mut self) {
        let entries: Vec<Entry> = std::mem::take(&mut self.snapshot)
            .into_iter()
            .map(|(key, value)| Entry { key, value, mod_revision: 0, create_revision: 0 })
            .collect();
        if entries.is_empty() {
            return;
        }
        warn!(jobs = entries.len(), "etcd cannot be reached; going on with the last known jobs");
        let now = Timestamp::now();
        for entry in &entries {
            self.load(entry, now, true).await;
        }
        self.cursors.clear();
        self.tell();
    }

    async fn heard(&mut self, batch: Batch) {
        let now = Timestamp::now();
        match batch {
            Batch::Reset { entries, .. } => self.reset(entries, now).await,
            Batch::Changes(changes) => {
                for change in changes {
                    self.changed(change, now).await;
                }
            }
        }
        self.tell();
    }

    /// Makes the table agree with everything there is.
    async fn reset(&mut self, entries: Vec<Entry>, now: Timestamp) {
        let assignments = keys::assignments_of(&self.engine.node);
        let (held, others): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|e| e.key.starts_with(&assignments));
        let keys: HashSet<&str> = held.iter().map(|e| e.key.as_str()).collect();
        let gone: Vec<String> = self
            .table
            .jobs
            .values()
            .map(|j| &j.key)
            .chain(self.table.problems.keys())
            .filter(|k| !keys.contains(k.as_str()))
            .cloned()
            .collect();
        for key in gone {
            self.unload(&key).await;
        }
        for entry in &held {
            let known = self.snapshot.get(&entry.key);
            let same = known.is_some_and(|old| same_schedule(old, &entry.value));
            self.load(entry, now, same).await;
        }
        // From here on the table itself knows what was there before.
        self.snapshot.clear();
        let listed: HashSet<&Name> = self.table.jobs.keys().collect();
        let stale: Vec<Name> =
            self.cursors.keys().filter(|job| !listed.contains(job)).cloned().collect();
        self.cursors.clear();
        for job in stale {
            self.forget(job).await;
        }
        let snapshot = held.into_iter().map(remember).collect();
        if let Err(e) = self.engine.state.replace_snapshot(snapshot).await {
            warn!(error = %e, "cannot keep the jobs for times without etcd");
        }
        for entry in others {
            self.asked(entry).await;
        }
    }

    async fn changed(&mut self, change: Change, now: Timestamp) {
        let assignments = keys::assignments_of(&self.engine.node);
        match change {
            Change::Put(entry) if entry.key.starts_with(&assignments) => {
                self.load(&entry, now, false).await;
                let kept = self.engine.state.put_snapshot_later(remember(entry)).await;
                if let Err(e) = kept {
                    warn!(error = %e, "cannot keep the job for times without etcd");
                }
            }
            Change::Put(entry) => self.asked(entry).await,
            Change::Delete { key, .. } if key.starts_with(&assignments) => {
                self.unload(&key).await;
                if let Err(e) = self.engine.state.delete_snapshot_later(key).await {
                    warn!(error = %e, "cannot forget the job for times without etcd");
                }
            }
            Change::Delete { .. } => {}
        }
    }

    /// Takes an assignment in. `resume`: it is the one this worker held in its last
    /// life, so the slots since then count as missed.
    async fn load(&mut self, entry: &Entry, now: Timestamp, resume: bool) {
        let (id, assignment, when) = match read(&self.engine.node, entry) {
            Ok(read) => read,
            Err(e) => return self.refuse(&entry.key, &e).await,
        };
        if let Some(other) = self.table.jobs.get(&id).filter(|j| j.key != entry.key) {
            let e = Invalid::new(
                Code::CONFLICT,
                "(key)",
                format!("job {id} stands at {} already", other.key),
                "one key per job",
            );
            return self.refuse(&entry.key, &e).await;
        }
        // The oldest form of key may name another job than before.
        if self.table.at_key(&entry.key).is_some_and(|old| old != id) {
            self.unload(&entry.key).await;
        }
        self.table.problems.remove(&entry.key);
        let after = match self.table.jobs.get(&id) {
            Some(old) if *old.assignment == assignment => return,
            Some(old) if old.same_schedule(&assignment) => Some(old.after),
            Some(_) => {
                let why = "the job's schedule was changed before the slot began";
                self.drop_slots(&id, why).await;
                None
            }
            None if resume => self.cursors.get(&id).copied(),
            None => None,
        };
        debug!(job = %id, express = assignment.express, "job loaded");
        let after = match after {
            // crond(8) takes a change of more than three hours for a correction.
            Some(after) if after > now + CORRECTION => {
                warn!(job = %id, %after, "the clock was far ahead; the schedule starts anew");
                self.forget(id.clone()).await;
                None
            }
            after => after,
        };
        let fresh = after.is_none();
        let job = Job {
            key: entry.key.clone(),
            assignment: Arc::new(assignment),
            when,
            after: after.unwrap_or(now),
        };
        if fresh {
            // From now on the worker answers for every slot, also over a restart. A cursor
            // ahead of now, of a clock that went back, would swallow slots.
            self.forget(id.clone()).await;
            self.overlap.forget_cursor(&id);
            self.engine.settle(&[], Some((id.clone(), now))).await;
        }
        self.agenda.remove(&id);
        self.table.jobs.insert(id.clone(), job.clone());
        if job.assignment.is_once() {
            self.ask_claimed(&id);
        } else if job.scheduled().is_some_and(|w| w.schedule.is_reboot()) {
            self.fire_reboot(&id, &job).await;
        } else {
            self.schedule(&id);
        }
    }

    async fn refuse(&mut self, key: &str, e: &Invalid) {
        self.unload(key).await;
        if self.table.problems.insert(key.to_owned(), e.to_string()).as_ref()
            != Some(&e.to_string())
        {
            warn!(key, error = %e, "assignment cannot be used");
        }
    }

    async fn unload(&mut self, key: &str) {
        self.table.problems.remove(key);
        if let Some(id) = self.table.at_key(key) {
            debug!(job = %id, "job unloaded");
            self.agenda.remove(&id);
            self.table.jobs.remove(&id);
            self.table.ahead.remove(&keys::claim(&id));
            self.drop_slots(&id, "the job was removed before the slot began").await;
            self.overlap.forget_cursor(&id);
            self.once.forget(&id);
            self.forget(id).await;
        }
    }

    async fn forget(&self, job: Name) {
        if let Err(e) = self.engine.state.forget_job_later(job).await {
            warn!(error = %e, "cannot forget the cursor of a job");
        }
    }

    async fn reported(&mut self, report: Report) {
        match report {
            Report::Ended { job, run_id } => self.ended(job, run_id).await,
            Report::Won(plan) => self.start((*plan).into()).await,
            Report::Claimed { job, claim } => {
                self.found_claimed(&job, claim.map(|c| *c)).await;
            }
            Report::Round { job, round } => self.claimed(&job, round),
        }
    }

    /// Enters a job's next slot, which may be one that has passed.
    fn schedule(&mut self, id: &Name) {
        self.agenda.remove(id);
        let Some(job) = self.table.jobs.get(id) else { return };
        let Some(when) = job.scheduled() else { return };
        if let Some(next) = when.schedule.next_after(job.after, &when.timezone) {
            self.agenda.set(id, next);
        }
    }

    /// Looks at every schedule again after the clock was set. When it went back a
    /// little, slots up to the cursor are not run again; when it went back far, the time
    /// before was wrong and the schedules start anew.
    async fn reschedule(&mut self) {
        let now = Timestamp::now();
        let ids: Vec<Name> = self.table.jobs.keys().cloned().collect();
        for id in ids {
            let ahead = self.table.jobs.get_mut(&id).filter(|job| job.after > now + CORRECTION);
            if let Some(job) = ahead {
                job.after = now;
                self.forget(id.clone()).await;
                self.engine.settle(&[], Some((id.clone(), now))).await;
            }
            self.schedule(&id);
        }
    }

    /// Tells the health record what is held.
    fn tell(&self) {
        let problems = self.table.problems.iter().chain(&self.table.ahead);
        let total = self.table.problems.len() + self.table.ahead.len();
        let status = Status {
            jobs: self.table.jobs.len() as u64,
            problems: problems
                .take(MAX_PROBLEMS)
                .map(|(k, r)| Problem { subject: k.clone(), reason: r.clone() })
                .collect(),
            problems_total: total as u64,
        };
        self.engine.metrics.jobs.set(status.jobs as i64);
        self.engine.metrics.problems.set(total as i64);
        self.outlets.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }
}

fn remember(entry: Entry) -> SnapshotEntry {
    SnapshotEntry { key: entry.key, mod_revision: entry.mod_revision, value: entry.value }
}

/// Whether two values of a key follow the same schedule.
fn same_schedule(old: &[u8], new: &[u8]) -> bool {
    if old == new {
        return true;
    }
    let (Ok(old), Ok(new)) = (Assignment::from_etcd(old), Assignment::from_etcd(new)) else {
        return false;
    };
    let job = Job {
        key: String::new(),
        assignment: Arc::new(old),
        when: None,
        after: Timestamp::UNIX_EPOCH,
    };
    job.same_schedule(&new)
}

/// When the host started, from `btime` in proc_stat(5).
fn boot_time() -> Option<Timestamp> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|l| l.strip_prefix("btime "))?;
    Timestamp::from_second(line.trim().parse().ok()?).ok()
}
