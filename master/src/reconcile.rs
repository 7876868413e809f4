//! Placement, performed by the leader: whenever nodes, definitions or assignments
//! change, plan what the change touches and write the difference. Is idempotent; every
//! write names the revisions it was decided on. All is compared anew when a master begins
//! to lead and whenever the view has been listed anew, every ten minutes.

use crate::{
    lost::GRACE,
    metrics::Metrics,
    seal::{Seal, Text},
    view::View,
};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use meepo_coord::{
    CoordError, Etcd,
    election::Leadership,
    etcd::{MAX_TXN_BYTES, MAX_TXN_OPS},
    keys,
    records::encode,
};
use meepo_core::{
    id::{Name, NodeId},
    job::Assignment,
    placement::{Dirty, Effect, Waiting},
    tree::TreePath,
};
use meepo_runtime::backoff::Backoff;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Transactions on their way at the same time: etcd takes no more with more of them.
const AT_ONCE: usize = 8;
/// Writes that are planned before they are performed.
const SHARE: usize = 20_000;
/// How long changes are gathered before a plan is made.
const GATHER: Duration = Duration::from_millis(10);
/// Assignments that are signed anew in one step, …
const RENEWED: usize = 1_000;
/// … and the time from one step to the next.
const BETWEEN: Duration = Duration::from_secs(1);
/// Longest wait for the view to show what was written.
const SETTLE: Duration = Duration::from_secs(2);

