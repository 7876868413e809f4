//! Tasks: leaders that plan on views as old as they may be and die between two writes,
//! workers that die at any moment, users who change their minds.
//!
//! The store stands for etcd: every write is one transaction with the comparisons that
//! `master::tasks::write` and `worker::tasks::report` make.

use crate::{Rng, simulate};
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    code::Code,
    id::{Name, NodeId, RunId},
    node::{Facts, NodeInfo},
    placement::At,
    task::{
        Control, Order, Part, PartId, PartState, Task, TaskId, TaskRequest, Verb,
        dispatch::{Effect, Fleet, OrderChange, Tasks, Worker, plan},
        record::Outcome,
        release,
        state::TRANSITIONS,
        verb::Done,
    },
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

const SLOTS: u32 = 2;
const NODES: [&str; 3] = ["a", "b", "c"];

/// An order as it stands in the store.
#[derive(Debug, Clone)]
struct Stored {
    order: Order,
    create: i64,
}

/// How far a worker is with a run.
#[derive(Debug, Clone)]
enum Stage {
    /// Its process runs. On disk.
    Runs,
    /// It has ended; told until the store has it. On disk.
    Ended(Outcome),
}

#[derive(Debug, Default)]
struct Node {
    dead: bool,
    /// The leader takes it for gone.
    gone: bool,
    /// By run: the part, the order's creation, and the stage.
    runs: BTreeMap<RunId, (PartId, i64, Stage)>,
    /// What its journal has ever had.
    journal: BTreeSet<RunId>,
}

#[derive(Debug, Default)]
struct Master {
    term: i64,
    queue: VecDeque<Effect>,
}

struct World {
    now: Timestamp,
    revision: i64,
    term: i64,
    store: Tasks,
    orders: BTreeMap<(NodeId, PartId), Stored>,
    nodes: BTreeMap<NodeId, Node>,
    masters: [Master; 2],
    archived: u64,
    /// Tasks of which a user has kicked a part.
    kicked: BTreeSet<TaskId>,
    talk: bool,
}

fn name(of: &str) -> Name {
    Name::new(of).unwrap()
}

fn info(id: &NodeId) -> NodeInfo {
    let (id, labels) = (id.clone(), BTreeMap::new());
    NodeInfo { id, online: true, drained: false, labels, facts: Facts::default() }
}

/// Requests of every kind.
fn request(rng: &mut Rng) -> Value {
    let mut request = match rng.below(4) {
        0 => json!({"hosts": NODES, "cmd": "x"}),
        1 => json!({"hosts": ["b"], "cmd": "x"}),
        2 => json!({"queue": "q", "cmd": "x"}),
        _ => json!({"queue": "q", "commands": vec![json!({"cmd": "x"}); 1 + rng.below(4)]}),
    };
    let mut set = |field: &str, value: Value| request[field] = value;
    if rng.once_in(3) {
        set("retry", json!({"max": 1 + rng.below(3), "delay": "2s"}));
    }
    if rng.once_in(4) {
        set("rollout", json!({"batch": 1, "pause": "5s", "max_failures": 1 + rng.below(2)}));
    } else if rng.once_in(4) {
        set("ttl", json!("20s"));
    }
    if rng.once_in(4) {
        set("delay", json!("7s"));
    }
    if rng.once_in(5) {
        set("repeat", json!({"times": 2, "every": "1s"}));
    }
    if rng.once_in(3) {
        set("on_loss", json!(["release", "bury", "fail"][rng.below(3)]));
    }
    set("priority", json!(rng.below(3)));
    set("ttr", json!("30s"));
    request
}

impl World {
    fn new(talk: bool) -> Self {
        Self {
            now: Timestamp::from_second(1_800_000_000).unwrap(),
            revision: 1,
            term: 1,
            store: Tasks::default(),
            orders: BTreeMap::new(),
            nodes: NODES.map(|n| (name(n), Node::default())).into(),
            masters: [Master { term: 1, ..Master::default() }, Master::default()],
            archived: 0,
            kicked: BTreeSet::new(),
            talk,
        }
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.talk {
            println!("{} {}", self.now, what());
        }
    }

