//! Who gets what next: a pure function from tasks, their parts, the workers and the time to
//! the writes that are due. Whoever performs them compares the revisions they name, so a
//! plan made from an old view does no harm.
//!
//! The smaller priority goes first, then who became ready first. A part for one node goes
//! there when it has a slot free; a part of a queue to the suitable worker with the largest
//! share of free slots.

use super::{
    id::{PartId, TaskId},
    record::{Ask, BURIED_KEPT, Control, Order, Outcome, Part, PartRun, RUNS_KEPT, Task},
    release::{Released, released},
    state::{Event, PartState},
    verb::deadline,
};
use crate::{
    code::Code,
    id::{NodeId, RunId},
    node::{Health, NodeInfo, ONLINE},
    placement::At,
    retry,
    run::to_millis,
    target::Target,
};
use jiff::{SignedDuration, Timestamp};
use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    sync::Arc,
    time::Duration,
};
use uuid::Builder;

/// How long after its deadline and its kill plan a part is left to a worker that ends it by
/// itself.
pub const OVERDUE: SignedDuration = SignedDuration::from_secs(15);
/// Effects of one plan; what is left is planned next.
pub const MOST: usize = 4_000;

/// A worker as far as it may get parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// Its node.
    pub node: NodeInfo,
    /// Parts it takes at once; see [`slots`].
    pub slots: u32,
    /// How busy its host is; the smaller goes first among equals.
    pub load: f64,
}

/// How many parts a worker takes that says this of itself: none while it takes nothing new,
/// whoever asked it to. What it has stays with it.
pub fn slots(health: &Health) -> u32 {
    if health.status == ONLINE { health.task_slots } else { 0 }
}

/// All that a plan is made from.
#[derive(Debug, Default)]
pub struct Fleet {
    /// Workers that are there.
    pub workers: BTreeMap<NodeId, Worker>,
    /// Nodes that have been away for so long that what they had may be given to others.
    pub gone: BTreeSet<NodeId>,
}

/// Tasks and their parts as they stand in etcd.
#[derive(Debug, Default, Clone)]
pub struct Tasks {
    /// The tasks.
    pub tasks: BTreeMap<TaskId, At<Arc<Task>>>,
    /// Those of their parts that have a key.
    pub parts: BTreeMap<PartId, At<Part>>,
    /// Tasks that this version cannot read, or parts of which: they are left alone.
    pub opaque: BTreeSet<TaskId>,
    /// How many bytes the tasks take in etcd, without their parts.
    pub bytes: BTreeMap<TaskId, usize>,
}

impl Tasks {
    /// The parts of a task that have a key, by number.
    pub fn parts_of(&self, task: TaskId) -> impl Iterator<Item = (PartId, &At<Part>)> {
        let range = PartId { task, n: 0 }..=PartId { task, n: u32::MAX };
        self.parts.range(range).map(|(id, part)| (*id, part))
    }
}

/// What happens to the order of a part.
#[derive(Debug, Clone, PartialEq)]
pub enum OrderChange {
    /// There is none.
    None,
    /// It is put, or changed along with the part.
    Put(NodeId, Box<Order>),
    /// It is taken back.
    Delete(NodeId),
}

/// A write that is due: of a part, provided neither it nor its task has changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// Which part.
    pub id: PartId,
    /// The revision of the part this was decided on; 0: it has no key.
    pub expect: i64,
    /// … and that of its task.
    pub task: i64,
    /// What to write.
    pub part: Box<Part>,
    /// What happens to its order with that.
    pub order: OrderChange,
}

/// What is due, and when to plan again although nothing has changed.
#[derive(Debug, Default)]
pub struct Plan {
    /// At most [`MOST`], the most urgent first.
    pub effects: Vec<Effect>,
    /// Tasks all of whose parts have ended, with their revisions: to be kept in the log store
    /// and taken out of etcd. They may be many while the log store is away, so they neither
    /// count among the effects nor make anybody plan again.
    pub finished: Vec<(TaskId, i64)>,
    /// When something is due by time alone.
    pub wake: Option<Timestamp>,
}

impl Plan {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }
}

