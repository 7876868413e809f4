//! What the checker says to facts that are broken on purpose.

use super::*;

const NODE: &str = "127.0.0.2";
const OTHER: &str = "127.0.0.3";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn line(kind: Kind, job: &str, run: &str, second: i64) -> Line {
    Line {
        kind,
        job: job.into(),
        run_id: run.into(),
        slot: at(second),
        attempt: 1,
        fence: None,
        node: NODE.into(),
        pid: 7,
        at: at(second),
        extra: 0,
    }
}

fn run(job: &str, id: &str, second: i64, state: &str) -> Run {
    Run {
        id: id.into(),
        job: Some(job.into()),
        node: NODE.into(),
        slot: at(second),
        attempt: 1,
        state: state.into(),
        code: 0,
        fence: None,
        dropped: 0,
        message: None,
    }
}

fn rule(name: &str, once: bool, rerun: bool) -> JobRule {
    JobRule { name: name.into(), step: 10, once, rerun, lock: false }
}

/// A job on one node and one that runs once, three slots each, and all is well.
fn good() -> Facts {
    let mut facts = Facts {
        rules: vec![rule("each", false, false), rule("once", true, true)],
        nodes: vec![NODE.into()],
        until: at(29),
        ..Facts::default()
    };
    for (i, second) in [0, 10, 20].into_iter().enumerate() {
        for job in ["each", "once"] {
            let id = format!("{job}{i}");
            for kind in [Kind::Start, Kind::End] {
                let fence = (job == "once").then_some(100 + second);
                facts.lines.push(Line { fence, extra: 2, ..line(kind, job, &id, second) });
            }
            let fence = (job == "once").then_some(100 + second);
            facts.runs.push(Run { fence, ..run(job, &id, second, "success") });
            facts.outputs.insert(id.clone(), format!("{id} 1\n{id} 2\n"));
        }
    }
    facts
}

/// What is wrong with the facts after `broken` has happened to them.
fn found(broken: impl FnOnce(&mut Facts)) -> Vec<Wrong> {
    let mut facts = good();
    broken(&mut facts);
    let verdict = check(&facts);
    let mut all: Vec<Wrong> = verdict.complaints.iter().map(|c| c.wrong).collect();
    all.sort();
    all.dedup();
    all
}

/// Without the traces and the record of a run.
fn forget(facts: &mut Facts, id: &str) {
    facts.lines.retain(|l| l.run_id != id);
    facts.runs.retain(|r| r.id != id);
}

fn record<'a>(facts: &'a mut Facts, id: &str) -> &'a mut Run {
    facts.runs.iter_mut().find(|r| r.id == id).unwrap()
}

fn trace<'a>(facts: &'a mut Facts, id: &str, kind: Kind) -> &'a mut Line {
    facts.lines.iter_mut().find(|l| l.run_id == id && l.kind == kind).unwrap()
}

#[test]
fn what_is_well_is_not_complained_of() {
    let verdict = check(&good());
    assert_eq!(verdict.complaints, []);
    assert_eq!((verdict.jobs["each"]["due"], verdict.jobs["once"]["run"]), (3, 3));
    assert_eq!(verdict.output["lines kept"], 12);
}

#[test]
fn a_slot_that_ran_twice() {
    let twice = |job: &'static str, node: &'static str| {
        found(move |f| {
            let again =
                Line { node: node.into(), fence: Some(111), ..line(Kind::Start, job, "x", 10) };
            f.nodes.push(OTHER.into());
            f.lines.push(again);
            let id = format!("{job}x");
            f.runs.push(Run { node: node.into(), id: "x".into(), ..run(job, &id, 11, "lost") });
        })
    };
    assert!(twice("each", NODE).contains(&Wrong::Doubled));
    assert!(twice("once", OTHER).contains(&Wrong::Doubled));
    assert!(!twice("each", OTHER).contains(&Wrong::Doubled), "each node has its own");
}

#[test]
fn a_slot_of_which_nothing_is_known() {
    assert_eq!(found(|f| forget(f, "each1")), [Wrong::Lost]);
    assert_eq!(found(|f| forget(f, "once1")), [Wrong::Lost]);
    let recorded = |f: &mut Facts| {
        forget(f, "each1");
        f.runs.push(run("each", "m", 10, "missed"));
    };
    assert_eq!(found(recorded), []);
    assert_eq!(found(|f| f.nodes.push(OTHER.into())), [Wrong::Lost], "a node without any run");
}

