//! What placement knows of the fleet, kept up to date change by change.

use super::{
    At, Dirty, Effect, Held,
    choose::{Waiting, choose},
};
use crate::{
    error::Invalid,
    id::{Name, NodeId},
    job::{Assignment, JobSpec},
    node::NodeInfo,
    target::Target,
    tree::{Definitions, LABEL, Resolved, TreePath},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

/// The nodes, definitions and assignments there are, and what has changed since the last
/// plan.
#[derive(Debug, Default)]
pub struct Fleet {
    pub(super) nodes: BTreeMap<NodeId, NodeInfo>,
    pub(super) jobs: BTreeMap<Name, Job>,
    pub(super) held: BTreeMap<Name, BTreeMap<NodeId, At<Held>>>,
    pub(super) dirty: Dirty,
    /// The time, in seconds since 1970, as far as it was told.
    pub(super) clock: u32,
}

/// What a job is now, at the place of a definition.
#[derive(Debug, Clone, Copy)]
pub enum Standing<'a> {
    /// There is no such job.
    Gone,
    /// It has no definition at that place, but others.
    Moved,
    /// It is switched off there.
    Off,
    /// Nodes keep what they have: this version cannot read all definitions, or they do not
    /// make a job.
    Unreadable,
    /// It is this.
    On(&'a JobSpec),
}

/// The definitions of a job and what they come to at each of their paths.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) definitions: Definitions,
    /// Paths whose definitions this version cannot read or does not believe, and then why:
    /// the job keeps what it has.
    opaque: BTreeMap<TreePath, Option<Invalid>>,
    pub(super) variants: BTreeMap<TreePath, Variant>,
}

/// What a job is below one path, down to the next definition.
#[derive(Debug)]
pub(super) enum Variant {
    /// Nobody gets it.
    Off,
    /// The definitions do not make a job: nodes keep what they have.
    Broken(Invalid),
    /// Nodes get it.
    On(Box<On>),
}

/// A job that nodes get.
#[derive(Debug)]
pub(super) struct On {
    pub(super) spec: JobSpec,
    pub(super) target: Target,
    /// What goes to each node, but for the order of claiming.
    pub(super) assignment: Arc<Assignment>,
    pub(super) made_from: Arc<[(TreePath, i64)]>,
}

impl Variant {
    fn new(path: &TreePath, resolved: Result<Resolved, Invalid>) -> Self {
        let resolved = match resolved {
            Ok(resolved) if resolved.spec.disabled => return Self::Off,
            Ok(resolved) => resolved,
            Err(e) => return Self::Broken(e),
        };
        // What is refused on its way in may have been let in by an older version, or two
        // changes that are fine by themselves may have met.
        let target = match Target::parse(&resolved.spec.target) {
            Ok(target) => target,
            Err(e) => return Self::Broken(e),
        };
        if resolved.made_from.len() > 1
            && let Err(e) = resolved.spec.validate()
        {
            return Self::Broken(e);
        }
        let mut assignment = resolved.spec.assignment(Some(resolved.revision()), Vec::new());
        assignment.tree = path.clone();
        Self::On(Box::new(On {
            target,
            assignment: assignment.into(),
            made_from: resolved.made_from.into(),
            spec: resolved.spec,
        }))
    }
}

impl Job {
    fn new(definitions: Definitions, opaque: BTreeMap<TreePath, Option<Invalid>>) -> Self {
        let variant = |path: &TreePath| Variant::new(path, definitions.resolve(path));
        let variants = definitions.0.keys().map(|p| (p.clone(), variant(p))).collect();
        Self { definitions, opaque, variants }
    }

    /// The definition that decides for a node, and what it says.
    pub(super) fn variant(&self, node: &NodeInfo) -> Option<(&TreePath, &Variant)> {
        let place = node.labels.get(LABEL).map_or("", String::as_str);
        self.variants.get_key_value(self.definitions.deepest(place)?)
    }

    pub(super) fn is_opaque(&self) -> bool {
        !self.opaque.is_empty()
    }

