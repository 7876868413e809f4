//! A process under test.

use crate::{
    procfs::{Identity, descendants},
    spawn,
    wait::eventually,
};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use std::{
    fs::{self, OpenOptions},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::Mutex,
    time::Duration,
};

/// How many lines of its log a failed test prints of each process.
const TAIL_LINES: usize = 40;

/// What to start.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Name for people, and of the log: `<dir>/<name>.log`.
    pub name: String,
    /// The program, a path or a name on the `PATH`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Added to the environment.
    pub env: Vec<(String, String)>,
    /// Working directory and place of the log. Must exist.
    pub dir: PathBuf,
    /// Whether stdout goes to `<dir>/<name>.out` instead of the log.
    pub split_output: bool,
}

impl Spec {
    /// `program` with `args`, logging into `dir`.
    pub fn new(name: &str, program: impl Into<PathBuf>, args: &[&str], dir: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            args: args.iter().map(|&a| a.to_owned()).collect(),
            env: Vec::new(),
            dir: dir.to_path_buf(),
            split_output: false,
        }
    }
}

/// A started process: leader of a process group of its own, its output in a file,
/// killed with all its group when this is dropped.
#[derive(Debug)]
pub struct Process {
    spec: Spec,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    child: Child,
    status: Option<ExitStatus>,
    /// Length of the log when the process was (last) started.
    log_start: u64,
    /// What it had started when it was killed: nobody else would end that.
    strays: Vec<Identity>,
}

impl Process {
    /// Starts it. Panics when the program cannot be started.
    pub fn start(spec: Spec) -> Self {
        let (child, log_start) = launch(&spec);
        Self {
            spec,
            state: Mutex::new(State { child, status: None, log_start, strays: Vec::new() }),
        }
    }

    /// What was started.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its process id; that of the last one when it has ended.
    pub fn pid(&self) -> u32 {
        self.state().child.id()
    }

    /// Kills it as a crash would (`SIGKILL`) and waits until it is gone. Processes it
    /// started are left alone, as a crash leaves them, until this handle is dropped.
    pub fn kill9(&self) {
        let mut state = self.state();
        state.remember_descendants();
        state.signal(Signal::SIGKILL);
        let _ = state.wait();
    }

    /// Asks it to end (`SIGTERM`) and returns at once; see [`Self::wait_exit`].
    pub fn term(&self) {
        self.state().signal(Signal::SIGTERM);
    }

    /// Sends `SIGINT`, what Ctrl-C sends.
    pub fn interrupt(&self) {
        self.state().signal(Signal::SIGINT);
    }

    /// Freezes it (`SIGSTOP`): alive, its connections open, answering nothing.
    pub fn stop(&self) {
        self.state().signal(Signal::SIGSTOP);
    }

    /// Lets it go on after [`Self::stop`].
    pub fn cont(&self) {
        self.state().signal(Signal::SIGCONT);
    }

    /// Starts it again with the same arguments; kills it first if it still runs.
    /// Returns at once: wait on what the test needs.
    pub fn restart(&self) {
        self.restart_with(&[]);
    }