/// Places jobs while this master leads, until `stop` is cancelled.
pub async fn run(
    etcd: Etcd,
    view: View,
    mut leadership: watch::Receiver<Leadership>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut changes = view.changes();
    let mut backoff = Backoff::new(Duration::from_secs(5));
    // The term that the rest belongs to.
    let mut leading = None;
    let mut due = Dirty::default();
    let mut away = Away::default();
    let mut renewal = Renewal::new(view.seal());
    loop {
        let term = leadership.borrow_and_update().mine;
        let complete = changes.borrow_and_update().complete;
        if leading != term {
            leading = term;
            due = Dirty::all();
            away = Away::default();
            renewal = Renewal::new(view.seal());
        }
        let mut retry = None;
        if term.is_none() {
            // Whoever begins to lead looks at everything.
            view.take_dirty();
        }
        if let Some(term) = term.filter(|_| complete) {
            due.add(view.take_dirty());
            due.nodes.extend(away.look(&view, &due, Instant::now()));
            due.pairs.extend(renewal.step(&view, Instant::now()));
            if !due.is_empty() {
                let waiting = away.waiting();
                let dirty = std::mem::take(&mut due);
                let outcome = place(&etcd, &view, term, dirty, waiting, &metrics).await?;
                if outcome.revision > 0 {
                    // Without this the next plan would repeat what is on its way. It takes
                    // changes for seen that are not planned yet, so another round follows.
                    let seen = changes.wait_for(|v| v.revision >= outcome.revision);
                    let _ = tokio::time::timeout(SETTLE, seen).await;
                }
                due.jobs.extend(outcome.again);
                match outcome.error {
                    Some(e) => {
                        let wait = backoff.next_wait();
                        warn!(error = %e, ?wait, "cannot place all jobs, will try again");
                        retry = Some(wait);
                    }
                    // A key had moved. The view will show it, perhaps only by the next
                    // full comparison.
                    None if !due.is_empty() => retry = Some(backoff.next_wait()),
                    None => {
                        backoff.reset();
                        // What came meanwhile.
                        retry = Some(Duration::ZERO).filter(|_| outcome.revision > 0);
                    }
                }
            }
        }
        let back = [away.next(), renewal.next.filter(|_| term.is_some() && complete)];
        let back = back.into_iter().flatten().min();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            changed = leadership.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
            () = tokio::time::sleep_until(back.unwrap_or_else(Instant::now)), if back.is_some() => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Nodes that have gone. For a moment they count as being there: a worker that restarts
/// must not lose what it holds.
#[derive(Default)]
struct Away {
    /// Until when each may be back; `None` when that has passed.
    nodes: HashMap<NodeId, Option<Instant>>,
    known: bool,
}

impl Away {
    /// Looks at the nodes that changed; answers those that are given up now.
    fn look(&mut self, view: &View, dirty: &Dirty, now: Instant) -> Vec<NodeId> {
        let data = view.read();
        let nodes = data.fleet.nodes();
        let mut look = |id: &NodeId| match nodes.get(id).map(|n| n.online) {
            Some(false) => drop(self.nodes.entry(id.clone()).or_insert(Some(now + GRACE))),
            _ => drop(self.nodes.remove(id)),
        };
        if dirty.all || !self.known {
            nodes.keys().for_each(&mut look);
            self.nodes.retain(|id, _| nodes.contains_key(id));
            self.known = true;
        } else {
            dirty.nodes.iter().for_each(look);
        }
        let passed = |until: &Option<Instant>| until.is_some_and(|until| until <= now);
        let given_up = self.nodes.iter_mut().filter(|(_, until)| passed(until));
        given_up
            .map(|(id, until)| {
                *until = None;
                id.clone()
            })
            .collect()
    }

    fn waiting(&self) -> Waiting {
        self.nodes.iter().filter(|(_, until)| until.is_some()).map(|(id, _)| id.clone()).collect()
    }

    /// When the next one is given up.
    fn next(&self) -> Option<Instant> {
        self.nodes.values().flatten().min().copied()
    }
}

/// Signs assignments anew before their signatures run out: all are looked at now and then,
/// and those that are due are written a step at a time.
struct Renewal {
    every: Option<Duration>,
    /// When the next step is due, if any ever is.
    next: Option<Instant>,
    /// How far the look has got.
    after: Option<(Name, NodeId)>,
}

impl Renewal {
    fn new(seal: &Seal) -> Self {
        let every = seal.look_every();
        Self { every, next: every.map(|_| Instant::now()), after: None }
    }

    /// The assignments to be signed anew now.
    fn step(&mut self, view: &View, now: Instant) -> Vec<(Name, NodeId)> {
        let Some((every, _)) = self.every.zip(self.next).filter(|(_, at)| *at <= now) else {
            return Vec::new();
        };
        let due = view.due_again(self.after.as_ref(), RENEWED);
        self.after = due.last().filter(|_| due.len() == RENEWED).cloned();
        let wait = if self.after.is_some() { BETWEEN.min(every) } else { every };
        self.next = Some(now + wait);
        due
    }
}

/// Plans what is dirty and writes it, a share at a time.
async fn place(
    etcd: &Etcd,
    view: &View,
    term: i64,
    dirty: Dirty,
    waiting: Waiting,
    metrics: &Metrics,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let planned = view.clone();
    let waiting = Arc::new(waiting);
    let (of, reading) = (waiting.clone(), planned.clone());
    let (mut jobs, mut effects) =
        tokio::task::spawn_blocking(move || reading.read().fleet.narrow(&dirty, &of)).await?;
    loop {
        let (of, reading) = (waiting.clone(), planned.clone());
        // Many jobs on many nodes take a while.
        (jobs, effects) = tokio::task::spawn_blocking(move || {
            while effects.len() < SHARE
                && let Some(job) = jobs.pop_first()
            {
                // The view is held for one job at a time.
                effects.extend(reading.read().fleet.plan_job(&job, &of));
            }
            (jobs, effects)
        })
        .await?;
        if !effects.is_empty() {
            info!(writes = effects.len(), "placing jobs");
            perform(etcd, (view.seal(), term), &effects, metrics, &mut outcome).await;
            effects.clear();
        }
        if outcome.error.as_ref().is_some_and(CoordError::retryable) {
            outcome.again.append(&mut jobs);
        }
        if jobs.is_empty() {
            return Ok(outcome);
        }
    }
}

/// What came of a plan.
#[derive(Default)]
struct Outcome {
    /// The highest revision written.
    revision: i64,
    /// Jobs that are to be planned again: keys had moved, or etcd did not take a write.
    again: BTreeSet<Name>,
    /// The last of the errors, if there were any.
    error: Option<CoordError>,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.revision = self.revision.max(other.revision);
        self.again.extend(other.again);
        self.error = other.error.or(self.error.take());
    }

    fn failed(&mut self, group: &[Effect], error: Option<CoordError>) {
        self.again.extend(group.iter().map(|e| e.job().clone()));
        self.error = error.or(self.error.take());
    }
}

/// Writes the effects in groups, some at once. What cannot be written does not hold up the
/// rest, unless etcd is away.
async fn perform(
    etcd: &Etcd,
    by: (&Seal, i64),
    effects: &[Effect],
    metrics: &Metrics,
    outcome: &mut Outcome,
) {
    let groups = groups(effects);
    let mut left = groups.iter();
    let mut writing = FuturesUnordered::new();
    let mut away = false;
    loop {
        while !away
            && writing.len() < AT_ONCE
            && let Some(group) = left.next()
        {
            writing.push(write(etcd, by, group, metrics));
        }
        let Some(written) = writing.next().await else { break };
        away |= written.error.as_ref().is_some_and(CoordError::retryable);
        outcome.add(written);
    }
    for group in left {
        outcome.failed(group, None);
    }
}

/// Writes one group.
fn write<'a>(
    etcd: &'a Etcd,
    by: (&'a Seal, i64),
    group: &'a [Effect],
    metrics: &'a Metrics,
) -> BoxFuture<'a, Outcome> {
    Box::pin(async move {
        let mut outcome = Outcome::default();
        match etcd.txn("assignments", transaction(by, group)).await {
            Ok(Some(revision)) => {
                outcome.revision = revision;
                metrics.placements.inc_by(group.len() as u64);
            }
            Ok(None) if group.len() == 1 => {
                debug!("an assignment has changed meanwhile");
                metrics.placements_refused.inc();
                outcome.failed(group, None);
            }
            Err(e) if e.retryable() || group.len() == 1 => outcome.failed(group, Some(e)),
            Ok(None) if !as_planned(etcd, group).await => outcome.failed(group, None),
            // One stale or oversized key must not take the others with it.
            Ok(None) | Err(_) => {
                let (one, other) = group.split_at(group.len() / 2);
                outcome.add(write(etcd, by, one, metrics).await);
                match &outcome.error {
                    Some(e) if e.retryable() => outcome.failed(other, None),
                    _ => outcome.add(write(etcd, by, other, metrics).await),
                }
            }
        }
        outcome
    })
}

