//! Tasks for people.

use crate::output::{
    Out,
    table::{Table, cell, maybe, verdict},
    text, time,
};
use comfy_table::{Cell, Color};
use jiff::Timestamp;
use meepo_core::{
    rollout::{Phase, Progress},
    task::{
        Ask, Control, Counts, PartState, PartView, TaskState, TaskView, answer::TaskActed,
        record::Outcome,
    },
};
use std::collections::BTreeMap;

/// Widest command in a list, in characters.
const CMD_WIDTH: usize = 40;
/// Parts shown of a large task, unless they need a look.
const PARTS: usize = 200;

/// `task list`.
pub(crate) fn list(out: &Out, tasks: &[TaskView], now: Timestamp) -> String {
    if tasks.is_empty() {
        return "no tasks\n".to_owned();
    }
    let mut table = Table::new(out, &["TASK", "STATE", "PARTS", "WHERE", "SUBMITTED", "COMMAND"]);
    for t in tasks {
        let name = t.name.clone().unwrap_or_else(|| t.cmd.clone());
        table.row(vec![
            cell(t.id.to_string()),
            task_state(t.state),
            cell(counts(&t.counts)),
            cell(text::shorten(&place(t), 30)),
            cell(time::relative(t.submitted_at, now)),
            cell(text::shorten(&text::one_line(&name), CMD_WIDTH)),
        ]);
    }
    table.render()
}

/// `task get`.
pub(crate) fn page(out: &Out, task: &TaskView, now: Timestamp) -> String {
    let mut table = Table::new(out, &["TASK", &task.id.to_string()]);
    let mut line = |name: &str, value: String| table.row(vec![cell(name), cell(value)]);
    if let Some(name) = &task.name {
        line("name", name.clone());
    }
    let held = match task.control {
        Control::Active => "",
        Control::Paused => " (held; `meepo task resume` goes on)",
        Control::Cancelled => " (cancelled)",
        Control::Stopped => " (stopped)",
    };
    line("state", format!("{}{held}", task.state));
    line("parts", counts(&task.counts));
    if let Some(rollout) = &task.rollout {
        line("roll-out", progress(rollout, now));
    }
    line("where", place(task));
    let at = |t: Timestamp| format!("{} ({})", time::local(t), time::relative(t, now));
    line("submitted", at(task.submitted_at));
    if let Some(ended) = task.ended_at {
        line("ended", at(ended));
    }
    let p = &task.policy;
    let mut policy = vec![format!("priority {}", p.priority), format!("ttr {}", p.ttr)];
    policy.extend(p.ttl.map(|ttl| format!("ttl {ttl}")));
    policy.extend(p.retry.as_ref().map(|r| format!("{} retries", r.max)));
    if let Some(repeat) = &p.repeat {
        let times = repeat.times.map_or("without end".to_owned(), |n| format!("{n} times"));
        let every = repeat.every.map_or(String::new(), |d| format!(" every {d}"));
        let done = task.parts.iter().map(|p| p.rounds).min().unwrap_or_default();
        policy.push(format!("{times}{every}, {done} done"));
    }
    policy.extend(p.not_before.map(|t| format!("not before {}", time::local(t))));
    line("policy", policy.join(", "));
    for command in &task.commands {
        line("command", text::shorten(&text::one_line(&command.cmd), 100));
    }
    let mut page = table.render();
    page.push('\n');
    page.push_str(&parts(out, task, now));
    page
}

/// As in `batch 2 of 5, 20 of 100 done, 1 failed; waits until 12:00:10 (in 10.0s)`.
fn progress(p: &Progress, now: Timestamp) -> String {
    let until = p.until.map(|t| format!("{} ({})", time::local(t), time::relative(t, now)));
    let until = until.unwrap_or_default();
    let doing = match p.phase {
        Phase::Running | Phase::Done => String::new(),
        Phase::Waiting => format!("; begins at {until}"),
        Phase::Pausing => format!("; goes on at {until}"),
        Phase::Paused => "; paused".to_owned(),
        Phase::Stopped => {
            let why = p.why.as_deref().unwrap_or("failures");
            format!("; stopped: {why} (`meepo task resume` goes on)")
        }
    };
    format!("{p}{doing}")
}

fn parts(out: &Out, task: &TaskView, now: Timestamp) -> String {
    let header = ["PART", "NODE", "STATE", "SINCE", "TRIES", "RESULT", "RUN"];
    let mut table = Table::new(out, &header);
    // Of a large task first what needs a look.
    let mut shown: Vec<&PartView> = task.parts.iter().collect();
    if shown.len() > PARTS {
        let rank = |p: &PartView| match p.state {
            PartState::Buried | PartState::Failed => 0,
            PartState::Reserved => 1,
            PartState::Revoked => 2,
            PartState::Ready | PartState::Delayed => 3,
            PartState::Pending => 4,
            PartState::Success => 5,
        };
        shown.sort_by_key(|p| (rank(p), p.id));
        shown.truncate(PARTS);
        shown.sort_by_key(|p| p.id);
    }
    for p in &shown {
        table.row(vec![
            cell(p.id.n.to_string()),
            maybe(p.node.as_ref()),
            part_state(p),
            cell(time::relative(p.since, now)),
            cell(p.attempt.to_string()),
            cell(text::shorten(&result(p, now), 60)),
            maybe(p.runs.last().map(|r| r.run_id.to_string())),
        ]);
    }
    let mut text = table.render();
    if task.parts.len() > shown.len() {
        let left = task.parts.len() - shown.len();
        text.push_str(&format!("… and {left} more; `-o json` shows all\n"));
    }
    let mut reasons: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for p in &task.parts {
        if let Some(why) = &p.waits {
            reasons.entry(why).or_default().push(p.id.n);
        }
    }
    for (why, parts) in reasons {
        let which = match parts.as_slice() {
            [n] => format!("part {n} waits"),
            all => format!("{} parts wait, the first is {}", all.len(), all[0]),
        };
        text.push_str(&format!("{which}: {why}\n"));
    }
    text
}

