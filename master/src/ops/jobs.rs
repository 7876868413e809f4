//! Definitions, and jobs that were put into etcd by hand.

use super::{Ops, nodes::readable};
use crate::error::{ApiError, ApiResult};
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use jiff::{SignedDuration, Timestamp};
use meepo_coord::{
    Entry,
    etcd::{Cas, MAX_TXN_BYTES, MAX_TXN_OPS},
    keys,
    records::{ClaimRecord, TriggerRecord, decode, encode},
};
use meepo_core::{
    api::{
        Action, Applied, CronId, JobOnNode, JobSource, JobView, RunRef, TriggerRequest, Triggered,
    },
    code::Code,
    error::Invalid,
    id::{Name, NodeId, RunId},
    job::{Assignment, JobSpec, JobStatus, Placement},
    node::{Health, NodeInfo},
    run::{RunRecord, to_millis},
    target::Target,
    tree::{TreeDefinition, TreePath},
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use tracing::{info, warn};
use uuid::Uuid;

/// How often a change is tried when others change the same job.
const TRIES: usize = 5;
/// How long a request to run waits for its worker unless asked otherwise.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// Furthest start of a run on request.
const LONGEST_DELAY: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Longest time a request waits.
const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);
/// How long an expired request is kept for its worker to record.
const EXPIRED_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long the cursor of claimed slots outlives its job.
const CLAIM_KEPT: Duration = Duration::from_secs(600);
/// How long the log store is waited for when jobs are shown.
const LAST_RUNS_PATIENCE: Duration = Duration::from_secs(2);

/// Nodes on which a job could be run, and what to run there.
pub(super) type Places = (Placement, Vec<(NodeId, Assignment)>);

impl Ops {
    /// Creates or replaces the definition at the root.
    pub(super) async fn apply_whole(&self, spec: JobSpec) -> ApiResult<Applied> {
        spec.validate()?;
        let name = spec.name.clone();
        let change = |old: Option<JobSpec>| {
            let same = |old: &JobSpec| {
                (&old.schedule, &old.timezone, old.end_at)
                    == (&spec.schedule, &spec.timezone, spec.end_at)
            };
            if !old.as_ref().is_some_and(same) {
                not_over(&spec, Timestamp::now())?;
            }
            Ok(Some(spec.clone()))
        };
        self.change(&name, change).await
    }

    /// Follows the schedule, or does not.
    pub async fn set_status(&self, name: &Name, status: JobStatus) -> ApiResult<Applied> {
        let changed = self.change(name, |old| Ok(old.map(|spec| JobSpec { status, ..spec }))).await;
        match changed {
            Err(e) if e.0.code == Code::NOT_FOUND => self.set_status_by_hand(name, status).await,
            other => other,
        }
    }

    /// Replaces the definition by what `new` makes of it; `None` from `new` means that
    /// there is nothing to change.
    async fn change(
        &self,
        name: &Name,
        new: impl Fn(Option<JobSpec>) -> ApiResult<Option<JobSpec>>,
    ) -> ApiResult<Applied> {
        let key = keys::job(name);
        let mut there = self.etcd.get(&key).await?;
        for _ in 0..TRIES {
            let old: Option<JobSpec> = there.as_ref().and_then(|e| decode(&e.value).ok());
            let Some(spec) = new(old.clone())? else {
                return Err(ApiError::not_found("job", name));
            };
            let expect = there.as_ref().map_or(0, |e| e.mod_revision);
            if old.as_ref() == Some(&spec) {
                let action = Action::Unchanged;
                return Ok(Applied { name: name.clone(), action, revision: expect });
            }
            let action = if expect == 0 { Action::Created } else { Action::Updated };
            match self.etcd.put_if(&key, Some(encode(&spec)), expect, None).await? {
                Cas::Done(revision) => {
                    info!(job = %name, ?action, revision, "definition written");
                    return Ok(Applied { name: name.clone(), action, revision });
                }
                Cas::Conflict(now) => there = now,
            }
        }
        Err(ApiError::new(Code::CONFLICT, format!("job {name} is being changed by others")))
    }

