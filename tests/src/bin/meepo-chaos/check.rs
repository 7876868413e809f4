//! Holds what runs have noted against what meepo has recorded. Pure: facts in, complaints out.

use crate::{
    evidence::{Kind, Line},
    load::Command,
};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// What a job promises.
#[derive(Debug, Clone)]
pub(crate) struct JobRule {
    pub(crate) name: String,
    /// Seconds from slot to slot; divides a minute.
    pub(crate) step: i64,
    /// Each slot runs on one node, not on each.
    pub(crate) once: bool,
    /// A run whose node is lost is run again.
    pub(crate) rerun: bool,
}

/// A record of a run.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) id: String,
    pub(crate) job: Option<String>,
    pub(crate) node: String,
    pub(crate) slot: Timestamp,
    pub(crate) attempt: u32,
    pub(crate) state: String,
    pub(crate) code: u64,
    pub(crate) fence: Option<i64>,
    pub(crate) dropped: u64,
    pub(crate) message: Option<String>,
}

/// A part of a task, at the end.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) id: String,
    pub(crate) state: String,
}

/// A task that was handed in.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) key: String,
    /// `None`: nobody ever said whether it was accepted.
    pub(crate) id: Option<String>,
    /// It was refused for good.
    pub(crate) refused: bool,
    pub(crate) bury: bool,
    /// `None`: there is no such task.
    pub(crate) state: Option<String>,
    pub(crate) parts: Vec<Part>,
}

/// A time in which a worker could not end its runs itself: it was killed or frozen.
#[derive(Debug, Clone)]
pub(crate) struct Disabled {
    pub(crate) node: String,
    pub(crate) from: Timestamp,
    pub(crate) until: Timestamp,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) rules: Vec<JobRule>,
    pub(crate) nodes: Vec<String>,
    /// Slots up to here are looked at.
    pub(crate) until: Timestamp,
    pub(crate) lines: Vec<Line>,
    pub(crate) broken: Vec<String>,
    pub(crate) runs: Vec<Run>,
    /// What each run has written, as it is kept.
    pub(crate) outputs: BTreeMap<String, String>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) commands: Vec<Command>,
    pub(crate) disabled: Vec<Disabled>,
    /// Processes and keys that are left.
    pub(crate) left: Vec<String>,
    pub(crate) keys: Vec<String>,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrong {
    /// Ran, or was recorded, more than once.
    Doubled,
    /// Nothing tells what became of it.
    Lost,
    /// Ran, and has no record, or a record that contradicts it.
    Record,
    /// An older token after a newer one, or one token for two.
    Fence,
    /// Went on beside what replaced it although its worker could have ended it.
    Stale,
    /// Lines that are missing without being counted, doubled, or out of order.
    Output,
    /// A process or a key that is left.
    LeftOver,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) wrong: Wrong,
    pub(crate) text: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.wrong, self.text)
    }
}

/// Counts, by what they count.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// The verdict.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) complaints: Vec<Complaint>,
    /// Per job.
    pub(crate) jobs: BTreeMap<String, Counts>,
    pub(crate) tasks: Counts,
    pub(crate) commands: Counts,
    pub(crate) output: Counts,
    pub(crate) register: Counts,
}

impl Verdict {
    /// How often something is wrong in that way.
    pub(crate) fn count(&self, wrong: Wrong) -> usize {
        self.complaints.iter().filter(|c| c.wrong == wrong).count()
    }

    fn complain(&mut self, wrong: Wrong, text: String) {
        self.complaints.push(Complaint { wrong, text });
    }
}

fn add(counts: &mut Counts, what: &'static str, n: u64) {
    *counts.entry(what).or_default() += n;
}

/// Whom a slot belongs to: the node, or everybody.
type Key<'a> = (&'a str, Timestamp, u32);