#[test]
fn a_record_that_is_missing_or_wrong() {
    assert_eq!(found(|f| f.runs.retain(|r| r.id != "each1")), [Wrong::Record]);
    assert_eq!(found(|f| f.lines.retain(|l| l.run_id != "each1")), [Wrong::Record]);
    for state in ["missed", "skipped", "running", "failed"] {
        assert_eq!(found(|f| record(f, "each1").state = state.into()), [Wrong::Record], "{state}");
    }
    assert_eq!(found(|f| record(f, "each1").state = "lost".into()), [], "its worker died");
    assert_eq!(found(|f| f.broken.push("sta".into())), [Wrong::Record]);
    let again = |f: &mut Facts| f.runs.push(run("each", "y", 10, "missed"));
    assert_eq!(found(again), [Wrong::Doubled]);
}

#[test]
fn a_token_that_is_old_or_not_there() {
    assert_eq!(found(|f| trace(f, "once1", Kind::Start).fence = Some(99)), [Wrong::Fence]);
    assert_eq!(found(|f| trace(f, "once1", Kind::Start).fence = Some(100)), [Wrong::Fence]);
    assert_eq!(found(|f| trace(f, "once1", Kind::Start).fence = None), [Wrong::Fence]);
}

/// The first attempt at a slot is lost and the second has `fence` and runs.
fn lost_and_again(facts: &mut Facts, fence: i64) {
    record(facts, "once1").state = "lost".into();
    let again = Line { attempt: 2, fence: Some(fence), ..line(Kind::Start, "once", "again", 10) };
    facts.lines.extend([again.clone(), Line { kind: Kind::End, ..again }]);
    facts.runs.push(Run { attempt: 2, fence: Some(fence), ..run("once", "again", 10, "success") });
}

#[test]
fn a_lost_run_is_run_again_with_a_newer_token() {
    assert_eq!(found(|f| lost_and_again(f, 150)), []);
    assert_eq!(found(|f| lost_and_again(f, 105)), [Wrong::Fence]);
    assert_eq!(found(|f| record(f, "once1").state = "lost".into()), [Wrong::Lost]);
    let never_began = |f: &mut Facts| {
        lost_and_again(f, 150);
        forget(f, "once1");
    };
    assert_eq!(found(never_began), [], "its worker died before it: the next attempt stands for it");
    let ended = |code| {
        found(move |f| {
            record(f, "once1").state = "killed".into();
            record(f, "once1").code = code;
        })
    };
    assert_eq!(ended(0x0400), [Wrong::Lost], "its node had lost the lease");
    assert_eq!(ended(0x0105), [], "somebody wanted it");
}

#[test]
fn the_register_tells_who_went_on_too_long() {
    let write = |kind, fence| Line { fence: Some(fence), ..line(kind, "once", "once1", 10) };
    let late = move |f: &mut Facts| {
        f.lines.extend([write(Kind::Write, 120), write(Kind::Refused, 110)]);
    };
    assert_eq!(found(late), [Wrong::Stale]);
    let frozen = |f: &mut Facts| {
        late(f);
        f.disabled.push(Disabled { node: NODE.into(), from: at(5), until: at(15) });
    };
    assert_eq!(found(frozen), []);
    let taken = |f: &mut Facts| f.lines.extend([write(Kind::Write, 120), write(Kind::Write, 110)]);
    assert_eq!(found(taken), [Wrong::Fence]);
}

#[test]
fn a_lock_is_held_by_one_at_a_time() {
    let held = |from: i64, until: i64| {
        found(move |f| {
            f.rules[0].lock = true;
            for (kind, second) in [(Kind::Start, from), (Kind::End, until)] {
                let line = line(kind, "each", "z", 0);
                f.lines.push(Line { node: OTHER.into(), at: at(second), ..line });
            }
            f.runs.push(Run { node: OTHER.into(), ..run("each", "z", 0, "success") });
            trace(f, "each1", Kind::End).at = at(15);
        })
    };
    assert_eq!(held(3, 9), []);
    assert_eq!(held(3, 11), [Wrong::Stale], "the next begins before it ends");
    assert_eq!(held(12, 13), [Wrong::Stale], "it begins before the one before ends");
}

fn task(f: &mut Facts, state: Option<&str>) {
    let part = Part { id: "t.1".into(), state: "success".into() };
    f.tasks.push(Task {
        key: "k".into(),
        id: Some("t".into()),
        refused: false,
        bury: true,
        state: state.map(str::to_owned),
        parts: vec![part],
    });
    f.lines.extend([line(Kind::Start, "t.1", "p", 3), line(Kind::End, "t.1", "p", 3)]);
    f.runs.push(run("t.1", "p", 3, "success"));
}

