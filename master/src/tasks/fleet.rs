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

/// Who is there, and who has been away for how long. The times are this process's own: a
/// new leader waits the whole time again.
pub(super) struct Nodes {
    /// How long a node must have been away before others may be given what it had.
    grace: Duration,
    away: HashMap<NodeId, Instant>,
    /// The view that `workers` was made from, and when.
    seen: Option<(crate::view::Version, Instant)>,
    fleet: Fleet,
}

impl Nodes {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, away: HashMap::new(), seen: None, fleet: Fleet::default() }
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
        let version = *view.changes().borrow();
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
        let grace = self.grace;
        let gone = |since: &Instant| now.duration_since(*since) >= grace;
        self.fleet.gone =
            self.away.iter().filter(|(_, since)| gone(since)).map(|(id, _)| id.clone()).collect();
        let next = self.away.values().filter(|since| !gone(since)).min();
        (&self.fleet, next.map(|since| *since + grace))
    }
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
