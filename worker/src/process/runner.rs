//! Starts commands on threads of its own.

use super::{
    cgroup::Cgroups,
    children,
    command::{Command, Ended, KillPlan, KillReason},
    drive::Drive,
    env::Account,
    error::{StartError, StartProblem},
    hub::OutputHub,
    keep::Writer,
    pipes::{Input, Pipes},
    procfs::{Scanner, start_time},
    resolve,
    tree::{self, Tree},
};
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    id::RunId,
    run::{RunState, to_millis},
};
use std::{
    io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
};

/// Settings of a [`Runner`].
#[derive(Debug, Clone)]
pub struct RunnerOptions {
    /// Threads that start processes.
    pub threads: usize,
    /// The program that serves as exec helper: its `main` calls
    /// [`exec_helper_entry`](super::exec_helper_entry). Default: this very program, even
    /// if its file has been replaced since.
    pub helper: PathBuf,
    /// Where control groups for runs are made. Default: nowhere.
    pub cgroups: Option<Arc<Cgroups>>,
    /// Of a command that ends within this time nobody learns the start time of its process,
    /// which would take a tenth of what the command itself does. Default: none does.
    pub brief: Duration,
}

impl Default for RunnerOptions {
    fn default() -> Self {
        Self { threads: 2, helper: "/proc/self/exe".into(), cgroups: None, brief: Duration::ZERO }
    }
}

/// Starts commands. Cloning is cheap. The threads end with the last clone.
#[derive(Debug, Clone)]
pub struct Runner {
    requests: mpsc::Sender<Request>,
}

struct Request {
    run_id: RunId,
    command: Command,
    runtime: Handle,
    reply: oneshot::Sender<Result<Unclaimed, StartError>>,
}

/// A started command on its way to the one who asked for it; killed if it gets lost.
struct Unclaimed(Option<Running>);

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(running) = &self.0 {
            running.control.kill_with(KillReason::Requested, KillPlan::NOW);
        }
    }
}

/// What the starting threads share.
pub(super) struct Spawner {
    pub(super) own: Account,
    pub(super) helper: PathBuf,
    pub(super) cgroups: Option<Arc<Cgroups>>,
    scanner: Arc<Scanner>,
    brief: Duration,
}

impl Runner {
    /// Starts the threads. Errors: the system refuses a thread.
    pub fn new(options: RunnerOptions) -> io::Result<Self> {
        let (requests, queue) = mpsc::channel::<Request>(256);
        let queue = Arc::new(Mutex::new(queue));
        let spawner = Arc::new(Spawner {
            own: Account::own(),
            helper: options.helper,
            cgroups: options.cgroups,
            brief: options.brief,
            // No run is older than its worker.
            scanner: Scanner::new(start_time(std::process::id()).unwrap_or(0)),
        });
        for n in 0..options.threads.max(1) {
            let (queue, spawner) = (queue.clone(), spawner.clone());
            std::thread::Builder::new().name(format!("spawner-{n}")).spawn(move || {
                loop {
                    // One thread waits for the next request, the others for the lock.
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
                    let Some(request) = next else { return };
                    spawner.serve(request);
                }
            })?;
        }
        Ok(Self { requests })
    }

    /// Starts `command` as run `run_id`. Must be called within a
    /// tokio runtime with I/O and time; a task on that runtime reads the output and
    /// waits for the end, whether or not anybody looks. If the runtime goes away first,
    /// the process goes on unwatched: kill runs and wait for their ends before.
    ///
    /// If the caller gives up on this future, a process that was already started is
    /// killed. Errors: the process could not be started. For another user some of the
    /// reasons are known only later; then the run ends with [`Code::CANNOT_START`].
    pub async fn spawn(&self, run_id: RunId, command: Command) -> Result<Running, StartError> {
        let (reply, answer) = oneshot::channel();
        let request = Request { run_id, command, runtime: Handle::current(), reply };
        let gone =
            || StartError::new(StartProblem::Other, "the threads that start processes are gone");
        self.requests.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())??.0.take().ok_or_else(gone)
    }
}

