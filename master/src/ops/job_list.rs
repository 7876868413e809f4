//! Jobs in pages. A page costs what its own jobs cost, however large the fleet is: names
//! and counts come from the view, definitions from etcd.

use super::{Ops, spent::Counts, tree::at_path};
use crate::{
    error::{ApiError, ApiResult},
    view::{DEFINITIONS, Data},
};
use jiff::Timestamp;
use meepo_coord::{Entry, keys, records::decode};
use meepo_core::{
    api::{JobByHand, JobCounts, JobList, JobSource, JobSummary},
    auth::Permission,
    code::Code,
    error::Invalid,
    id::{Name, NodeId},
    job::{Assignment, JobSpec, JobStatus},
    placement::Held,
    target,
    tree::{LABEL, TreeDefinition, TreePath},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
    time::Duration,
};
use tracing::warn;

/// Jobs in a page unless asked otherwise, and at most.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;
/// Nodes that are asked for how many slots of a job have run.
const COUNTED: usize = 100;
/// Longest wait for the view to show what etcd has.
const SHOWN: Duration = Duration::from_secs(2);

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Jobs whose names match this pattern (`*`, `?`).
    pub name: Option<String>,
    /// Jobs that this node holds.
    pub node: Option<NodeId>,
    /// Jobs that this place in the product tree has or inherits, as they are there.
    pub tree: Option<TreePath>,
    /// Most jobs: 1 to 1000, 100 if absent.
    pub limit: Option<u32>,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

impl Ops {
    /// One page of jobs by name, with their newest runs if the log store answers. A job just
    /// applied is there.
    pub async fn list_jobs(&self, filter: &JobFilter) -> ApiResult<JobList> {
        let mut after = filter.cursor.as_deref().map(Name::new).transpose().map_err(|_| {
            let expected = "the `next` of an earlier page, unchanged";
            Invalid::new(Code::BAD_VALUE, "cursor", "not a cursor", expected)
        })?;
        let limit = filter.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE) as usize;
        let held = match &filter.node {
            Some(node) => Some(self.held_by(node).await?),
            None => None,
        };
        self.definitions_shown().await?;
        let mut jobs: Vec<JobSummary> = Vec::new();
        let next = loop {
            let wanted = limit - jobs.len();
            let (names, more) = self.names_after(after.as_ref(), filter, held.as_ref(), wanted);
            // Some may have gone meanwhile, or not be at that place in the tree.
            jobs.extend(self.summaries(&names, filter.tree.as_ref()).await?);
            after = names.last().cloned().or(after);
            if !more {
                break None;
            }
            if jobs.len() >= limit {
                break after.map(|name| name.to_string());
            }
        };
        let names: Vec<Name> = jobs.iter().map(|v| v.name.clone()).collect();
        let mut runs = self.newest_runs(&names).await;
        for job in &mut jobs {
            job.last_run = runs.remove(&job.name);
        }
        Ok(JobList { jobs, next })
    }

    /// The names of all jobs.
    pub(super) async fn job_names(&self) -> ApiResult<Vec<Name>> {
        self.definitions_shown().await?;
        Ok(self.names_after(None, &JobFilter::default(), None, usize::MAX - 1).0)
    }

    /// Waits until the view has every definition that etcd has now.
    pub(super) async fn definitions_shown(&self) -> ApiResult<()> {
        let newest = self.etcd.newest(&DEFINITIONS).await?;
        let mut changes = self.view.changes();
        let shown = changes.wait_for(|v| {
            v.complete && v.defined.iter().zip(&newest).all(|(seen, newest)| seen >= newest)
        });
        match tokio::time::timeout(SHOWN, shown).await {
            Ok(Ok(_)) => Ok(()),
            _ => {
                let message = "this master has not caught up with etcd; ask again";
                Err(ApiError::new(Code::ETCD, message))
            }
        }
    }

    /// The jobs a node holds, as etcd has them now.
    async fn held_by(&self, node: &NodeId) -> ApiResult<BTreeSet<Name>> {
        let (entries, _) = self.etcd.list(&keys::assignments_of(node), None).await?;
        Ok(entries.iter().filter_map(super::job_view::id_of).map(|(_, job)| job).collect())
    }

    /// The next `wanted` names of those that a filter lets through, and whether there are
    /// more.
    fn names_after(
        &self,
        after: Option<&Name>,
        filter: &JobFilter,
        held: Option<&BTreeSet<Name>>,
        wanted: usize,
    ) -> (Vec<Name>, bool) {
        let data = self.view.read();
        let range = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let mut defined = data.fleet.jobs_after(after).peekable();
        let mut by_hand = data.by_hand.range::<Name, _>(range).map(|(name, _)| name).peekable();
        let both = std::iter::from_fn(|| match (defined.peek(), by_hand.peek()) {
            (Some(a), Some(b)) if a == b => {
                by_hand.next();
                defined.next()
            }
            (Some(a), Some(b)) if a > b => by_hand.next(),
            (None, _) => by_hand.next(),
            _ => defined.next(),
        });
        let fits = |name: &&Name| {
            held.is_none_or(|held| held.contains(*name))
                && filter.name.as_ref().is_none_or(|pattern| target::glob(pattern, name.as_str()))
        };
        let mut names: Vec<Name> = both.filter(fits).take(wanted + 1).cloned().collect();
        let more = names.len() > wanted;
        names.truncate(wanted);
        (names, more)
    }

    /// These jobs, or those among them that are at a place in the tree, as they are there.
    async fn summaries(
        &self,
        names: &[Name],
        tree: Option<&TreePath>,
    ) -> ApiResult<Vec<JobSummary>> {
        let own: Vec<String> = names.iter().map(keys::job).collect();
        let below: Vec<String> = names.iter().map(keys::tree_jobs_of).collect();
        let (own, below) = tokio::try_join!(self.etcd.get_all(&own), self.etcd.list_all(&below))?;
        let mut found = Found::default();
        own.into_iter().chain(below).for_each(|entry| found.take(entry));
        let bounded: Vec<_> = {
            let data = self.view.read();
            names.iter().flat_map(|name| bounded(name, &data)).collect()
        };
        found.counts = Counts::of(&self.counts(bounded.into_iter()).await?);
        let sight = self.sight(Permission::JobRead);
        let data = self.view.read();
        let summary = |name: &Name| {
            if !sight.job_in(&data, name) {
                return None;
            }
            let summary = found.summary(name, &data)?;
            match tree {
                Some(path) => at_path(summary, path, &data),
                None => Some(summary),
            }
        };
        Ok(names.iter().filter_map(summary).collect())
    }
}