    /// Changes the status in every assignment, leaving all else as it was put.
    async fn set_status_by_hand(&self, name: &Name, status: JobStatus) -> ApiResult<Applied> {
        let mut last = None;
        for entry in self.assignments_of(name).await? {
            let Ok(Value::Object(mut value)) = serde_json::from_slice(&entry.value) else {
                continue;
            };
            if value.contains_key("spec_revision") {
                // A master's: it follows its definition.
                continue;
            }
            value.insert("status".into(), serde_json::to_value(status).unwrap_or_default());
            let text = Value::Object(value).to_string().into_bytes();
            match self.etcd.put_if(&entry.key, Some(text), entry.mod_revision, None).await? {
                Cas::Done(revision) => last = Some(revision),
                Cas::Conflict(_) => {
                    let message = format!("job {name} is being changed by others");
                    return Err(ApiError::new(Code::CONFLICT, message));
                }
            }
        }
        let revision = last.ok_or_else(|| ApiError::not_found("job", name))?;
        Ok(Applied { name: name.clone(), action: Action::Updated, revision })
    }

    /// The assignments of a job on all nodes, where they were put by hand.
    async fn assignments_of(&self, name: &Name) -> ApiResult<Vec<Entry>> {
        let (entries, _) = self.etcd.list(keys::ASSIGNMENTS, None).await?;
        let mine = |e: &Entry| id_of(e).is_some_and(|(_, job)| job == *name) && is_by_hand(e);
        Ok(entries.into_iter().filter(mine).collect())
    }

    /// Deletes the definition at the root (its assignments follow) or, if there is none, what
    /// was put by hand. Runs that are under way go on to their end.
    pub(super) async fn delete_whole(&self, name: &Name) -> ApiResult<Applied> {
        let key = keys::job(name);
        let there = self.etcd.get(&key).await?;
        let revision = match there {
            Some(_) => Some(self.delete_definition(name, &TreePath::ROOT).await?),
            None => {
                let entries = self.assignments_of(name).await?;
                if entries.is_empty() {
                    return Err(ApiError::not_found("job", name));
                }
                let mut revision = None;
                for group in entries.chunks(MAX_TXN_OPS) {
                    let ops: Vec<_> =
                        group.iter().map(|e| TxnOp::delete(e.key.clone(), None)).collect();
                    revision = self.etcd.txn(&key, Txn::new().and_then(ops)).await?;
                }
                revision
            }
        };
        info!(job = %name, "deleted");
        let revision = revision.unwrap_or_default();
        Ok(Applied { name: name.clone(), action: Action::Deleted, revision })
    }

    /// Deletes a definition. The cursor of its claims ends some time later: nodes that
    /// hold the job still must not take its last slot for one that is free.
    pub(super) async fn delete_definition(&self, name: &Name, path: &TreePath) -> ApiResult<i64> {
        let (key, claim) = (keys::job_at(name, path), keys::claim_at(name, path));
        for _ in 0..TRIES {
            let cursor = self.etcd.get(&claim).await?;
            let seen = cursor.as_ref().map_or(0, |e| e.mod_revision);
            let mut ops = vec![TxnOp::delete(key.clone(), None)];
            if let Some(cursor) = cursor {
                let lease = self.etcd.grant(CLAIM_KEPT).await?;
                let options = PutOptions::new().with_lease(lease);
                // A job of this name that is created meanwhile counts its runs anew.
                let value = match decode::<ClaimRecord>(&cursor.value) {
                    Ok(record) => encode(&ClaimRecord { runs: 0, ..record }),
                    Err(_) => cursor.value,
                };
                ops.push(TxnOp::put(claim.clone(), value, Some(options)));
            }
            // Another slot may be claimed meanwhile.
            let unchanged = Compare::mod_revision(claim.clone(), CompareOp::Equal, seen);
            let txn = Txn::new().when([unchanged]).and_then(ops);
            if let Some(revision) = self.etcd.txn(&key, txn).await? {
                return Ok(revision);
            }
        }
        Err(ApiError::new(Code::CONFLICT, format!("job {name} is being changed by others")))
    }

    /// All jobs, by name, with their newest runs if the log store answers.
    pub async fn list_jobs(&self) -> ApiResult<Vec<JobView>> {
        let mut views = self.views().await?;
        let names: Vec<Name> = views.iter().map(|v| v.name.clone()).collect();
        let mut runs = self.newest_runs(&names).await;
        for view in &mut views {
            view.last_run = runs.remove(&view.name);
        }
        Ok(views)
    }

    /// The newest run of each job; none if the log store does not answer soon, as the
    /// rest of the answer does not depend on it.
    pub(super) async fn newest_runs(&self, names: &[Name]) -> BTreeMap<Name, RunRecord> {
        match tokio::time::timeout(LAST_RUNS_PATIENCE, self.store.last_runs(names)).await {
            Ok(Ok(runs)) => return runs,
            Ok(Err(e)) => warn!(error = %e, "jobs shown without their last runs"),
            Err(_) => warn!("jobs shown without their last runs: the log store is slow"),
        }
        BTreeMap::new()
    }