/// Whether the definitions that a group was planned from are unchanged. If they are not, none
/// of its writes can succeed.
async fn as_planned(etcd: &Etcd, group: &[Effect]) -> bool {
    let planned: BTreeMap<String, i64> = group
        .iter()
        .flat_map(Comparing::definitions)
        .map(|((job, path), revision)| (keys::job_at(job, path), revision))
        .collect();
    let wanted: Vec<String> = planned.keys().cloned().collect();
    let Ok(found) = etcd.get_all(&wanted).await else { return true };
    let found: HashMap<&str, i64> =
        found.iter().map(|e| (e.key.as_str(), e.mod_revision)).collect();
    planned.iter().all(|(key, revision)| found.get(key.as_str()).unwrap_or(&0) == revision)
}

/// Cuts the effects into transactions that etcd takes: of the comparisons and of the
/// operations each at most [`MAX_TXN_OPS`].
fn groups(effects: &[Effect]) -> Vec<&[Effect]> {
    let (mut groups, mut start, mut bytes) = (Vec::new(), 0, 0);
    let mut compares = Comparing::default();
    let mut size = Size::default();
    for (i, effect) in effects.iter().enumerate() {
        let more = size.of(effect);
        let fits = compares.with(effect) <= MAX_TXN_OPS && bytes + more <= MAX_TXN_BYTES;
        if i > start && !fits {
            groups.push(&effects[start..i]);
            (start, bytes, compares) = (i, 0, Comparing::default());
        }
        compares.add(effect);
        bytes += more;
    }
    if start < effects.len() {
        groups.push(&effects[start..]);
    }
    groups
}

/// The size of values; neighbours mostly share one.
#[derive(Default)]
struct Size<'a>(Option<(&'a Arc<Assignment>, usize)>);

