//! The task that accompanies one process from its start to its end.

use super::{
    cgroup::RunCgroup,
    children::Awaited,
    command::{Ended, KillPlan, KillReason},
    error::StartError,
    keep::Writer,
    pipes::{Input, Pipes},
    procfs::start_time,
    runner::{Orders, Received},
    tree::Tree,
};
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    duration::HumanDuration,
    run::{RunState, to_millis},
};
use nix::sys::signal::Signal;
use std::{
    collections::VecDeque, io, os::unix::process::ExitStatusExt, process::ExitStatus, sync::Arc,
    time::Duration,
};
use tokio::{process::Child, sync::oneshot, time::Instant};

/// After the process' end: how long to wait for output of others that hold its pipes …
const SILENCE: Duration = Duration::from_millis(500);
/// … and how long in all.
const GRACE: Duration = Duration::from_secs(2);
/// At the worker's shutdown no plan may take longer before SIGKILL.
const AT_SHUTDOWN: Duration = Duration::from_secs(5);

/// Everything about a process that runs.
pub(super) struct Drive {
    pub(super) child: Child,
    /// Dropped after the child.
    pub(super) awaited: Awaited,
    /// All that it starts.
    pub(super) tree: Tree,
    pub(super) cgroup: Option<Arc<RunCgroup>>,
    pub(super) input: Input,
    pub(super) pipes: Pipes,
    pub(super) writer: Writer,
    pub(super) orders: Received,
    pub(super) plan: KillPlan,
    /// When it is to be killed, and the timeout that says so.
    pub(super) timeout: Option<(Instant, Duration)>,
    /// Present if an exec helper stands between; see [`super::helper::report`].
    pub(super) nonce: Option<String>,
    /// Who waits for the start time of the process, and when that is told.
    pub(super) told: Option<(Instant, oneshot::Sender<Option<u64>>)>,
}

/// A kill under way.
struct Killing {
    reason: KillReason,
    /// What is still to be sent, with the time to wait after each.
    steps: VecDeque<(Signal, Duration)>,
    /// When the next step is due; `None` after SIGKILL.
    next: Option<Instant>,
    /// Number of the plan in use, 0 for the command's own.
    plan: u64,
}

impl Killing {
    fn new(reason: KillReason, plan: &KillPlan, number: u64) -> Self {
        let steps = plan.signals.iter().copied().collect();
        Self { reason, steps, next: Some(Instant::now()), plan: number }
    }

    /// Shortens what is left to [`AT_SHUTDOWN`].
    fn hurry(&mut self) {
        let Some(next) = self.next else { return };
        let end = Instant::now() + AT_SHUTDOWN;
        let next = next.min(end);
        self.next = Some(next);
        let mut left = end - next;
        self.steps.retain_mut(|(_, wait)| {
            *wait = left.min(*wait);
            let in_time = !left.is_zero();
            left -= *wait;
            in_time
        });
    }

    /// Sends the next signal if it is due.
    async fn step(&mut self, tree: &mut Tree) {
        if self.next.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let (signal, wait) = match self.steps.pop_front() {
            Some((signal, wait)) => (signal, Some(wait)),
            None => (Signal::SIGKILL, None),
        };
        tree.signal(signal).await;
        self.next = wait.map(|w| Instant::now() + w);
    }
}

/// The process' end, and how long its pipes may stay open.
struct Exit {
    status: io::Result<ExitStatus>,
    at: Timestamp,
    quiet_until: Instant,
    latest: Instant,
}

