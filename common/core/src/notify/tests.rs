use super::{
    book::{Book, Item, Surroundings},
    channel::Channel,
    group::{Digest, MAX_GROUPS, MAX_LISTED},
    happening::{Happening, Kind},
    incident::{Incident, Stage, TRANSITIONS, Told, Turn, turn},
    message::{Delivery, MAX_RECENT},
    rule::{JobNotify, Rule},
    tally::{Outcome, Tally, tail_of},
};
use crate::{
    id::{Name, NodeId, RunId},
    job::JobSpec,
    node::NodeInfo,
    run::{RunRecord, RunState},
};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use uuid::Uuid;

fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// Nodes all alike; jobs whose names begin with `once` run once, and `own` tells `hook`.
struct Fleet;

impl Surroundings for Fleet {
    fn node(&self, id: &NodeId) -> Option<NodeInfo> {
        let labels = BTreeMap::from([("group".to_owned(), "web".to_owned())]);
        let (online, drained) = (true, false);
        Some(NodeInfo { id: id.clone(), online, drained, labels, facts: Default::default() })
    }

    fn notify_of(&self, job: &Name, _: Option<&NodeId>) -> Option<JobNotify> {
        let on = vec![Kind::Failure, Kind::Recovery];
        (job.as_str() == "own").then(|| JobNotify { on, to: vec![name("hook")] })
    }

    fn is_once(&self, job: &Name) -> bool {
        job.as_str().starts_with("once")
    }
}

fn run(job: &str, n: u128, state: RunState, ended: Timestamp) -> RunRecord {
    let json = json!({
        "run_id": Uuid::from_u128(n), "job": job, "node": "n1", "slot": ended, "attempt": 1,
        "cause": "schedule", "executor": "bash", "cmd": "x", "state": state, "code": 0,
        "ended_at": ended,
    });
    serde_json::from_value(json).unwrap()
}

fn outcome(job: &str, n: u128, state: RunState, ended: Timestamp) -> Outcome {
    Outcome::of(&run(job, n, state, ended), true, false, None).unwrap()
}

fn book(rules: &[serde_json::Value], limit: &str) -> Book {
    let mut book = Book::default();
    let hook = json!({"name": "hook", "webhook": {"url": "http://127.0.0.1:1/"}, "limit": limit});
    book.set_channel(name("hook"), Some(Channel::from_user(hook).unwrap()));
    for rule in rules {
        let rule = Rule::from_user(rule.clone()).unwrap();
        book.set_rule(rule.name.clone(), Some(rule));
    }
    book
}

/// Sends everything that can be sent now and answers it.
fn sent(book: &mut Book, now: Timestamp) -> Vec<super::Message> {
    book.due(&Fleet, now);
    let mut all = Vec::new();
    loop {
        let (ready, _) = book.sendable(&BTreeSet::new(), now);
        if ready.is_empty() {
            return all;
        }
        for message in ready {
            book.tried(&message.id, Ok(()), now);
            all.push(message);
        }
    }
}

fn kinds(messages: &[super::Message]) -> BTreeMap<Kind, u64> {
    let mut all = BTreeMap::new();
    for (kind, n) in messages.iter().flat_map(|m| &m.digest.kinds) {
        *all.entry(*kind).or_default() += n;
    }
    all
}

#[test]
fn kinds_are_named_as_they_are_written() {
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        assert_eq!(kind.as_str().parse::<Kind>().unwrap(), kind);
    }
}

