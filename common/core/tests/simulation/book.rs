//! Notifications: a leader that never dies beside leaders that die between any two steps,
//! before or after what they decided was written. What they write must be the same.

use crate::{Rng, simulate};
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    id::{Name, NodeId},
    node::NodeInfo,
    notify::{Book, Channel, Happening, Item, JobNotify, Kind, Outcome, Rule, Surroundings, Tally},
    run::{RunRecord, RunState},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use uuid::Uuid;

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const JOBS: [&str; 4] = ["a", "b", "once", "own"];

fn name(of: &str) -> Name {
    Name::new(of).unwrap()
}

/// `once` runs once in the cluster, and `own` has its own field `notify`.
struct Fleet;

impl Surroundings for Fleet {
    fn node(&self, id: &NodeId) -> Option<NodeInfo> {
        let (online, drained) = (true, false);
        let (labels, facts) = (BTreeMap::new(), Default::default());
        Some(NodeInfo { id: id.clone(), online, drained, labels, facts })
    }

    fn notify_of(&self, job: &Name, _: Option<&NodeId>) -> Option<JobNotify> {
        let on = vec![Kind::Failure, Kind::Recovery];
        (job.as_str() == "own").then(|| JobNotify { on, to: vec![name("hook")] })
    }

    fn is_once(&self, job: &Name) -> bool {
        job.as_str() == "once"
    }
}

/// What stands in the store.
type Store = BTreeMap<Item, Vec<u8>>;

/// A leader and what it has written.
struct Leader {
    book: Book,
    store: Store,
}

/// A leader that has just begun: it reads what there is.
fn load(store: &Store) -> Book {
    let mut book = Book::default();
    for channel in [
        json!({"name": "hook", "webhook": {"url": "http://127.0.0.1:1/"}, "limit": "2/1m"}),
        json!({"name": "other", "webhook": {"url": "http://127.0.0.1:1/"}}),
    ] {
        let channel = Channel::from_user(channel).unwrap();
        book.set_channel(channel.name.clone(), Some(channel));
    }
    let kinds = ["failure", "recovery", "node_lost", "node_back", "no_success", "task_buried"];
    for rule in [
        json!({"name": "all", "on": kinds, "to": ["hook"], "group_wait": "5s", "repeat_after": "1m"}),
        json!({"name": "jobs", "on": ["failure", "missed"], "to": ["hook", "other"]}),
    ] {
        let rule = Rule::from_user(rule).unwrap();
        book.set_rule(rule.name.clone(), Some(rule));
    }
    for (item, value) in store {
        book.load(item.clone(), value).unwrap();
    }
    book
}

/// What a step is made from: it is still there for the next leader when one dies.
enum Step {
    Tally(NodeId, Name, Box<Tally>),
    Lost(Box<Happening>),
    Node(NodeId, bool),
    Buried(bool),
    Watch(BTreeMap<(Name, Option<NodeId>), Duration>),
    Due,
    Tried(usize, Result<(), (String, bool)>),
}

fn take(book: &mut Book, step: &Step, now: Timestamp) {
    match step {
        Step::Tally(node, job, tally) => book.tally(node, job, tally, &Fleet, now),
        Step::Lost(what) => book.lost((**what).clone(), &Fleet, now),
        Step::Node(node, there) => book.node(node, *there, &Fleet, now),
        Step::Buried(is) => book.buried("t", *is, &Fleet, now),
        Step::Watch(jobs) => book.watch(jobs, now),
        Step::Due => book.due(&Fleet, now),
        Step::Tried(n, outcome) => {
            let (ready, _) = book.sendable(&BTreeSet::new(), now);
            if let Some(message) = ready.get(*n) {
                book.tried(&message.id, outcome.clone(), now);
            }
        }
    }
}

fn write(leader: &mut Leader) {
    for change in leader.book.changes() {
        match change.value {
            Some(value) => drop(leader.store.insert(change.item, value)),
            None => drop(leader.store.remove(&change.item)),
        }
    }
}

