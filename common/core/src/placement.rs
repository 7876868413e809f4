//! Which node holds which job: a pure function from what is wanted and what is
//! there to the writes that make them agree.
//!
//! Invariants: an assignment without `spec_revision` was put by a person and is
//! never touched; the plan of an agreeing snapshot is empty; every effect names the
//! revision it was decided on, so that the executor can refuse it when the key has
//! moved meanwhile.

use crate::{
    id::{Name, NodeId},
    job::{Assignment, JobSpec, Placement},
    node::NodeInfo,
    target::Target,
};
use std::collections::{BTreeMap, BTreeSet};

/// How many nodes hold the assignment of a job that runs once per cluster: the
/// first claims, the others stand by.
pub const ONCE_HOLDERS: usize = 3;

/// A value read from etcd with the revision of its last change.
#[derive(Debug, Clone, PartialEq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// etcd's `mod_revision`.
    pub revision: i64,
}

/// What stands at an assignment's key, as far as placement cares.
#[derive(Debug, Clone, PartialEq)]
pub enum Held {
    /// Written by a master (it has a `spec_revision`).
    Ours(Box<Assignment>),
    /// Put by hand, or not readable. Hands off.
    Foreign,
}

/// All that a plan is made from.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The definitions.
    pub jobs: BTreeMap<Name, At<JobSpec>>,
    /// Jobs whose definitions this version cannot read: they keep what they have.
    pub opaque: BTreeSet<Name>,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, NodeInfo>,
    /// The assignments there are.
    pub assignments: BTreeMap<(NodeId, Name), At<Held>>,
}

/// One write that brings a node's assignments nearer to the definitions.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Put the assignment, provided the key's revision is still `expect` (0: no key).
    Put {
        /// The node.
        node: NodeId,
        /// The job.
        job: Name,
        /// What to put.
        assignment: Box<Assignment>,
        /// The revision this was decided on.
        expect: i64,
    },
    /// Delete the assignment, provided its revision is still `expect`.
    Delete {
        /// The node.
        node: NodeId,
        /// The job.
        job: Name,
        /// The revision this was decided on.
        expect: i64,
    },
}

/// The writes that are due.
pub fn plan(snapshot: &Snapshot) -> Vec<Effect> {
    let mut effects = Vec::new();
    let mut wanted: BTreeMap<(NodeId, Name), Assignment> = BTreeMap::new();
    for (name, at) in &snapshot.jobs {
        for (node, assignment) in desired(name, at, snapshot) {
            wanted.insert((node, name.clone()), assignment);
        }
    }
    for (key, at) in &snapshot.assignments {
        let ours = matches!(at.value, Held::Ours(_)) && !snapshot.opaque.contains(&key.1);
        if ours && !wanted.contains_key(key) {
            let (node, job) = key.clone();
            effects.push(Effect::Delete { node, job, expect: at.revision });
        }
    }
    for ((node, job), assignment) in wanted {
        let expect = match snapshot.assignments.get(&(node.clone(), job.clone())) {
            None => 0,
            Some(At { value: Held::Foreign, .. }) => continue,
            Some(At { value: Held::Ours(there), .. }) if **there == assignment => continue,
            Some(at) => at.revision,
        };
        effects.push(Effect::Put { node, job, assignment: Box::new(assignment), expect });
    }
    effects
}

/// The assignments one definition asks for. A definition whose target cannot be
/// parsed (written by a newer version, say) keeps what it has.
fn desired(name: &Name, at: &At<JobSpec>, snapshot: &Snapshot) -> Vec<(NodeId, Assignment)> {
    let held = || {
        snapshot.assignments.iter().filter_map(move |((node, job), at)| match &at.value {
            Held::Ours(a) if job == name => Some((node.clone(), (**a).clone())),
            _ => None,
        })
    };
    let Ok(target) = Target::parse(&at.value.target) else { return held().collect() };
    let matching = target.select(snapshot.nodes.values());
    let revision = Some(at.revision);
    match at.value.placement {
        Placement::Each => matching
            .into_iter()
            .map(|n| (n.id.clone(), at.value.assignment(revision, Vec::new())))
            .collect(),
        Placement::Once => {
            let mut order: Vec<NodeId> = Vec::new();
            let mut ranked: Vec<_> = matching.iter().collect();
            ranked.sort_by_key(|n| (std::cmp::Reverse(weight(name, &n.id)), n.id.clone()));
            let takes = |n: &NodeInfo| n.online && !n.drained;
            let there = ranked.iter().filter(|n| takes(n)).map(|n| n.id.clone());
            order.extend(there.take(ONCE_HOLDERS));
            if order.is_empty() {
                // Nobody can take over: whoever had it keeps it and goes on when it is back.
                let had: Vec<_> = held().collect();
                if !had.is_empty() {
                    return had;
                }
                order.extend(ranked.iter().take(ONCE_HOLDERS).map(|n| n.id.clone()));
            } else if order.len() < ONCE_HOLDERS {
                // Room for those that are away: in a restart of the whole fleet the first to
                // come back must not take the job, and its missed slots, from the others.
                let away = ranked.iter().filter(|n| !takes(n)).map(|n| n.id.clone());
                order.extend(away.take(ONCE_HOLDERS - order.len()));
            }
            order
                .iter()
                .map(|id| (id.clone(), at.value.assignment(revision, order.clone())))
                .collect()
        }
    }
}

