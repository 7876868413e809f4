//! What notifications ask of the fleet.

use super::{
    Fleet, Held,
    fleet::{On, Variant},
};
use crate::{
    id::{Name, NodeId},
    job::{Assignment, JobStatus, Placement},
    notify::JobNotify,
};
use std::{collections::BTreeMap, time::Duration};

/// Jobs that must succeed now and then, with the time they have: on a node, or all their nodes
/// together.
pub type Expected = BTreeMap<(Name, Option<NodeId>), Duration>;

impl Fleet {
    fn variants(&self, job: &Name) -> impl Iterator<Item = &On> {
        self.jobs.get(job).into_iter().flat_map(|j| j.variants.values()).filter_map(|v| match v {
            Variant::On(on) => Some(&**on),
            _ => None,
        })
    }

    /// What a node has of a job, unless somebody put it there by hand.
    fn assigned(&self, job: &Name, node: &NodeId) -> Option<&Assignment> {
        match &self.held.get(job)?.get(node)?.value {
            Held::Ours(assignment, _) => Some(assignment),
            Held::Foreign => None,
        }
    }

    /// The jobs that must succeed now and then. Those that are paused or switched off need not.
    /// A job that no node has is expected of all together.
    pub fn expected(&self) -> Expected {
        let mut expected = Expected::new();
        for job in self.jobs.keys() {
            for on in self.variants(job) {
                let Some(within) = on.spec.expect_success_within else { continue };
                if on.spec.status != JobStatus::Running {
                    continue;
                }
                let mut add = |node: Option<NodeId>| {
                    let there = expected.entry((job.clone(), node)).or_insert(within.0);
                    *there = within.0.min(*there);
                };
                if on.spec.placement == Placement::Once {
                    add(None);
                    continue;
                }
                let path = &on.assignment.tree;
                let nodes = self.held.get(job).into_iter().flat_map(|nodes| nodes.keys());
                let its =
                    |node: &&NodeId| self.assigned(job, node).is_some_and(|a| a.tree == *path);
                let nodes: Vec<NodeId> = nodes.filter(its).cloned().collect();
                match nodes.is_empty() {
                    true => add(None),
                    false => nodes.into_iter().for_each(|node| add(Some(node))),
                }
            }
        }
        expected
    }

    /// The field `notify` of a job as a node has it, or else as it is defined.
    pub fn notify_of(&self, job: &Name, node: Option<&NodeId>) -> Option<JobNotify> {
        let assigned = node.and_then(|node| self.assigned(job, node));
        match assigned {
            Some(assignment) => assignment.notify.as_deref().cloned(),
            None => self.variants(job).find_map(|on| on.spec.notify.as_deref().cloned()),
        }
    }

    /// Whether a slot of a job runs on one node for all.
    pub fn is_once(&self, job: &Name) -> bool {
        self.variants(job).any(|on| on.spec.placement == Placement::Once)
    }
}
