//! Starts commands on threads of its own.

use super::{
    command::{Command, Ended, KillPlan, KillReason},
    drive::Drive,
    env::{Account, default_cwd, environment},
    error::{StartError, StartProblem},
    helper,
    hub::OutputHub,
    leftover,
    pipes::{Input, Pipes},
    resolve,
};
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    id::RunId,
    run::{RunState, to_millis},
};
use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
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
}

impl Default for RunnerOptions {
    fn default() -> Self {
        Self { threads: 2, helper: "/proc/self/exe".into() }
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
struct Spawner {
    own: Account,
    helper: PathBuf,
}

impl Runner {
    /// Starts the threads. Errors: the system refuses a thread.
    pub fn new(options: RunnerOptions) -> io::Result<Self> {
        let (requests, queue) = mpsc::channel::<Request>(256);
        let queue = Arc::new(Mutex::new(queue));
        let spawner = Arc::new(Spawner { own: Account::own(), helper: options.helper });
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

    /// Starts `command` as run `run_id` (which only names its output; whatever the
    /// command is to know of it belongs into its environment). Must be called within a
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
        let prepared = self.prepare(&command)?;
        let stdin = command.stdin.take().filter(|text| !text.is_empty());
        let mut std = prepared.command;
        std.process_group(0)
            .stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = tokio::process::Command::from(std)
            .spawn()
            .map_err(|e| resolve::explain(&e, &prepared.program, &prepared.cwd))?;
        let started = tokio::time::Instant::now();
        let started_at = to_millis(Timestamp::now());
        // Present: the child has not been waited for.
        let pid = child.id().unwrap_or_default();
        let pid_start_time = leftover::start_time(pid);
        let (output, writer) = OutputHub::new(run_id, command.output_limit);
        let (orders, received) = watch::channel(Orders::default());
        let control = Control { orders: Arc::new(orders) };
        let input = Input::new(child.stdin.take().zip(stdin.map(String::into_bytes)));
        let pipes = Pipes::new(child.stdout.take(), child.stderr.take());
        let drive = Drive {
            pid,
            child,
            input,
            pipes,
            writer,
            orders: received,
            plan: command.kill,
            timeout: command.timeout.map(|t| (started + t, t)),
            nonce: prepared.nonce,
        };
        let ended = runtime.spawn(drive.run());
        Ok(Running { run_id, pid, pid_start_time, started_at, control, output, ended })
    }

    fn prepare(&self, command: &Command) -> Result<Prepared, StartError> {
        let (name, args) = resolve::argv(command.executor, &command.cmd, &command.args);
        let switch_to = match command.user.as_deref() {
            Some(user) if user != self.own.name => {
                let account = Account::named(user)?;
                (account.uid != self.own.uid).then_some(account)
            }
            _ => None,
        };
        let env = environment(switch_to.as_ref().unwrap_or(&self.own), &command.env);
        if let Some(account) = switch_to {
            if !self.own.uid.is_root() {
                return Err(StartError::new(
                    StartProblem::UserSwitch,
                    format!(
                        "cannot run as user {:?}: the worker runs as {:?}; only a worker that runs \
                         as root can switch users",
                        account.name, self.own.name
                    ),
                ));
            }
            if let Some(cwd) = &command.cwd {
                resolve::check_cwd(cwd)?;
            }
            // Time-ordered, but with 74 random bits.
            let nonce = uuid::Uuid::now_v7().simple().to_string();
            let mut std = std::process::Command::new(&self.helper);
            std.args(helper::arguments(&nonce, &account, command.cwd.as_deref(), name, args))
                .current_dir("/")
                .env_clear()
                .envs(env);
            return Ok(Prepared {
                command: std,
                program: self.helper.clone(),
                cwd: "/".into(),
                nonce: Some(nonce),
            });
        }
        let home = command.user.as_ref().map(|_| self.own.home.as_path());
        let cwd = command.cwd.as_deref().unwrap_or_else(|| default_cwd(home));
        let path = env.get(&OsString::from("PATH")).map(OsString::as_os_str).unwrap_or_default();
        let program = resolve::program(&name, path, cwd).map_err(|e| {
            // A missing directory explains why nothing was found in it.
            resolve::check_cwd(cwd).err().unwrap_or(e)
        })?;
        let mut std = std::process::Command::new(&program);
        std.arg0(&name).args(&args).current_dir(cwd).env_clear().envs(env);
        Ok(Prepared { command: std, program, cwd: cwd.into(), nonce: None })
    }
}

struct Prepared {
    command: std::process::Command,
    program: PathBuf,
    cwd: PathBuf,
    /// Present if an exec helper comes in between.
    nonce: Option<String>,
}

/// A running command.
#[derive(Debug)]
pub struct Running {
    /// As given to [`Runner::spawn`].
    pub run_id: RunId,
    /// Process id; also the id of its process group.
    pub pid: u32,
    /// See [`start_time`](super::start_time); `None` if it ended at once.
    pub pid_start_time: Option<u64>,
    /// When it was started, millisecond precision.
    pub started_at: Timestamp,
    /// Ends it.
    pub control: Control,
    /// What it writes.
    pub output: OutputHub,
    ended: tokio::task::JoinHandle<Ended>,
}

impl Running {
    /// Waits for the end. The output is complete by then. Cancel safe; to be called to
    /// its end once only.
    pub async fn wait(&mut self) -> Ended {
        match (&mut self.ended).await {
            Ok(ended) => ended,
            Err(e) => {
                // A defect of ours; what it leaves behind must not run on unwatched.
                let _ = leftover::send(self.pid, nix::sys::signal::Signal::SIGKILL);
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
pub(super) struct Orders {
    /// The first reason given.
    pub(super) kill: Option<KillReason>,
    /// The latest plan given, and its number.
    pub(super) plan: Option<(u64, KillPlan)>,
}

/// Ends a running command. Cloning is cheap; it may outlive the command.
#[derive(Debug, Clone)]
pub struct Control {
    orders: Arc<watch::Sender<Orders>>,
}

impl Control {
    /// Starts the command's own kill plan. Does nothing if it is being killed already or
    /// has ended. Returns at once; [`Running::wait`] tells when it is over.
    pub fn kill(&self, reason: KillReason) {
        self.orders.send_if_modified(|o| {
            let first = o.kill.is_none();
            o.kill.get_or_insert(reason);
            first
        });
    }

    /// Like [`kill`](Self::kill) but with another plan, which also takes the place of one
    /// that is under way. The reason given first stays.
    pub fn kill_with(&self, reason: KillReason, plan: KillPlan) {
        self.orders.send_modify(|o| {
            o.kill.get_or_insert(reason);
            let number = o.plan.as_ref().map_or(0, |(n, _)| *n) + 1;
            o.plan = Some((number, plan));
        });
    }

    /// Whether the command's end has been seen.
    pub fn is_over(&self) -> bool {
        self.orders.is_closed()
    }
}