/// A part that may be given to a worker now.
struct Candidate<'a> {
    id: PartId,
    expect: i64,
    task: &'a At<Arc<Task>>,
    /// Copied only when it changes: there may be thousands that wait.
    part: Cow<'a, Part>,
    /// Whether it must be written even if no worker takes it.
    changed: bool,
}

/// What is due at `now`.
pub fn plan(tasks: &Tasks, fleet: &Fleet, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut candidates = Vec::new();
    for task in tasks.tasks.values().filter(|t| !tasks.opaque.contains(&t.value.id)) {
        look(tasks, fleet, task, now, &mut plan, &mut candidates);
    }
    let mut slots = Slots::new(tasks, fleet);
    candidates.sort_by_key(|c| (c.task.value.policy.priority, c.part.ready_at, c.id));
    let mut effects = Vec::new();
    let mut waiting = Vec::new();
    for candidate in candidates {
        let (spec, queue) = match candidate.task.value.part(candidate.id.n) {
            Some((spec, _)) => (spec.node.as_ref(), candidate.task.value.target.as_deref()),
            None => continue,
        };
        let place = match spec {
            Some(node) => slots.take(node),
            None => slots.take_any(queue.unwrap_or("all")),
        };
        match place {
            Some(node) => effects.push(reserve(candidate, node, now)),
            None if candidate.changed => waiting.push(Effect {
                id: candidate.id,
                expect: candidate.expect,
                task: candidate.task.revision,
                part: Box::new(candidate.part.into_owned()),
                order: OrderChange::None,
            }),
            None => {}
        }
    }
    // First what makes somebody work, then what frees somebody, then what only waits.
    effects.append(&mut plan.effects);
    effects.append(&mut waiting);
    if effects.len() > MOST {
        effects.truncate(MOST);
        plan.wake_at(now);
    }
    plan.effects = effects;
    plan
}

/// What is due for one task by itself.
fn look<'a>(
    tasks: &'a Tasks,
    fleet: &Fleet,
    task: &'a At<Arc<Task>>,
    now: Timestamp,
    plan: &mut Plan,
    candidates: &mut Vec<Candidate<'a>>,
) {
    let (value, revision) = (&task.value, task.revision);
    let mut own = tasks.parts_of(value.id).peekable();
    let release = released(
        value,
        |n| {
            let id = PartId { task: value.id, n };
            tasks.parts.get(&id).map(|at| &at.value)
        },
        now,
    );
    if let Released::UpTo { again: Some(at), .. } = &release {
        plan.wake_at(*at);
    }
    let mut open = false;
    for id in value.part_ids() {
        let known = own.next_if(|(part, _)| *part == id).map(|(_, at)| at);
        let state = known.map_or(PartState::Pending, |k| k.value.state);
        if state.is_final() {
            continue;
        }
        open = true;
        let expect = known.map_or(0, |k| k.revision);
        let part = || known.map_or_else(|| Part::pending(value, id.n), |k| k.value.clone());
        let mut write = |part: Part, order| {
            let part = Box::new(part);
            plan.effects.push(Effect { id, expect, task: revision, part, order });
        };
        if state != PartState::Reserved && value.control.revokes() {
            let mut part = part();
            part.outcome = Some(Outcome::new(Code::CANCELLED, None, now));
            part.step(Event::Revoke, now);
            write(part, OrderChange::None);
            continue;
        }
        let candidate = |part, changed| Candidate { id, expect, task, part, changed };
        let active = value.control == Control::Active;
        match state {
            PartState::Pending => {
                if !release.allows(id.n) {
                    continue;
                }
                let mut part = part();
                match value.policy.not_before.filter(|at| *at > now) {
                    Some(until) => {
                        part.delayed(Event::PutDelayed, until, now);
                        write(part, OrderChange::None);
                        plan.wake_at(until);
                    }
                    None => {
                        part.ready(Event::Put, now);
                        candidates.push(candidate(Cow::Owned(part), true));
                    }
                }
            }
            PartState::Delayed => {
                match known.and_then(|k| k.value.ready_at).filter(|at| *at > now) {
                    Some(until) => plan.wake_at(until),
                    None => {
                        let mut part = part();
                        // It has been ready since then: that is its place in the queue.
                        part.step(Event::Due, now);
                        if active {
                            candidates.push(candidate(Cow::Owned(part), true));
                        } else {
                            write(part, OrderChange::None);
                        }
                    }
                }
            }
            PartState::Ready => {
                let Some(At { value: waiting, .. }) = known else { continue };
                let from = waiting.ready_at.unwrap_or(waiting.since);
                let until = value.policy.ttl.and_then(|ttl| from.checked_add(ttl.0).ok());
                match until {
                    Some(until) if until <= now => {
                        let mut part = part();
                        part.outcome = Some(Outcome::new(Code::EXPIRED, None, now));
                        part.step(Event::Expire, now);
                        write(part, OrderChange::None);
                        continue;
                    }
                    Some(until) => plan.wake_at(until),
                    None => {}
                }
                if active {
                    candidates.push(candidate(Cow::Borrowed(waiting), false));
                }
            }
            PartState::Reserved => {
                let Some(At { value: part, .. }) = known else { continue };
                if let Some((part, order)) = reserved((value, revision), id, part, fleet, now, plan)
                {
                    let part = Box::new(part);
                    plan.effects.push(Effect { id, expect, task: revision, part, order });
                }
            }
            PartState::Buried => {
                let Some(At { value: buried, .. }) = known else { continue };
                match buried.since.checked_add(BURIED_KEPT) {
                    Ok(until) if until > now => plan.wake_at(until),
                    _ => {
                        let mut part = part();
                        part.step(Event::Delete, now);
                        write(part, OrderChange::None);
                    }
                }
            }
            PartState::Success | PartState::Failed | PartState::Revoked => {}
        }
    }
    if !open {
        plan.finished.push((value.id, revision));
    }
}