impl Drive {
    /// Follows the process to its end.
    pub(super) async fn run(mut self) -> Ended {
        let mut exit: Option<Exit> = None;
        let mut killing: Option<Killing> = None;
        let mut start_error = None;
        // What a kill could not end.
        let mut stuck = Vec::new();
        let sleep = tokio::time::sleep_until(Instant::now());
        tokio::pin!(sleep);
        loop {
            let alarm = match &exit {
                Some(_) if self.pipes.at_end() => break,
                Some(exit) => Some(exit.quiet_until.min(exit.latest)),
                None => match &killing {
                    Some(k) => k.next,
                    None => self.timeout.map(|(at, _)| at),
                },
            };
            let told = self.told.as_ref().map(|(at, _)| *at);
            let alarm = [alarm, told, self.writer.flush_at()].into_iter().flatten().min();
            if let Some(at) = alarm.filter(|at| *at != sleep.deadline()) {
                sleep.as_mut().reset(at);
            }
            // The end comes first: a process that has ended is not killed any more.
            // Reading comes last, so that a flood of output delays nothing else.
            tokio::select! {
                biased;
                status = self.child.wait(), if exit.is_none() => {
                    let at = to_millis(Timestamp::now());
                    if killing.is_some() {
                        (_, stuck) = self.tree.end().await;
                    }
                    let now = Instant::now();
                    exit = Some(Exit {
                        status,
                        at,
                        quiet_until: now + SILENCE,
                        latest: now + GRACE,
                    });
                    self.input.close();
                }
                orders = self.orders.next(), if exit.is_none() => {
                    self.obey(orders, &mut killing).await;
                }
                () = &mut sleep, if alarm.is_some() => {
                    let now = Instant::now();
                    if self.writer.flush_at().is_some_and(|at| at <= now) {
                        self.writer.flush();
                    }
                    if let Some((_, told)) = self.told.take_if(|(at, _)| *at <= now) {
                        // Its number is its own as long as nobody has waited for it.
                        let start = self.child.id().filter(|_| exit.is_none()).and_then(start_time);
                        let _ = told.send(start);
                    }
                    match &exit {
                        Some(e) if e.quiet_until.min(e.latest) <= now => break,
                        Some(_) => {}
                        None => self.tick(&mut killing, now).await,
                    }
                }
                () = self.input.feed() => {}
                () = self.pipes.read(&mut self.writer, &mut self.nonce, &mut start_error) => {
                    if let Some(exit) = &mut exit {
                        exit.quiet_until = Instant::now() + SILENCE;
                    }
                }
            }
        }
        let (secrets, counts) = (self.writer.secrets(), self.writer.close());
        // `exit` is set: the loop is left only with it.
        let (status, at) = match exit {
            Some(exit) => (exit.status, exit.at),
            None => (Err(io::Error::other("left early")), to_millis(Timestamp::now())),
        };
        let told = self.cgroup.and_then(|c| c.told());
        drop((self.child, self.awaited));
        let timeout = self.timeout.map(|(_, t)| t);
        let mut ended =
            outcome(start_error.as_ref(), status, killing.as_ref(), timeout, at, counts);
        let stuck = (!stuck.is_empty()).then(|| format!("could not be ended: processes {stuck:?}"));
        let message = [ended.message, told, stuck].into_iter().flatten();
        let message = message.reduce(|all, one| format!("{all}; {one}"));
        // What an exec helper says may quote the environment.
        ended.message = message.map(|words| secrets.masks().text(&words));
        ended
    }

    /// Takes up new orders.
    async fn obey(&mut self, orders: Orders, killing: &mut Option<Killing>) {
        let Some(reason) = orders.kill else { return };
        let reason = killing.as_ref().map_or(reason, |k| k.reason);
        match (&orders.plan, &killing) {
            (Some((number, _)), Some(k)) if *number == k.plan => {}
            (Some((number, plan)), _) => *killing = Some(Killing::new(reason, plan, *number)),
            (None, Some(_)) => {}
            (None, None) => *killing = Some(Killing::new(reason, &self.plan, 0)),
        }
        self.tree.root_is_child();
        if let Some(k) = killing {
            if orders.shutdown {
                k.hurry();
            }
            k.step(&mut self.tree).await;
        }
    }

    /// Starts a kill for the timeout, or goes on with one.
    async fn tick(&mut self, killing: &mut Option<Killing>, now: Instant) {
        if killing.is_none() && self.timeout.is_some_and(|(at, _)| at <= now) {
            *killing = Some(Killing::new(KillReason::Timeout, &self.plan, 0));
        }
        if let Some(k) = killing {
            self.tree.root_is_child();
            k.step(&mut self.tree).await;
        }
    }
}

/// From how the process ended to how the run did.
fn outcome(
    start_error: Option<&StartError>,
    status: io::Result<ExitStatus>,
    killing: Option<&Killing>,
    timeout: Option<Duration>,
    ended_at: Timestamp,
    (output_bytes, dropped_bytes): (u64, u64),
) -> Ended {
    if let Some(error) = start_error {
        // Whatever else was wanted of it: it never was the command.
        return error.ended(ended_at);
    }
    let (exit_code, signal) = match &status {
        Ok(s) => (s.code(), s.signal()),
        Err(_) => (None, None),
    };
    let (code, state, message) = match (killing, &status) {
        (Some(k), _) => {
            let (code, state) = k.reason.outcome();
            let late = match timeout {
                Some(t) if k.reason == KillReason::Timeout => {
                    Some(format!("ran longer than {}", HumanDuration(t)))
                }
                _ if k.reason == KillReason::LeaseLost => Some(
                    "killed because this node had lost its lease in etcd: a job that runs once in \
                     the cluster may be run elsewhere"
                        .to_owned(),
                ),
                _ if k.reason == KillReason::Drained => {
                    Some("killed at the deadline of the node's drain".to_owned())
                }
                _ => None,
            };
            let forced = k.next.is_none().then(|| "ended only on SIGKILL".to_owned());
            let message: Vec<_> = [late, forced].into_iter().flatten().collect();
            (code, state, (!message.is_empty()).then(|| message.join("; ")))
        }
        (None, Err(e)) => {
            (Code::LOST, RunState::Lost, Some(format!("cannot learn how the process ended: {e}")))
        }
        (None, Ok(s)) if s.success() => (Code::OK, RunState::Success, None),
        (None, Ok(_)) => match signal {
            Some(n) => {
                let name = Signal::try_from(n).map_or("unknown", Signal::as_str);
                let message = format!("ended by signal {n} ({name})");
                (Code::SIGNALED, RunState::Failed, Some(message))
            }
            None => (Code::EXIT_STATUS, RunState::Failed, None),
        },
    };
    Ended { code, state, exit_code, signal, message, ended_at, output_bytes, dropped_bytes }
}

#[cfg(test)]
mod tests;