impl<'a> Size<'a> {
    fn of(&mut self, effect: &'a Effect) -> usize {
        let Effect::Put { assignment, .. } = effect else { return 256 };
        match self.0 {
            Some((last, size)) if Arc::ptr_eq(last, assignment) => size,
            _ => {
                // The rest: key and signature.
                let size = encode(&**assignment).len() + 640;
                self.0 = Some((assignment, size));
                size
            }
        }
    }
}

/// What a transaction compares: the leader, each key, and each definition once.
#[derive(Default)]
struct Comparing<'a> {
    keys: usize,
    definitions: BTreeMap<(&'a Name, &'a TreePath), i64>,
}

impl<'a> Comparing<'a> {
    fn definitions(effect: &'a Effect) -> impl Iterator<Item = ((&'a Name, &'a TreePath), i64)> {
        let (job, made_from) = match effect {
            Effect::Put { job, made_from, .. } => (job, &made_from[..]),
            Effect::Delete { job, .. } => (job, &[][..]),
        };
        made_from.iter().map(move |(path, revision)| ((job, path), *revision))
    }

    /// How many there are with one more effect.
    fn with(&self, effect: &'a Effect) -> usize {
        let new = Self::definitions(effect).filter(|(d, _)| !self.definitions.contains_key(d));
        2 + self.keys + self.definitions.len() + new.count()
    }

    fn add(&mut self, effect: &'a Effect) {
        self.keys += 1;
        self.definitions.extend(Self::definitions(effect));
    }
}

fn transaction((seal, term): (&Seal, i64), effects: &[Effect]) -> Txn {
    let mut compares = vec![Compare::create_revision(keys::LEADER, CompareOp::Equal, term)];
    let mut comparing = Comparing::default();
    let mut operations = Vec::with_capacity(effects.len());
    let mut last: Option<(&Arc<Assignment>, Text)> = None;
    for effect in effects {
        comparing.add(effect);
        let (Effect::Put { node, job, expect, .. } | Effect::Delete { node, job, expect }) = effect;
        let key = keys::assignment(node, job);
        compares.push(Compare::mod_revision(key.clone(), CompareOp::Equal, *expect));
        operations.push(match effect {
            Effect::Put { assignment, .. } => {
                let same = last.take().filter(|(a, _)| Arc::ptr_eq(a, assignment));
                let (_, text) =
                    last.insert(same.unwrap_or_else(|| (assignment, seal.text(assignment))));
                TxnOp::put(key, seal.assignment(term, node, job, text), None)
            }
            Effect::Delete { .. } => TxnOp::delete(key, None),
        });
    }
    compares.extend(comparing.definitions.into_iter().map(|((job, path), revision)| {
        Compare::mod_revision(keys::job_at(job, path), CompareOp::Equal, revision)
    }));
    Txn::new().when(compares).and_then(operations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_core::job::JobSpec;

    fn puts(n: usize, jobs: usize, cmd: &str) -> Vec<Effect> {
        let spec = serde_json::json!({"name": "a", "cmd": cmd});
        let assignment = JobSpec::from_user(spec).unwrap().assignment(Some(1), Vec::new());
        let assignment = Arc::new(assignment);
        let made_from: Arc<[_]> = vec![(TreePath::ROOT, 1)].into();
        (0..n)
            .map(|i| Effect::Put {
                node: Name::new(&format!("n{i}")).unwrap(),
                job: Name::new(&format!("j{}", i % jobs)).unwrap(),
                assignment: assignment.clone(),
                made_from: made_from.clone(),
                expect: 0,
            })
            .collect()
    }

    #[test]
    fn groups_keep_to_both_limits_and_lose_nothing() {
        let most = MAX_TXN_OPS - 2;
        for (effects, want) in [
            (puts(0, 1, "x"), 0),
            (puts(1, 1, "x"), 1),
            (puts(most * 2 + 1, 1, "x"), 3),
            // Each with a definition of its own.
            (puts(63 * 2 + 1, 1000, "x"), 3),
            (puts(10, 1, &"x".repeat(400_000)), 5),
            (puts(2, 1, &"x".repeat(MAX_TXN_BYTES)), 2),
        ] {
            let groups = groups(&effects);
            assert_eq!(groups.len(), want);
            assert_eq!(groups.concat(), effects);
        }
    }
}