#[test]
fn every_turn_of_an_incident_is_that_of_the_table() {
    let repeat = Duration::from_secs(100);
    let stages = [Stage::Clear, Stage::Told, Stage::Due];
    let turns = [Turn::Bad, Turn::Good, Turn::Tick, Turn::Gone];
    assert_eq!(TRANSITIONS.len(), stages.len() * turns.len());
    for stage in stages {
        for then in turns {
            let rows: Vec<_> =
                TRANSITIONS.iter().filter(|(s, t, _, _)| (*s, *t) == (stage, then)).collect();
            let [(_, _, open, told)] = rows[..] else { panic!("{stage:?} {then:?}: {rows:?}") };
            let incident = Incident { since: at(0), told_at: at(10), again: None, untold: 3 };
            let (there, now) = match stage {
                Stage::Clear => (None, at(50)),
                Stage::Told => (Some(&incident), at(50)),
                Stage::Due => (Some(&incident), at(110)),
            };
            let (next, said, times) = turn(there, then, 2, repeat, now);
            assert_eq!((next.is_some(), said), (*open, *told), "{stage:?} {then:?}");
            if let Some(next) = next {
                assert_eq!(next.since, there.map_or(now, |i| i.since));
                assert_eq!(next.again, Some(next.told_at + repeat));
                let told_at = if said == Told::Now { now } else { at(10) };
                assert_eq!(next.told_at, told_at, "{stage:?} {then:?}");
                let untold = match (said, then) {
                    (Told::Now, _) => 0,
                    (Told::Counted, _) => 5,
                    _ => 3,
                };
                assert_eq!(next.untold, untold, "{stage:?} {then:?}");
            }
            if (stage, then) == (Stage::Due, Turn::Bad) {
                assert_eq!(times, 5);
            }
        }
    }
}

#[test]
fn a_tally_tells_what_was_not_seen_and_counts_what_it_keeps_no_longer() {
    let mut tally = Tally::new(Uuid::from_u128(1));
    assert!(!tally.note(&outcome("j", 1, RunState::Success, at(0))), "nobody waits for it");
    for n in 1..=10 {
        assert!(tally.note(&outcome("j", n, RunState::Failed, at(n as i64))));
    }
    let new = tally.since(None);
    assert_eq!(new.iter().map(|n| n.what.times).collect::<Vec<_>>(), [9, 1]);
    let seen = tally.cursor();
    assert!(tally.since(Some(&seen)).is_empty());
    assert!(tally.note(&outcome("j", 11, RunState::Success, at(11))));
    assert!(tally.note(&outcome("j", 12, RunState::Missed, at(12))));
    assert!(tally.note(&outcome("j", 13, RunState::Success, at(13))), "slots were missed");
    assert!(!tally.note(&outcome("j", 14, RunState::Success, at(14))));
    let new: Vec<Kind> = tally.since(Some(&seen)).iter().map(|n| n.what.kind).collect();
    assert_eq!(new, [Kind::Missed, Kind::Recovery]);
    // The worker has lost what it knew: it counts anew.
    let mut other = Tally::new(Uuid::from_u128(2));
    other.note(&outcome("j", 15, RunState::Failed, at(15)));
    assert_eq!(other.since(Some(&tally.cursor())).len(), 1);
    // However much has happened.
    for n in 0..1000 {
        let state = [RunState::Failed, RunState::Missed, RunState::Timeout][n as usize % 3];
        let outcome =
            Outcome::of(&run("j", n, state, at(20)), n % 2 == 0, false, Some("x".repeat(1024)));
        tally.note(&outcome.unwrap());
    }
    let size = serde_json::to_string(&tally).unwrap().len();
    assert!(size < 6000, "{size}");
}