/// Looks at everything.
pub(crate) fn check(facts: &Facts) -> Verdict {
    let mut verdict = Verdict::default();
    for line in &facts.broken {
        verdict.complain(Wrong::Record, format!("a broken line of evidence: {line:?}"));
    }
    for rule in &facts.rules {
        check_job(facts, rule, &mut verdict);
    }
    check_records(facts, &mut verdict);
    check_register(facts, &mut verdict);
    check_tasks(facts, &mut verdict);
    check_commands(facts, &mut verdict);
    check_output(facts, &mut verdict);
    for what in facts.left.iter().chain(&facts.keys) {
        verdict.complain(Wrong::LeftOver, what.clone());
    }
    verdict
}

/// Slots of one job: each ran once, or has a record that says why not.
fn check_job(facts: &Facts, rule: &JobRule, verdict: &mut Verdict) {
    let mut counts = Counts::new();
    let owner = |node: &str| facts.nodes.iter().map(|n| &**n).find(|n| !rule.once && *n == node);
    let mut starts: BTreeMap<Key<'_>, Vec<&Line>> = BTreeMap::new();
    let mine = |l: &&Line| l.job == rule.name && l.kind == Kind::Start;
    for line in facts.lines.iter().filter(mine) {
        let key = (owner(&line.node).unwrap_or(""), line.slot, line.attempt);
        starts.entry(key).or_default().push(line);
    }
    let mut records: BTreeMap<Key<'_>, Vec<&Run>> = BTreeMap::new();
    for run in facts.runs.iter().filter(|r| r.job.as_deref() == Some(&rule.name)) {
        let key = (owner(&run.node).unwrap_or(""), run.slot, run.attempt);
        records.entry(key).or_default().push(run);
    }
    for (key, lines) in starts.iter().filter(|(_, lines)| lines.len() > 1) {
        verdict.complain(Wrong::Doubled, format!("{} {key:?} ran as {}", rule.name, ids(lines)));
    }
    for (key, runs) in records.iter().filter(|(_, runs)| runs.len() > 1) {
        let ids: Vec<String> =
            runs.iter().map(|r| format!("{} {} {}", r.id, r.node, r.state)).collect();
        verdict.complain(Wrong::Doubled, format!("{} {key:?} is recorded as {ids:?}", rule.name));
    }
    let owners: Vec<&str> = match rule.once {
        true => vec![""],
        false => facts.nodes.iter().map(|n| &**n).collect(),
    };
    for owner in owners {
        let of = |key: &&Key<'_>| key.0 == owner;
        let first = starts.keys().chain(records.keys()).filter(of).map(|key| key.1).min();
        let Some(first) = first else {
            verdict.complain(Wrong::Lost, format!("{} never ran on {owner:?}", rule.name));
            continue;
        };
        for second in first.as_second()..=facts.until.as_second() {
            if second % rule.step != 0 {
                continue;
            }
            let Ok(slot) = Timestamp::from_second(second) else { continue };
            add(&mut counts, "due", 1);
            let key = (owner, slot, 1);
            let ran = starts.get(&key).and_then(|lines| lines.first());
            let record = records.get(&key).and_then(|runs| runs.first());
            let what = match (ran, record) {
                (None, None) => {
                    let text = format!("{} {owner} {slot}: neither run nor record", rule.name);
                    verdict.complain(Wrong::Lost, text);
                    "lost"
                }
                (Some(_), _) => "run",
                (None, Some(record)) => match record.state.as_str() {
                    "missed" => "missed, recorded",
                    "skipped" => "skipped, recorded",
                    // Its beginning was written down; no process is known to have come of it.
                    "lost" => "cut off before its first line, recorded",
                    _ => "not started, recorded",
                },
            };
            add(&mut counts, what, 1);
        }
    }
    let ended: Vec<&Run> = records.values().filter_map(|r| r.first().copied()).collect();
    let cut = ended.iter().filter(|r| r.state == "lost").count();
    add(&mut counts, "ended as lost, recorded", cut as u64);
    if rule.rerun {
        check_reruns(rule, &starts, &records, &mut counts, verdict);
    }
    if rule.once {
        check_fences(rule, &starts, verdict);
    }
    verdict.jobs.insert(rule.name.clone(), counts);
}

