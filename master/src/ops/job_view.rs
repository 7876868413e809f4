//! One job with its nodes. Costs what the job costs.

use super::{
    Ops,
    job_list::{next_of, next_of_spec},
    nodes::readable,
    spent::Counts,
};
use crate::error::{ApiError, ApiResult};
use jiff::Timestamp;
use meepo_coord::{Entry, keys, records::decode};
use meepo_core::{
    api::{CronId, JobOnNode, JobSource, JobView},
    auth::Permission,
    code::Code,
    id::{Name, NodeId},
    job::{Assignment, JobSpec, JobStatus},
    node::Health,
    run::RunRecord,
    signing::FIELD,
    tree::TreeDefinition,
};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};
use tracing::warn;

/// How long the log store is waited for when jobs are shown.
const LAST_RUNS_PATIENCE: Duration = Duration::from_secs(2);
/// Longest wait for a view that has just begun.
const COMPLETE: Duration = Duration::from_secs(2);
/// How long a job that nobody knows may still come out of the watch: somebody may have put
/// it into etcd by hand a moment ago.
const BY_HAND: Duration = Duration::from_millis(250);

impl Ops {
    /// One job, with its newest run if the log store answers.
    pub async fn get_job(&self, name: &Name) -> ApiResult<JobView> {
        let mut view = self.find_job(name).await?;
        view.last_run = self.newest_runs(std::slice::from_ref(name)).await.remove(name);
        Ok(view)
    }

    /// The newest run of each job; none if the log store does not answer soon, as the
    /// rest of the answer does not depend on it.
    pub(super) async fn newest_runs(&self, names: &[Name]) -> BTreeMap<Name, RunRecord> {
        match tokio::time::timeout(LAST_RUNS_PATIENCE, self.store.last_runs(names)).await {
            Ok(Ok(mut runs)) => {
                let sight = self.sight(Permission::RunRead);
                runs.retain(|_, run| sight.node(&run.node));
                return runs;
            }
            Ok(Err(e)) => warn!(error = %e, "jobs shown without their last runs"),
            Err(_) => warn!("jobs shown without their last runs: the log store is slow"),
        }
        BTreeMap::new()
    }

    pub(super) async fn find_job(&self, name: &Name) -> ApiResult<JobView> {
        self.view_complete().await?;
        if let Some(view) = self.view_of(name).await? {
            return self.as_seen(view);
        }
        let found = match self.comes_by_hand(name).await {
            true => self.view_of(name).await?,
            false => None,
        };
        self.as_seen(found.ok_or_else(|| ApiError::not_found("job", name))?)
    }

    /// One job as etcd has it, on the nodes that hold it according to the view.
    async fn view_of(&self, name: &Name) -> ApiResult<Option<JobView>> {
        let (nodes, mut wanted) = {
            let data = self.view.read();
            let by_hand = data.by_hand.get(name).into_iter().flatten().map(|(node, _)| node);
            let holders = data.fleet.holders(name).map(|(node, _)| node);
            let nodes: BTreeSet<NodeId> = holders.chain(by_hand.clone()).cloned().collect();
            let oldest = by_hand.filter(|node| !data.fleet.holds(node, name));
            (nodes, oldest.map(keys::assignments_of).collect::<Vec<_>>())
        };
        let on_node =
            |node| [keys::assignment(node, name), keys::health(node), keys::cronid(node, name)];
        wanted.push(keys::job(name));
        wanted.extend(nodes.iter().flat_map(on_node));
        let below = keys::tree_jobs_of(name);
        let (mut entries, tree) =
            tokio::try_join!(self.etcd.get_all(&wanted), self.etcd.list(&below, None))?;
        entries.extend(tree.0);
        entries.extend(self.counts(held(&entries)).await?);
        Ok(views(&entries).remove(name))
    }

    /// Waits until the view has been listed once.
    async fn view_complete(&self) -> ApiResult<()> {
        let mut changes = self.view.changes();
        match tokio::time::timeout(COMPLETE, changes.wait_for(|v| v.complete)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ApiError::new(Code::ETCD, "etcd has not been read yet; ask again")),
        }
    }

    /// Waits a moment for a job that was perhaps put into etcd by hand just now.
    async fn comes_by_hand(&self, name: &Name) -> bool {
        let mut changes = self.view.changes();
        let known = || self.view.read().by_hand.contains_key(name);
        let comes = async {
            while !known() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(BY_HAND, comes).await.is_ok() && known()
    }

    /// The assignments of a job on all nodes, where they were put by hand.
    pub(super) async fn assignments_of(&self, name: &Name) -> ApiResult<Vec<Entry>> {
        self.view_complete().await?;
        self.comes_by_hand(name).await;
        let wanted: Vec<String> = {
            let data = self.view.read();
            let nodes = data.by_hand.get(name).into_iter().flatten().map(|(node, _)| node);
            let key = |node: &NodeId| match data.fleet.holds(node, name) {
                true => keys::assignment(node, name),
                false => keys::assignments_of(node),
            };
            nodes.map(key).collect()
        };
        let entries = self.etcd.get_all(&wanted).await?;
        let mine = |e: &Entry| id_of(e).is_some_and(|(_, job)| job == *name) && is_by_hand(e);
        Ok(entries.into_iter().filter(mine).collect())
    }

    /// The next `n` slots of a job.
    pub async fn next_slots(&self, name: &Name, n: usize) -> ApiResult<Vec<Timestamp>> {
        if !self.sight(Permission::JobRead).job(name) {
            return Err(ApiError::not_found("job", name));
        }
        let assignment = match self.etcd.get(&keys::job(name)).await? {
            Some(entry) => decode::<JobSpec>(&entry.value)?.assignment(None, Vec::new()),
            None => {
                let entries = self.assignments_of(name).await?;
                let entry = entries.first().ok_or_else(|| ApiError::not_found("job", name))?;
                Assignment::from_etcd(&entry.value)?
            }
        };
        let Some(when) = assignment.validate()?.filter(|_| assignment.status == JobStatus::Running)
        else {
            return Ok(Vec::new());
        };
        let left = match assignment.max_runs {
            Some(max) => self.slots_left(&self.find_job(name).await?, max).await?,
            None => usize::MAX,
        };
        Ok(when.iter_after(Timestamp::now()).take(n.min(left)).collect())
    }
}