    /// Why the first of its definitions that is not believed is not.
    pub(super) fn refused(&self) -> Option<(&TreePath, &Invalid)> {
        self.opaque.iter().find_map(|(path, why)| Some((path, why.as_ref()?)))
    }
}

impl Fleet {
    /// A node is there, or has changed.
    pub fn set_node(&mut self, node: NodeInfo) {
        // Its facts are those of its registration, so they do not change often.
        if self.nodes.get(&node.id) != Some(&node) {
            self.dirty.nodes.insert(node.id.clone());
        }
        self.nodes.insert(node.id.clone(), node);
    }

    /// A node is no longer known.
    pub fn remove_node(&mut self, id: &NodeId) {
        if self.nodes.remove(id).is_some() {
            self.dirty.nodes.insert(id.clone());
        }
    }

    /// The definition of a job at a path is there or has changed; `None`: it cannot be read,
    /// perhaps as it is of a newer version, and the job keeps what it has.
    pub fn set_definition(
        &mut self,
        job: Name,
        path: TreePath,
        definition: Option<crate::tree::Definition>,
    ) {
        let (mut definitions, mut opaque) = self.take_job(&job);
        match definition {
            Some(definition) => {
                opaque.remove(&path);
                definitions.0.insert(path, definition);
            }
            None => {
                definitions.0.remove(&path);
                opaque.insert(path, None);
            }
        }
        self.jobs.insert(job.clone(), Job::new(definitions, opaque));
        self.dirty.jobs.insert(job);
    }

    /// The definition of a job at a path is not to be believed, and the job keeps what it has.
    pub fn refuse_definition(&mut self, job: Name, path: TreePath, why: Invalid) {
        let (mut definitions, mut opaque) = self.take_job(&job);
        definitions.0.remove(&path);
        opaque.insert(path, Some(why));
        self.jobs.insert(job.clone(), Job::new(definitions, opaque));
        self.dirty.jobs.insert(job);
    }

    /// The definition of a job at a path is gone.
    pub fn remove_definition(&mut self, job: &Name, path: &TreePath) {
        let (mut definitions, mut opaque) = self.take_job(job);
        definitions.0.remove(path);
        opaque.remove(path);
        if !(definitions.0.is_empty() && opaque.is_empty()) {
            self.jobs.insert(job.clone(), Job::new(definitions, opaque));
        }
        self.dirty.jobs.insert(job.clone());
    }

    fn take_job(&mut self, job: &Name) -> (Definitions, BTreeMap<TreePath, Option<Invalid>>) {
        self.jobs.remove(job).map(|j| (j.definitions, j.opaque)).unwrap_or_default()
    }

    /// An assignment is there or has changed. Equal ones of a job are kept once.
    pub fn set_assignment(&mut self, node: NodeId, job: Name, mut at: At<Held>) {
        let nodes = self.held.entry(job.clone()).or_default();
        if let Held::Ours(new, _) = &mut at.value {
            let wanted = self.jobs.get(&job).into_iter().flat_map(|j| j.variants.values());
            let wanted = wanted.filter_map(|v| match v {
                Variant::On(on) => Some(&on.assignment),
                _ => None,
            });
            let there = nodes.values().next().and_then(|at| match &at.value {
                Held::Ours(there, _) => Some(there),
                Held::Foreign => None,
            });
            if let Some(equal) = wanted.chain(there).find(|a| *a == new) {
                *new = equal.clone();
            }
        }
        nodes.insert(node.clone(), at);
        self.dirty.pairs.insert((job, node));
    }

    /// An assignment is gone.
    pub fn remove_assignment(&mut self, node: &NodeId, job: &Name) {
        if let Some(nodes) = self.held.get_mut(job)
            && nodes.remove(node).is_some()
        {
            if nodes.is_empty() {
                self.held.remove(job);
            }
            self.dirty.pairs.insert((job.clone(), node.clone()));
        }
    }

    /// Every node ever seen.
    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeInfo> {
        &self.nodes
    }