#[test]
fn tasks_end_and_no_attempt_runs_twice() {
    assert_eq!(found(|f| task(f, Some("success"))), []);
    assert_eq!(found(|f| task(f, None)), [Wrong::Lost]);
    assert_eq!(found(|f| task(f, Some("running"))), [Wrong::Lost]);
    let again = |attempt| {
        found(move |f| {
            task(f, Some("success"));
            f.lines.push(Line { attempt, ..line(Kind::Start, "t.1", "q", 3) });
            f.runs.push(Run { attempt, ..run("t.1", "q", 3, "lost") });
        })
    };
    assert_eq!(again(1), [Wrong::Doubled], "one attempt twice");
    assert_eq!(again(2), [Wrong::Doubled], "it was to be buried");
    let untraced = |f: &mut Facts| {
        task(f, Some("success"));
        f.lines.retain(|l| l.job != "t.1");
        f.runs.retain(|r| r.id != "p");
    };
    assert_eq!(found(untraced), [Wrong::Record]);
}

#[test]
fn commands_run_once_and_where_they_say_so() {
    let said = |data: &str| Command {
        name: "c".into(),
        answers: vec![(NODE.into(), data.into())],
        others: 0,
    };
    let ran = |f: &mut Facts, id: &str| {
        f.lines.extend([line(Kind::Start, "c", id, 1), line(Kind::End, "c", id, 1)]);
        f.runs.push(Run { job: None, ..run("", id, 1, "success") });
    };
    let good = |f: &mut Facts| {
        f.commands.push(said("said by c\n"));
        ran(f, "e");
    };
    assert_eq!(found(good), []);
    assert_eq!(found(|f| f.commands.push(said("said by c\n"))), [Wrong::Record]);
    let cut = |f: &mut Facts| {
        f.commands.push(said("said b"));
        ran(f, "e");
    };
    assert_eq!(found(cut), [Wrong::Record]);
    let twice = |f: &mut Facts| {
        good(f);
        ran(f, "g");
    };
    assert_eq!(found(twice), [Wrong::Doubled]);
}

#[test]
fn lines_that_are_missing_doubled_or_out_of_order() {
    let wrote = |text: &'static str, dropped| {
        found(move |f| {
            f.outputs.insert("each1".into(), text.into());
            record(f, "each1").dropped = dropped;
        })
    };
    assert_eq!(wrote("each1 1\neach1 2\n", 0), []);
    assert_eq!(wrote("each1 1\n", 0), [Wrong::Output], "the last is missing");
    assert_eq!(wrote("each1 2\n", 0), [Wrong::Output], "the first is missing");
    assert_eq!(wrote("each1 1\neach", 4), [], "what was cut is counted");
    assert_eq!(wrote("each1 1\neach", 3), [Wrong::Output]);
    assert_eq!(wrote("each1 1\neach1 1\n", 0), [Wrong::Output], "doubled");
    assert_eq!(wrote("each1 2\neach1 1\n", 0), [Wrong::Output], "out of order");
    assert_eq!(wrote("else 1\neach1 2\n", 0), [Wrong::Output], "somebody else's");
    let cut_off = |f: &mut Facts| {
        record(f, "each1").state = "lost".into();
        f.outputs.insert("each1".into(), "each1 1\n".into());
    };
    assert_eq!(found(cut_off), [], "of a run that was cut off the beginning is kept");
}

#[test]
fn what_is_left_over() {
    assert_eq!(found(|f| f.left.push("/proc/7".into())), [Wrong::LeftOver]);
    assert_eq!(found(|f| f.keys.push("/cron/kill/x".into())), [Wrong::LeftOver]);
}

#[test]
fn lines_are_read_as_runs_write_them() {
    let text = "start each 01a1 2026-11-27T22:00:00Z 2 17 127.0.0.2 4711 1764280800.000120 3";
    let line = Line::parse(text).unwrap();
    assert_eq!((line.kind, line.attempt, line.fence, line.extra), (Kind::Start, 2, Some(17), 3));
    assert_eq!(line.at.subsec_nanosecond(), 120_000);
    assert_eq!(Line::parse("start each 01a1"), None);
    assert_eq!(Line::parse(&text.replace("start", "begin")), None);
}
