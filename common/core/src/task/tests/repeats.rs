//! Parts that are done over and over.

use super::*;

/// Runs what is reserved, successfully, and answers when the part is due again.
fn round(rig: &mut Rig, task: TaskId) -> (S, Option<Timestamp>) {
    rig.begins(task, 1);
    rig.ends(task, 1, Code::OK);
    let part = rig.part(task, 1);
    (part.state, part.ready_at)
}

#[test]
fn so_many_rounds_one_after_the_other() {
    let mut rig = Rig::new(1);
    let task = rig.put(1, json!({"hosts": ["a"], "cmd": "x", "repeat": {"times": 3}}));
    for n in 1..3 {
        assert_eq!(names(&rig.at(n)), ["a"]);
        assert_eq!(round(&mut rig, task), (S::Ready, Some(t(n))));
    }
    assert_eq!(names(&rig.at(3)), ["a"]);
    assert_eq!(round(&mut rig, task).0, S::Success);
    let part = rig.part(task, 1);
    assert_eq!((part.rounds, part.attempt), (3, 3), "each round is a run of its own");
    assert!(rig.at(4).is_empty());
    assert_eq!(rig.finished, [task]);
}

#[test]
fn a_round_begins_so_long_after_the_one_before_and_none_is_made_up_for() {
    let mut rig = Rig::new(1);
    let task = rig.put(1, json!({"hosts": ["a"], "cmd": "x", "repeat": {"every": "10s"}}));
    assert_eq!(names(&rig.at(0)), ["a"]);
    rig.begins(task, 1);
    rig.now = 4;
    rig.ends(task, 1, Code::OK);
    assert_eq!((rig.part(task, 1).state, rig.part(task, 1).ready_at), (S::Delayed, Some(t(10))));
    assert!(rig.at(9).is_empty());
    assert_eq!(plan(&rig.tasks, &rig.fleet, t(9)).wake, Some(t(10)));
    assert_eq!(names(&rig.at(10)), ["a"]);
    rig.begins(task, 1);
    rig.now = 35;
    rig.ends(task, 1, Code::OK);
    assert_eq!(rig.part(task, 1).ready_at, Some(t(35)), "two are left out");
    // Without an end it goes on until somebody withdraws it.
    rig.control(task, Control::Cancelled);
    rig.at(36);
    assert_eq!(rig.finished, []);
    rig.at(37);
    assert_eq!(rig.finished, [task]);
}

#[test]
fn a_round_that_fails_for_the_last_time_is_the_last() {
    let mut rig = Rig::new(1);
    let retry = json!({"max": 1, "delay": "1s", "jitter": "0s"});
    let request = json!({"hosts": ["a"], "cmd": "x", "repeat": {"times": 9}, "retry": retry,
        "on_failure": "fail"});
    let task = rig.put(1, request);
    // A new try within each of the first two rounds: failures are counted by the round.
    let mut now = 0;
    for _ in 0..2 {
        assert_eq!(rig.at(now).len(), 1);
        rig.ends(task, 1, Code::EXIT_STATUS);
        now += 5;
        assert_eq!(rig.at(now).len(), 1);
        round(&mut rig, task);
    }
    for state in [S::Delayed, S::Failed] {
        now += 5;
        assert_eq!(rig.at(now).len(), 1);
        rig.ends(task, 1, Code::EXIT_STATUS);
        assert_eq!(rig.states(task), [state]);
    }
    assert_eq!(rig.part(task, 1).rounds, 2);
}

#[test]
fn what_is_stopped_has_no_further_round() {
    let mut rig = Rig::new(1);
    let task = rig.put(1, json!({"hosts": ["a"], "cmd": "x", "repeat": {"times": 9}}));
    rig.at(0);
    rig.begins(task, 1);
    rig.control(task, Control::Stopped);
    rig.at(1);
    // It ended by itself before it was told.
    rig.ends(task, 1, Code::OK);
    assert_eq!(rig.states(task), [S::Success]);
}

#[test]
fn what_cannot_be_repeated_says_why() {
    for (repeat, rollout, field) in [
        (json!({}), None, "repeat"),
        (json!({"times": 0}), None, "repeat.times"),
        (json!({"every": "10ms"}), None, "repeat.every"),
        (json!({"every": "10s"}), Some(json!({"batch": 1})), "repeat"),
    ] {
        let mut request = json!({"target": "all", "cmd": "x", "repeat": repeat});
        if let Some(rollout) = rollout {
            request["rollout"] = rollout;
        }
        assert_eq!(TaskRequest::from_user(request).unwrap_err().field, field);
    }
}