/// What was done, in a line.
pub(crate) fn acted(id: &str, acted: &TaskActed) -> String {
    let done = match acted.verb.as_str() {
        "cancel" => "cancelled",
        "stop" => "stopped",
        "release" => "released",
        "bury" => "buried",
        "kick" => "kicked",
        "touch" => "touched",
        "delete" => "deleted",
        "pause" => "held",
        _ => "resumed",
    };
    let part = |n: u32| text::count(n as usize, "part");
    let mut words = Vec::new();
    if acted.changed > 0 {
        words.push(part(acted.changed));
    }
    if acted.asked > 0 && acted.verb.as_str() != "touch" {
        words.push(format!("{} once the worker has ended it", part(acted.asked)));
    } else if acted.asked > 0 {
        words.push(part(acted.asked));
    }
    if let Some(first) = acted.refused.first() {
        words.push(format!("not {}: {}", part(acted.refused_total), first.reason));
    }
    format!("task {id} {done}: {}", words.join(", "))
}

fn place(t: &TaskView) -> String {
    match (&t.queue, &t.target) {
        (Some(queue), Some(target)) => format!("queue {queue} on {target}"),
        (Some(queue), None) => format!("queue {queue}"),
        (None, Some(target)) => target.clone(),
        (None, None) => "nodes by name".to_owned(),
    }
}

/// `3 of 10 done, 1 failed`.
pub(crate) fn counts(c: &Counts) -> String {
    let mut words = vec![format!("{} of {} done", c.success, c.all())];
    for (n, what) in [
        (c.failed, "failed"),
        (c.buried, "buried"),
        (c.revoked, "revoked"),
        (c.reserved, "running"),
    ] {
        if n > 0 {
            words.push(format!("{n} {what}"));
        }
    }
    words.join(", ")
}

fn task_state(s: TaskState) -> Cell {
    let cell = Cell::new(s.as_str());
    match s {
        TaskState::Success => cell.fg(Color::Green),
        TaskState::Running => cell.fg(Color::Cyan),
        TaskState::Waiting => cell,
        TaskState::Paused | TaskState::Revoked => cell.fg(Color::Yellow),
        TaskState::Failed | TaskState::Buried => cell.fg(Color::Red),
    }
}

fn part_state(p: &PartView) -> Cell {
    match p.state {
        PartState::Success => verdict(p.state.as_str(), true),
        PartState::Failed | PartState::Buried => verdict(p.state.as_str(), false),
        PartState::Reserved => Cell::new(p.state.as_str()).fg(Color::Cyan),
        PartState::Revoked => Cell::new(p.state.as_str()).fg(Color::Yellow),
        _ => Cell::new(p.state.as_str()),
    }
}

/// How a part's newest run ended, or what it waits for.
pub(crate) fn result(p: &PartView, now: Timestamp) -> String {
    match (p.state, &p.outcome) {
        (PartState::Reserved, _) => match (p.ask, p.begun_at) {
            (Some(Ask::Stop | Ask::Delete), _) => "to be ended".to_owned(),
            (Some(Ask::Bury), _) => "to be buried".to_owned(),
            (Some(Ask::Release { .. }), _) => "to be given back".to_owned(),
            (None, Some(at)) => format!("running since {}", time::relative(at, now)),
            (None, None) => "about to begin".to_owned(),
        },
        (PartState::Delayed, outcome) => {
            let when = p.ready_at.map(|at| format!("begins {}", time::relative(at, now)));
            let last = outcome.as_ref().map(|o| format!("after: {}", describe(o)));
            [when, last].into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
        (PartState::Ready, None) => "waits for a worker".to_owned(),
        (_, Some(outcome)) => describe(outcome),
        (_, None) => "-".to_owned(),
    }
}

/// An outcome in words.
pub(crate) fn describe(o: &Outcome) -> String {
    use meepo_core::code::Code;
    match (o.code, o.exit_code, o.signal, &o.message) {
        (Code::OK, ..) => "success".to_owned(),
        (Code::EXIT_STATUS, Some(status), ..) => format!("exit status {status}"),
        (Code::SIGNALED, _, Some(signal), _) => format!("ended by signal {signal}"),
        (Code::TIMED_OUT, ..) => "timed out".to_owned(),
        (_, _, _, Some(message)) => message.clone(),
        (code, ..) => code.meaning().to_owned(),
    }
}
