//! Waiting for tasks: how each part ends, as it comes, and what it writes meanwhile.

use super::{
    follow::{self, Piece},
    outcome::{Outcome, Outcomes},
    task_view::describe,
};
use crate::{
    client::{Client, Lines},
    error::{CliError, CliResult, exit},
    output::{
        Out,
        stream::{Lead, Printer},
        text,
    },
};
use futures::stream::{FuturesUnordered, StreamExt};
use meepo_core::{
    code::Code,
    id::RunId,
    rollout::Phase,
    task::{PartId, PartState, PartView, TaskRef, answer::TaskEvent},
};
use reqwest::Method;
use std::{
    cell::RefCell,
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// How long a lost connection is tried again.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(300);
/// Runs that are followed at once; those beyond wait for their turn.
const FOLLOWED: usize = 64;

/// Waits until all of them have ended or are buried; answers the exit code.
pub(crate) async fn wait(
    out: &Out,
    client: &Client,
    tasks: &[TaskRef],
    follow: bool,
) -> CliResult<u8> {
    let mut outcomes = Outcomes::default();
    for task in tasks {
        let waiting = Waiting { out, client, follow, ended: HashMap::new(), seen: HashSet::new() };
        tokio::select! {
            ended = waiting.wait(*task) => outcomes.0.extend(ended?),
            _ = tokio::signal::ctrl_c() => {
                out.note(&format!("interrupted; task {task} goes on (`meepo task stop {task}` ends it)"));
                return Ok(exit::INTERRUPTED);
            }
        }
    }
    if out.is_table() {
        outcomes.report(out);
    }
    Ok(outcomes.exit_code())
}

struct Waiting<'a> {
    out: &'a Out,
    client: &'a Client,
    follow: bool,
    ended: HashMap<PartId, Outcome>,
    /// Runs that are or were followed.
    seen: HashSet<RunId>,
}

impl Waiting<'_> {
    async fn wait(mut self, task: TaskRef) -> CliResult<Vec<Outcome>> {
        let (client, out) = (self.client, self.out);
        let mut events: Option<Lines> = None;
        let mut give_up = Instant::now() + PATIENCE;
        let mut queue: VecDeque<(String, RunId)> = VecDeque::new();
        let printer = RefCell::new(Printer::new(out, Lead::Source));
        let mut following = FuturesUnordered::new();
        let mut over = false;
        while !over || !following.is_empty() || !queue.is_empty() {
            while following.len() < FOLLOWED
                && let Some((source, run)) = queue.pop_front()
            {
                following.push(output(out, client, &printer, source, run));
            }
            let event = tokio::select! {
                Some(followed) = following.next(), if !following.is_empty() => {
                    let () = followed?;
                    continue;
                }
                event = next(client, task, &mut events), if !over => event,
            };
            match event {
                Ok(event) => {
                    give_up = Instant::now() + PATIENCE;
                    if !out.is_table() {
                        out.event(&event)?;
                    }
                    match event {
                        TaskEvent::Start(_) => {}
                        TaskEvent::Part(part) => {
                            if let Some(run) = self.part(&part)? {
                                let node = part.node.as_ref().map_or("-", |n| n.as_str());
                                queue.push_back((node.to_owned(), run));
                            }
                        }
                        TaskEvent::End(task) => {
                            over = true;
                            let stopped = task.rollout.filter(|r| r.phase == Phase::Stopped);
                            if let Some(rollout) = stopped.filter(|_| out.is_table()) {
                                out.note(&format!(
                                    "the roll-out stopped: {rollout}; `meepo task resume {}` goes on",
                                    task.id
                                ));
                            }
                        }
                        TaskEvent::Error(e) if e.retry => {
                            events = None;
                            tokio::time::sleep(PAUSE).await;
                        }
                        TaskEvent::Error(e) => return Err(e.into()),
                    }
                }
                Err(e) if e.exit == exit::UNAVAILABLE && Instant::now() < give_up => {
                    events = None;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(e) => return Err(e),
            }
        }
        drop(following);
        printer.into_inner().finish_all()?;
        let mut ended: Vec<_> = self.ended.into_iter().collect();
        ended.sort_by_key(|(id, _)| *id);
        Ok(ended.into_iter().map(|(_, outcome)| outcome).collect())
    }

    /// Takes note of a part; answers the run that is to be followed.
    fn part(&mut self, part: &PartView) -> CliResult<Option<RunId>> {
        let rests = part.state.is_final() || part.state == PartState::Buried;
        if rests {
            let outcome = outcome(part);
            let new = self.ended.insert(part.id, outcome.clone()) != Some(outcome.clone());
            if new && self.out.is_table() && (!self.follow || part.runs.is_empty()) {
                let what = match part.runs.last() {
                    Some(run) => format!("{} (run {})", outcome.reason, run.run_id),
                    None => outcome.reason.clone(),
                };
                let line = text::one_line(&format!("{}: {what}", outcome.node));
                self.out.text(&format!("{line}\n"))?;
            }
        } else {
            // Kicked, or tried again.
            self.ended.remove(&part.id);
        }
        if !self.follow || !self.out.is_table() {
            return Ok(None);
        }
        let under_way = part.begun_at.is_some() || part.state != PartState::Reserved;
        let run = part.runs.last().filter(|_| under_way).map(|r| r.run_id);
        Ok(run.filter(|id| self.seen.insert(*id)))
    }
}

/// The next event, over a connection that is made when there is none.
async fn next(client: &Client, task: TaskRef, events: &mut Option<Lines>) -> CliResult<TaskEvent> {
    let lines = match events {
        Some(lines) => lines,
        None => {
            let path = ["tasks", &task.to_string(), "events"];
            let lines = client.stream(Method::GET, &path, &[], None::<&()>).await?;
            events.insert(lines)
        }
    };
    lines.next::<TaskEvent>().await?.ok_or_else(|| {
        CliError::new(exit::UNAVAILABLE, "the master ended the stream before the task was over")
    })
}

/// Prints what a run writes.
async fn output(
    out: &Out,
    client: &Client,
    printer: &RefCell<Printer<std::io::Stdout, std::io::Stderr>>,
    source: String,
    run: RunId,
) -> CliResult<()> {
    printer.borrow_mut().sources([source.as_str()]);
    let followed = follow::follow(client, run, |piece| match piece {
        Piece::Output(stream, at, data) => {
            printer.borrow_mut().chunk(&source, stream, at, data).map_err(Into::into)
        }
        Piece::Event(_) => Ok(()),
    })
    .await;
    printer.borrow_mut().finish(&source)?;
    if let Err(e) = followed {
        // The task tells how it ended; only its output is missing.
        out.note(&format!("{source}: the output of run {run} cannot be shown: {e}"));
    }
    Ok(())
}

fn outcome(part: &PartView) -> Outcome {
    let node = match &part.node {
        Some(node) => node.to_string(),
        None => format!("part {}", part.id.n),
    };
    let ok = part.state == PartState::Success;
    let end = part.outcome.as_ref();
    let exit_status = end
        .filter(|o| o.code == Code::EXIT_STATUS)
        .and_then(|o| u8::try_from(o.exit_code?).ok())
        .filter(|status| *status != 0);
    let reason = end.map_or_else(|| part.state.to_string(), describe);
    let reason = match part.state {
        PartState::Buried => format!("buried: {reason}"),
        PartState::Revoked => format!("revoked: {reason}"),
        _ => reason,
    };
    Outcome { node, ok, exit_status, reason, dropped: 0 }
}