/// What was lost was run again, or there is a record that says why not.
fn check_reruns(
    rule: &JobRule,
    starts: &BTreeMap<Key<'_>, Vec<&Line>>,
    records: &BTreeMap<Key<'_>, Vec<&Run>>,
    counts: &mut Counts,
    verdict: &mut Verdict,
) {
    let mut newest: BTreeMap<Timestamp, &Run> = BTreeMap::new();
    for run in records.values().flatten() {
        let entry = newest.entry(run.slot).or_insert(run);
        if run.attempt > entry.attempt {
            *entry = run;
        }
    }
    for (slot, run) in newest {
        // Ended by the loss of the lease, or not known to have ended.
        let open = run.state == "lost" || (run.state == "killed" && run.code == 0x0400);
        if open {
            let text = format!(
                "{} {slot}: attempt {} is {}, and no further one is made or \
                                recorded as not made",
                rule.name, run.attempt, run.state
            );
            verdict.complain(Wrong::Lost, text);
        }
    }
    let again = starts.keys().filter(|key| key.2 > 1).count();
    add(counts, "run again", again as u64);
}

/// Tokens rise from slot to slot and from attempt to attempt, and no two runs have the same.
fn check_fences(rule: &JobRule, starts: &BTreeMap<Key<'_>, Vec<&Line>>, verdict: &mut Verdict) {
    let mut by_fence: BTreeMap<i64, &Line> = BTreeMap::new();
    let mut newest: BTreeMap<Timestamp, i64> = BTreeMap::new();
    let mut claimed = i64::MIN;
    for (key, line) in starts.iter().filter_map(|(key, lines)| Some((key, *lines.first()?))) {
        let Some(fence) = line.fence else {
            verdict.complain(Wrong::Fence, format!("{} {key:?} has no token", rule.name));
            continue;
        };
        if let Some(other) = by_fence.insert(fence, line) {
            let text = format!(
                "{}: {} and {} have the same token {fence}",
                rule.name, other.run_id, line.run_id
            );
            verdict.complain(Wrong::Fence, text);
        }
        // Attempts of one slot come one after the other in this order.
        let before = newest.insert(key.1, fence);
        let rises = match key.2 {
            1 => fence > std::mem::replace(&mut claimed, fence),
            _ => before.is_none_or(|before| fence > before),
        };
        if !rises {
            verdict.complain(
                Wrong::Fence,
                format!("{} {key:?}: the token {fence} is not newer", rule.name),
            );
        }
    }
}

/// Each run that left a trace has one record, which does not contradict it; and no record
/// tells of a success that nobody saw.
fn check_records(facts: &Facts, verdict: &mut Verdict) {
    let by_id: BTreeMap<&str, &Run> = facts.runs.iter().map(|r| (&*r.id, r)).collect();
    let mut ended = BTreeSet::new();
    let mut began: BTreeMap<&str, &Line> = BTreeMap::new();
    for line in &facts.lines {
        match line.kind {
            Kind::Start => drop(began.insert(&line.run_id, line)),
            Kind::End => drop(ended.insert(&*line.run_id)),
            Kind::Write | Kind::Refused => {}
        }
    }
    for (id, line) in &began {
        let Some(run) = by_id.get(id) else {
            let text = format!("{} {} {} on {} has no record", line.job, line.slot, id, line.node);
            verdict.complain(Wrong::Record, text);
            continue;
        };
        if run.fence != line.fence {
            let text = format!(
                "{} {id}: {:?} is recorded, {:?} was given",
                line.job, run.fence, line.fence
            );
            verdict.complain(Wrong::Fence, text);
        }
        let contradicts = match run.state.as_str() {
            "success" => !ended.contains(id),
            "failed" => ended.contains(id),
            "missed" | "skipped" | "running" => true,
            _ => false,
        };
        if contradicts {
            let text = format!(
                "{} {} {id} on {} is {} ({:?}), ended: {}",
                line.job,
                line.slot,
                line.node,
                run.state,
                run.message,
                ended.contains(id)
            );
            verdict.complain(Wrong::Record, text);
        }
    }
    for run in &facts.runs {
        let ours = run.job.is_some() || began.contains_key(&*run.id);
        if ours && run.state == "success" && !began.contains_key(&*run.id) {
            verdict.complain(Wrong::Record, format!("{run:?} succeeded without a trace"));
        }
        if run.state == "running" && !began.contains_key(&*run.id) {
            verdict.complain(Wrong::Record, format!("{run:?} never ended"));
        }
    }
}