    fn revision(&mut self) -> i64 {
        self.revision += 1;
        self.revision
    }

    fn submit(&mut self, rng: &mut Rng) {
        let request = request(rng);
        let id = TaskId(uuid::Uuid::from_u128(u128::from(rng.next())));
        self.say(|| format!("submit {id}: {request}"));
        let nodes = NODES.map(|n| (name(n), info(&name(n)))).into();
        let request = TaskRequest::from_user(request).unwrap();
        let value = Arc::new(request.task(id, &nodes, self.now).unwrap());
        let revision = self.revision();
        self.store.tasks.insert(id, At { value, revision });
    }

    fn fleet(&self) -> Fleet {
        let there = self.nodes.iter().filter(|(_, n)| !n.gone);
        let worker = |id: &NodeId| Worker { node: info(id), slots: SLOTS, load: 0.0 };
        Fleet {
            workers: there.map(|(id, _)| (id.clone(), worker(id))).collect(),
            gone: self.nodes.iter().filter(|(_, n)| n.gone).map(|(id, _)| id.clone()).collect(),
        }
    }

    /// A master sees the store as it is and plans.
    fn plan(&mut self, m: usize) -> Option<Timestamp> {
        let plan = plan(&self.store, &self.fleet(), self.now);
        self.masters[m].queue = plan.effects.into();
        if self.masters[m].term == self.term {
            for (id, revision) in plan.finished {
                self.archive(id, revision);
            }
        }
        plan.wake
    }

    /// A task all of whose parts have ended goes to the log store.
    fn archive(&mut self, id: TaskId, revision: i64) {
        assert_eq!(self.store.tasks[&id].revision, revision);
        let task = self.store.tasks.remove(&id).unwrap().value;
        for part in task.part_ids() {
            let part = self.store.parts.remove(&part).expect("a part that has ended has a key");
            assert!(part.value.state.is_final(), "{part:?}");
        }
        assert!(self.orders.keys().all(|(_, part)| part.task != id), "an order without a task");
        self.archived += 1;
    }

    /// A master performs one effect of its plan: one transaction.
    fn perform(&mut self, m: usize) {
        let term = self.masters[m].term;
        let Some(Effect { id, expect, task, part, order }) = self.masters[m].queue.pop_front()
        else {
            return;
        };
        let there = self.store.parts.get(&id).map_or(0, |p| p.revision);
        let of_task = self.store.tasks.get(&id.task).map(|t| t.revision);
        if term != self.term || there != expect || of_task != Some(task) {
            self.say(|| format!("master {m}: {id} has changed meanwhile"));
            return;
        }
        self.say(|| format!("master {m}: {id} {} {order:?}", part.state));
        self.write(id, *part, order);
    }

    /// What users do, through any master.
    fn act(&mut self, rng: &mut Rng) {
        let verb = Verb::ALL[rng.below(Verb::ALL.len())];
        let Some(id) = rng.pick(self.store.tasks.keys().copied()) else { return };
        self.say(|| format!("user: {verb} {id}"));
        let task = self.store.tasks[&id].value.clone();
        let control = match (verb, task.control) {
            (_, old) if old.revokes() => old,
            (Verb::Pause, _) => Control::Paused,
            (Verb::Resume, _) => Control::Active,
            (Verb::Cancel, _) if rng.once_in(3) => Control::Cancelled,
            (Verb::Stop, _) if rng.once_in(3) => Control::Stopped,
            (_, old) => old,
        };
        if control != task.control {
            let revision = self.revision();
            let value = Arc::new(Task { control, ..(*task).clone() });
            self.store.tasks.insert(id, At { value, revision });
            return;
        }
        let Some(at) = rng.pick(self.store.parts_of(id).map(|(part, at)| (part, at.clone())))
        else {
            return;
        };
        let (id, part) = (at.0, at.1.value);
        let delay = Duration::from_secs(rng.below(2) as u64 * 9);
        let node = part.node.clone();
        match (part.act(verb, delay, &task, self.now), node) {
            (Done::Changed(new), Some(node)) if part.state == PartState::Reserved => {
                self.write(id, *new, OrderChange::Delete(node));
            }
            (Done::Changed(new), _) => {
                if verb == Verb::Kick {
                    self.kicked.insert(id.task);
                }
                self.write(id, *new, OrderChange::None);
            }
            (Done::Asked(new), Some(node)) => {
                let revision = self.store.tasks[&id.task].revision;
                let order = Order::of(&task, revision, id, &new).unwrap();
                self.write(id, *new, OrderChange::Put(node, Box::new(order)));
            }
            (Done::Asked(_), None) => panic!("a part without a node was asked"),
            (Done::Refused(_), _) => {}
        }
    }