    pub(super) async fn views(&self) -> ApiResult<Vec<JobView>> {
        let (specs, tree, assignments, health, cronids) = tokio::try_join!(
            self.etcd.list(keys::JOBS, None),
            self.etcd.list(keys::TREE_JOBS, None),
            self.etcd.list(keys::ASSIGNMENTS, None),
            self.etcd.list(keys::HEALTH, None),
            self.etcd.list(keys::CRONIDS, None),
        )?;
        let all = [specs.0, tree.0, assignments.0, health.0, cronids.0].into_iter().flatten();
        Ok(views(&all.collect::<Vec<_>>()))
    }

    /// One job where the view says that it is; `None` if it is not there.
    async fn view_of(&self, name: &Name) -> ApiResult<Option<JobView>> {
        if !self.view.changes().borrow().complete {
            return Ok(None);
        }
        let nodes: Vec<NodeId> = {
            let data = self.view.read();
            data.fleet.holders(name).map(|(node, _)| node.clone()).collect()
        };
        let on_node =
            |node| [keys::assignment(node, name), keys::health(node), keys::cronid(node, name)];
        let mut wanted = vec![keys::job(name)];
        wanted.extend(nodes.iter().flat_map(on_node));
        let below = keys::tree_jobs_of(name);
        let (mut entries, tree) =
            tokio::try_join!(self.etcd.get_all(&wanted), self.etcd.list(&below, None))?;
        entries.extend(tree.0);
        Ok(views(&entries).pop())
    }

    /// One job, with its newest run if the log store answers.
    pub async fn get_job(&self, name: &Name) -> ApiResult<JobView> {
        let mut view = self.find_job(name).await?;
        view.last_run = self.newest_runs(std::slice::from_ref(name)).await.remove(name);
        Ok(view)
    }

    pub(super) async fn find_job(&self, name: &Name) -> ApiResult<JobView> {
        // What the view does not know may have been put just now, or under the oldest
        // form of key.
        let found = match self.view_of(name).await? {
            Some(found) => Some(found),
            None => self.views().await?.into_iter().find(|j| j.name == *name),
        };
        found.ok_or_else(|| ApiError::not_found("job", name))
    }

    /// The next `n` slots of a job.
    pub async fn next_slots(&self, name: &Name, n: usize) -> ApiResult<Vec<Timestamp>> {
        let assignment = match self.etcd.get(&keys::job(name)).await? {
            Some(entry) => decode::<JobSpec>(&entry.value)?.assignment(None, Vec::new()),
            None => {
                let entries = self.assignments_of(name).await?;
                let entry = entries.first().ok_or_else(|| ApiError::not_found("job", name))?;
                Assignment::from_etcd(&entry.value)?
            }
        };
        Ok(match assignment.validate()? {
            Some(when) if assignment.status == JobStatus::Running => {
                when.iter_after(Timestamp::now()).take(n).collect()
            }
            _ => Vec::new(),
        })
    }