/// The assignments among `entries`.
fn held(entries: &[Entry]) -> impl Iterator<Item = (NodeId, Name, Assignment)> {
    let of = |e: &Entry| {
        let (node, name) = id_of(e)?;
        Some((node, name, decode(&e.value).ok()?))
    };
    entries.iter().filter(|e| e.key.starts_with(keys::ASSIGNMENTS)).filter_map(of)
}

/// The jobs that `entries` make up.
fn views(entries: &[Entry]) -> BTreeMap<Name, JobView> {
    let below = |prefix: &'static str| entries.iter().filter(move |e| e.key.starts_with(prefix));
    let health: BTreeMap<NodeId, Health> = readable(below(keys::HEALTH), keys::HEALTH);
    let cronids: HashMap<(NodeId, Name), CronId> = below(keys::CRONIDS)
        .filter_map(|e| Some((keys::node_and_job(&e.key, keys::CRONIDS)?, decode(&e.value).ok()?)))
        .collect();
    let counts = Counts::of(entries);
    let mut views: BTreeMap<Name, JobView> = BTreeMap::new();
    let now = Timestamp::now();
    for entry in below(keys::JOBS) {
        let Some(name) = keys::last(&entry.key, keys::JOBS) else { continue };
        match decode::<JobSpec>(&entry.value) {
            Ok(mut spec) => {
                spec.extra.remove(FIELD);
                let view = definition(&name, spec, entry.mod_revision);
                views.insert(name, view);
            }
            Err(e) => warn!(job = %name, error = %e, "unreadable definition"),
        }
    }
    for entry in below(keys::TREE_JOBS) {
        let Some((name, tree)) = keys::job_and_path(&entry.key) else { continue };
        let Ok(mut definition) = decode::<Map<String, Value>>(&entry.value) else { continue };
        definition.remove(FIELD);
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
        let assignment = Assignment::from_etcd(&entry.value).ok();
        let spent = assignment.as_ref().is_some_and(|a| counts.spent(&node, &name, a));
        let mut on_node = JobOnNode { spent, ..on_node(node.clone(), online, entry, current) };
        if on_node.problem.is_none() {
            // What only the node can tell: that it does not believe or not allow it.
            let problems = health.get(&node).map(|h| &h.problems[..]).unwrap_or_default();
            let told = problems.iter().find(|p| p.subject == entry.key);
            on_node.problem = told.map(|p| p.reason.clone());
        }
        let view = views.entry(name.clone()).or_insert_with(|| blank(name, JobSource::Etcd));
        if view.source == JobSource::Etcd || !view.tree.is_empty() {
            let next = assignment.filter(|_| !spent).and_then(|a| next_of(&a, now));
            view.next = [view.next, next].into_iter().flatten().min();
        }
        view.nodes.push(on_node);
    }
    for view in views.values_mut() {
        view.nodes.sort_by(|a, b| a.node.cmp(&b.node));
        if !view.nodes.is_empty() && view.nodes.iter().all(|n| n.spent) {
            view.next = None;
        }
    }
    views
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
pub(super) fn id_of(entry: &Entry) -> Option<(NodeId, Name)> {
    if let Some(pair) = keys::node_and_job(&entry.key, keys::ASSIGNMENTS) {
        return Some(pair);
    }
    let (node, rest) = keys::node_and_rest(&entry.key, keys::ASSIGNMENTS)?;
    let task_id = decode::<Assignment>(&entry.value).ok()?.task_id?;
    rest.is_empty().then_some((node, task_id))
}

/// Whether no master wrote an assignment.
pub(super) fn is_by_hand(entry: &Entry) -> bool {
    decode::<Assignment>(&entry.value).map_or(true, |a| a.spec_revision.is_none())
}

fn definition(name: &Name, spec: JobSpec, revision: i64) -> JobView {
    let next = next_of_spec(&spec, Timestamp::now());
    JobView {
        spec: Some(spec),
        revision: Some(revision),
        next,
        ..blank(name.clone(), JobSource::Definition)
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
        spent: false,
        current,
    }
}