    /// [`Self::restart`] with `env` added to the environment, for this life only.
    pub fn restart_with(&self, env: &[(&str, &str)]) {
        self.kill9();
        let mut spec = self.spec.clone();
        spec.env.extend(env.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())));
        let mut state = self.state();
        let (child, log_start) = launch(&spec);
        state.child = child;
        state.status = None;
        state.log_start = log_start;
    }

    /// Whether it is alive (a frozen one is).
    pub fn is_running(&self) -> bool {
        self.state().poll().is_none()
    }

    /// Waits until it ends by itself and answers how. Panics at the deadline.
    #[track_caller]
    pub fn wait_exit(&self, deadline: Duration) -> impl Future<Output = ExitStatus> {
        eventually(deadline, format!("{} ends", self.spec.name), async || {
            self.state().poll().ok_or_else(|| "it still runs".to_owned())
        })
    }

    /// All it logged, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(log_path(&self.spec)).unwrap_or_default()).into_owned()
    }

    /// What it logged since it was last started.
    pub fn log_since_start(&self) -> String {
        let from = self.state().log_start as usize;
        let bytes = fs::read(log_path(&self.spec)).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
    }

    /// What it wrote to stdout, where [`Spec::split_output`] was set.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(out_path(&self.spec)).unwrap_or_default()).into_owned()
    }

    /// Waits for a line with `pattern` in the log since the last start and answers
    /// it. Panics at the deadline, or at once when the process ends without it.
    #[track_caller]
    pub fn wait_log(&self, pattern: &str, deadline: Duration) -> impl Future<Output = String> {
        let what = format!("{} logs {pattern:?}", self.spec.name);
        eventually(deadline, what, async move || {
            // Ask before reading: what a process wrote before its end is then in the log.
            let ended = self.state().poll();
            if let Some(line) = self.log_since_start().lines().find(|l| l.contains(pattern)) {
                return Ok(line.to_owned());
            }
            assert!(
                ended.is_none(),
                "{} ended ({ended:?}) without logging {pattern:?}",
                self.spec.name
            );
            Err("no such line yet".to_owned())
        })
    }

    /// The end of the log, for messages.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic while it was held is the test's own failure; the state stays usable.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut state = self.state();
        state.remember_descendants();
        let ended = state.poll();
        // The group first: it is ours as long as its leader has not been reaped.
        if ended.is_none() {
            let _ = killpg(state.pid(), Signal::SIGKILL);
            let _ = state.wait();
        }
        for stray in &state.strays {
            stray.kill();
        }
        drop(state);
        if std::thread::panicking() {
            let name = &self.spec.name;
            eprintln!("--- end of the log of {name} ({}) ---", describe(ended));
            eprintln!("{}", self.log_tail());
        }
    }
}

impl State {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Sends a signal unless the process has been reaped, when its number may be
    /// somebody else's.
    fn signal(&mut self, signal: Signal) {
        if self.poll().is_none() {
            let _ = kill(self.pid(), signal);
        }
    }

    fn poll(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("the child is ours to wait for");
        }
        self.status
    }

    fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("the child is ours to wait for");
        *self.status.insert(status)
    }

    fn remember_descendants(&mut self) {
        if self.poll().is_none() {
            let found = descendants(self.child.id() as i32);
            self.strays.extend(found);
        }
    }
}

fn describe(status: Option<ExitStatus>) -> String {
    match status {
        None => "running".into(),
        Some(s) => match (s.code(), s.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "ended".into(),
        },
    }
}

fn log_path(spec: &Spec) -> PathBuf {
    spec.dir.join(format!("{}.log", spec.name))
}

fn out_path(spec: &Spec) -> PathBuf {
    spec.dir.join(format!("{}.out", spec.name))
}

fn launch(spec: &Spec) -> (Child, u64) {
    let open = |path: &Path| {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()))
    };
    let log = open(&log_path(spec));
    let log_start = log.metadata().map_or(0, |m| m.len());
    let mut command = spawn::mortal(&spec.program);
    // What the developer has set for a meepo or an etcd of theirs is not for these.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["MEEPO_", "ETCD_", "ETCDCTL_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&*name);
        }
    }
    let copy = || Stdio::from(log.try_clone().expect("a file descriptor"));
    command
        .args(&spec.args)
        .envs(spec.env.iter().map(|(k, v)| (k, v)))
        .current_dir(&spec.dir)
        .stdin(Stdio::null())
        .stdout(if spec.split_output { Stdio::from(open(&out_path(spec))) } else { copy() })
        .stderr(copy())
        .process_group(0);
    let child = spawn::spawn(command).unwrap_or_else(|e| {
        panic!("cannot start {} (through setpriv, of util-linux): {e}", spec.program.display())
    });
    (child, log_start)
}