impl Spawner {
    fn serve(&self, request: Request) {
        let Request { run_id, command, runtime, reply } = request;
        if reply.is_closed() {
            return;
        }
        let _guard = runtime.enter();
        let started = self.start(run_id, command, &runtime);
        // Nobody waits any more: what was started dies with the answer.
        let _ = reply.send(started.map(|running| Unclaimed(Some(running))));
    }

    fn start(
        &self,
        run_id: RunId,
        mut command: Command,
        runtime: &Handle,
    ) -> Result<Running, StartError> {
        let prepared = self.prepare(run_id, &command)?;
        let stdin = command.stdin.take().filter(|text| !text.is_empty());
        let mut std = prepared.command;
        if !command.session {
            // A session makes a group of its own, but only for who does not lead one yet.
            std.process_group(0);
        }
        // Made here, as those of tokio would be registered with its driver twice.
        let (stdout, stderr) = io::pipe()
            .and_then(|stdout| Ok((stdout, io::pipe()?)))
            .map_err(|e| resolve::explain(&e, &prepared.program, &prepared.cwd))?;
        std.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(stdout.1)
            .stderr(stderr.1);
        let (mut child, awaited) = children::spawn_awaited(|| {
            let child = tokio::process::Command::from(std).spawn()?;
            // Present: the child has not been waited for.
            let pid = child.id().unwrap_or_default();
            Ok((child, pid))
        })
        .map_err(|e| resolve::explain(&e, &prepared.program, &prepared.cwd))?;
        let started = tokio::time::Instant::now();
        let started_at = to_millis(Timestamp::now());
        let pid = child.id().unwrap_or_default();
        let (told, began) = oneshot::channel();
        let (limit, keep) = (command.output_limit, command.output_keep);
        let (output, writer) = Writer::new(run_id, limit, keep);
        let (control, received) = Control::new();
        let input = Input::new(child.stdin.take().zip(stdin.map(String::into_bytes)));
        let pipes = Pipes::new(stdout.0, stderr.0).map_err(|e| {
            let _ = tree::signal_group(pid, nix::sys::signal::Signal::SIGKILL);
            // Before it leads a session it is in the worker's group.
            let _ = child.start_kill();
            StartError::new(StartProblem::Resources, format!("cannot read its output: {e}"))
        })?;
        let (run, cgroup) = (run_id.to_string(), prepared.cgroup);
        let drive = Drive {
            child,
            awaited,
            tree: Tree::new(self.scanner.clone(), Some((pid, 0)), run, cgroup.clone()),
            cgroup,
            input,
            pipes,
            writer,
            orders: received,
            plan: command.kill,
            timeout: command.timeout.map(|t| (started + t, t)),
            nonce: prepared.nonce,
            told: Some((started + self.brief, told)),
        };
        let ended = runtime.spawn(drive.run());
        let began = Began::Told(began);
        Ok(Running { run_id, pid, began, started_at, control, output, ended })
    }
}

/// How to learn when the process of a command was started.
#[derive(Debug)]
pub enum Began {
    /// It is known, if it ever was.
    Known(Option<u64>),
    /// It is told once the command has run for [`RunnerOptions::brief`].
    Told(oneshot::Receiver<Option<u64>>),
}

impl Began {
    /// What is known, once the command has run for [`RunnerOptions::brief`] or has ended.
    pub(super) async fn told(self) -> Option<u64> {
        match self {
            Self::Known(start) => start,
            Self::Told(told) => told.await.ok().flatten(),
        }
    }