/// Definitions as they stand in etcd.
#[derive(Default)]
struct Found {
    specs: BTreeMap<Name, (JobSpec, i64)>,
    tree: BTreeMap<Name, Vec<TreeDefinition>>,
    counts: Counts,
}

impl Found {
    fn take(&mut self, entry: Entry) {
        if let Some((name, tree)) = keys::job_and_path(&entry.key) {
            let Ok(definition) = decode(&entry.value) else { return };
            let given = TreeDefinition { tree, revision: entry.mod_revision, definition };
            self.tree.entry(name).or_default().push(given);
        } else if let Some(name) = keys::last(&entry.key, keys::JOBS) {
            match decode(&entry.value) {
                Ok(spec) => drop(self.specs.insert(name, (spec, entry.mod_revision))),
                Err(e) => warn!(job = %name, error = %e, "unreadable definition"),
            }
        }
    }

    /// Whether no node may run another slot of a job.
    fn is_spent(&self, name: &Name, data: &Data) -> bool {
        let mut all = held(name, data).peekable();
        all.peek().is_some() && all.all(|(node, a)| self.counts.spent(node, name, a))
    }

    fn summary(&self, name: &Name, data: &Data) -> Option<JobSummary> {
        let spec = self.specs.get(name);
        let tree = self.tree.get(name).cloned().unwrap_or_default();
        let by_hand = data.by_hand.get(name);
        let defined = spec.is_some() || !tree.is_empty();
        if !defined && by_hand.is_none() {
            return None; // It has gone, and what nodes hold of it will.
        }
        let now = Timestamp::now();
        let own = spec.and_then(|(spec, _)| next_of_spec(spec, now));
        let on_nodes = || next_on_nodes(name, data, now);
        let next = if spec.is_some() && tree.is_empty() {
            own
        } else {
            own.into_iter().chain(on_nodes()).min()
        };
        let next = next.filter(|_| !self.is_spent(name, data));
        let sample = by_hand.and_then(|nodes| nodes.values().find_map(|b| b.assignment.as_ref()));
        Some(JobSummary {
            name: name.clone(),
            source: if defined { JobSource::Definition } else { JobSource::Etcd },
            spec: spec.map(|(spec, _)| spec.clone()),
            revision: spec.map(|(_, revision)| *revision),
            next,
            tree,
            counts: counts(name, data),
            by_hand: sample.filter(|_| !defined).map(|a| JobByHand {
                status: a.status,
                express: a.express.clone(),
                cmd: a.cmd.clone(),
            }),
            last_run: None,
        })
    }
}