/// The register of each slot took no older token after a newer one, and whoever was refused
/// could not have been ended by its worker.
fn check_register(facts: &Facts, verdict: &mut Verdict) {
    let mut counts = Counts::new();
    let mut last: BTreeMap<(&str, Option<Timestamp>), i64> = BTreeMap::new();
    let rerun: BTreeSet<&str> = facts.rules.iter().filter(|r| r.rerun).map(|r| &*r.name).collect();
    for line in &facts.lines {
        let slot = rerun.contains(&*line.job).then_some(line.slot);
        match line.kind {
            Kind::Write => {
                add(&mut counts, "taken", 1);
                let fence = line.fence.unwrap_or(i64::MIN);
                let before = last.insert((&*line.job, slot), fence);
                if before.is_some_and(|before| before > fence) {
                    let text = format!("{} took {fence} after {before:?}", line.job);
                    verdict.complain(Wrong::Fence, text);
                }
            }
            Kind::Refused => {
                add(&mut counts, "refused", 1);
                let excused = facts
                    .disabled
                    .iter()
                    .any(|d| d.node == line.node && d.from <= line.at && line.at <= d.until);
                // Between two slots of one job there is no promise; between two attempts
                // of one slot there is.
                if slot.is_some() && !excused {
                    let text = format!(
                        "{} {} attempt {} on {} wrote at {} beside a later one",
                        line.job, line.slot, line.attempt, line.node, line.at
                    );
                    verdict.complain(Wrong::Stale, text);
                }
            }
            Kind::Start | Kind::End => {}
        }
    }
    verdict.register = counts;
}

/// What was accepted has ended, each attempt ran at most once.
fn check_tasks(facts: &Facts, verdict: &mut Verdict) {
    let mut counts = Counts::new();
    let mut attempts: BTreeMap<(&str, u32), Vec<&Line>> = BTreeMap::new();
    let mut done = BTreeSet::new();
    for line in &facts.lines {
        match line.kind {
            Kind::Start => attempts.entry((&*line.job, line.attempt)).or_default().push(line),
            Kind::End => drop(done.insert(&*line.job)),
            Kind::Write | Kind::Refused => {}
        }
    }
    for task in &facts.tasks {
        let Some(id) = &task.id else {
            add(&mut counts, if task.refused { "refused" } else { "never answered" }, 1);
            continue;
        };
        add(&mut counts, "accepted", 1);
        let over = ["success", "failed", "revoked", "buried"];
        match task.state.as_deref().and_then(|s| over.into_iter().find(|o| *o == s)) {
            Some(state) => add(&mut counts, state, 1),
            None => {
                let text = format!("task {} {id} is {:?}", task.key, task.state);
                verdict.complain(Wrong::Lost, text);
                add(&mut counts, "lost", 1);
            }
        }
        for part in &task.parts {
            add(&mut counts, "parts", 1);
            let runs = (1..100).filter_map(|n| attempts.get(&(&*part.id, n)));
            let runs: Vec<&Vec<&Line>> = runs.collect();
            add(&mut counts, "attempts that began", runs.len() as u64);
            for lines in runs.iter().filter(|lines| lines.len() > 1) {
                let text = format!("part {} ran one attempt as {}", part.id, ids(lines));
                verdict.complain(Wrong::Doubled, text);
            }
            if part.state == "success" && !done.contains(&*part.id) {
                verdict
                    .complain(Wrong::Record, format!("part {} succeeded without a trace", part.id));
            }
            if task.bury && runs.len() > 1 {
                let text = format!(
                    "part {} ran {} times, and was to be buried at a loss",
                    part.id,
                    runs.len()
                );
                verdict.complain(Wrong::Doubled, text);
            }
        }
    }
    verdict.tasks = counts;
}