    /// Every job that has a definition.
    pub fn jobs(&self) -> impl Iterator<Item = &Name> {
        self.jobs.keys()
    }

    /// Every job that has a definition and comes after `name`.
    pub fn jobs_after(&self, name: Option<&Name>) -> impl Iterator<Item = &Name> {
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.jobs.range::<Name, _>((from, Bound::Unbounded)).map(|(name, _)| name)
    }

    /// How many nodes hold a job.
    pub fn held(&self, job: &Name) -> usize {
        self.held.get(job).map_or(0, BTreeMap::len)
    }

    /// Whether a node holds a job.
    pub fn holds(&self, node: &NodeId, job: &Name) -> bool {
        self.held.get(job).is_some_and(|nodes| nodes.contains_key(node))
    }

    /// The definitions of a job.
    pub fn definitions(&self, job: &Name) -> Option<&Definitions> {
        self.jobs.get(job).map(|j| &j.definitions)
    }

    /// Paths at which the definitions of a job do not make one or are not believed, and why.
    pub fn problems(&self, job: &Name) -> impl Iterator<Item = (&TreePath, &Invalid)> {
        let job = self.jobs.get(job);
        let variants = job.into_iter().flat_map(|j| &j.variants);
        let broken = variants.filter_map(|(path, variant)| match variant {
            Variant::Broken(e) => Some((path, e)),
            _ => None,
        });
        let refused = job.into_iter().flat_map(|j| &j.opaque);
        broken.chain(refused.filter_map(|(path, why)| Some((path, why.as_ref()?))))
    }

