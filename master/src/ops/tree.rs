//! Definitions in the product tree, and why a node has a job or has it not.

use super::{Ops, job_list::counts_below, jobs::not_over, trigger::Places};
use crate::{
    audit,
    error::{ApiError, ApiResult},
    view::Data,
};
use jiff::Timestamp;
use meepo_coord::{Entry, etcd::Cas, keys, records::decode};
use meepo_core::{
    api::{Action, Applied, JobSummary, JobView},
    auth::Permission,
    code::Code,
    error::Invalid,
    id::{Name, NodeId},
    job::JobSpec,
    node::NodeInfo,
    placement::JobExplanation,
    signing::FIELD,
    target::Target,
    tree::{Definition, Definitions, JobDocument, LABEL, TreeDefinition, TreePath},
};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, time::Duration};
use tracing::info;

/// How often a change is tried when others change the same definition.
const TRIES: usize = 5;
/// Longest wait for the view to show what etcd has.
const SHOWN: Duration = Duration::from_secs(2);

impl Ops {
    /// Creates or replaces a definition, at the root or at a path of the tree. Those below
    /// inherit from it and must go with it.
    pub async fn apply(&self, document: impl Into<JobDocument>) -> ApiResult<Applied> {
        let document = document.into();
        let (name, path) = (&document.name, &document.tree);
        audit::object("job", name);
        if !path.is_root() {
            audit::detail("tree", path);
        }
        for field in ["cmd", "schedule", "target", "user", "status"] {
            if let Some(text) = document.fields.get(field).and_then(|v| v.as_str()) {
                audit::detail(field, text);
            }
        }
        let mut all = self.definitions(name).await?;
        let before = all.resolve(path).ok();
        // Also what is replaced must be one's own to change.
        self.demand_job(Permission::JobWrite, &all, false, |p| path.covers(p.as_str()))?;
        all.0.insert(path.clone(), document.definition());
        all.check(path)?;
        // Those below it inherit.
        self.demand_job(Permission::JobWrite, &all, true, |p| path.covers(p.as_str()))?;
        if path.is_root() {
            let spec = document.spec();
            let spec = spec.ok_or_else(|| ApiError::new(Code::BAD_VALUE, "not a job"))?;
            return self.apply_whole(spec).await;
        }
        if let Ok(now) = all.resolve(path)
            && !now.spec.disabled
        {
            let when = |s: &JobSpec| (s.schedule.clone(), s.timezone.clone(), s.end_at);
            if before.is_none_or(|before| when(&before.spec) != when(&now.spec)) {
                not_over(&now.spec, Timestamp::now())?;
            }
        }
        let key = keys::job_at(name, path);
        for _ in 0..TRIES {
            let there = self.etcd.get(&key).await?;
            let expect = there.as_ref().map_or(0, |e| e.mod_revision);
            let seal = self.view.seal();
            let old = there.as_ref().and_then(|e| self.opened(e)).map(|(fields, _)| fields);
            let own = there.as_ref().is_none_or(|e| seal.is_own(&e.value));
            if old.as_ref() == Some(&document.fields) && own {
                let action = Action::Unchanged;
                return Ok(Applied { name: name.clone(), action, revision: expect });
            }
            let action = if expect == 0 { Action::Created } else { Action::Updated };
            let before = there.as_ref().map(|e| e.value.as_slice());
            let value = Some(seal.definition(&key, &document.fields, before));
            if let Cas::Done(revision) = self.etcd.put_if(&key, value, expect, None).await? {
                info!(job = %name, %path, ?action, revision, "definition written");
                return Ok(Applied { name: name.clone(), action, revision });
            }
        }
        Err(ApiError::new(Code::CONFLICT, format!("job {name} is being changed by others")))
    }

    /// Deletes the definition at a path; those below must make a job without it.
    pub async fn delete_job(&self, name: &Name, path: &TreePath) -> ApiResult<Applied> {
        audit::object("job", name);
        if !path.is_root() {
            audit::detail("tree", path);
        }
        let mut all = self.definitions(name).await?;
        self.demand_job_named(Permission::JobWrite, name).await?;
        let there = all.0.remove(path).is_some();
        let nothing = all.0.is_empty() && path.is_root();
        if !there && !nothing {
            let paths: Vec<_> = all.0.keys().map(ToString::to_string).collect();
            let mut message = format!("job {name} has no definition at {path}");
            if !paths.is_empty() {
                message += &format!("; there are some at {}", paths.join(", "));
            }
            return Err(ApiError::new(Code::NOT_FOUND, message));
        }
        if let Err(e) = all.check(path) {
            let message = format!("{} ({}): change or delete that first", e.problem, e.field);
            return Err(ApiError::new(Code::CONFLICT, message));
        }
        if path.is_root() {
            return self.delete_whole(name).await;
        }
        let revision = self.delete_definition(name, path).await?;
        info!(job = %name, %path, "deleted");
        Ok(Applied { name: name.clone(), action: Action::Deleted, revision })
    }