    /// Runs a job now. Accepted means kept by etcd's quorum.
    pub async fn trigger(&self, name: &Name, request: &TriggerRequest) -> ApiResult<Triggered> {
        let only = request.target.as_deref().map(Target::parse).transpose()?;
        let nodes = self.nodes_now().await?;
        let plans = self.trigger_plans(name, &nodes).await?;
        let chosen: Option<BTreeSet<&NodeId>> = only.as_ref().map(|only| {
            let all = plans.iter().flat_map(|(_, places)| places);
            let infos = all.filter_map(|(node, _)| nodes.get(node));
            only.select(infos).iter().map(|n| &n.id).collect()
        });
        let mut places: Vec<(NodeId, Assignment)> = Vec::new();
        for (placement, mut some) in plans {
            some.retain(|(node, _)| chosen.as_ref().is_none_or(|chosen| chosen.contains(node)));
            let enough = match placement {
                Placement::Each => usize::MAX,
                Placement::Once => 1,
                Placement::Any(n) => n as usize,
            };
            if some.len() > enough {
                // Those that are there and take work first, of these whoever holds it.
                let takes = |n: &NodeId| nodes.get(n).is_some_and(|n| n.online && !n.drained);
                let view = self.view.read();
                let holders: BTreeSet<&NodeId> = view.fleet.holders(name).map(|(n, _)| n).collect();
                some.sort_by_key(|(n, _)| (!takes(n), !holders.contains(n)));
                some.truncate(enough);
            }
            places.append(&mut some);
        }
        if places.is_empty() {
            let message = format!("no node holds job {name} and matches");
            return Err(ApiError::new(Code::NO_TARGET, message));
        }
        let now = to_millis(Timestamp::now());
        let ttl = request.ttl.map_or(DEFAULT_TTL, |d| d.0).min(MAX_TTL);
        let not_before = not_before(request, now)?;
        let expires_at = not_before.unwrap_or(now).checked_add(ttl).unwrap_or(Timestamp::MAX);
        let wait = not_before.map_or(Duration::ZERO, |at| at.duration_since(now).unsigned_abs());
        // A node that never comes back must not leave its requests behind for ever; one
        // that does gets a day to say that they had expired.
        let lease = self.etcd.grant(wait + ttl + EXPIRED_KEPT).await?;
        let (mut runs, mut groups, mut bytes) = (Vec::new(), vec![Vec::new()], 0);
        for (node, assignment) in places {
            let run_id = RunId(Uuid::now_v7());
            let record = TriggerRecord {
                job: name.clone(),
                assignment,
                requested_at: now,
                not_before,
                expires_at,
                rerun: None,
                extra: BTreeMap::new(),
            };
            let value = encode(&record);
            bytes += value.len();
            if groups.last().is_some_and(|g| g.len() == MAX_TXN_OPS) || bytes > MAX_TXN_BYTES {
                groups.push(Vec::new());
                bytes = value.len();
            }
            let options = PutOptions::new().with_lease(lease);
            let put = TxnOp::put(keys::trigger(&node, run_id), value, Some(options));
            groups.last_mut().into_iter().for_each(|g| g.push(put.clone()));
            runs.push(RunRef { run_id, node });
        }
        for group in groups {
            if let Err(e) = self.etcd.txn("triggers", Txn::new().and_then(group)).await {
                // Some may run: to ask again would run them twice.
                warn!(job = %name, error = %e, "a request to run may or may not be kept");
                return Err(ApiError::new(Code::UNKNOWN_OUTCOME, Code::UNKNOWN_OUTCOME.meaning()));
            }
        }
        info!(job = %name, runs = runs.len(), "triggered");
        Ok(Triggered { runs })
    }

    /// Where a job could be run now, and what to run there.
    async fn trigger_plans(
        &self,
        name: &Name,
        nodes: &BTreeMap<NodeId, NodeInfo>,
    ) -> ApiResult<Vec<Places>> {
        let definitions = self.definitions(name).await?;
        if !definitions.0.is_empty() {
            return super::tree::places(&definitions, nodes);
        }
        let entries = self.assignments_of(name).await?;
        if entries.is_empty() {
            return Err(ApiError::not_found("job", name));
        }
        let mut places = Vec::new();
        for entry in &entries {
            if let Some((node, _)) = id_of(entry) {
                let assignment = Assignment::from_etcd(&entry.value)?;
                places.push((node, assignment));
            }
        }
        Ok(vec![(Placement::Each, places)])
    }
}

/// The jobs that `entries` make up, by name.
fn views(entries: &[Entry]) -> Vec<JobView> {
    let below = |prefix: &'static str| entries.iter().filter(move |e| e.key.starts_with(prefix));
    let health: BTreeMap<NodeId, Health> = readable(below(keys::HEALTH), keys::HEALTH);
    let cronids: HashMap<(NodeId, Name), CronId> = below(keys::CRONIDS)
        .filter_map(|e| Some((keys::node_and_job(&e.key, keys::CRONIDS)?, decode(&e.value).ok()?)))
        .collect();
    let mut views: BTreeMap<Name, JobView> = BTreeMap::new();
    for entry in below(keys::JOBS) {
        let Some(name) = keys::last(&entry.key, keys::JOBS) else { continue };
        match decode::<JobSpec>(&entry.value) {
            Ok(spec) => {
                let view = definition(&name, spec, entry.mod_revision);
                views.insert(name, view);
            }
            Err(e) => warn!(job = %name, error = %e, "unreadable definition"),
        }
    }
    for entry in below(keys::TREE_JOBS) {
        let Some((name, tree)) = keys::job_and_path(&entry.key) else { continue };
        let Ok(definition) = decode(&entry.value) else { continue };
        let view = views.entry(name.clone()).or_insert_with(|| blank(name, JobSource::Definition));
        view.tree.push(TreeDefinition { tree, revision: entry.mod_revision, definition });
    }
    for entry in below(keys::ASSIGNMENTS) {
        let Some((node, name)) = id_of(entry) else { continue };
        if !views.contains_key(&name) && !is_by_hand(entry) {
            continue; // Its definition is deleted, and so will it be.
        }
        let online = health.contains_key(&node);
        let current = cronids.get(&(node.clone(), name.clone())).cloned();
        let on_node = on_node(node, online, entry, current);
        let view = views.entry(name.clone()).or_insert_with(|| blank(name, JobSource::Etcd));
        if view.source == JobSource::Etcd || !view.tree.is_empty() {
            view.next = [view.next, next_of(entry)].into_iter().flatten().min();
        }
        view.nodes.push(on_node);
    }
    views.into_values().collect()
}