    /// What has become of the definition that a run was made from.
    pub fn standing(&self, job: &Name, tree: &TreePath) -> Standing<'_> {
        match self.jobs.get(job) {
            None => Standing::Gone,
            Some(job) if job.is_opaque() => Standing::Unreadable,
            Some(job) => match job.variants.get(tree) {
                None => Standing::Moved,
                Some(Variant::Off) => Standing::Off,
                Some(Variant::Broken(_)) => Standing::Unreadable,
                Some(Variant::On(on)) => Standing::On(&on.spec),
            },
        }
    }

    /// The node that is to run a slot of a job that runs once, as `lost` cannot any more,
    /// and what it is to run: the first in line that takes work, preferably another.
    pub fn successor(
        &self,
        job: &Name,
        tree: &TreePath,
        lost: &NodeId,
    ) -> Option<(NodeId, Assignment)> {
        let desired = self.desired(job, &Waiting::new())?;
        let (assignment, _) = desired.put.values().find(|(a, _)| a.tree == *tree)?;
        let takes = |id: &NodeId| self.nodes.get(id).is_some_and(|n| n.online && !n.drained);
        let mut there = assignment.once.iter().filter(|id| takes(id));
        // The lost one itself, should it be back, rather than nobody.
        let next = there.clone().find(|id| *id != lost).or_else(|| there.next())?;
        Some((next.clone(), (**assignment).clone()))
    }

    /// What time it is, in seconds since 1970: assignments are written again whose time has
    /// come.
    pub fn set_clock(&mut self, seconds: u32) {
        self.clock = seconds;
    }

    /// Assignments whose time to be written again has come, at most so many, those after
    /// `after` in the order of jobs and nodes.
    pub fn due_again(&self, after: Option<&(Name, NodeId)>, most: usize) -> Vec<(Name, NodeId)> {
        let from = after.map_or(Bound::Unbounded, |(job, _)| Bound::Included(job));
        let mut due = Vec::new();
        for (job, nodes) in self.held.range::<Name, _>((from, Bound::Unbounded)) {
            // Nothing is written for it.
            if self.jobs.get(job).is_none_or(Job::is_opaque) {
                continue;
            }
            let seen = after.filter(|(of, _)| of == job).map(|(_, node)| node);
            let from = seen.map_or(Bound::Unbounded, Bound::Excluded);
            for (node, at) in nodes.range::<NodeId, _>((from, Bound::Unbounded)) {
                if matches!(at.value, Held::Ours(_, renew_at) if renew_at <= self.clock) {
                    due.push((job.clone(), node.clone()));
                    if due.len() >= most {
                        return due;
                    }
                }
            }
        }
        due
    }

    /// The nodes that hold a job.
    pub fn holders(&self, job: &Name) -> impl Iterator<Item = (&NodeId, &At<Held>)> {
        self.held.get(job).into_iter().flatten()
    }

    /// Every job that has a definition or is held by a node.
    pub fn names(&self) -> BTreeSet<Name> {
        self.jobs.keys().chain(self.held.keys()).cloned().collect()
    }

    /// Has this planned anew, too.
    pub fn mark(&mut self, dirty: Dirty) {
        self.dirty.add(dirty);
    }

    /// What is to be planned anew since this was last asked.
    pub fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// What a job asks for: the assignments of nodes, with the definitions they were made
    /// from, and the nodes that keep what they have. `None`: all of them keep it.
    pub(super) fn desired(&self, name: &Name, waiting: &Waiting) -> Option<Desired> {
        let mut desired = Desired::default();
        let Some(job) = self.jobs.get(name) else { return Some(desired) };
        if job.is_opaque() {
            return None;
        }
        let held = self.held.get(name);
        // Nodes by the definition that decides for them.
        let mut groups: BTreeMap<&TreePath, (&On, Vec<&NodeInfo>)> = BTreeMap::new();
        for node in self.nodes.values() {
            match job.variant(node) {
                None | Some((_, Variant::Off)) => {}
                Some((_, Variant::Broken(_))) => {
                    desired.keep.insert(node.id.clone());
                }
                Some((path, Variant::On(on))) => {
                    groups.entry(path).or_insert_with(|| (on, Vec::new())).1.push(node);
                }
            }
        }
        for (on, nodes) in groups.into_values() {
            choose(name, on, &nodes, held, waiting, &mut desired);
        }
        Some(desired)
    }

    /// The writes that one job needs.
    pub fn plan_job(&self, name: &Name, waiting: &Waiting) -> Vec<Effect> {
        let Some(desired) = self.desired(name, waiting) else { return Vec::new() };
        let mut effects = Vec::new();
        let nothing = BTreeMap::new();
        let held = self.held.get(name).unwrap_or(&nothing);
        for (node, at) in held {
            if !desired.put.contains_key(node) && !desired.keep.contains(node) {
                effects.extend(agree(name, node, Some(at), None, self.clock));
            }
        }
        for (node, want) in &desired.put {
            effects.extend(agree(name, node, held.get(node), Some(want), self.clock));
        }
        effects
    }
}

/// What one job asks for.
#[derive(Debug, Default)]
pub(super) struct Desired {
    pub(super) put: BTreeMap<NodeId, Want>,
    pub(super) keep: BTreeSet<NodeId>,
}

/// What a node is to hold, and what that was made from.
pub(super) type Want = (Arc<Assignment>, Arc<[(TreePath, i64)]>);

/// The write that makes what a node holds what it should, if they differ.
pub(super) fn agree(
    job: &Name,
    node: &NodeId,
    held: Option<&At<Held>>,
    want: Option<&Want>,
    clock: u32,
) -> Option<Effect> {
    let expect = held.map_or(0, |at| at.revision);
    let (node, job) = (node.clone(), job.clone());
    match (held.map(|at| &at.value), want) {
        (Some(Held::Foreign), _) | (None, None) => None,
        (Some(Held::Ours(..)), None) => Some(Effect::Delete { node, job, expect }),
        (Some(Held::Ours(there, renew_at)), Some((a, _)))
            if *renew_at > clock && (Arc::ptr_eq(there, a) || there == a) =>
        {
            None
        }
        (_, Some((assignment, made_from))) => {
            let (assignment, made_from) = (assignment.clone(), made_from.clone());
            Some(Effect::Put { node, job, assignment, made_from, expect })
        }
    }
}
