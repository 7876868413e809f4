//! What the leader sees for itself: nodes that are gone, tasks with buried parts, jobs that
//! should succeed now and then, tallies that nobody needs.

use super::desk::Desk;
use crate::{lost::GRACE, tasks::Board, view::View};
use jiff::Timestamp;
use meepo_core::{
    id::{Name, NodeId},
    node::NodeInfo,
    notify::{JobNotify, Surroundings},
    task::PartState,
};
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};
use tokio::time::Instant;

/// How long a tally stays of a job that its node does not have any more.
const KEPT: Duration = Duration::from_secs(3600);
/// How often such are looked for.
const SWEEP: Duration = Duration::from_secs(600);

/// What a book asks of the fleet.
pub(super) struct Around<'a>(pub(super) &'a View);

impl Surroundings for Around<'_> {
    fn node(&self, id: &NodeId) -> Option<NodeInfo> {
        self.0.read().node(id)
    }

    fn notify_of(&self, job: &Name, node: Option<&NodeId>) -> Option<JobNotify> {
        self.0.read().fleet.notify_of(job, node)
    }

    fn is_once(&self, job: &Name) -> bool {
        self.0.read().fleet.is_once(job)
    }
}

/// What was seen so far.
#[derive(Default)]
pub(super) struct Look {
    /// Nodes that are away, since when.
    away: HashMap<NodeId, Instant>,
    /// When a node that is away counts as gone.
    due: Option<Instant>,
    swept: Option<Instant>,
}

impl Look {
    /// When it is worth looking again although nothing changes.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Tells the book what is to be seen now.
    pub(super) fn at(&mut self, desk: &mut Desk, view: &View, board: &Board) {
        let (now, around) = (Timestamp::now(), Around(view));
        self.nodes(desk, view, &around, now);
        let expected = view.read().fleet.expected();
        desk.book.watch(&expected, now);
        let buried: BTreeSet<String> = {
            let tasks = board.read();
            let parts = tasks.parts.iter().filter(|(_, p)| p.value.state == PartState::Buried);
            parts.map(|(id, _)| id.task.to_string()).collect()
        };
        let was: Vec<String> = desk
            .book
            .subjects()
            .filter_map(|(_, s)| s.task.clone().filter(|t| s.down && !buried.contains(t)))
            .collect();
        for task in was {
            desk.book.buried(&task, false, &around, now);
        }
        for task in buried {
            desk.book.buried(&task, true, &around, now);
        }
        if self.swept.is_none_or(|at| at.elapsed() > SWEEP) {
            self.swept = Some(Instant::now());
            sweep(desk, view);
        }
    }

    fn nodes(&mut self, desk: &mut Desk, view: &View, around: &Around<'_>, now: Timestamp) {
        let (mut there, mut away, mut known) = (Vec::new(), Vec::new(), BTreeSet::new());
        {
            let data = view.read();
            for id in data.nodes.keys() {
                known.insert(id.clone());
                match data.health.contains_key(id) {
                    true => there.push(id.clone()),
                    // One that was drained was meant to go.
                    false if data.drains.contains_key(id) => {}
                    false => away.push(id.clone()),
                }
            }
        }
        self.away.retain(|id, _| away.contains(id));
        self.due = None;
        for id in there {
            desk.book.node(&id, true, around, now);
        }
        for id in away {
            let since = *self.away.entry(id.clone()).or_insert_with(Instant::now);
            match since + GRACE {
                due if due <= Instant::now() => desk.book.node(&id, false, around, now),
                due => self.due = Some(self.due.map_or(due, |at| at.min(due))),
            }
        }
        let gone: Vec<String> = desk
            .book
            .subjects()
            .filter(|(_, s)| s.job.is_none() && s.node.as_ref().is_some_and(|n| !known.contains(n)))
            .map(|(key, _)| key.clone())
            .collect();
        gone.iter().for_each(|key| desk.book.forget(key));
    }
}

/// Removes tallies of jobs that their nodes have not had for a while.
fn sweep(desk: &mut Desk, view: &View) {
    let data = view.read();
    let of_no_use = |((node, job), (_, since)): (&(NodeId, Name), &(i64, Instant))| {
        let idle = since.elapsed() > KEPT;
        (idle && !data.fleet.holds(node, job)).then(|| (node.clone(), job.clone()))
    };
    let gone: Vec<_> = desk.tallies.iter().filter_map(of_no_use).collect();
    drop(data);
    for (node, job) in gone {
        desk.drop_tally(&node, &job);
    }
}