    /// All definitions of a job, as of this moment.
    pub(super) async fn definitions(&self, name: &Name) -> ApiResult<Definitions> {
        let (key, below) = (keys::job(name), keys::tree_jobs_of(name));
        let (root, tree) = tokio::try_join!(self.etcd.get(&key), self.etcd.list(&below, None))?;
        let mut all = Definitions::default();
        for entry in root.iter().chain(&tree.0) {
            let path = match keys::job_and_path(&entry.key) {
                Some((_, path)) => path,
                None if entry.key == key => TreePath::ROOT,
                None => continue,
            };
            let mut fields: Map<String, Value> = decode(&entry.value)?;
            fields.remove(FIELD);
            all.0.insert(path, Definition { fields, revision: entry.mod_revision });
        }
        Ok(all)
    }

    /// The same, of a job all of whose definitions a master has accepted.
    pub(super) async fn believed_definitions(&self, name: &Name) -> ApiResult<Definitions> {
        let all = self.definitions(name).await?;
        if !self.view.seal().is_on() || all.0.is_empty() {
            return Ok(all);
        }
        let wanted: Vec<String> = all.0.keys().map(|path| keys::job_at(name, path)).collect();
        for entry in self.etcd.get_all(&wanted).await? {
            let path = keys::job_and_path(&entry.key).map_or(TreePath::ROOT, |(_, path)| path);
            // One that has changed since is looked at by whoever asks next.
            let same = all.0.get(&path).is_some_and(|d| d.revision == entry.mod_revision);
            if !same {
                let message = format!("job {name} is being changed by others");
                return Err(ApiError::new(Code::CONFLICT, message));
            }
            if let Some((_, believed)) = self.opened(&entry) {
                believed.map_err(|e| not_believed(name, &path, &e))?;
            }
        }
        Ok(all)
    }

    /// A definition without its signature, and whether a master has accepted it; `None`: it is
    /// none.
    pub(super) fn opened(&self, entry: &Entry) -> Option<(Map<String, Value>, Believed)> {
        let mut fields: Map<String, Value> = decode(&entry.value).ok()?;
        let believed = self.view.seal().open_definition(&entry.key, &mut fields);
        Some((fields, believed))
    }

    /// One job as it is at a path of the tree, with the nodes there and below.
    pub async fn get_job_at(&self, name: &Name, path: &TreePath) -> ApiResult<JobView> {
        let view = self.find_job(name).await?;
        let mut view = self.at(view, path)?.ok_or_else(|| {
            let message = format!("job {name} has no definition at or above {path}");
            ApiError::new(Code::NOT_FOUND, message)
        })?;
        view.last_run = self.newest_runs(std::slice::from_ref(name)).await.remove(name);
        Ok(view)
    }

    /// What a job is at a path; `None` if nothing is defined there or above.
    fn at(&self, view: JobView, path: &TreePath) -> ApiResult<Option<JobView>> {
        let root = view.spec.clone().zip(view.revision);
        let Some((spec, revision)) = resolved_at(root, &view.tree, path)? else { return Ok(None) };
        let data = self.view.read();
        let nodes = data.fleet.nodes();
        let below = |id: &NodeId| {
            let place = nodes.get(id).and_then(|n| n.labels.get(LABEL));
            path.covers(place.map_or("", String::as_str))
        };
        let holders = view.nodes.into_iter().filter(|n| below(&n.node)).collect();
        let next = view.next.filter(|_| !spec.disabled);
        let revision = Some(revision);
        Ok(Some(JobView { spec: Some(spec), revision, nodes: holders, next, ..view }))
    }

