//! Which of the nodes that a definition decides for get the job.

use super::{
    At, Held,
    fleet::{Desired, On},
};
use crate::{
    id::{Name, NodeId},
    job::Placement,
    node::NodeInfo,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// How many nodes hold the assignment of a job that runs once per cluster: the
/// first claims, the others stand by.
pub const ONCE_HOLDERS: usize = 3;

/// Nodes that have gone just now and may be back in a moment: they count as being there.
pub type Waiting = BTreeSet<NodeId>;

/// Whether a node can be given work.
pub(super) fn takes(node: &NodeInfo, waiting: &Waiting) -> bool {
    !node.drained && (node.online || waiting.contains(&node.id))
}

/// Adds what one definition asks of `nodes`, those for which it decides.
pub(super) fn choose(
    name: &Name,
    on: &On,
    nodes: &[&NodeInfo],
    held: Option<&BTreeMap<NodeId, At<Held>>>,
    waiting: &Waiting,
    desired: &mut Desired,
) {
    let matching = meant(on, nodes, waiting);
    let has = |id: &NodeId| {
        held.and_then(|h| h.get(id)).is_some_and(|at| matches!(at.value, Held::Ours(..)))
    };
    let want = |a: &Arc<_>| (Arc::clone(a), on.made_from.clone());
    match on.spec.placement {
        Placement::Each => {
            desired.put.extend(matching.iter().map(|n| (n.id.clone(), want(&on.assignment))));
        }
        // Whoever has it keeps it while it takes work. Nodes that are away make up the
        // number where there are too few, first those that had it.
        Placement::Any(n) => {
            let tier = |n: &NodeInfo| match (takes(n, waiting), has(&n.id)) {
                (true, true) => 0,
                (true, false) => 1,
                (false, true) => 2,
                (false, false) => 3,
            };
            let mut ranked = matching;
            ranked.sort_by_cached_key(|n| (tier(n), Reverse(weight(name, &n.id)), n.id.clone()));
            ranked.truncate(n as usize);
            desired.put.extend(ranked.iter().map(|n| (n.id.clone(), want(&on.assignment))));
        }
        Placement::Once => {
            let mut ranked = matching;
            ranked.sort_by_cached_key(|n| (Reverse(weight(name, &n.id)), n.id.clone()));
            let (there, away): (Vec<_>, Vec<_>) =
                ranked.into_iter().partition(|n| takes(n, waiting));
            if there.is_empty() && nodes.iter().any(|n| has(&n.id)) {
                // Nobody can take over: whoever had it keeps it and goes on when it is back.
                desired.keep.extend(nodes.iter().map(|n| n.id.clone()));
                return;
            }
            // Behind those that are there comes who is away: in a restart of the whole fleet
            // the first to come back must not take the job, and its missed slots, from the
            // others.
            let order: Vec<NodeId> =
                there.iter().chain(&away).take(ONCE_HOLDERS).map(|n| n.id.clone()).collect();
            let mut assignment = (*on.assignment).clone();
            assignment.once.clone_from(&order);
            let assignment = Arc::new(assignment);
            desired.put.extend(order.into_iter().map(|id| (id, want(&assignment))));
        }
    }
}

/// The nodes that the target means.
fn meant<'a>(on: &On, nodes: &[&'a NodeInfo], waiting: &Waiting) -> Vec<&'a NodeInfo> {
    if !on.target.is_limited() || nodes.iter().all(|n| n.online || !waiting.contains(&n.id)) {
        return on.target.select(nodes.iter().copied());
    }
    // Who is there comes first in a limited choice.
    let there: Vec<NodeInfo> = nodes
        .iter()
        .map(|n| NodeInfo { online: n.online || waiting.contains(&n.id), ..(*n).clone() })
        .collect();
    let chosen: BTreeSet<&NodeId> = on.target.select(&there).iter().map(|n| &n.id).collect();
    nodes.iter().copied().filter(|n| chosen.contains(&n.id)).collect()
}

/// Rendezvous weight: spreads jobs over nodes and moves few when nodes change.
/// FNV-1a with a final mix; stable over versions, as two masters must agree.
pub(super) fn weight(job: &Name, node: &NodeId) -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for b in job.as_str().bytes().chain([b'/']).chain(node.as_str().bytes()) {
        h = (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    }
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^ (h >> 33)
}