#[test]
fn the_end_of_an_output_is_a_few_lines_of_text() {
    assert_eq!(tail_of(b""), None);
    assert_eq!(tail_of(b"one\ntwo\n\n").as_deref(), Some("one\ntwo"));
    let many: Vec<u8> = (0..1000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    let tail = tail_of(&many).unwrap();
    assert!(tail.ends_with("line 999") && tail.lines().count() == 15, "{tail}");
    let binary = tail_of(&[0xff; 5000]).unwrap();
    assert!(binary.len() <= super::MAX_TAIL);
}

#[test]
fn a_failure_is_told_once_then_counted_and_its_end_is_told() {
    let mut book = book(&[json!({"name": "all", "to": ["hook"]})], "100/1h");
    let (n1, job) = (name("n1"), name("backup"));
    let mut tally = Tally::new(Uuid::from_u128(1));
    for n in 1..=5 {
        tally.note(&outcome("backup", n, RunState::Failed, at(n as i64)));
        book.tally(&n1, &job, &tally, &Fleet, at(n as i64));
    }
    assert_eq!(sent(&mut book, at(1)), [], "it waits for others");
    let first = sent(&mut book, at(7));
    assert_eq!(kinds(&first), BTreeMap::from([(Kind::Failure, 1)]));
    assert_eq!(first[0].digest.events[0].run_id, Some(RunId(Uuid::from_u128(1))));
    // Four hours later the next one reminds, and says how often.
    let later = 4 * 3600 + 10;
    tally.note(&outcome("backup", 6, RunState::Failed, at(later)));
    book.tally(&n1, &job, &tally, &Fleet, at(later));
    let again = sent(&mut book, at(later + 5));
    assert_eq!(kinds(&again), BTreeMap::from([(Kind::Failure, 5)]));
    tally.note(&outcome("backup", 7, RunState::Success, at(later + 10)));
    book.tally(&n1, &job, &tally, &Fleet, at(later + 10));
    let well = sent(&mut book, at(later + 20));
    assert_eq!(kinds(&well), BTreeMap::from([(Kind::Recovery, 1)]));
    assert_eq!(well[0].title(), "meepo: job backup on n1 is well again");
    // The same tally again, as after a full comparison, says nothing.
    book.tally(&n1, &job, &tally, &Fleet, at(later + 30));
    assert_eq!(sent(&mut book, at(later + 60)), []);
}

#[test]
fn a_job_that_runs_once_is_well_again_wherever_it_succeeds() {
    let mut book = book(&[json!({"name": "all", "to": ["hook"]})], "100/1h");
    let job = name("once-a-day");
    let (mut first, mut second) = (Tally::new(Uuid::from_u128(1)), Tally::new(Uuid::from_u128(2)));
    first.note(&outcome("once-a-day", 1, RunState::Failed, at(1)));
    book.tally(&name("n1"), &job, &first, &Fleet, at(1));
    let success = Outcome::of(&run("once-a-day", 2, RunState::Success, at(60)), true, true, None);
    second.note(&success.unwrap());
    book.tally(&name("n2"), &job, &second, &Fleet, at(60));
    let told = kinds(&sent(&mut book, at(70)));
    assert_eq!(told, BTreeMap::from([(Kind::Failure, 1), (Kind::Recovery, 1)]));
    // A failure that n1 could tell of only now: since then it went well.
    first.note(&outcome("once-a-day", 3, RunState::Failed, at(50)));
    book.tally(&name("n1"), &job, &first, &Fleet, at(80));
    let told = kinds(&sent(&mut book, at(90)));
    assert_eq!(told, BTreeMap::from([(Kind::Failure, 1), (Kind::Recovery, 1)]));
}

#[test]
fn rules_choose_by_name_node_kind_and_state() {
    let rules = [
        json!({"name": "names", "jobs": ["back*"], "to": ["hook"], "group_by": "kind"}),
        json!({"name": "nodes", "target": "group=web", "on": ["node_lost"], "to": ["hook"]}),
        json!({"name": "killed", "states": ["killed"], "on": ["failure"], "to": ["hook"]}),
        json!({"name": "off", "disabled": true, "to": ["hook"]}),
    ];
    let mut book = book(&rules, "100/1h");
    let told = |book: &mut Book, job: &str, state| -> Vec<Option<String>> {
        let mut tally = Tally::new(Uuid::now_v7());
        tally.note(&outcome(job, 1, state, at(0)));
        book.tally(&name("n1"), &name(job), &tally, &Fleet, at(0));
        sent(book, at(100)).into_iter().map(|m| m.rule).collect()
    };
    let some = |s: &str| Some(s.to_owned());
    assert_eq!(told(&mut book, "backup", RunState::Failed), [some("names")]);
    assert_eq!(told(&mut book, "other", RunState::Failed), []);
    assert_eq!(told(&mut book, "other", RunState::Killed), [some("killed")]);
    assert_eq!(told(&mut book, "own", RunState::Failed), [some("job:own")]);
    book.node(&name("n1"), false, &Fleet, at(200));
    book.node(&name("n1"), false, &Fleet, at(201));
    let lost = sent(&mut book, at(210));
    assert_eq!((lost.len(), &lost[0].rule), (1, &some("nodes")));
    // Nobody asked for its return.
    book.node(&name("n1"), true, &Fleet, at(220));
    assert_eq!(sent(&mut book, at(300)), []);
}

#[test]
fn a_lost_run_that_its_node_tells_of_later_is_told_once() {
    let mut book = book(&[json!({"name": "all", "to": ["hook"]})], "100/1h");
    let lost = Happening {
        job: Some(name("j")),
        node: Some(name("n1")),
        run_id: Some(RunId(Uuid::from_u128(7))),
        ..Happening::new(Kind::Failure, at(0))
    };
    book.lost(lost.clone(), &Fleet, at(0));
    book.lost(lost, &Fleet, at(1));
    let mut tally = Tally::new(Uuid::from_u128(1));
    tally.note(&outcome("j", 7, RunState::Lost, at(0)));
    book.tally(&name("n1"), &name("j"), &tally, &Fleet, at(2));
    assert_eq!(kinds(&sent(&mut book, at(100))), BTreeMap::from([(Kind::Failure, 1)]));
}

#[test]
fn silence_is_told_when_it_is_too_long_and_when_it_ends() {
    let mut book = book(&[json!({"name": "all", "to": ["hook"], "repeat_after": "1h"})], "100/1h");
    let watched = BTreeMap::from([((name("j"), Some(name("n1"))), Duration::from_secs(60))]);
    book.watch(&watched, at(0));
    book.watch(&watched, at(30));
    assert_eq!(book.next_due(), Some(at(60)));
    assert_eq!(sent(&mut book, at(59)), []);
    sent(&mut book, at(60));
    let told = sent(&mut book, at(70));
    assert_eq!(kinds(&told), BTreeMap::from([(Kind::NoSuccess, 1)]));
    assert!(told[0].digest.events[0].message.as_ref().unwrap().contains("there was none"));
    assert_eq!(sent(&mut book, at(3000)), []);
    sent(&mut book, at(3660));
    assert_eq!(sent(&mut book, at(3670)).len(), 1, "it is still so");
    let mut tally = Tally::new(Uuid::from_u128(1));
    let success = Outcome::of(&run("j", 1, RunState::Success, at(4000)), true, true, None);
    tally.note(&success.unwrap());
    book.tally(&name("n1"), &name("j"), &tally, &Fleet, at(4000));
    let told = sent(&mut book, at(4010));
    assert_eq!(kinds(&told), BTreeMap::from([(Kind::Recovery, 1)]));
    sent(&mut book, at(4060));
    let told = sent(&mut book, at(4070));
    assert_eq!(kinds(&told), BTreeMap::from([(Kind::NoSuccess, 1)]), "silent once more");
    // The job is paused: nobody waits for it.
    book.watch(&BTreeMap::new(), at(4100));
    assert_eq!(sent(&mut book, at(90_000)), []);
}

#[test]
fn a_burst_gives_few_messages_and_every_failure_is_counted() {
    let rule = json!({"name": "all", "to": ["hook"], "on": ["failure"]});
    let mut book = book(&[rule], "10/1h");
    for n in 0..10_000u128 {
        let job = format!("job-{n}");
        let mut tally = Tally::new(Uuid::from_u128(n));
        tally.note(&outcome(&job, n, RunState::Failed, at(0)));
        book.tally(&name("n1"), &name(&job), &tally, &Fleet, at(0));
    }
    assert!(book.groups_len() <= MAX_GROUPS + 1);
    let now = sent(&mut book, at(10));
    assert_eq!(now.len(), 10);
    let held: u64 = book.take_throttled().values().sum();
    assert_eq!(held, (MAX_GROUPS + 1 - 10) as u64);
    // A tenth of an hour later there is room for one, which tells all the rest.
    let rest = sent(&mut book, at(10 + 361));
    assert_eq!((rest.len(), rest[0].held), (1, held));
    let all: Vec<_> = now.iter().chain(&rest).cloned().collect();
    assert_eq!(kinds(&all), BTreeMap::from([(Kind::Failure, 10_000)]));
    assert!(all.iter().all(|m| m.digest.events.len() <= MAX_LISTED));
    assert!(rest[0].text().contains(" more"), "{}", rest[0].text());
}

#[test]
fn a_wider_limit_holds_at_once() {
    let mut book = book(&[json!({"name": "all", "to": ["hook"], "group_wait": "0s"})], "1/1h");
    for n in 0..3 {
        let event =
            Happening { task: Some(format!("t{n}")), ..Happening::new(Kind::TaskFailed, at(n)) };
        book.event(event, &Fleet, at(n));
    }
    assert_eq!(sent(&mut book, at(3)).len(), 1);
    assert_eq!(book.next_due(), Some(at(3603)));
    let hook = json!({"name": "hook", "webhook": {"url": "http://127.0.0.1:1/"}, "limit": "9/9s"});
    book.set_channel(name("hook"), Some(Channel::from_user(hook).unwrap()));
    sent(&mut book, at(4));
    let rest = sent(&mut book, at(6));
    assert_eq!((rest.len(), rest[0].held, rest[0].digest.count()), (1, 2, 2));
}

#[test]
fn a_channel_that_takes_nothing_does_not_fill_the_memory() {
    let rule = json!({"name": "all", "to": ["hook"], "group_wait": "0s"});
    let mut book = book(&[rule], "100000/1s");
    for n in 0..5000 {
        let event =
            Happening { task: Some(format!("t{n}")), ..Happening::new(Kind::TaskFailed, at(n)) };
        book.event(event, &Fleet, at(n));
        book.due(&Fleet, at(n));
    }
    assert_eq!(book.messages_len(), 100);
    assert!(book.next_due().is_none(), "it waits for the channel");
    let told: u64 =
        (0..200).flat_map(|_| sent(&mut book, at(6000))).map(|m| m.digest.count()).sum();
    assert_eq!(told, 5000);
}

#[test]
fn messages_are_tried_with_pauses_and_given_up() {
    let mut book = book(&[json!({"name": "all", "to": ["hook"], "group_wait": "0s"})], "100/1h");
    book.event(Happening::new(Kind::TaskFailed, at(0)), &Fleet, at(0));
    book.due(&Fleet, at(0));
    let id = book.sendable(&BTreeSet::new(), at(0)).0[0].id.clone();
    let mut now = at(0);
    let mut tries = 0;
    loop {
        let (ready, next) = book.sendable(&BTreeSet::new(), now);
        if let [message] = &ready[..] {
            tries += 1;
            assert_eq!(message.id, id);
            match book.tried(&id, Err(("no".into(), true)), now).unwrap() {
                Delivery::Pending => {}
                state => break assert_eq!(state, Delivery::Failed),
            }
        } else {
            now = next.unwrap();
        }
    }
    assert!((100..200).contains(&tries), "{tries}");
    assert!(now >= at(24 * 3600) && now <= at(25 * 3600));
    // One that will never go is given up at once.
    book.event(Happening::new(Kind::TaskFailed, now), &Fleet, now);
    book.due(&Fleet, now);
    let id = book.sendable(&BTreeSet::new(), now).0[0].id.clone();
    assert_eq!(book.tried(&id, Err(("no".into(), false)), now), Some(Delivery::Failed));
}

#[test]
fn what_is_written_brings_the_book_back() {
    let rules = [json!({"name": "all", "to": ["hook"]})];
    let mut first = book(&rules, "1/1h");
    let mut stored: BTreeMap<Item, Vec<u8>> = BTreeMap::new();
    let mut tally = Tally::new(Uuid::from_u128(1));
    for n in 1..=3 {
        tally.note(&outcome("j", n, RunState::Failed, at(n as i64)));
    }
    first.tally(&name("n1"), &name("j"), &tally, &Fleet, at(3));
    first.node(&name("n1"), false, &Fleet, at(4));
    first.due(&Fleet, at(8));
    for change in first.changes() {
        match change.value {
            Some(value) => drop(stored.insert(change.item, value)),
            None => drop(stored.remove(&change.item)),
        }
    }
    assert!(first.changes().is_empty());
    let mut second = book(&rules, "1/1h");
    for (item, value) in stored {
        second.load(item, &value).unwrap();
    }
    // The next leader tells nothing twice, and the same as the first would have told.
    second.tally(&name("n1"), &name("j"), &tally, &Fleet, at(9));
    second.node(&name("n1"), false, &Fleet, at(9));
    assert!(!second.is_dirty());
    let (a, b) = (sent(&mut first, at(10)), sent(&mut second, at(10)));
    assert_eq!(a, b);
    assert_eq!(a.len(), 1);
}

#[test]
fn what_is_wrong_in_channels_and_rules_is_named() {
    let hook = json!({"url": "http://127.0.0.1:1/"});
    let mail = json!({"host": "mail.example.org", "from": "a@b", "to": ["c@d"]});
    let with = |base: &serde_json::Value, field: &str, value: serde_json::Value| {
        let mut base = base.clone();
        base[field] = value;
        base
    };
    for (channel, field) in [
        (json!({"name": "c"}), "(document)"),
        (json!({"name": "c", "webhook": hook, "email": mail}), "(document)"),
        (json!({"name": "c", "webhok": hook}), "webhok"),
        (json!({"name": "c", "webhook": with(&hook, "url", json!("ftp://x/"))}), "webhook.url"),
        (json!({"name": "c", "webhook": with(&hook, "method", json!("no"))}), "webhook.method"),
        (json!({"name": "c", "webhook": hook, "limit": "5"}), "limit"),
        (
            json!({"name": "c", "email": with(&mail, "encryption", json!("none"))}),
            "email.encryption",
        ),
        (json!({"name": "c", "email": with(&mail, "to", json!(["x"]))}), "email.to"),
        (json!({"name": "c", "email": with(&mail, "user", json!("u"))}), "email.user"),
    ] {
        let e = Channel::from_user(channel.clone()).unwrap_err();
        assert_eq!(e.field, field, "{channel}: {e}");
    }
    for (rule, field) in [
        (json!({"name": "r", "to": []}), "to"),
        (json!({"name": "r", "to": ["c"], "on": []}), "on"),
        (json!({"name": "r", "to": ["c"], "on": ["fire"]}), "on[0]"),
        (json!({"name": "r", "to": ["c"], "target": "all limit 3"}), "target"),
        (json!({"name": "r", "to": ["c"], "states": ["success"]}), "states"),
        (json!({"name": "r", "to": ["c"], "repeat_after": "400d"}), "repeat_after"),
    ] {
        let e = Rule::from_user(rule.clone()).unwrap_err();
        assert_eq!(e.field, field, "{rule}: {e}");
    }
    for (job, field) in [
        (json!({"notify": {"to": []}}), "notify.to"),
        (json!({"notify": {"to": ["c"], "on": ["node_lost"]}}), "notify.on"),
        (json!({"warn_after": "1ms"}), "warn_after"),
        (json!({"warn_after": "10m", "timeout": "5m"}), "warn_after"),
        (json!({"expect_success_within": "0s"}), "expect_success_within"),
    ] {
        let mut spec = json!({"name": "j", "cmd": "true"});
        spec.as_object_mut().unwrap().extend(job.as_object().unwrap().clone());
        let e = JobSpec::from_user(spec).unwrap_err();
        assert_eq!(e.field, field, "{job}: {e}");
    }
}

proptest! {
    /// Whatever happens, in whatever order: all that was to be told is told, and no more
    /// messages than the channel takes.
    #[test]
    fn nothing_is_lost_and_no_channel_is_flooded(
        steps in proptest::collection::vec((0u8..4, 0u8..30, 0i64..40), 1..200),
        count in 1u32..10,
    ) {
        let rule = json!({"name": "all", "to": ["hook"], "on": ["task_failed", "long"]});
        let mut book = book(&[rule], &format!("{count}/10m"));
        let (mut now, mut expected, mut told) = (at(0), 0u64, Vec::new());
        for (what, which, wait) in steps {
            let kind = if what % 2 == 0 { Kind::TaskFailed } else { Kind::Long };
            let event = Happening { task: Some(format!("t{which}")), ..Happening::new(kind, now) };
            book.event(event, &Fleet, now);
            expected += 1;
            now += SignedDuration::from_secs(wait);
            told.extend(sent(&mut book, now));
        }
        // Within any time T at most `count` and one more for each part of it.
        let spent = now.duration_since(at(0)).as_secs();
        let most = i64::from(count) + spent * i64::from(count) / 600 + 1;
        prop_assert!((told.len() as i64) <= most, "{} messages in {spent} s", told.len());
        for _ in 0..1000 {
            match book.next_due() {
                Some(due) => now = now.max(due),
                None => break,
            }
            told.extend(sent(&mut book, now));
        }
        prop_assert_eq!(kinds(&told).values().sum::<u64>(), expected);
        for message in &told {
            let listed: u64 = message.digest.events.iter().map(|e| e.times).sum();
            prop_assert_eq!(listed + message.digest.more, message.digest.count());
        }
        let ids: BTreeSet<&String> = told.iter().map(|m| &m.id).collect();
        prop_assert_eq!(ids.len(), told.len());
        prop_assert!(book.messages_len() <= MAX_RECENT);
    }

    /// A digest counts what it does not list.
    #[test]
    fn digests_count_all(times in proptest::collection::vec(1u64..50, 0..80), cut in 0usize..80) {
        let mut parts = [Digest::default(), Digest::default()];
        for (n, times) in times.iter().enumerate() {
            let what = Happening { times: *times, ..Happening::new(Kind::Failure, at(0)) };
            parts[usize::from(n >= cut)].add(what);
        }
        let [mut all, rest] = parts;
        all.merge(rest);
        prop_assert_eq!(all.count(), times.iter().sum::<u64>());
        let listed: u64 = all.events.iter().map(|e| e.times).sum();
        prop_assert_eq!(listed + all.more, all.count());
        prop_assert!(all.events.len() <= MAX_LISTED);
    }
}

#[test]
fn a_rule_that_is_about_it_no_longer_does_not_keep_it_open() {
    let rule = |more: &str| {
        let on = ["node_lost", "node_back"];
        json!({"name": "all", "to": ["hook"], "on": on, "target": more, "repeat_after": "1h"})
    };
    let mut book = book(&[rule("all")], "100/1h");
    book.node(&name("n1"), false, &Fleet, at(0));
    assert_eq!(sent(&mut book, at(10)).len(), 1);
    let narrow = Rule::from_user(rule("group=db")).unwrap();
    book.set_rule(name("all"), Some(narrow));
    book.node(&name("n1"), true, &Fleet, at(20));
    assert_eq!(kinds(&sent(&mut book, at(30))), BTreeMap::from([(Kind::NodeBack, 1)]));
    assert_eq!(sent(&mut book, at(90_000)), []);
    assert_eq!(book.subjects().count(), 0);
}