/// What is due for a part that a worker has. Copied only when it changes.
fn reserved(
    (task, revision): (&Task, i64),
    id: PartId,
    part: &Part,
    fleet: &Fleet,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<(Part, OrderChange)> {
    let node = part.node.as_ref()?;
    if task.control.revokes() && part.begun_at.is_none() {
        let mut part = part.clone().taken_back(Duration::ZERO, now);
        part.outcome = Some(Outcome::new(Code::CANCELLED, None, now));
        part.step(Event::Revoke, now);
        return Some((part, OrderChange::Delete(node.clone())));
    }
    let (spec, command) = task.part(id.n).unzip();
    let overdue = part.deadline.and_then(|at| {
        // At the deadline its worker begins to end it, which takes as long as it takes.
        let plan = command.and_then(|c| c.kill_plan.clone()).unwrap_or_default();
        at.checked_add(plan.total()).ok()?.checked_add(OVERDUE).ok()
    });
    // A part for one node waits for its node: nobody else can run it, and a worker that is
    // only cut off may run it still. It does not begin one that is taken back meanwhile.
    let waits = spec.is_none_or(|spec| spec.node.is_some()) && part.begun_at.is_some();
    let why = match overdue {
        Some(at) if at <= now => Some("its worker did not end it in time"),
        _ if !waits && fleet.gone.contains(node) => Some("its worker died or vanished"),
        Some(at) => {
            plan.wake_at(at);
            None
        }
        None => None,
    };
    if let Some(why) = why {
        let order = OrderChange::Delete(node.clone());
        let part = part.clone();
        let part = match part.begun_at {
            None => part.taken_back(Duration::ZERO, now),
            Some(_) => {
                let outcome = Outcome::new(Code::LOST, Some(why.to_owned()), now);
                part.ended(id, &task.policy, outcome, now)
            }
        };
        return Some((part, order));
    }
    if task.control == Control::Stopped && part.ask.is_none() {
        let part = Part { ask: Some(Ask::Stop), ..part.clone() };
        let order = Box::new(Order::of(task, revision, id, &part)?);
        return Some((part, OrderChange::Put(node.clone(), order)));
    }
    None
}

fn reserve(candidate: Candidate<'_>, node: NodeId, now: Timestamp) -> Effect {
    let Candidate { id, expect, task, part, .. } = candidate;
    let mut part = part.into_owned();
    let value = &task.value;
    let run_id = run_id(id, part.attempt, &node, now);
    part.step(Event::Reserve, now);
    part.attempt += 1;
    part.node = Some(node.clone());
    part.deadline = deadline(&value.policy, now);
    part.runs.push(PartRun { run_id, node: node.clone(), attempt: part.attempt, code: None });
    if part.runs.len() > RUNS_KEPT {
        part.runs.remove(0);
    }
    let order = match Order::of(value, task.revision, id, &part) {
        Some(order) => OrderChange::Put(node, Box::new(order)),
        None => OrderChange::None,
    };
    Effect { id, expect, task: task.revision, part: Box::new(part), order }
}

/// The id of a run: a UUIDv7 of this instant whose other bits are made of what it is for.
fn run_id(id: PartId, attempt: u32, node: &NodeId, now: Timestamp) -> RunId {
    let what = format!("{id} {attempt} {node} {}", now.as_nanosecond());
    let (a, b) = (retry::seed([what.as_str()]), retry::seed(["run", what.as_str()]));
    let mut bits = [0; 10];
    bits[..8].copy_from_slice(&a.to_be_bytes());
    bits[8..].copy_from_slice(&b.to_be_bytes()[..2]);
    let millis = u64::try_from(to_millis(now).as_millisecond()).unwrap_or(0);
    RunId(Builder::from_unix_timestamp_millis(millis, &bits).into_uuid())
}

/// The slots that are free.
struct Slots<'a> {
    fleet: &'a Fleet,
    free: HashMap<&'a NodeId, u32>,
    /// For each target the suitable workers, the most idle first. What stands there may be
    /// out of date: who has fewer slots free by now is put in again.
    queues: HashMap<String, BinaryHeap<Idle<'a>>>,
}

