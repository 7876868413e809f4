//! Lives of parts, from the request to the end.

mod repeats;
mod requests;
mod rollouts;
mod verbs;

use super::{
    dispatch::{Effect, Fleet, MOST, OVERDUE, OrderChange, Plan, Tasks, Worker, plan, slots},
    end::MAX_LOSSES,
    record::{Control, Outcome, Part, Task},
    request::{MAX_PARTS, TaskRequest},
    state::PartState as S,
    verb::{Done, Verb},
    *,
};
use crate::{
    code::Code,
    id::{Name, NodeId},
    node::{DRAINED, DRAINING, Facts, Health, NodeInfo, ONLINE},
    placement::At,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

fn node(id: &str) -> NodeId {
    Name::new(id).unwrap()
}

fn info(id: &str, group: &str) -> NodeInfo {
    NodeInfo {
        labels: [("group".to_owned(), group.to_owned())].into(),
        ..NodeInfo {
            id: node(id),
            online: true,
            drained: false,
            labels: BTreeMap::new(),
            facts: Facts::default(),
        }
    }
}

fn t(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn id(n: u128) -> TaskId {
    TaskId(uuid::Uuid::from_u128(n))
}

fn three() -> BTreeMap<NodeId, NodeInfo> {
    [("a", "web"), ("b", "web"), ("c", "db")].map(|(n, g)| (node(n), info(n, g))).into()
}

/// What a leader sees and does, with everything it writes taken over at once.
struct Rig {
    tasks: Tasks,
    fleet: Fleet,
    revision: i64,
    finished: Vec<TaskId>,
    now: i64,
}

impl Rig {
    fn new(slots: u32) -> Self {
        let workers = three()
            .into_values()
            .map(|node| (node.id.clone(), Worker { node, slots, load: 0.0 }))
            .collect();
        let fleet = Fleet { workers, gone: BTreeSet::new() };
        Self { tasks: Tasks::default(), fleet, revision: 0, finished: Vec::new(), now: 0 }
    }

    fn put(&mut self, n: u128, request: Value) -> TaskId {
        let request = TaskRequest::from_user(request).unwrap();
        self.add(request.task(id(n), &three(), t(self.now)).unwrap())
    }

    fn add(&mut self, task: Task) -> TaskId {
        self.revision += 1;
        let id = task.id;
        self.tasks.tasks.insert(id, At { value: Arc::new(task), revision: self.revision });
        id
    }

    fn control(&mut self, id: TaskId, control: Control) {
        let task = self.tasks.tasks[&id].value.clone();
        self.add(Task { control, ..(*task).clone() });
    }

    /// Plans at `now` seconds and performs; answers who was given what.
    fn at(&mut self, now: i64) -> Vec<(String, NodeId)> {
        self.now = now;
        let mut given = Vec::new();
        let Plan { effects, finished, .. } = plan(&self.tasks, &self.fleet, t(now));
        for Effect { id, expect, part, order, .. } in effects {
            assert_eq!(expect, self.tasks.parts.get(&id).map_or(0, |p| p.revision));
            if let OrderChange::Put(node, order) = &order {
                assert_eq!(order.part, *part);
                if part.ask.is_none() {
                    given.push((id.n.to_string(), node.clone()));
                }
            }
            self.set(id, *part);
        }
        for (id, _) in finished {
            self.finished.push(id);
            self.tasks.tasks.remove(&id);
            self.tasks.parts.retain(|p, _| p.task != id);
        }
        given
    }

    fn set(&mut self, id: PartId, part: Part) {
        self.revision += 1;
        self.tasks.parts.insert(id, At { value: part, revision: self.revision });
    }

    fn part(&self, task: TaskId, n: u32) -> Part {
        self.tasks.parts[&PartId { task, n }].value.clone()
    }

    fn states(&self, task: TaskId) -> Vec<S> {
        self.tasks.parts_of(task).map(|(_, p)| p.value.state).collect()
    }

    /// The worker that has part `n` begins it.
    fn begins(&mut self, task: TaskId, n: u32) {
        let part = Part { begun_at: Some(t(self.now)), ..self.part(task, n) };
        assert_eq!(part.state, S::Reserved);
        self.set(PartId { task, n }, part);
    }

    /// … and ends it.
    fn ends(&mut self, task: TaskId, n: u32, code: Code) {
        let policy = self.tasks.tasks[&task].value.policy.clone();
        let (id, now) = (PartId { task, n }, t(self.now));
        let part = self.part(task, n).ended(id, &policy, Outcome::new(code, None, now), now);
        self.set(id, part);
    }

    fn act(&mut self, task: TaskId, n: u32, verb: Verb) -> Result<S, String> {
        let value = self.tasks.tasks[&task].value.clone();
        match self.part(task, n).act(verb, Duration::ZERO, &value, t(self.now)) {
            Done::Changed(part) | Done::Asked(part) => {
                let state = part.state;
                self.set(PartId { task, n }, *part);
                Ok(state)
            }
            Done::Refused(why) => Err(why),
        }
    }
}

fn names(given: &[(String, NodeId)]) -> Vec<&str> {
    given.iter().map(|(_, node)| node.as_str()).collect()
}

#[test]
fn a_task_for_nodes_has_a_part_on_each_and_ends_with_the_last() {
    let mut rig = Rig::new(4);
    let task = rig.put(1, json!({"target": "group=web", "cmd": "true"}));
    assert_eq!(names(&rig.at(0)), ["a", "b"]);
    assert_eq!(rig.states(task), [S::Reserved; 2]);
    assert!(rig.at(1).is_empty(), "nothing is given twice");
    rig.begins(task, 1);
    rig.ends(task, 1, Code::OK);
    assert!(rig.at(2).is_empty() && rig.finished.is_empty());
    rig.ends(task, 2, Code::EXIT_STATUS);
    assert_eq!(rig.states(task), [S::Success, S::Failed]);
    let parts = |id: PartId| rig.tasks.parts.get(&id).map(|p| &p.value);
    let view = TaskView::new(&rig.tasks.tasks[&task].value, parts);
    assert_eq!((view.state, view.counts.success, view.counts.failed), (TaskState::Failed, 1, 1));
    assert_eq!(view.parts[1].outcome.as_ref().unwrap().code, Code::EXIT_STATUS);
    rig.at(3);
    assert_eq!(rig.finished, [task]);
}

#[test]
fn slots_bound_what_a_worker_has_and_priority_decides_who_is_next() {
    let mut rig = Rig::new(1);
    let late = rig.put(1, json!({"hosts": ["a"], "cmd": "true"}));
    let first = rig.put(2, json!({"hosts": ["a"], "cmd": "true", "priority": 5}));
    assert_eq!(rig.at(0).len(), 1);
    assert_eq!((rig.states(first), rig.states(late)), (vec![S::Reserved], vec![S::Ready]));
    rig.ends(first, 1, Code::OK);
    assert_eq!(names(&rig.at(1)), ["a"]);
    assert_eq!(rig.states(late), [S::Reserved]);
}

#[test]
fn the_most_idle_suitable_worker_gets_the_next_of_a_queue() {
    let mut rig = Rig::new(2);
    rig.fleet.workers.get_mut(&node("a")).unwrap().load = 9.0;
    let items: Vec<_> = (0..5).map(|n| json!({"cmd": format!("echo {n}")})).collect();
    let task = rig.put(1, json!({"queue": "q", "target": "group=web", "commands": items}));
    // `b` does less; then they take turns until both are full.
    assert_eq!(names(&rig.at(0)), ["b", "a", "b", "a"]);
    assert_eq!(rig.states(task)[4], S::Ready);
    rig.ends(task, 2, Code::OK);
    assert_eq!(rig.at(1), [("5".to_owned(), node("a"))]);
    // Nobody who is drained or away gets anything.
    rig.fleet.workers.get_mut(&node("a")).unwrap().node.drained = true;
    rig.fleet.workers.get_mut(&node("b")).unwrap().node.online = false;
    rig.ends(task, 1, Code::OK);
    rig.ends(task, 5, Code::OK);
    let more = rig.put(2, json!({"queue": "q", "target": "group=web", "cmd": "x"}));
    assert!(rig.at(2).is_empty());
    assert_eq!(rig.states(more), [S::Ready]);
}

#[test]
fn a_delay_a_time_and_a_time_to_live() {
    let mut rig = Rig::new(1);
    let task = rig.put(1, json!({"hosts": ["a"], "cmd": "x", "delay": "10s", "ttl": "5s"}));
    assert!(rig.at(0).is_empty());
    assert_eq!(plan(&rig.tasks, &rig.fleet, t(1)).wake, Some(t(10)));
    let other = rig.put(2, json!({"hosts": ["a"], "cmd": "x"}));
    rig.at(2);
    assert_eq!(rig.states(other), [S::Reserved]);
    rig.at(10);
    assert_eq!(rig.states(task), [S::Ready], "its node has no slot free");
    assert_eq!(plan(&rig.tasks, &rig.fleet, t(11)).wake, Some(t(15)));
    rig.at(15);
    let part = rig.part(task, 1);
    assert_eq!((part.state, part.outcome.unwrap().code), (S::Revoked, Code::EXPIRED));
    let at = rig.put(3, json!({"hosts": ["b"], "cmd": "x", "at": t(20).to_string()}));
    assert!(rig.at(19).is_empty());
    assert_eq!(rig.states(at), [S::Delayed]);
    assert_eq!(names(&rig.at(20)), ["b"]);
}

#[test]
fn what_fails_is_tried_again_later_and_buried_at_last_until_it_is_kicked() {
    let mut rig = Rig::new(1);
    let retry = json!({"max": 2, "delay": "2s"});
    let task = rig.put(1, json!({"hosts": ["a"], "cmd": "false", "retry": retry}));
    for (now, next) in [(0, 2), (2, 6)] {
        assert_eq!(rig.at(now).len(), 1);
        rig.ends(task, 1, Code::EXIT_STATUS);
        let part = rig.part(task, 1);
        assert_eq!((part.state, part.ready_at), (S::Delayed, Some(t(next))));
        assert!(rig.at(next - 1).is_empty());
    }
    assert_eq!(rig.at(6).len(), 1);
    rig.ends(task, 1, Code::EXIT_STATUS);
    assert_eq!(rig.states(task), [S::Buried]);
    assert!(rig.at(100).is_empty() && rig.finished.is_empty());
    assert_eq!(rig.act(task, 1, Verb::Kick), Ok(S::Ready));
    assert_eq!(rig.at(101).len(), 1);
    let part = rig.part(task, 1);
    assert_eq!((part.attempt, part.failures, part.runs.len()), (4, 0, 4));
    rig.ends(task, 1, Code::OK);
    rig.at(102);
    assert_eq!(rig.finished, [task]);
}

#[test]
fn what_a_worker_died_with_is_given_to_another_but_not_for_ever() {
    let mut rig = Rig::new(1);
    let task = rig.put(1, json!({"queue": "q", "cmd": "x"}));
    assert_eq!(names(&rig.at(0)), ["a"]);
    rig.begins(task, 1);
    rig.fleet.workers.remove(&node("a"));
    assert!(rig.at(1).is_empty(), "it may come back");
    rig.fleet.gone.insert(node("a"));
    rig.at(2);
    let part = rig.part(task, 1);
    assert_eq!((part.state, part.losses, part.ready_at), (S::Delayed, 1, Some(t(3))));
    assert_eq!(names(&rig.at(3)), ["b"]);
    for n in 2..=MAX_LOSSES {
        rig.ends(task, 1, Code::LOST);
        assert_eq!(rig.part(task, 1).losses, n);
        rig.at(rig.now + 100);
    }
    assert_eq!(rig.states(task), [S::Buried]);
    // One that was not begun was no attempt.
    let other = rig.put(2, json!({"queue": "q", "cmd": "x"}));
    let given = rig.at(1000);
    rig.fleet.gone.insert(given[0].1.clone());
    rig.fleet.workers.remove(&given[0].1);
    assert_eq!(rig.at(1001), []);
    assert_eq!((rig.part(other, 1).attempt, rig.part(other, 1).losses), (0, 0));
    assert_eq!(rig.at(1002).len(), 1);
}

#[test]
fn a_part_for_one_node_waits_for_it_until_its_time_to_run_is_over() {
    let mut rig = Rig::new(1);
    let task = rig.put(1, json!({"hosts": ["a"], "cmd": "x", "ttr": "60s"}));
    rig.at(0);
    rig.begins(task, 1);
    rig.fleet.workers.remove(&node("a"));
    rig.fleet.gone.insert(node("a"));
    rig.at(59);
    assert_eq!(rig.states(task), [S::Reserved]);
    // Three seconds for the signals.
    let overdue = 60 + 3 + OVERDUE.as_secs();
    assert_eq!(plan(&rig.tasks, &rig.fleet, t(61)).wake, Some(t(overdue)));
    rig.at(overdue);
    assert_eq!(rig.states(task), [S::Delayed]);
    assert!(rig.at(overdue + 10).is_empty(), "its node is away");
    assert_eq!(rig.states(task), [S::Ready]);
}

#[test]
fn what_a_lost_worker_has_not_begun_is_taken_back_at_once() {
    let mut rig = Rig::new(1);
    let task = rig.put(1, json!({"hosts": ["a"], "cmd": "x", "ttl": "60s"}));
    rig.at(0);
    rig.fleet.workers.remove(&node("a"));
    rig.fleet.gone.insert(node("a"));
    assert!(rig.at(20).is_empty());
    assert_eq!(rig.states(task), [S::Ready], "it may be withdrawn, or drop out by itself");
    assert_eq!((rig.part(task, 1).attempt, rig.part(task, 1).losses), (0, 0));
    rig.at(61);
    assert_eq!(rig.states(task), [S::Revoked]);
}

#[test]
fn a_plan_is_bounded_and_goes_on() {
    let mut rig = Rig::new(1);
    let commands: Vec<_> = (0..MOST + 10).map(|_| json!({"cmd": "x"})).collect();
    let task = rig.put(1, json!({"queue": "q", "commands": commands}));
    let first = plan(&rig.tasks, &rig.fleet, t(0));
    assert_eq!((first.effects.len(), first.wake), (MOST, Some(t(0))));
    rig.at(0);
    rig.at(0);
    assert_eq!(rig.states(task).len(), MOST + 10);
}

#[test]
fn a_worker_has_as_long_to_end_a_part_as_its_kill_plan_takes() {
    let mut rig = Rig::new(1);
    let request = json!({"queue": "q", "cmd": "x", "ttr": "60s", "kill_plan": ["TERM 90s"]});
    let task = rig.put(1, request);
    rig.at(0);
    rig.begins(task, 1);
    let overdue = 60 + 90 + OVERDUE.as_secs();
    assert_eq!(plan(&rig.tasks, &rig.fleet, t(61)).wake, Some(t(overdue)));
    rig.at(overdue - 1);
    assert_eq!(rig.states(task), [S::Reserved]);
    rig.at(overdue);
    assert_eq!(rig.states(task), [S::Delayed]);
}

#[test]
fn tasks_that_wait_for_the_log_store_are_in_nobodys_way() {
    let mut rig = Rig::new(1);
    let over = MOST as u128 + 10;
    for n in 0..over {
        let task = rig.put(n, json!({"queue": "q", "cmd": "x"}));
        let value = rig.tasks.tasks[&task].value.clone();
        let part = Part { state: S::Success, ..Part::pending(&value, 1) };
        rig.set(PartId { task, n: 1 }, part);
    }
    let idle = plan(&rig.tasks, &rig.fleet, t(0));
    assert_eq!((idle.finished.len() as u128, idle.effects.len(), idle.wake), (over, 0, None));
    // Later ones are given away and cancelled meanwhile.
    let task = rig.put(over, json!({"hosts": ["a"], "cmd": "x"}));
    let late = rig.put(over + 1, json!({"hosts": ["a"], "cmd": "x"}));
    rig.control(late, Control::Cancelled);
    let plan = plan(&rig.tasks, &rig.fleet, t(0));
    let written: Vec<_> = plan.effects.iter().map(|e| (e.id.task, e.part.state)).collect();
    assert_eq!(written, [(task, S::Reserved), (late, S::Revoked)]);
}

#[test]
fn a_worker_that_takes_nothing_new_has_no_slots() {
    let health = |status: &str| -> Health {
        serde_json::from_value(json!({"status": status, "version": "1", "task_slots": 4})).unwrap()
    };
    assert_eq!(slots(&health(ONLINE)), 4);
    for status in [DRAINING, DRAINED, "Ending"] {
        assert_eq!(slots(&health(status)), 0, "{status}");
    }
    let mut rig = Rig::new(1);
    let task = rig.put(1, json!({"queue": "q", "cmd": "x"}));
    rig.fleet.workers.values_mut().for_each(|w| w.slots = slots(&health(DRAINING)));
    assert!(rig.at(0).is_empty());
    assert_eq!(rig.states(task), [S::Ready]);
}
