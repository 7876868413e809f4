//! What a change may touch. The rules here decide only what is looked at again; a rule
//! that lets too little through breaks the property that planning what has changed comes
//! to the same as planning everything (see the tests).

use super::{
    Effect, Held,
    choose::{ONCE_HOLDERS, Waiting, takes, weight},
    fleet::{Fleet, Job, On, Variant, agree},
};
use crate::{
    id::{Name, NodeId},
    job::Placement,
};
use std::collections::BTreeSet;

/// From so many nodes on, and an eighth of the fleet, everything is planned: that is
/// cheaper than to ask for each of them which jobs it touches.
const MANY: usize = 64;

/// What is to be planned anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Everything.
    pub all: bool,
    /// These jobs.
    pub jobs: BTreeSet<Name>,
    /// Whatever these nodes may get or lose.
    pub nodes: BTreeSet<NodeId>,
    /// Single assignments.
    pub pairs: BTreeSet<(Name, NodeId)>,
}

impl Dirty {
    /// Everything.
    pub fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what another names.
    pub fn add(&mut self, other: Self) {
        self.all |= other.all;
        self.jobs.extend(other.jobs);
        self.nodes.extend(other.nodes);
        self.pairs.extend(other.pairs);
    }
}

/// What has to be done about one job and one node.
enum Touch {
    /// The node's assignment is right.
    Nothing,
    /// This is to be written.
    Write(Effect),
    /// Others may get or lose the job for it.
    Job,
}

/// Whether who gets the job depends on who else is there.
fn chooses(variant: &Variant) -> bool {
    match variant {
        Variant::On(on) => on.spec.placement != Placement::Each || on.target.is_limited(),
        _ => false,
    }
}

impl Fleet {
    /// The jobs that have to be planned as a whole for `dirty`, and the writes that are
    /// known already for others.
    pub fn narrow(&self, dirty: &Dirty, waiting: &Waiting) -> (BTreeSet<Name>, Vec<Effect>) {
        let many = dirty.nodes.len() > MANY.max(self.nodes.len() / 8);
        if dirty.all || many {
            return (self.names(), Vec::new());
        }
        let (mut jobs, mut writes) = (dirty.jobs.clone(), Vec::new());
        let mut look = |name: &Name, node: &NodeId, jobs: &mut BTreeSet<Name>| {
            if !jobs.contains(name) {
                match self.touch(name, node, waiting) {
                    Touch::Nothing => {}
                    Touch::Write(effect) => writes.push(effect),
                    Touch::Job => {
                        jobs.insert(name.clone());
                    }
                }
            }
        };
        for (name, node) in &dirty.pairs {
            if self.has_lost(name, node) {
                jobs.insert(name.clone());
            } else if !dirty.nodes.contains(node) {
                look(name, node, &mut jobs);
            }
        }
        if !dirty.nodes.is_empty() {
            for name in self.names() {
                for node in &dirty.nodes {
                    look(&name, node, &mut jobs);
                }
            }
        }
        // A job may have turned out to need a whole plan after some of its writes.
        writes.retain(|e| !jobs.contains(e.job()));
        (jobs, writes)
    }

    /// Whether a job that chooses among nodes is no longer held by this one: another may
    /// have to take its place, wherever the node has gone meanwhile.
    fn has_lost(&self, name: &Name, id: &NodeId) -> bool {
        let held = self.held.get(name).is_some_and(|h| h.contains_key(id));
        !held && self.jobs.get(name).is_some_and(|job| job.variants.values().any(chooses))
    }

    fn touch(&self, name: &Name, id: &NodeId, waiting: &Waiting) -> Touch {
        let held = self.held.get(name).and_then(|h| h.get(id));
        let write =
            |want| agree(name, id, held, want, self.clock).map_or(Touch::Nothing, Touch::Write);
        let Some(job) = self.jobs.get(name) else { return write(None) };
        if job.is_opaque() {
            return Touch::Nothing;
        }
        // A job that chooses among nodes may have to choose anew when one that holds it
        // changes, whatever decides for that node now.
        if held.is_some() && job.variants.values().any(chooses) {
            return Touch::Job;
        }
        let limited = |v: &Variant| matches!(v, Variant::On(on) if on.target.is_limited());
        if job.variants.values().any(limited) {
            return Touch::Job;
        }
        let Some(node) = self.nodes.get(id) else { return write(None) };
        match job.variant(node) {
            None | Some((_, Variant::Off)) => write(None),
            Some((_, Variant::Broken(_))) => Touch::Nothing,
            Some((_, Variant::On(on))) if !on.target.matches(node) => write(None),
            Some((_, Variant::On(on))) => match on.spec.placement {
                Placement::Each => write(Some(&(on.assignment.clone(), on.made_from.clone()))),
                _ if self.is_settled(name, job, on, id, waiting) => Touch::Nothing,
                _ => Touch::Job,
            },
        }
    }

    /// Whether a node that matches and does not hold the job changes nothing for those that
    /// do: they are enough, all take work, and none has to give way.
    fn is_settled(&self, name: &Name, job: &Job, on: &On, id: &NodeId, waiting: &Waiting) -> bool {
        let Some(held) = self.held.get(name) else { return false };
        let (mut enough, mut lightest) = (0, u64::MAX);
        for (holder, at) in held {
            let Some(node) = self.nodes.get(holder) else { return false };
            let Some((_, Variant::On(decides))) = job.variant(node) else { continue };
            if !std::ptr::eq(&**decides, on) {
                continue;
            }
            let ours = matches!(at.value, Held::Ours(..));
            if !ours || !takes(node, waiting) || !on.target.matches(node) {
                return false;
            }
            enough += 1;
            lightest = lightest.min(weight(name, holder));
        }
        match on.spec.placement {
            Placement::Any(n) => enough == n as usize,
            _ => enough == ONCE_HOLDERS && weight(name, id) < lightest,
        }
    }
}