fn run(rng: &mut Rng, job: &str, node: &str, state: RunState, at: Timestamp) -> RunRecord {
    let json = json!({
        "run_id": Uuid::from_u128(u128::from(rng.next())), "job": job, "node": node, "slot": at,
        "attempt": 1, "cause": "schedule", "executor": "bash", "cmd": "x", "state": state,
        "code": 0, "ended_at": at,
    });
    serde_json::from_value(json).unwrap()
}

fn step(rng: &mut Rng, tallies: &mut BTreeMap<(usize, usize), Tally>, now: Timestamp) -> Step {
    let (n, j) = (rng.below(NODES.len()), rng.below(JOBS.len()));
    let (node, job) = (name(NODES[n]), name(JOBS[j]));
    match rng.below(12) {
        0..=3 => {
            let epoch = Uuid::from_u128(rng.next().into());
            let tally = tallies.entry((n, j)).or_insert_with(|| Tally::new(epoch));
            // Workers gather what happens while nobody leads.
            for _ in 0..=rng.below(3) {
                let state = [RunState::Success, RunState::Failed, RunState::Missed][rng.below(3)];
                let record = run(rng, JOBS[j], NODES[n], state, now);
                if let Some(outcome) = Outcome::of(&record, true, true, None) {
                    tally.note(&outcome);
                }
            }
            Step::Tally(node, job, Box::new(tally.clone()))
        }
        4 => {
            let record = run(rng, JOBS[j], NODES[n], RunState::Lost, now);
            Step::Lost(Box::new(Happening {
                job: record.job,
                node: Some(record.node),
                run_id: Some(record.run_id),
                ..Happening::new(Kind::Failure, now)
            }))
        }
        5..=6 => Step::Node(node, rng.once_in(2)),
        7 => Step::Buried(rng.once_in(2)),
        8 => {
            let jobs = (0..rng.below(3)).map(|n| ((name(JOBS[n]), None), Duration::from_secs(60)));
            Step::Watch(jobs.collect())
        }
        9..=10 => Step::Due,
        _ => {
            let outcome = match rng.below(3) {
                0 => Ok(()),
                n => Err(("no".to_owned(), n == 1)),
            };
            Step::Tried(rng.below(3), outcome)
        }
    }
}

fn history(rng: &mut Rng, talk: bool) -> u64 {
    let mut now = Timestamp::from_second(1_800_000_000).unwrap();
    let mut tallies = BTreeMap::new();
    let mut steady = Leader { book: load(&Store::new()), store: Store::new() };
    let mut mortal = Leader { book: load(&Store::new()), store: Store::new() };
    let steps = 100 + rng.below(200) as u64;
    for n in 0..steps {
        now += SignedDuration::from_millis(rng.below(20_000) as i64);
        let step = step(rng, &mut tallies, now);
        take(&mut steady.book, &step, now);
        write(&mut steady);
        take(&mut mortal.book, &step, now);
        if rng.once_in(8) {
            // Dies before that is written: the next leader takes the same in.
            mortal.book = load(&mortal.store);
            take(&mut mortal.book, &step, now);
        }
        write(&mut mortal);
        if rng.once_in(8) {
            mortal.book = load(&mortal.store);
        }
        if talk {
            println!("{now}: step {n}, {} keys", steady.store.len());
        }
        for (item, value) in steady.store.iter().filter(|(i, v)| mortal.store.get(*i) != Some(*v)) {
            let text = |v: &Vec<u8>| String::from_utf8_lossy(v).into_owned();
            let there = mortal.store.get(item).map(text);
            assert_eq!(there, Some(text(value)), "{item:?} after step {n}");
        }
        assert_eq!(steady.store.len(), mortal.store.len(), "after step {n}");
        assert_eq!(steady.book.next_due(), mortal.book.next_due(), "after step {n}");
        assert!(steady.store.len() < 600, "what is remembered grows without bound");
    }
    steps
}

#[test]
fn what_is_told_does_not_depend_on_who_leads() {
    simulate("notifications", 10_000, history);
}
