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
use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    id::RunId,
    run::{RunState, to_millis},
    secret::fill,
};
use std::{
    collections::VecDeque,
    fmt, io,
    os::unix::process::CommandExt,
    panic::AssertUnwindSafe,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, oneshot},
    task::JoinHandle,
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

/// Commands that may wait for a thread to start them; more wait outside.
const QUEUE: usize = 256;

/// Starts commands. Cloning is cheap. The threads end with the last clone.
#[derive(Debug, Clone)]
pub struct Runner {
    queue: Arc<Open>,
}

/// A queue that is closed when nobody can put anything in any more.
#[derive(Debug)]
struct Open(Arc<Queue>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.came.notify_all();
    }
}

/// Requests on their way to the threads. A thread that is busy takes the next one when it is
/// done; only one that sleeps is woken.
#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    came: Condvar,
    room: Semaphore,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<Request>,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing is left half done while it is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request; none when there will be no more.
    fn next(&self) -> Option<Request> {
        let mut waiting = self.lock();
        loop {
            if let Some(request) = waiting.requests.pop_front() {
                drop(waiting);
                self.room.add_permits(1);
                return Some(request);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[derive(Debug)]
struct Request {
    run_id: RunId,
    command: Command,
    runtime: Handle,
    reply: oneshot::Sender<Result<Unclaimed, StartError>>,
}

/// A started command on its way to the one who asked for it; killed if it gets lost.
#[derive(Debug)]
struct Unclaimed(Option<Running>, Handle);

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            running.control.kill_with(KillReason::Requested, KillPlan::NOW);
            let _context = self.1.enter();
            drop(running);
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
        let queue = Arc::new(Queue {
            waiting: Mutex::default(),
            came: Condvar::new(),
            room: Semaphore::new(QUEUE),
        });
        let spawner = Arc::new(Spawner {
            own: Account::own(),
            helper: options.helper,
            cgroups: options.cgroups,
            brief: options.brief,
            // No run is older than its worker.
            scanner: Scanner::new(start_time(std::process::id()).unwrap_or(0)),
        });
        // Closed also if not all threads can be had.
        let open = Arc::new(Open(queue.clone()));
        for n in 0..options.threads.max(1) {
            let (queue, spawner) = (queue.clone(), spawner.clone());
            thread::Builder::new().name(format!("spawner-{n}")).spawn(move || {
                while let Some(request) = queue.next() {
                    spawner.serve(request);
                }
            })?;
        }
        Ok(Self { queue: open })
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
        let mut running = self.spawn_held(run_id, command).await?;
        running.let_go();
        Ok(running)
    }

    /// As [`spawn`](Self::spawn), but the output is read only while somebody is in
    /// [`Running::wait`], until [`Running::let_go`]: a brief run costs no task of its own.
    pub async fn spawn_held(&self, run_id: RunId, command: Command) -> Result<Running, StartError> {
        let (reply, answer) = oneshot::channel();
        let request = Request { run_id, command, runtime: Handle::current(), reply };
        let gone =
            || StartError::new(StartProblem::Other, "the threads that start processes are gone");
        let queue = &self.queue.0;
        // Given back by the thread that takes the request.
        queue.room.acquire().await.map_err(|_| gone())?.forget();
        queue.lock().requests.push_back(request);
        queue.came.notify_one();
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
        let started = self.start(run_id, command);
        // Nobody waits any more: what was started dies with the answer.
        let _ = reply.send(started.map(|running| Unclaimed(Some(running), runtime.clone())));
    }

    fn start(&self, run_id: RunId, command: Command) -> Result<Running, StartError> {
        let secrets = command.secrets.clone();
        // The words for what is wrong may quote the environment.
        self.start_with(run_id, command)
            .map_err(|e| StartError { message: secrets.masks().text(&e.message), ..e })
    }

    fn start_with(&self, run_id: RunId, mut command: Command) -> Result<Running, StartError> {
        let prepared = self.prepare(run_id, &command)?;
        let stdin = command.stdin.take().filter(|text| !text.is_empty());
        let stdin = stdin.map(|text| fill(&text, command.secrets.values())).transpose();
        let stdin = stdin.map_err(|why| StartError::new(StartProblem::Other, why))?;
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
        let (output, writer) = Writer::masked(run_id, limit, keep, &command.secrets);
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
        let ended = Ending::of(drive.run());
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
    pub(super) ended: Ending,
}

/// Who accompanies a command to its end.
pub(super) enum Ending {
    /// Whoever waits for it.
    Here(BoxFuture<'static, thread::Result<Ended>>),
    /// A task.
    Task(JoinHandle<thread::Result<Ended>>),
    /// It is over.
    Over,
}

impl Ending {
    /// The end that `accompany` comes to while it is waited for.
    fn of(accompany: impl Future<Output = Ended> + Send + 'static) -> Self {
        // Nothing is looked at any more that a panic may have left half done.
        Self::Here(AssertUnwindSafe(accompany).catch_unwind().boxed())
    }

    /// The end that a task comes to.
    pub(super) fn task(accompany: impl Future<Output = Ended> + Send + 'static) -> Self {
        Self::Task(tokio::spawn(AssertUnwindSafe(accompany).catch_unwind()))
    }
}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Here(_) => "Here",
            Self::Task(_) => "Task",
            Self::Over => "Over",
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Running {
    /// From now on a task accompanies the command, whether or not anybody waits.
    pub fn let_go(&mut self) {
        if !matches!(self.ended, Ending::Here(_)) {
            return;
        }
        // Without a runtime nothing can be accompanied any more.
        if let (Ending::Here(ended), Ok(runtime)) =
            (std::mem::replace(&mut self.ended, Ending::Over), Handle::try_current())
        {
            self.ended = Ending::Task(runtime.spawn(ended));
        }
    }

    /// Waits for the end. The output is complete by then. Cancel safe; to be called to its
    /// end once only.
    pub async fn wait(&mut self) -> Ended {
        let ended = match &mut self.ended {
            Ending::Here(ended) => ended.await.map_err(|_| "it panicked".to_owned()),
            Ending::Task(task) => match task.await {
                Ok(ended) => ended.map_err(|_| "it panicked".to_owned()),
                Err(e) => Err(e.to_string()),
            },
            Ending::Over => Err("it was over before".to_owned()),
        };
        self.ended = Ending::Over;
        match ended {
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
                    message: Some(format!("what watched the process failed: {e}")),
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

/// Orders between those who give them and the one who obeys: less than a channel that any
/// number may watch, as every run has one.
#[derive(Debug, Default)]
struct Desk {
    /// With the number of changes so far.
    orders: Mutex<(u64, Orders)>,
    changed: Notify,
    /// Nobody obeys any more.
    over: AtomicBool,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, (u64, Orders)> {
        // Nothing is left half done while it is held.
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change; `change` answers whether it was one.
    fn change(&self, change: impl FnOnce(&mut Orders) -> bool) {
        let mut orders = self.lock();
        if change(&mut orders.1) {
            orders.0 += 1;
            drop(orders);
            self.changed.notify_one();
        }
    }
}

/// Where the one who obeys finds the orders.
#[derive(Debug)]
pub(crate) struct Received {
    desk: Arc<Desk>,
    /// Changes seen.
    seen: u64,
}

impl Received {
    /// All that was ordered so far.
    pub(crate) fn all(&mut self) -> Orders {
        let orders = self.desk.lock();
        self.seen = orders.0;
        orders.1.clone()
    }

    /// Waits until something is ordered that was not seen yet, and answers everything. Cancel
    /// safe.
    pub(crate) async fn next(&mut self) -> Orders {
        loop {
            if self.desk.lock().0 != self.seen {
                return self.all();
            }
            // What comes in between is kept for the one who waits.
            self.desk.changed.notified().await;
        }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.desk.over.store(true, Ordering::Release);
    }
}

/// Ends a running command. Cloning is cheap; it may outlive the command.
#[derive(Debug, Clone)]
pub struct Control {
    desk: Arc<Desk>,
    survives: bool,
}

impl Control {
    /// A control and the one who obeys it.
    pub(crate) fn new() -> (Self, Received) {
        let desk = Arc::new(Desk::default());
        (Self { desk: desk.clone(), survives: false }, Received { desk, seen: 0 })
    }

    /// The same for a run that survives the worker.
    pub(super) fn surviving() -> (Self, Received) {
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
        self.desk.change(|o| {
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
        self.desk.change(|o| {
            o.kill.get_or_insert(reason);
            o.shutdown |= reason.is_urgent();
            let number = o.plan.as_ref().map_or(0, |(n, _)| *n) + 1;
            o.plan = Some((number, plan));
            true
        });
    }

    /// Whether the command's end has been seen.
    pub fn is_over(&self) -> bool {
        self.desk.over.load(Ordering::Acquire)
    }
}