/// A job of which nothing more is known.
fn blank(name: Name, source: JobSource) -> JobView {
    JobView {
        name,
        source,
        spec: None,
        revision: None,
        next: None,
        tree: Vec::new(),
        nodes: Vec::new(),
        last_run: None,
    }
}

/// Node and job of an assignment's key; for the oldest form the job is the `task_id`.
fn id_of(entry: &Entry) -> Option<(NodeId, Name)> {
    if let Some(pair) = keys::node_and_job(&entry.key, keys::ASSIGNMENTS) {
        return Some(pair);
    }
    let (node, rest) = keys::node_and_rest(&entry.key, keys::ASSIGNMENTS)?;
    let task_id = decode::<Assignment>(&entry.value).ok()?.task_id?;
    rest.is_empty().then_some((node, task_id))
}

/// Whether no master wrote an assignment.
fn is_by_hand(entry: &Entry) -> bool {
    decode::<Assignment>(&entry.value).map_or(true, |a| a.spec_revision.is_none())
}

fn definition(name: &Name, spec: JobSpec, revision: i64) -> JobView {
    let when = spec.assignment(None, Vec::new()).validate().ok().flatten();
    let next = when
        .filter(|_| spec.status == JobStatus::Running && !spec.disabled)
        .and_then(|w| w.next_after(Timestamp::now()));
    JobView {
        spec: Some(spec),
        revision: Some(revision),
        next,
        ..blank(name.clone(), JobSource::Definition)
    }
}

fn next_of(entry: &Entry) -> Option<Timestamp> {
    let assignment = Assignment::from_etcd(&entry.value).ok()?;
    let when = assignment.validate().ok()??;
    match assignment.status {
        JobStatus::Running => when.next_after(Timestamp::now()),
        JobStatus::Pause => None,
    }
}

fn on_node(node: NodeId, online: bool, entry: &Entry, current: Option<CronId>) -> JobOnNode {
    let rest = keys::node_and_rest(&entry.key, keys::ASSIGNMENTS).map_or("", |(_, rest)| rest);
    let read = Assignment::from_etcd(&entry.value).and_then(|a| a.id_at(rest).map(|_| a));
    let (assignment, problem) = match read {
        Ok(a) => (Some(a), None),
        // The same check as the worker's, so the same words.
        Err(e) => (decode::<Assignment>(&entry.value).ok(), Some(e.to_string())),
    };
    JobOnNode {
        node,
        online,
        status: assignment.as_ref().map_or(JobStatus::Running, |a| a.status),
        express: assignment.as_ref().map(|a| a.express.clone()).unwrap_or_default(),
        cmd: assignment.map(|a| a.cmd).unwrap_or_default(),
        problem,
        current,
    }
}

/// When a run on request may start at the earliest; none: at once.
fn not_before(request: &TriggerRequest, now: Timestamp) -> ApiResult<Option<Timestamp>> {
    let bad = |field: &str, problem: &str, expected: &str| {
        Err(Invalid::new(Code::BAD_VALUE, field, problem, expected).into())
    };
    let (field, at) = match (request.delay, request.at) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return bad("at", "stands beside delay", "either a delay or an instant");
        }
        (Some(delay), None) => ("delay", now.checked_add(delay.0).unwrap_or(Timestamp::MAX)),
        (None, Some(at)) => ("at", at),
    };
    if at > now + LONGEST_DELAY {
        return bad(field, "too far away", "at most 30 days from now");
    }
    Ok(Some(to_millis(at)).filter(|at| *at > now))
}

/// Refuses a schedule that can never fire any more: nobody means that.
pub(super) fn not_over(spec: &JobSpec, now: Timestamp) -> Result<(), Invalid> {
    let Some(when) = spec.assignment(None, Vec::new()).validate()? else { return Ok(()) };
    if when.schedule.is_reboot() || when.next_after(now).is_some() {
        return Ok(());
    }
    let field = if spec.end_at.is_some_and(|end| end <= now) { "end_at" } else { "schedule" };
    let problem = format!("it is {} and no slot is left", to_millis(now));
    Err(Invalid::new(Code::BAD_SCHEDULE, field, problem, "an instant that is still to come"))
}
