//! What users do to tasks and parts.

use super::*;

#[test]
fn touching_moves_the_deadline() {
    let mut rig = Rig::new(1);
    let task = rig.put(1, json!({"queue": "q", "cmd": "x", "ttr": "60s"}));
    rig.at(0);
    rig.now = 50;
    assert_eq!(rig.act(task, 1, Verb::Touch), Ok(S::Reserved));
    let part = rig.part(task, 1);
    assert_eq!((part.deadline, part.touched), (Some(t(110)), 1));
}

#[test]
fn touching_lets_nothing_begin_that_is_held_or_withdrawn() {
    for (control, how) in [
        (Control::Paused, "paused"),
        (Control::Cancelled, "withdrawn"),
        (Control::Stopped, "withdrawn"),
    ] {
        let mut rig = Rig::new(1);
        let task = rig.put(1, json!({"queue": "q", "commands": [{"cmd": "1"}, {"cmd": "2"}]}));
        rig.at(0);
        rig.begins(task, 1);
        rig.control(task, control);
        assert_eq!(rig.act(task, 1, Verb::Touch), Ok(S::Reserved));
        let refused = rig.act(task, 2, Verb::Touch).unwrap_err();
        assert!(refused.contains(how), "{refused}");
    }
}

#[test]
fn what_is_cancelled_never_begins_and_what_is_stopped_ends() {
    let mut rig = Rig::new(1);
    let task = rig.put(
        1,
        json!({"queue": "q", "commands": [{"cmd": "1"}, {"cmd": "2"}, {"cmd": "3"}, {"cmd": "4"}]}),
    );
    assert_eq!(rig.at(0).len(), 3);
    rig.begins(task, 1);
    rig.control(task, Control::Cancelled);
    rig.at(1);
    // The one that has begun goes on; those given away and not begun are taken back.
    assert_eq!(rig.states(task), [S::Reserved, S::Revoked, S::Revoked, S::Revoked]);
    rig.control(task, Control::Stopped);
    rig.at(2);
    assert_eq!(rig.part(task, 1).ask, Some(Ask::Stop));
    rig.ends(task, 1, Code::KILLED);
    assert_eq!(rig.states(task)[0], S::Failed);
    rig.at(3);
    assert_eq!(rig.finished, [task]);
}

#[test]
fn a_task_that_is_held_gives_nothing_away() {
    let mut rig = Rig::new(1);
    let task = rig.put(1, json!({"hosts": ["a", "b"], "cmd": "x"}));
    rig.control(task, Control::Paused);
    assert!(rig.at(0).is_empty() && rig.states(task).is_empty());
    rig.control(task, Control::Active);
    assert_eq!(rig.at(1).len(), 2);
}

/// Every verb in every state a part can be in: with a worker, and begun or not.
#[test]
fn every_verb_in_every_state() {
    let verbs = [
        Verb::Cancel,
        Verb::Stop,
        Verb::Release,
        Verb::Bury,
        Verb::Kick,
        Verb::Touch,
        Verb::Delete,
    ];
    let matrix = [
        ("delayed", S::Delayed, false, "X X - - R - -"),
        ("ready", S::Ready, false, "X X - - - - -"),
        ("given away", S::Reserved, false, "X X R B - V F"),
        ("begun", S::Reserved, true, "- V V V - V V"),
        ("buried", S::Buried, false, "X X - - R - F"),
        ("success", S::Success, false, "- - - - - - -"),
    ];
    for (name, state, begun, row) in matrix {
        let mut is = Vec::new();
        for verb in verbs {
            let mut rig = Rig::new(1);
            let task = rig.put(1, json!({"queue": "q", "cmd": "x"}));
            rig.at(0);
            let id = PartId { task, n: 1 };
            let mut part = Part { state, ..rig.part(task, 1) };
            part.begun_at = begun.then(|| t(0));
            rig.set(id, part);
            is.push(match rig.act(task, 1, verb) {
                Err(why) => {
                    assert!(why.starts_with("it "), "{why}");
                    "-"
                }
                Ok(S::Ready) => "R",
                Ok(S::Reserved) => "V",
                Ok(S::Buried) => "B",
                Ok(S::Failed) => "F",
                Ok(S::Revoked) => "X",
                Ok(other) => panic!("{other}"),
            });
        }
        assert_eq!(is.join(" "), row, "{name}");
    }
}

#[test]
fn what_somebody_asked_for_comes_true_when_the_run_has_ended() {
    for (verb, code, want) in [
        (Verb::Stop, Code::KILLED, S::Failed),
        (Verb::Delete, Code::KILLED, S::Failed),
        (Verb::Bury, Code::KILLED, S::Buried),
        (Verb::Release, Code::KILLED, S::Ready),
        // It was done before anybody could end it.
        (Verb::Stop, Code::OK, S::Success),
        (Verb::Release, Code::OK, S::Success),
        // Its worker died meanwhile.
        (Verb::Stop, Code::LOST, S::Failed),
    ] {
        let mut rig = Rig::new(1);
        let task = rig.put(1, json!({"queue": "q", "cmd": "x", "retry": {"max": 9}}));
        rig.at(0);
        rig.begins(task, 1);
        rig.act(task, 1, verb).unwrap();
        rig.ends(task, 1, code);
        assert_eq!(rig.states(task), [want], "{verb} {code}");
    }
}