    /// Why nodes have a job or have it not, and where its fields come from.
    pub async fn explain(&self, name: &Name, target: &Target) -> ApiResult<JobExplanation> {
        let revisions = self.definitions(name).await?.0.into_values().map(|d| d.revision);
        let newest = revisions.max().unwrap_or_default();
        // What was applied a moment ago counts.
        let mut changes = self.view.changes();
        let shown = changes.wait_for(|v| v.complete && v.revision >= newest);
        if tokio::time::timeout(SHOWN, shown).await.is_err() {
            let message = "this master has not caught up with etcd; ask again";
            return Err(ApiError::new(Code::ETCD, message));
        }
        let sight = self.sight(Permission::JobRead);
        if !sight.job(name) {
            return Err(ApiError::not_found("job", name));
        }
        let data = self.view.read();
        let fleet = &data.fleet;
        if newest == 0 && fleet.holders(name).next().is_none() {
            return Err(ApiError::not_found("job", name));
        }
        let unknown = target.ids().into_iter().find(|id| !fleet.nodes().contains_key(id));
        if let Some(id) = unknown {
            return Err(ApiError::not_found("node", &id));
        }
        let mut meant = target.select(fleet.nodes().values());
        meant.retain(|node| sight.info(node));
        if meant.is_empty() {
            return Err(ApiError::new(Code::NO_TARGET, format!("{target} means no node")));
        }
        let nodes = fleet.explain(name, meant.into_iter().map(|n| &n.id));
        Ok(JobExplanation { job: name.clone(), nodes })
    }
}

/// Whether a master has accepted a definition.
type Believed = Result<(), Invalid>;

/// The error for what nobody asked a master for.
pub(super) fn not_believed(name: &Name, path: &TreePath, why: &Invalid) -> ApiError {
    let message = format!(
        "the definition of job {name} at {path} is not believed ({why}): apply it anew from its \
         file, if it is to stay"
    );
    ApiError::new(Code::FORBIDDEN, message)
}

/// What the definitions come to at a path, with the newest of their revisions; `None` if
/// nothing is defined there or above.
fn resolved_at(
    root: Option<(JobSpec, i64)>,
    tree: &[TreeDefinition],
    path: &TreePath,
) -> ApiResult<Option<(JobSpec, i64)>> {
    let mut all = Definitions::default();
    if let Some((spec, revision)) = root {
        let fields = JobDocument::from(spec).fields;
        all.0.insert(TreePath::ROOT, Definition { fields, revision });
    }
    for given in tree {
        let definition = Definition { fields: given.definition.clone(), revision: given.revision };
        all.0.insert(given.tree.clone(), definition);
    }
    let Some(deepest) = all.deepest(path.as_str()) else { return Ok(None) };
    let resolved = all.resolve(deepest)?;
    let revision = resolved.revision();
    Ok(Some((resolved.spec, revision)))
}

/// A job of a list as it is at a path; `None` if nothing is defined there or above, or what
/// is makes no job.
pub(super) fn at_path(job: JobSummary, path: &TreePath, data: &Data) -> Option<JobSummary> {
    let root = job.spec.clone().zip(job.revision);
    let (spec, revision) = resolved_at(root, &job.tree, path).ok().flatten()?;
    let counts = counts_below(&job.name, path, data);
    let next = job.next.filter(|_| !spec.disabled);
    Some(JobSummary { spec: Some(spec), revision: Some(revision), counts, next, ..job })
}

/// Where a job with definitions could be run now, and what to run there: the nodes of each
/// definition by themselves.
pub(super) fn places(
    all: &Definitions,
    nodes: &BTreeMap<NodeId, NodeInfo>,
) -> ApiResult<Vec<Places>> {
    let mut groups: BTreeMap<&TreePath, Vec<&NodeInfo>> = BTreeMap::new();
    for node in nodes.values() {
        let place = node.labels.get(LABEL).map_or("", String::as_str);
        if let Some(path) = all.deepest(place) {
            groups.entry(path).or_default().push(node);
        }
    }
    let mut places = Vec::new();
    for (path, nodes) in groups {
        let resolved = all.resolve(path)?;
        if resolved.spec.disabled {
            continue;
        }
        let target = Target::parse(&resolved.spec.target)?;
        let mut assignment = resolved.spec.assignment(Some(resolved.revision()), Vec::new());
        assignment.tree = path.clone();
        let meant = target.select(nodes).into_iter().map(|n| (n.id.clone(), assignment.clone()));
        places.push((resolved.spec.placement, meant.collect()));
    }
    Ok(places)
}
