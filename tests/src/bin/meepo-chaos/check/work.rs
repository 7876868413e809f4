//! Tasks and commands: what was accepted has ended, and nothing ran twice.

use super::{Counts, Facts, Verdict, Wrong, add, ids};
use crate::evidence::{Kind, Line};
use std::collections::{BTreeMap, BTreeSet};

/// What was accepted has ended, each attempt ran at most once.
pub(super) fn check_tasks(facts: &Facts, verdict: &mut Verdict) {
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
pub(super) fn check_commands(facts: &Facts, verdict: &mut Verdict) {
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