    /// A worker does something about one of its orders.
    fn work(&mut self, rng: &mut Rng, always_ok: bool) -> bool {
        let alive = |(id, _): &(NodeId, PartId)| !self.nodes[id].dead;
        let orders = self.orders.iter().filter(|(key, _)| alive(key));
        let known = |s: &Stored, n: &NodeId| self.nodes[n].runs.contains_key(&s.order.run_id);
        let new = orders.filter(|((node, _), s)| !known(s, node));
        let new: Vec<_> = new.map(|(key, s)| (key.clone(), s.clone())).collect();
        let runs: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, n)| !n.dead)
            .flat_map(|(id, n)| n.runs.iter().map(|(run, held)| (id.clone(), *run, held.clone())))
            .collect();
        if new.is_empty() && runs.is_empty() {
            return false;
        }
        let i = rng.below(new.len() + runs.len());
        if let Some(((node, id), stored)) = new.get(i).cloned() {
            self.take(&node, id, stored);
            return true;
        }
        let (node, run, (id, create, stage)) = runs[i - new.len()].clone();
        match stage {
            Stage::Runs => {
                let ask = self.orders.get(&(node.clone(), id)).filter(|s| s.create == create);
                let asked = ask.is_none_or(|s| s.order.part.ask.is_some());
                let code = match rng.below(6) {
                    _ if asked => Code::KILLED,
                    0 if !always_ok => Code::EXIT_STATUS,
                    1 if !always_ok => Code::TIMED_OUT,
                    _ => Code::OK,
                };
                self.say(|| format!("{node}: {id} ends with {code:?}"));
                let outcome = Outcome::new(code, None, self.now);
                self.end(&node, run, outcome);
            }
            Stage::Ended(outcome) => self.tell(&node, run, id, create, &outcome),
        }
        true
    }

    /// An order that a worker does not know: it is marked as begun, then entered into the
    /// journal, then begun. Dies in between now and then.
    fn take(&mut self, node: &NodeId, id: PartId, Stored { order, create, .. }: Stored) {
        let run = order.run_id;
        let known = self.nodes[node].journal.contains(&run);
        if known || order.part.begun_at.is_some() {
            // An earlier life has marked it, and nothing of it is open here.
            let outcome = Outcome::new(Code::LOST, None, self.now);
            return self.tell(node, run, id, create, &outcome);
        }
        let task = &self.store.tasks[&id.task];
        let other = self.nodes.iter().filter(|(_, n)| !n.gone || !n.dead);
        let beside = other.flat_map(|(_, n)| n.runs.values()).any(|(part, create, stage)| {
            // What was taken back is ended as soon as its worker sees that.
            let held = self.orders.values().any(|s| s.create == *create);
            *part == id && held && matches!(stage, Stage::Runs)
        });
        assert!(!beside, "{id} begins while it runs");
        if task.revision != order.task_revision && task.value.control != Control::Active {
            let mut part = order.part.taken_back(Duration::ZERO, self.now);
            if task.value.control.revokes() {
                part.outcome = Some(Outcome::new(Code::CANCELLED, None, self.now));
                part.step(meepo_core::task::Event::Revoke, self.now);
            }
            self.say(|| format!("{node}: {id} is given back"));
            return self.write(id, part, OrderChange::Delete(node.clone()));
        }
        assert!(!task.value.control.revokes(), "{id} begins though its task is withdrawn");
        let deadline = self.now.checked_add(order.policy.ttr.0).ok();
        let part = Part { begun_at: Some(self.now), deadline, ..order.part.clone() };
        let order = Order { part: part.clone(), ..order };
        self.say(|| format!("{node}: {id} begins"));
        self.write(id, part, OrderChange::Put(node.clone(), Box::new(order)));
        if self.revision % 13 == 0 {
            self.say(|| format!("{node} dies before the journal has it"));
            return self.die(node);
        }
        let state = self.nodes.get_mut(node).unwrap();
        assert!(state.journal.insert(run), "{id} begins a second time as {run}");
        state.runs.insert(run, (id, create, Stage::Runs));
    }

    fn end(&mut self, node: &NodeId, run: RunId, outcome: Outcome) {
        if let Some((_, _, stage)) = self.nodes.get_mut(node).and_then(|n| n.runs.get_mut(&run)) {
            *stage = Stage::Ended(outcome);
        }
    }

    fn tell(&mut self, node: &NodeId, run: RunId, id: PartId, create: i64, outcome: &Outcome) {
        self.nodes.get_mut(node).unwrap().runs.remove(&run);
        let Some(stored) = self.orders.get(&(node.clone(), id)) else { return };
        if stored.create != create {
            return;
        }
        let Order { part, policy, .. } = stored.order.clone();
        let part = part.ended(id, &policy, outcome.clone(), self.now);
        self.say(|| format!("{node}: {id} is {} now", part.state));
        self.write(id, part, OrderChange::Delete(node.clone()));
    }

    fn die(&mut self, node: &NodeId) {
        let now = self.now;
        let state = self.nodes.get_mut(node).unwrap();
        state.dead = true;
        for (_, _, stage) in state.runs.values_mut() {
            if matches!(stage, Stage::Runs) {
                *stage = Stage::Ended(Outcome::new(Code::LOST, None, now));
            }
        }
    }

    /// A part is written, together with its order. Here is what must hold whoever does it.
    fn write(&mut self, id: PartId, part: Part, order: OrderChange) {
        let task = self.store.tasks[&id.task].value.clone();
        let old = self.store.parts.get(&id).map(|at| at.value.clone());
        let old = old.unwrap_or_else(|| Part::pending(&task, id.n));
        assert!(follows(old.state, part.state), "{id} from {} to {}", old.state, part.state);
        assert!(
            !old.state.is_final(),
            "{id} has ended as {} and becomes {}",
            old.state,
            part.state
        );
        assert!(part.attempt <= old.attempt + 1 && part.runs.len() <= 10, "{part:?}");
        assert_eq!(part.state == PartState::Reserved, part.deadline.is_some(), "{part:?}");
        let revision = self.revision();
        match order {
            OrderChange::None => {}
            OrderChange::Put(node, order) => {
                assert_eq!(order.part, part, "the order of {id} is of another part");
                let key = (node, id);
                let create = self.orders.get(&key).map_or(revision, |s| s.create);
                self.orders.insert(key, Stored { order: *order, create });
            }
            OrderChange::Delete(node) => {
                assert!(self.orders.remove(&(node, id)).is_some(), "{id} had no order");
            }
        }
        self.store.parts.insert(id, At { value: part, revision });
        self.check(id);
    }

    fn check(&self, id: PartId) {
        let part = &self.store.parts[&id].value;
        let orders: Vec<_> = self.orders.iter().filter(|((_, part), _)| *part == id).collect();
        if part.state != PartState::Reserved {
            assert!(orders.is_empty(), "{id} is {} and ordered: {orders:?}", part.state);
            return;
        }
        assert_eq!(orders.len(), 1, "{id} is reserved: {orders:?}");
        let ((node, _), stored) = orders[0];
        assert_eq!((Some(node), &stored.order.part), (part.node.as_ref(), part), "{id}");
        let held = self.orders.keys().filter(|(n, _)| n == node).count();
        assert!(held <= SLOTS as usize, "{node} has {held} parts");
        let task = &self.store.tasks[&id.task].value;
        if let Some(rollout) = &task.policy.rollout {
            let open = self.store.parts_of(id.task).filter(|(_, at)| {
                use PartState::{Delayed, Ready, Reserved};
                matches!(at.value.state, Delayed | Ready | Reserved) && at.value.failures == 0
            });
            // What was kicked comes on top of its batch.
            let batch =
                rollout.batch.map_or(usize::MAX, |b| b.of(task.parts.len() as u32) as usize);
            let kicked = self.kicked.contains(&id.task);
            assert!(kicked || open.count() <= batch, "more than a batch of {} is open", id.task);
        }
    }

    /// One thing happens.
    fn step(&mut self, rng: &mut Rng) {
        let m = rng.below(2);
        match rng.below(100) {
            0..=5 if self.store.tasks.len() < 4 => self.submit(rng),
            0..=15 => drop(self.plan(m)),
            16..=55 => self.perform(m),
            56..=80 => drop(self.work(rng, false)),
            81..=85 => self.act(rng),
            86..=88 => {
                // What the other had planned is void, but it may try.
                self.term = self.revision();
                self.masters[m] = Master { term: self.term, ..Master::default() };
                self.say(|| format!("master {m} leads now"));
            }
            89..=91 => {
                if let Some(node) = rng.pick(self.nodes.keys().cloned()) {
                    self.say(|| format!("{node} dies"));
                    self.die(&node);
                }
            }
            92..=94 => {
                if let Some(node) = rng.pick(self.nodes.keys().cloned()) {
                    let state = self.nodes.get_mut(&node).unwrap();
                    match state.dead {
                        true if rng.once_in(2) => state.gone = true,
                        _ => (state.dead, state.gone) = (false, false),
                    }
                }
            }
            _ => {
                let wait = SignedDuration::from_millis(rng.below(9_000) as i64);
                self.now += wait;
            }
        }
    }

    /// Somebody lets everything go on that was held, or stopped because of failures.
    fn resume(&mut self) {
        for id in self.store.tasks.keys().copied().collect::<Vec<_>>() {
            let task = self.store.tasks[&id].value.clone();
            let part = |n| self.store.parts.get(&PartId { task: id, n }).map(|at| &at.value);
            let pardoned = release::failures(&task, part);
            let control = match task.control {
                Control::Paused => Control::Active,
                other => other,
            };
            let value = Arc::new(Task { control, pardoned, ..(*task).clone() });
            let revision = self.revision();
            self.store.tasks.insert(id, At { value, revision });
        }
    }

    /// Everything is well from now on: every task must come to its end.
    fn settle(&mut self, rng: &mut Rng) -> u64 {
        let m = self.masters.iter().position(|m| m.term == self.term).unwrap();
        self.resume();
        let (mut steps, mut resumed) = (0, 0);
        while !self.store.tasks.is_empty() {
            steps += 1;
            assert!(steps < 10_000, "tasks that do not end: {:#?}", self.store);
            for node in self.nodes.values_mut() {
                (node.dead, node.gone) = (false, false);
            }
            let wake = self.plan(m);
            let idle = self.masters[m].queue.is_empty();
            while !self.masters[m].queue.is_empty() {
                self.perform(m);
            }
            if self.work(rng, true) || !idle || self.store.tasks.is_empty() {
                continue;
            }
            match wake {
                Some(wake) => self.now = self.now.max(wake),
                // What failed meanwhile may have stopped a roll-out once more.
                None => {
                    resumed += 1;
                    assert!(resumed < 50, "nothing is due: {:#?}", self.store);
                    self.resume();
                }
            }
        }
        steps
    }
}

/// Whether a part may be written as `to` when it stands as `from`: one event, or two that
/// are written at once.
fn follows(from: PartState, to: PartState) -> bool {
    let next = |from| TRANSITIONS.iter().filter(move |(f, ..)| *f == from).map(|(.., to)| *to);
    from == to || next(from).any(|between| between == to || next(between).any(|end| end == to))
}

#[test]
fn tasks_come_to_their_ends_whoever_dies() {
    simulate("tasks", 1_000_000, |rng, talk| {
        let mut world = World::new(talk);
        let steps = 200 + rng.below(400) as u64;
        (0..steps).for_each(|_| world.step(rng));
        steps + world.settle(rng)
    });
}
