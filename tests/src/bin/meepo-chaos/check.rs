//! Holds what runs have noted against what meepo has recorded. Pure: facts in, complaints out.

mod output;
mod work;

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
    /// Its runs hold a lock of one permit.
    pub(crate) lock: bool,
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

impl Facts {
    /// Whether the worker of the run that wrote a line could not have ended it by then.
    fn excuses(&self, line: &Line) -> bool {
        let of = |d: &Disabled| d.node == line.node && d.from <= line.at && line.at <= d.until;
        self.disabled.iter().any(of)
    }
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

/// A slot is run again three times at most; the fifth attempt is recorded as not made.
const MOST_ATTEMPTS: u32 = 5;

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
    work::check_tasks(facts, &mut verdict);
    work::check_commands(facts, &mut verdict);
    output::check_output(facts, &mut verdict);
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
            // An attempt that its worker died before it began has no record of its own: the
            // next one stands for the slot.
            let attempts = || (1..=MOST_ATTEMPTS).map(|attempt| (owner, slot, attempt));
            let ran = attempts().find_map(|key| starts.get(&key)?.first());
            let record = attempts().find_map(|key| records.get(&key)?.first());
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
    if rule.lock {
        check_lock(facts, rule, verdict);
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

/// No two runs hold the lock at the same time, unless the worker of one could not end it.
fn check_lock(facts: &Facts, rule: &JobRule, verdict: &mut Verdict) {
    let mut began: BTreeMap<&str, &Line> = BTreeMap::new();
    let mut held: Vec<(&Line, &Line)> = Vec::new();
    for line in facts.lines.iter().filter(|l| l.job == rule.name) {
        match line.kind {
            Kind::Start => drop(began.insert(&line.run_id, line)),
            Kind::End => held.extend(began.remove(&*line.run_id).map(|start| (start, line))),
            Kind::Write | Kind::Refused => {}
        }
    }
    held.sort_by_key(|(start, _)| start.at);
    for pair in held.windows(2) {
        let [(first, end), (second, _)] = pair else { continue };
        if second.at < end.at && !facts.excuses(end) && !facts.excuses(second) {
            let text = format!(
                "{} on {} and {} on {} held the lock at {}",
                first.run_id, first.node, second.run_id, second.node, second.at
            );
            verdict.complain(Wrong::Stale, text);
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
    let of = |which: fn(&JobRule) -> bool| -> BTreeSet<&str> {
        facts.rules.iter().filter(|r| which(r)).map(|r| &*r.name).collect()
    };
    let (rerun, locked) = (of(|r| r.rerun), of(|r| r.lock));
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
                // Between two slots of one job there is no promise; between two attempts
                // of one slot there is, and between two that need one lock.
                let strict = slot.is_some() || locked.contains(&*line.job);
                if strict && !facts.excuses(line) {
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

fn ids(lines: &[&Line]) -> String {
    let all: Vec<String> =
        lines.iter().map(|l| format!("{} on {} (pid {})", l.run_id, l.node, l.pid)).collect();
    all.join(" and ")
}

#[cfg(test)]
mod tests;