/// Each command ran at most once on each host, and where it says so.
fn check_commands(facts: &Facts, verdict: &mut Verdict) {
    let mut counts = Counts::new();
    let mut starts: BTreeMap<(&str, &str), Vec<&Line>> = BTreeMap::new();
    for line in facts.lines.iter().filter(|l| l.kind == Kind::Start) {
        starts.entry((&*line.job, &*line.node)).or_default().push(line);
    }
    for command in &facts.commands {
        add(&mut counts, "asked for, by host", (command.answers.len() + command.others) as u64);
        add(&mut counts, "answered with success", command.answers.len() as u64);
        add(&mut counts, "answered otherwise or not at all", command.others as u64);
        for (host, data) in &command.answers {
            let ran = starts.contains_key(&(&*command.name, &**host));
            if !ran || *data != format!("said by {}\n", command.name) {
                let text = format!("{} on {host} answered {data:?}, ran: {ran}", command.name);
                verdict.complain(Wrong::Record, text);
            }
        }
        for node in &facts.nodes {
            let lines =
                starts.get(&(&*command.name, &**node)).map(Vec::as_slice).unwrap_or_default();
            if lines.len() > 1 {
                let text = format!("{} ran on {node} as {}", command.name, ids(lines));
                verdict.complain(Wrong::Doubled, text);
            }
        }
    }
    verdict.commands = counts;
}

/// What is kept of each run is what it has written: all of it, or what is missing is counted;
/// of one that was cut off, the beginning.
fn check_output(facts: &Facts, verdict: &mut Verdict) {
    let mut counts = Counts::new();
    let produced: BTreeMap<&str, u64> = facts
        .lines
        .iter()
        .filter(|l| l.kind == Kind::End && !l.job.starts_with("command"))
        .map(|l| (&*l.run_id, l.extra))
        .collect();
    for run in &facts.runs {
        let (Some(text), true) = (facts.outputs.get(&run.id), run.job.is_some()) else { continue };
        let line_of = |n: u64| format!("{} {n}\n", run.id);
        let mut rest = text.as_str();
        let (mut kept, mut next, mut gaps) = (0, 1, false);
        while let Some((line, more)) = rest.split_once('\n') {
            let number =
                line.strip_prefix(&*run.id).and_then(|n| n.trim_start().parse::<u64>().ok());
            match number {
                Some(n) if n == next => {}
                Some(n) if n > next => gaps = true,
                _ => {
                    let text = format!("{:?} {}: {line:?} where {next} was due", run.job, run.id);
                    verdict.complain(Wrong::Output, text);
                    break;
                }
            }
            next = number.unwrap_or(next) + 1;
            kept += 1;
            rest = more;
        }
        add(&mut counts, "lines kept", kept);
        add(&mut counts, "bytes dropped and counted", run.dropped);
        if gaps && run.dropped == 0 {
            let text = format!("{:?} {}: lines are missing in between", run.job, run.id);
            verdict.complain(Wrong::Output, text);
        }
        let Some(lines) = produced.get(&*run.id) else { continue };
        if run.state != "success" {
            add(&mut counts, "lines of runs that were cut off", *lines);
            continue;
        }
        add(&mut counts, "lines of runs that succeeded", *lines);
        let bytes: u64 = (1..=*lines).map(|n| line_of(n).len() as u64).sum();
        if text.len() as u64 + run.dropped != bytes {
            let text = format!(
                "{:?} {} on {} wrote {bytes} bytes: {} are kept and {} counted as dropped",
                run.job,
                run.id,
                run.node,
                text.len(),
                run.dropped
            );
            verdict.complain(Wrong::Output, text);
        }
    }
    verdict.output = counts;
}

fn ids(lines: &[&Line]) -> String {
    let all: Vec<String> =
        lines.iter().map(|l| format!("{} on {} (pid {})", l.run_id, l.node, l.pid)).collect();
    all.join(" and ")
}

#[cfg(test)]
mod tests;