    /// Waits until the command has run for `brief` or what the runner takes for that, and
    /// answers the [`start_time`](super::start_time) of its process, if that still runs.
    /// Never ready if the command ends before.
    pub async fn long(self, brief: Duration) -> Option<u64> {
        match self {
            Self::Known(start) => {
                tokio::time::sleep(brief).await;
                start
            }
            Self::Told(told) => match told.await {
                Ok(start) => start,
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// A running command.
#[derive(Debug)]
pub struct Running {
    /// As given to [`Runner::spawn`].
    pub run_id: RunId,
    /// Process id; also the id of its process group.
    pub pid: u32,
    /// The start time of its process.
    pub began: Began,
    /// When it was started, millisecond precision.
    pub started_at: Timestamp,
    /// Ends it.
    pub control: Control,
    /// What it writes.
    pub output: OutputHub,
    pub(super) ended: tokio::task::JoinHandle<Ended>,
}

impl Running {
    /// Waits for the end. The output is complete by then. Cancel safe; to be called to
    /// its end once only.
    pub async fn wait(&mut self) -> Ended {
        match (&mut self.ended).await {
            Ok(ended) => ended,
            Err(e) => {
                // A defect of ours; what it leaves behind must not run on unwatched.
                let _ = tree::signal_group(self.pid, nix::sys::signal::Signal::SIGKILL);
                let (output_bytes, dropped_bytes) = self.output.counts();
                Ended {
                    code: Code::BUG,
                    state: RunState::Lost,
                    exit_code: None,
                    signal: None,
                    message: Some(format!("the task that watched the process failed: {e}")),
                    ended_at: to_millis(Timestamp::now()),
                    output_bytes,
                    dropped_bytes,
                }
            }
        }
    }
}

/// What was asked of a running command.
#[derive(Debug, Clone, Default)]
pub(crate) struct Orders {
    /// The first reason given.
    pub(crate) kill: Option<KillReason>,
    /// Whether no plan may take long any more; see [`KillReason::is_urgent`].
    pub(super) shutdown: bool,
    /// The latest plan given, and its number.
    pub(super) plan: Option<(u64, KillPlan)>,
}

/// Ends a running command. Cloning is cheap; it may outlive the command.
#[derive(Debug, Clone)]
pub struct Control {
    orders: Arc<watch::Sender<Orders>>,
    survives: bool,
}

impl Control {
    /// A control and the one who obeys it.
    pub(crate) fn new() -> (Self, watch::Receiver<Orders>) {
        let (orders, received) = watch::channel(Orders::default());
        (Self { orders: Arc::new(orders), survives: false }, received)
    }

    /// The same for a run that survives the worker.
    pub(super) fn surviving() -> (Self, watch::Receiver<Orders>) {
        let (control, received) = Self::new();
        (Self { survives: true, ..control }, received)
    }

    /// Whether the command goes on when the worker ends: then
    /// [`KillReason::Shutdown`] does nothing.
    pub fn survives(&self) -> bool {
        self.survives
    }

    /// Starts the command's own kill plan. Does nothing if it is being killed already
    /// (but at a shutdown that gets hurried) or has ended. Returns at once;
    /// [`Running::wait`] tells when it is over.
    pub fn kill(&self, reason: KillReason) {
        if self.survives && reason == KillReason::Shutdown {
            return;
        }
        self.orders.send_if_modified(|o| {
            let shutdown = reason.is_urgent();
            let new = o.kill.is_none() || shutdown && !o.shutdown;
            o.kill.get_or_insert(reason);
            o.shutdown |= shutdown;
            new
        });
    }

    /// Like [`kill`](Self::kill) but with another plan, which also takes the place of one
    /// that is under way. The reason given first stays.
    pub fn kill_with(&self, reason: KillReason, plan: KillPlan) {
        self.orders.send_modify(|o| {
            o.kill.get_or_insert(reason);
            o.shutdown |= reason.is_urgent();
            let number = o.plan.as_ref().map_or(0, |(n, _)| *n) + 1;
            o.plan = Some((number, plan));
        });
    }

    /// Whether the command's end has been seen.
    pub fn is_over(&self) -> bool {
        self.orders.is_closed()
    }
}