/// Rendezvous weight: spreads jobs over nodes and moves few when nodes change.
/// FNV-1a with a final mix; stable over versions, as two masters must agree.
fn weight(job: &Name, node: &NodeId) -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for b in job.as_str().bytes().chain([b'/']).chain(node.as_str().bytes()) {
        h = (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    }
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn name(s: &str) -> Name {
        Name::new(s).unwrap()
    }

    fn node(s: &str, online: bool) -> (NodeId, NodeInfo) {
        let id = name(s);
        let info = NodeInfo {
            id: id.clone(),
            online,
            drained: false,
            labels: BTreeMap::new(),
            facts: Default::default(),
        };
        (id, info)
    }

    fn job(n: &str, placement: &str, revision: i64) -> (Name, At<JobSpec>) {
        let spec = JobSpec::from_user(
            json!({"name": n, "cmd": "date", "schedule": "* * * * *", "placement": placement}),
        )
        .unwrap();
        (name(n), At { value: spec, revision })
    }

    /// Performs a plan as etcd would and answers the number of writes.
    fn apply(s: &mut Snapshot) -> usize {
        let effects = plan(s);
        let n = effects.len();
        for e in effects {
            match e {
                Effect::Put { node, job, assignment, expect } => {
                    let key = (node, job);
                    assert_eq!(s.assignments.get(&key).map_or(0, |a| a.revision), expect);
                    s.assignments
                        .insert(key, At { value: Held::Ours(assignment), revision: expect + 1 });
                }
                Effect::Delete { node, job, expect } => {
                    assert_eq!(s.assignments.remove(&(node, job)).unwrap().revision, expect);
                }
            }
        }
        n
    }

    #[test]
    fn each_goes_everywhere_and_follows_changes_and_deletion() {
        let mut s = Snapshot {
            jobs: [job("a", "each", 7)].into(),
            nodes: [node("n1", true), node("n2", false)].into(),
            ..Default::default()
        };
        assert_eq!(apply(&mut s), 2);
        assert_eq!(plan(&s), []);
        s.jobs.insert(name("a"), job("a", "each", 9).1);
        assert_eq!(apply(&mut s), 2);
        s.nodes.extend([node("n3", true)]);
        assert_eq!(apply(&mut s), 1);
        s.jobs.clear();
        assert_eq!(apply(&mut s), 3);
        assert!(s.assignments.is_empty());
    }

    #[test]
    fn once_has_standbys_and_leaves_dead_nodes() {
        let ids = ["n1", "n2", "n3", "n4", "n5"];
        let mut s = Snapshot {
            jobs: [job("a", "once", 1)].into(),
            nodes: ids.iter().map(|n| node(n, true)).collect(),
            ..Default::default()
        };
        assert_eq!(apply(&mut s), ONCE_HOLDERS);
        let order = |s: &Snapshot| match &s.assignments.values().next().unwrap().value {
            Held::Ours(a) => a.once.clone(),
            Held::Foreign => unreachable!(),
        };
        let first = order(&s)[0].clone();
        s.nodes.get_mut(&first).unwrap().online = false;
        apply(&mut s);
        assert!(!order(&s).contains(&first));
        assert_eq!(s.assignments.len(), ONCE_HOLDERS);
        // One that is drained is as good as away, until it is back.
        let second = order(&s)[0].clone();
        s.nodes.get_mut(&second).unwrap().drained = true;
        apply(&mut s);
        assert!(!order(&s).contains(&second));
        s.nodes.get_mut(&second).unwrap().drained = false;
        apply(&mut s);
        assert_eq!(order(&s)[0], second);
        let before = s.assignments.clone();
        for n in s.nodes.values_mut() {
            n.online = false;
        }
        assert_eq!(apply(&mut s), 0, "kept while nobody is there");
        // One comes back: the others stay in line.
        let last = order(&s)[ONCE_HOLDERS - 1].clone();
        s.nodes.get_mut(&last).unwrap().online = true;
        apply(&mut s);
        assert_eq!(order(&s)[0], last);
        assert_eq!(s.assignments.len(), ONCE_HOLDERS);
        assert!(before.keys().any(|key| s.assignments.contains_key(key)));
    }

    #[test]
    fn a_definition_that_cannot_be_read_keeps_what_it_has() {
        let mut s = Snapshot {
            jobs: [job("a", "each", 1)].into(),
            nodes: [node("n1", true)].into(),
            ..Default::default()
        };
        apply(&mut s);
        s.jobs.clear();
        s.opaque.insert(name("a"));
        assert_eq!(plan(&s), []);
    }

    #[test]
    fn what_people_put_is_never_touched() {
        let mut s = Snapshot {
            jobs: [job("a", "each", 1)].into(),
            nodes: [node("n1", true)].into(),
            ..Default::default()
        };
        s.assignments.insert((name("n1"), name("a")), At { value: Held::Foreign, revision: 3 });
        s.assignments.insert((name("n1"), name("b")), At { value: Held::Foreign, revision: 4 });
        assert_eq!(plan(&s), []);
    }
}
