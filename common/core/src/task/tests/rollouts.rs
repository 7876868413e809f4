//! Roll-outs as a leader plans them.

use super::*;
use crate::rollout::Phase;

fn progress(rig: &Rig, task: TaskId) -> crate::rollout::Progress {
    let parts = |n| rig.tasks.parts.get(&PartId { task, n }).map(|p| &p.value);
    release::progress(&rig.tasks.tasks[&task].value, parts, t(rig.now)).unwrap()
}

#[test]
fn batches_follow_each_other_and_wake_the_leader_after_the_pause() {
    let mut rig = Rig::new(4);
    let rollout = json!({"batch": "50%", "pause": "30s"});
    let task = rig.put(1, json!({"target": "all", "cmd": "true", "rollout": rollout}));
    assert_eq!(names(&rig.at(0)), ["a", "b"], "half of three, rounded up");
    rig.ends(task, 1, Code::OK);
    assert!(rig.at(5).is_empty());
    rig.ends(task, 2, Code::OK);
    let waiting = plan(&rig.tasks, &rig.fleet, t(6));
    assert_eq!((waiting.effects.len(), waiting.wake), (0, Some(t(35))));
    // Another leader knows no more than the records and comes to the same.
    assert!(rig.at(34).is_empty());
    assert_eq!(names(&rig.at(35)), ["c"]);
    assert_eq!(progress(&rig, task).to_string(), "batch 2 of 2, 2 of 3 done, 0 failed");
}

#[test]
fn failures_stop_it_and_a_part_that_is_buried_is_one() {
    let mut rig = Rig::new(4);
    let request = json!({"target": "all", "cmd": "true", "on_failure": "bury",
        "rollout": {"batch": 1, "max_failures": 1}});
    let task = rig.put(1, request);
    assert_eq!(names(&rig.at(0)), ["a"]);
    rig.begins(task, 1);
    rig.ends(task, 1, Code::EXIT_STATUS);
    assert_eq!(rig.states(task), [S::Buried]);
    assert!(rig.at(1).is_empty());
    assert_eq!(progress(&rig, task).phase, Phase::Stopped);
    // Tried again and done, nothing stands in the way any more.
    rig.act(task, 1, Verb::Kick).unwrap();
    assert_eq!(names(&rig.at(2)), ["a"]);
    rig.begins(task, 1);
    rig.ends(task, 1, Code::OK);
    assert_eq!(names(&rig.at(3)), ["b"]);
    rig.begins(task, 2);
    rig.ends(task, 2, Code::EXIT_STATUS);
    assert!(rig.at(4).is_empty());
    // Or somebody has looked and lets it go on.
    let parts = |n| rig.tasks.parts.get(&PartId { task, n }).map(|p| &p.value);
    let record = rig.tasks.tasks[&task].value.clone();
    let pardoned = release::failures(&record, parts);
    assert_eq!(pardoned, 1);
    rig.add(Task { pardoned, ..(*record).clone() });
    assert_eq!(names(&rig.at(5)), ["c"]);
}

#[test]
fn what_was_not_begun_in_time_has_failed_and_what_was_withdrawn_has_not() {
    let mut rig = Rig::new(4);
    rig.fleet.workers.clear();
    let request = json!({"target": "all", "cmd": "true", "ttl": "10s",
        "rollout": {"batch": 1, "max_failures": 2}});
    let task = rig.put(1, request);
    rig.at(0);
    assert_eq!(rig.states(task), [S::Ready]);
    rig.act(task, 1, Verb::Cancel).unwrap();
    rig.at(1);
    rig.at(11);
    assert_eq!(rig.states(task), [S::Revoked, S::Revoked]);
    assert_eq!((progress(&rig, task).ended, progress(&rig, task).failed), (2, 1));
}

#[test]
fn it_begins_at_its_time_and_not_while_somebody_holds_it() {
    let mut rig = Rig::new(4);
    let request = json!({"target": "all", "cmd": "true", "delay": "1m", "rollout": {"batch": 2}});
    let task = rig.put(1, request);
    let waiting = plan(&rig.tasks, &rig.fleet, t(0));
    assert_eq!((waiting.effects.len(), waiting.wake), (0, Some(t(60))));
    rig.control(task, Control::Paused);
    assert!(rig.at(60).is_empty());
    assert_eq!(progress(&rig, task).phase, Phase::Paused);
    rig.control(task, Control::Active);
    assert_eq!(names(&rig.at(61)), ["a", "b"]);
    rig.control(task, Control::Cancelled);
    rig.at(62);
    assert_eq!(rig.states(task)[2], S::Revoked);
}