/// What nodes hold of a job, whoever put it there.
fn held<'a>(name: &'a Name, data: &'a Data) -> impl Iterator<Item = (&'a NodeId, &'a Assignment)> {
    let ours = data.fleet.holders(name).filter_map(|(node, at)| match &at.value {
        Held::Ours(a, _) => Some((node, &**a)),
        Held::Foreign => None,
    });
    let by_hand = data.by_hand.get(name).into_iter().flatten();
    ours.chain(by_hand.filter_map(|(node, b)| Some((node, b.assignment.as_ref()?))))
}

/// What the first nodes hold of a job whose runs are bounded. Where there are more than
/// these, the job does not count as spent: a list does not ask for each of thousands.
fn bounded(name: &Name, data: &Data) -> Vec<(NodeId, Name, Assignment)> {
    let bounded = held(name, data).filter(|(_, a)| a.max_runs.is_some()).take(COUNTED);
    bounded.map(|(node, a)| (node.clone(), name.clone(), a.clone())).collect()
}

/// The next slot of a definition at the root.
pub(super) fn next_of_spec(spec: &JobSpec, now: Timestamp) -> Option<Timestamp> {
    let when = spec.assignment(None, Vec::new()).validate().ok().flatten();
    when.filter(|_| spec.status == JobStatus::Running && !spec.disabled)?.next_after(now)
}

/// The next slot of an assignment.
pub(super) fn next_of(assignment: &Assignment, now: Timestamp) -> Option<Timestamp> {
    let when = assignment.validate().ok()??;
    match assignment.status {
        JobStatus::Running => when.next_after(now),
        JobStatus::Pause => None,
    }
}

/// The next slot on any node. Most nodes share an assignment, which is looked at once.
fn next_on_nodes(name: &Name, data: &Data, now: Timestamp) -> Option<Timestamp> {
    let mut seen = BTreeSet::new();
    let ours = data.fleet.holders(name).filter_map(|(_, at)| match &at.value {
        Held::Ours(a, _) if seen.insert(Arc::as_ptr(a)) => next_of(a, now),
        _ => None,
    });
    let mut seen = BTreeSet::new();
    let by_hand = data.by_hand.get(name).into_iter().flatten();
    let by_hand = by_hand.filter_map(|(_, b)| {
        let new = !b.broken && seen.insert(Arc::as_ptr(b));
        b.assignment.as_ref().filter(|_| new).and_then(|a| next_of(a, now))
    });
    ours.chain(by_hand).min()
}

/// How many nodes hold a job. Of those there are, the ones that are away are looked for: they
/// are few.
fn counts(name: &Name, data: &Data) -> JobCounts {
    let by_hand = data.by_hand.get(name).into_iter().flatten();
    let (mut other, mut problems, mut unknown) = (0, 0, 0);
    for (node, by_hand) in by_hand {
        problems += u64::from(by_hand.broken);
        // Under the oldest form of key.
        other += usize::from(!data.fleet.holds(node, name));
        unknown += usize::from(!data.fleet.nodes().contains_key(node));
    }
    let nodes = data.fleet.held(name) + other;
    let by_hand = |id: &NodeId| data.by_hand.get(name).is_some_and(|b| b.contains_key(id));
    let away = if data.away.len() <= nodes {
        let holds = |id: &&NodeId| data.fleet.holds(id, name) || by_hand(id);
        data.away.iter().filter(holds).count()
    } else {
        let oldest = data.by_hand.get(name).into_iter().flatten().map(|(node, _)| node);
        let oldest = oldest.filter(|node| !data.fleet.holds(node, name));
        let holders = data.fleet.holders(name).map(|(node, _)| node).chain(oldest);
        holders.filter(|node| data.away.contains(*node)).count()
    };
    let online = nodes.saturating_sub(away + unknown) as u64;
    JobCounts { nodes: nodes as u64, online, problems }
}

/// How many of the nodes at and below a place hold a job.
pub(super) fn counts_below(name: &Name, path: &TreePath, data: &Data) -> JobCounts {
    let mut counts = JobCounts::default();
    let nodes = data.fleet.nodes();
    for (id, _) in data.fleet.holders(name) {
        let node = nodes.get(id);
        let place = node.and_then(|n| n.labels.get(LABEL)).map_or("", String::as_str);
        if path.covers(place) {
            counts.nodes += 1;
            counts.online += u64::from(node.is_some_and(|n| n.online));
            let by_hand = data.by_hand.get(name).and_then(|b| b.get(id));
            counts.problems += u64::from(by_hand.is_some_and(|b| b.broken));
        }
    }
    counts
}
