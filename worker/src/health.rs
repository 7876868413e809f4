//! The node's records in etcd: `/agent/health/<ip>` under the worker's lease and
//! `/meepo/nodes/<ip>` for good.

use crate::{
    agent::Status,
    drain::{self, Stage},
    facts,
    vitals::Vitals,
};
use jiff::Timestamp;
use meepo_coord::{
    Entry, Etcd,
    etcd::Cas,
    keys,
    lease::LeaseState,
    records::{decode, encode},
};
use meepo_core::{
    duration::HumanDuration,
    id::NodeId,
    node::{Health, MAX_PROBLEMS, NodeRecord, Problem},
};
use meepo_runtime::backoff::Backoff;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// The version in records and answers.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(200);
/// How often facts are written anew.
const REFRESH: Duration = Duration::from_secs(300);

/// How often figures of a problem that goes on are written anew.
const RETELL: Duration = Duration::from_secs(60);

/// How often it is checked how the worker is, and whether a node id that another worker
/// holds has become free.
const CHECK: Duration = Duration::from_secs(10);
const TAKEN_CHECK: Duration = Duration::from_secs(1);
/// Longest time the last word to etcd may take.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(1);
/// File in the data directory that names the instance registered last.
const INSTANCE_FILE: &str = "instance";

/// What does not change while the worker lives.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// Random per process.
    pub instance: String,
    /// When the process started.
    pub started_at: Timestamp,
    /// From the configuration.
    pub labels: BTreeMap<String, String>,
    /// Parts of tasks it takes at once.
    pub task_slots: u32,
    /// How long its lease lives.
    pub lease_ttl: Duration,
}

/// Whether the node's record in etcd is this worker's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Registration {
    /// Not written yet.
    #[default]
    Pending,
    /// It is. Stays so while etcd is away.
    Done,
    /// Another worker that lives uses the same node id.
    Taken {
        /// Its instance.
        by: String,
    },
}

/// Everything the task needs.
pub struct Publisher {
    /// Where to.
    pub etcd: Etcd,
    /// Who.
    pub me: Identity,
    /// The worker's data directory, which this process has locked.
    pub data_dir: PathBuf,
    /// What the records are bound to.
    pub lease: watch::Receiver<LeaseState>,
    /// What is held.
    pub status: watch::Receiver<Status>,
    /// How the worker is.
    pub vitals: Vitals,
    /// How far a drain is, if there is one.
    pub drain: watch::Receiver<Option<Stage>>,
    /// Told how it went.
    pub registration: watch::Sender<Registration>,
    /// Told whether the record may offer slots for parts of tasks.
    pub offers: watch::Sender<bool>,
}

impl Publisher {
    /// How many parts of tasks the node takes now. What is given to one that takes none
    /// would only come back.
    fn slots(&self, stage: Option<Stage>) -> u32 {
        match stage.is_some() || self.vitals.state.refuses() {
            true => 0,
            false => self.me.task_slots,
        }
    }
}

/// What is written at a time.
struct Words<'a> {
    registered_at: Timestamp,
    /// Whether the lease is a new one.
    register: bool,
    status: &'a Status,
    stage: Option<Stage>,
    slots: u32,
    /// Instance of the last life.
    previous: &'a str,
}

/// When to look again: without a lease there is nothing to try, its return wakes.
fn wake(held: bool, again: Option<Instant>) -> Instant {
    match again {
        Some(at) if held => at.min(Instant::now() + CHECK),
        _ => Instant::now() + CHECK,
    }
}

