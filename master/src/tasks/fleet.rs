//! The workers as the planner of tasks sees them.

use super::board::{Board, is_reserved};
use crate::{sessions::Sessions, view::View};
use meepo_core::{
    id::NodeId,
    task::dispatch::{Fleet, Worker, slots},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};
use tokio::time::Instant;

/// How old facts of the moment may be in a plan: heartbeats come every ten seconds.
const FRESH: Duration = Duration::from_secs(5);

/// What a worker that has lost its lease takes to end what it may no longer run, beyond the
/// time to live of a lease.
const WORKER_KILLS: Duration = Duration::from_secs(5);

/// Who is there, and who has been away for how long. The times are this process's own: a
/// new leader waits the whole time again.
pub(super) struct Nodes {
    /// The masters' own time to live of a lease: that of workers which tell none, and the
    /// least of all others.
    lease_ttl: Duration,
    /// What workers told of theirs, also those that are away by now.
    told: HashMap<NodeId, Duration>,
    away: HashMap<NodeId, Instant>,
    /// The nodes of the view that `told` was made from, by its count of their changes.
    heard: Option<u64>,
    /// Those that `workers` was made from, and when.
    seen: Option<(u64, Instant)>,
    fleet: Fleet,
}

impl Nodes {
    pub(super) fn new(lease_ttl: Duration) -> Self {
        Self {
            lease_ttl,
            told: HashMap::new(),
            away: HashMap::new(),
            heard: None,
            seen: None,
            fleet: Fleet::default(),
        }
    }

    /// Keeps in mind what workers tell that may be away when this master leads.
    pub(super) fn listen(&mut self, view: &View) {
        let version = view.changes().borrow().nodes;
        if self.heard.replace(version) != Some(version) {
            let data = view.read();
            self.told.retain(|id, _| data.nodes.contains_key(id));
            let told = data.health.iter().filter_map(|(id, h)| Some((id.clone(), h.lease_ttl?.0)));
            self.told.extend(told);
        }
    }

    /// Somebody else leads, or nobody.
    pub(super) fn forget(&mut self) {
        self.away.clear();
    }

    /// The workers now, and when the next of those that are away counts as gone.
    pub(super) fn look(
        &mut self,
        view: &View,
        sessions: &Sessions,
        board: &Board,
    ) -> (&Fleet, Option<Instant>) {
        // Without work nobody asks for the workers.
        if board.read().parts.is_empty() {
            self.seen = None;
            self.away.clear();
            return (&self.fleet, None);
        }
        let version = view.changes().borrow().nodes;
        let known = self.seen.is_some_and(|(v, at)| v == version && at.elapsed() < FRESH);
        if !known {
            self.seen = Some((version, Instant::now()));
            self.fleet.workers = workers(view, sessions);
        }
        let reserved: HashSet<NodeId> = {
            let tasks = board.read();
            let parts = tasks.parts.values().map(|p| &p.value).filter(|p| is_reserved(p));
            parts.filter_map(|p| p.node.clone()).collect()
        };
        let there = &self.fleet.workers;
        self.away.retain(|id, _| reserved.contains(id) && !there.contains_key(id));
        let now = Instant::now();
        for id in reserved.into_iter().filter(|id| !there.contains_key(id)) {
            self.away.entry(id).or_insert(now);
        }
        let mut next: Option<Instant> = None;
        self.fleet.gone.clear();
        for (id, since) in &self.away {
            // One that tells of a lease beyond all time is never given up.
            match since.checked_add(grace(self.lease_ttl, self.told.get(id).copied())) {
                Some(until) if until <= now => drop(self.fleet.gone.insert(id.clone())),
                Some(until) => next = Some(next.map_or(until, |n| n.min(until))),
                None => {}
            }
        }
        (&self.fleet, next)
    }
}

/// How long a node must have been away before others may be given what it had: until its
/// worker, if it is only cut off, has noticed and has ended it.
fn grace(own: Duration, told: Option<Duration>) -> Duration {
    told.map_or(own, |told| told.max(own)).saturating_add(WORKER_KILLS)
}

fn workers(view: &View, sessions: &Sessions) -> BTreeMap<NodeId, Worker> {
    let live = sessions.live(&[]);
    let data = view.read();
    let mut nodes = data.all_nodes_now();
    let worker = |id: &NodeId| {
        let slots = slots(data.health.get(id)?);
        let mut node = nodes.remove(id)?;
        if let Some(Some(live)) = live.get(id) {
            node.facts = node.facts.with(live);
        }
        let load =
            node.facts.load().unwrap_or(node.facts.load1 / node.facts.cpu_cores.max(1) as f64);
        Some((id.clone(), Worker { node, slots, load }))
    };
    data.health.keys().filter_map(worker).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_lease_counts() {
        let s = Duration::from_secs;
        assert_eq!(grace(s(10), None), s(15));
        assert_eq!(grace(s(10), Some(s(60))), s(65));
        assert_eq!(grace(s(10), Some(s(2))), s(15));
    }
}