/// A worker by how idle it is: the share of its slots that is free, in millionths; how
/// little its host does; its id.
type Idle<'a> = (u64, Reverse<u64>, Reverse<&'a NodeId>);

impl<'a> Slots<'a> {
    fn new(tasks: &Tasks, fleet: &'a Fleet) -> Self {
        let takes = |w: &&Worker| w.node.online && !w.node.drained;
        let workers = fleet.workers.values().filter(takes);
        let mut free: HashMap<&NodeId, u32> = workers.map(|w| (&w.node.id, w.slots)).collect();
        for part in tasks.parts.values().map(|at| &at.value) {
            if part.state == PartState::Reserved
                && let Some(free) = part.node.as_ref().and_then(|node| free.get_mut(node))
            {
                *free = free.saturating_sub(1);
            }
        }
        Self { fleet, free, queues: HashMap::new() }
    }

    /// A slot of this node.
    fn take(&mut self, node: &NodeId) -> Option<NodeId> {
        let free = self.free.get_mut(node).filter(|free| **free > 0)?;
        *free -= 1;
        Some(node.clone())
    }

    /// A slot of the most idle node that is suitable.
    fn take_any(&mut self, target: &str) -> Option<NodeId> {
        if !self.queues.contains_key(target) {
            // One that does not parse was refused at submission; nobody suits it.
            let parsed = Target::parse(target).ok();
            let nodes = self.fleet.workers.values().map(|w| &w.node);
            let suits = parsed.map(|t| t.select(nodes)).unwrap_or_default();
            let idle: BinaryHeap<_> = suits.into_iter().filter_map(|n| self.idle(&n.id)).collect();
            self.queues.insert(target.to_owned(), idle);
        }
        let mut queue = self.queues.remove(target)?;
        let mut found = None;
        while let Some(top) = queue.pop() {
            let Reverse(node) = top.2;
            match self.idle(node) {
                Some(is) if is == top => {
                    found = self.take(node);
                    queue.extend(self.idle(node));
                    break;
                }
                Some(less) => queue.push(less),
                None => {}
            }
        }
        self.queues.insert(target.to_owned(), queue);
        found
    }

    fn idle(&self, node: &NodeId) -> Option<Idle<'a>> {
        let (id, worker) = self.fleet.workers.get_key_value(node)?;
        let free = *self.free.get(node).filter(|free| **free > 0)?;
        let share = u64::from(free) * 1_000_000 / u64::from(worker.slots.max(1));
        let load = (worker.load.max(0.0) * 1_000.0) as u64;
        Some((share, Reverse(load), Reverse(id)))
    }
}