/// Keeps the records up to date until `stop` is cancelled.
pub async fn publish(mut p: Publisher, stop: CancellationToken) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(Duration::from_secs(5));
    let mut bound_to = None;
    let mut again: Option<Instant> = None;
    let mut registered_at = Timestamp::now();
    let mut refusal = p.vitals.state.refusal();
    // What was found wrong when it was written last.
    let mut told: (Instant, Vec<Problem>) = (Instant::now(), Vec::new());
    let mut offered = 0;
    let file = p.data_dir.join(INSTANCE_FILE);
    // That process has ended: this one has its lock. So its record may be overwritten
    // before its lease has.
    let previous = tokio::fs::read_to_string(&file).await.unwrap_or_default();
    loop {
        let id = p.lease.borrow_and_update().id();
        let status = p.status.borrow_and_update().clone();
        refusal.borrow_and_update();
        let stage = *p.drain.borrow_and_update();
        let found = p.vitals.problems(Timestamp::now());
        let changed = news(&told.1, &found) || (told.1 != found && told.0.elapsed() > RETELL);
        let slots = p.slots(stage);
        let due = changed || slots != offered || again.is_none_or(|at| at <= Instant::now());
        if let Some(id) = id
            && (bound_to != Some(id) || due)
        {
            if bound_to != Some(id) {
                registered_at = Timestamp::now();
            }
            let status = with(status, found.clone());
            let words = Words {
                registered_at,
                register: bound_to != Some(id),
                status: &status,
                stage,
                slots,
                previous: previous.trim(),
            };
            // Not known until the answer comes.
            if slots > 0 {
                p.offers.send_replace(true);
            }
            match write(&p, id, &words).await {
                Ok(None) => {
                    offered = slots;
                    p.offers.send_replace(slots > 0);
                    told = (Instant::now(), found);
                    if bound_to != Some(id) {
                        info!(node = %p.me.node, "registered");
                        if let Err(e) = tokio::fs::write(&file, &p.me.instance).await {
                            warn!(file = %file.display(), error = %e, "cannot write");
                        }
                    }
                    p.registration.send_replace(Registration::Done);
                    backoff.reset();
                    bound_to = Some(id);
                    again = Some(Instant::now() + REFRESH);
                }
                Ok(Some(by)) => {
                    let taken = Registration::Taken { by };
                    let (node, mine) = (&p.me.node, &p.me.instance);
                    if let Registration::Taken { by } = &taken
                        && *p.registration.borrow() != taken
                    {
                        error!(
                            %node, instance = mine, other = by,
                            "another worker is registered under this node's id: this one runs \
                             nothing until that one has ended or its lease has; give each worker \
                             a node id of its own"
                        );
                    }
                    p.registration.send_replace(taken);
                    again = Some(Instant::now() + TAKEN_CHECK);
                }
                Err(e) => {
                    let wait = backoff.next_wait();
                    warn!(error = %e, ?wait, "cannot register with etcd, will try again");
                    again = Some(Instant::now() + wait);
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = p.lease.changed() => if changed.is_err() { return Ok(()) },
            changed = p.drain.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                again = Some(Instant::now());
            }
            changed = refusal.changed() => if changed.is_err() { return Ok(()) },
            changed = p.status.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let soon = Instant::now() + GATHER;
                again = Some(again.map_or(soon, |at| at.min(soon)));
            }
            () = tokio::time::sleep_until(wake(id.is_some(), again)) => {}
        }
    }
    // From now on parts are given back: this node is not to be given them again.
    let id = p.lease.borrow().id();
    if let Some(id) = id.filter(|id| bound_to == Some(*id) && offered > 0) {
        let found = p.vitals.problems(Timestamp::now());
        let status = with(p.status.borrow().clone(), found);
        let stage = *p.drain.borrow();
        let (register, slots, previous) = (false, 0, previous.trim());
        let words = Words { registered_at, register, status: &status, stage, slots, previous };
        match tokio::time::timeout(LAST_WORD, write(&p, id, &words)).await {
            Ok(Ok(None)) => drop(p.offers.send_replace(false)),
            Ok(Ok(Some(_))) | Err(_) => {}
            Ok(Err(e)) => info!(error = %e, "cannot tell etcd that this worker ends"),
        }
    }
    Ok(())
}

/// Writes both records, unless the node is another worker's: answers whose.
async fn write(p: &Publisher, lease: i64, words: &Words<'_>) -> anyhow::Result<Option<String>> {
    let &Words { registered_at, register, status, stage, slots, previous } = words;
    let facts = tokio::task::spawn_blocking(facts::gather).await?;
    let me = &p.me;
    let node = NodeRecord {
        labels: me.labels.clone(),
        facts: facts.clone(),
        version: VERSION.into(),
        registered_at,
        extra: BTreeMap::new(),
    };
    let health = Health {
        status: drain::status(stage).into(),
        version: VERSION.into(),
        instance: me.instance.clone(),
        started_at: Some(me.started_at),
        labels: me.labels.clone(),
        facts,
        jobs: status.jobs,
        problems: status.problems.clone(),
        problems_total: status.problems_total,
        drain_requested_at: stage.map(|s| s.requested_at),
        work: Some(p.vitals.work()),
        digest: p.vitals.progress.holdings().map(|h| h.digest),
        task_slots: slots,
        lease_ttl: Some(HumanDuration(me.lease_ttl)),
        extra: BTreeMap::new(),
    };
    let key = keys::health(&me.node);
    let there = p.etcd.get(&key).await?;
    if let Some(by) = stranger(there.as_ref(), &[&me.instance, previous]) {
        return Ok(Some(by));
    }
    // Its facts are those of the registration: what a target of a stored job selects must
    // not change with the load or with every file that is written.
    // Somebody may have removed the record, though: then it is put again.
    let record = keys::node(&me.node);
    match register {
        true => drop(p.etcd.put(&record, encode(&node), None).await?),
        false => drop(p.etcd.put_if(&record, Some(encode(&node)), 0, None).await?),
    }
    let revision = there.map_or(0, |e| e.mod_revision);
    match p.etcd.put_if(&key, Some(encode(&health)), revision, Some(lease)).await? {
        Cas::Done(_) => Ok(None),
        Cas::Conflict(_) => anyhow::bail!("{key} was written by another at the same time"),
    }
}

/// Whether other things are wrong than before; figures may change.
fn news(before: &[Problem], now: &[Problem]) -> bool {
    !before.iter().map(|p| &p.subject).eq(now.iter().map(|p| &p.subject))
}

/// What is wrong with the worker stands before what it cannot use.
fn with(mut status: Status, mut found: Vec<Problem>) -> Status {
    status.problems_total += found.len() as u64;
    found.append(&mut status.problems);
    found.truncate(MAX_PROBLEMS);
    Status { problems: found, ..status }
}

/// The instance whose record stands there, if it is none of `own`. What a person has
/// put there names none.
fn stranger(there: Option<&Entry>, own: &[&str]) -> Option<String> {
    let health: Health = decode(&there?.value).ok()?;
    let known = health.instance.is_empty() || own.contains(&health.instance.as_str());
    (!known).then_some(health.instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_lease_a_try_that_is_due_does_not_wake() {
        let past = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        assert!(wake(false, Some(past)) > Instant::now() + CHECK / 2);
        assert!(wake(true, Some(past)) <= Instant::now());
        assert!(wake(true, None) > Instant::now() + CHECK / 2);
    }

    #[test]
    fn what_is_wrong_with_the_worker_stands_first_and_all_is_counted() {
        let problem = |subject: &str, reason: &str| Problem {
            subject: subject.into(),
            reason: reason.into(),
        };
        let jobs = vec![problem("/cron/jobs/n/a", "x"); MAX_PROBLEMS];
        let held = Status { jobs: 1, problems: jobs, problems_total: 70 };
        let all = with(held, vec![problem("disk", "full since 1")]);
        assert_eq!((all.problems.len(), all.problems_total), (MAX_PROBLEMS, 71));
        assert_eq!(all.problems[0].subject, "disk");
        let (one, other) = ([problem("disk", "1")], [problem("disk", "2")]);
        assert!(!news(&one, &other) && news(&one, &[]) && news(&one, &[problem("spool", "1")]));
    }

    #[test]
    fn a_record_is_another_workers_unless_it_names_this_one_its_last_life_or_nobody() {
        let entry = |value: &str| Entry {
            key: "/agent/health/n".into(),
            value: value.into(),
            mod_revision: 1,
            create_revision: 1,
        };
        let of = |value: &str| stranger(Some(&entry(value)), &["me", "before"]);
        let named = |i: &str| format!(r#"{{"status":"Online","version":"1","instance":"{i}"}}"#);
        assert_eq!(of(&named("other")), Some("other".into()));
        for own in [&named("me"), &named("before"), &named(""), "no record"] {
            assert_eq!(of(own), None, "{own}");
        }
        assert_eq!(stranger(None, &["me", ""]), None);
    }
}
