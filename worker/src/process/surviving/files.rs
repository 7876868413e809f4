//! The files of one surviving run, and the form of its output on disk and on the socket.

use crate::{
    process::{
        command::{Command, Ended, KillPlan, KillReason},
        keep::CHUNK,
    },
    state::private_dir,
};
use jiff::Timestamp;
use meepo_core::{
    id::RunId,
    job::Assignment,
    run::{OutputChunk, Stream},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::{UnixListener, UnixStream},
};

/// What the supervisor is to run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) run_id: RunId,
    pub(super) command: Command,
    /// For the worker that takes the run over.
    pub(super) assignment: Arc<Assignment>,
    /// Settings of the worker, for the run's control group.
    pub(super) data_dir: PathBuf,
    pub(super) cgroup_root: Option<PathBuf>,
}

/// What a worker that takes the run over needs of the [`Order`]. It may be an older worker's,
/// whose command lacks what this one's has.
#[derive(Deserialize)]
struct Kept {
    assignment: Arc<Assignment>,
}

/// The process of the command.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Started {
    pub(super) pid: u32,
    /// See [`start_time`](crate::process::start_time).
    pub(super) pid_start_time: Option<u64>,
    pub(super) at: Timestamp,
}

impl Started {
    /// Pid and start time.
    pub(super) fn process(&self) -> Option<(u32, u64)> {
        self.pid_start_time.map(|start| (self.pid, start))
    }
}

/// What the worker sends: end the command.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kill {
    pub(super) reason: KillReason,
    /// Instead of the command's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) plan: Option<KillPlan>,
}

/// The files of one run.
#[derive(Debug, Clone)]
pub(super) struct Files {
    run_id: RunId,
    dir: PathBuf,
}

/// The lock of the supervisor.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    /// Closing alone does not unlock while a child that is just being started has it too.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

impl Files {
    pub(super) fn new(run_id: RunId, dir: PathBuf) -> Self {
        Self { run_id, dir }
    }

    pub(super) fn run_id(&self) -> RunId {
        self.run_id
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes the directory and everything a supervisor needs.
    pub(super) fn create(&self, order: &Order) -> io::Result<()> {
        private_dir(&self.dir)?;
        private(&self.path("lock"))?;
        self.put("order", order, false)
    }

    /// Where the supervisor complains.
    pub(super) fn stderr(&self) -> io::Result<File> {
        private(&self.path("stderr"))
    }

    /// What it complained of.
    pub(super) fn said(&self) -> String {
        let mut text = Vec::new();
        let read =
            File::open(self.path("stderr")).and_then(|f| f.take(1000).read_to_end(&mut text));
        match read {
            Ok(1..) => String::from_utf8_lossy(&text).trim().replace('\n', "; "),
            _ => "it said nothing".into(),
        }
    }

    pub(super) fn order(&self) -> io::Result<Option<Order>> {
        self.get("order")
    }

    /// The assignment in the order.
    pub(super) fn assignment(&self) -> io::Result<Option<Arc<Assignment>>> {
        Ok(self.get::<Kept>("order")?.map(|kept| kept.assignment))
    }

    pub(super) fn take_order_away(&self) -> io::Result<()> {
        match fs::remove_file(self.path("order")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    pub(super) fn started(&self) -> io::Result<Option<Started>> {
        self.get("started")
    }

    pub(super) fn put_started(&self, started: &Started) -> io::Result<()> {
        // Of use only as long as the host is up, so it need not be durable.
        self.put("started", started, false)
    }

    pub(super) fn result(&self) -> io::Result<Option<Ended>> {
        self.get("result")
    }

    pub(super) fn put_result(&self, ended: &Ended) -> io::Result<()> {
        self.put("result", ended, true)
    }

    /// The output file; see [`encode`].
    pub(super) fn output(&self) -> PathBuf {
        self.path("output")
    }

    pub(super) fn create_output(&self) -> io::Result<File> {
        private(&self.output())
    }

    /// Removes everything.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Waits for the lock, for the supervisor.
    pub(super) fn lock(&self) -> io::Result<Lock> {
        let mut file = File::options().write(true).open(self.path("lock"))?;
        file.lock()?;
        write!(file, "{}", std::process::id())?;
        Ok(Lock(file))
    }

    /// The lock, unless a supervisor holds it.
    pub(super) fn try_lock(&self) -> io::Result<Option<Lock>> {
        let file = match File::options().write(true).open(self.path("lock")) {
            // Made before the order, so nothing can have started.
            Err(e) if e.kind() == io::ErrorKind::NotFound => private(&self.path("lock"))?,
            file => file?,
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// Kills the supervisor, which must hold the lock: else its number is another's.
    pub(super) fn kill_supervisor(&self) {
        let pid = fs::read_to_string(self.path("lock")).ok().and_then(|t| t.trim().parse().ok());
        // Small numbers name groups, and 1 is init.
        if let Some(pid) = pid.filter(|pid| *pid > 1)
            && let Err(e) = kill(Pid::from_raw(pid), Signal::SIGKILL)
        {
            tracing::warn!(run_id = %self.run_id, pid, error = %e, "cannot kill a supervisor");
        }
    }

    /// Listens on the socket.
    pub(super) fn listen(&self) -> io::Result<UnixListener> {
        let dir = File::open(&self.dir)?;
        UnixListener::bind(socket(&dir))
    }

    /// Connects to the supervisor.
    pub(super) async fn connect(&self) -> io::Result<UnixStream> {
        let dir = File::open(&self.dir)?;
        UnixStream::connect(socket(&dir)).await
    }

    fn get<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let path = self.path(name);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        serde_json::from_slice(&text).map(Some).map_err(|e| {
            let problem = format!("{} cannot be understood: {e}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, problem)
        })
    }

    /// Writes a file as a whole or not at all.
    fn put<T: Serialize>(&self, name: &str, value: &T, durable: bool) -> io::Result<()> {
        let new = self.path(&format!("{name}.new"));
        let mut file = private(&new)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&new, self.path(name))?;
        if durable {
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(())
    }

    /// Reads the next piece of output from the file or the socket; `None` at the end, also
    /// where the last piece is incomplete. Not cancel safe.
    pub(super) async fn decode(
        &self,
        from: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Option<OutputChunk>> {
        let mut head = [0; HEAD];
        let cut = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => Ok(None),
            _ => Err(e),
        };
        if let Err(e) = from.read_exact(&mut head).await {
            return cut(e);
        }
        let [a, b, c, d, rest @ ..] = head;
        let [s, t, u, v, w, x, y, z, rest @ ..] = rest;
        let [at @ .., stream] = rest;
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        let at = Timestamp::from_millisecond(i64::from_be_bytes(at));
        let stream = [Stream::Stdout, Stream::Stderr].get(usize::from(stream)).copied();
        let (Some(stream), Ok(at), 0..=CHUNK) = (stream, at, len) else {
            return Err(io::Error::other("this is no output of a supervisor"));
        };
        let mut data = vec![0; len];
        if let Err(e) = from.read_exact(&mut data).await {
            return cut(e);
        }
        let seq = u64::from_be_bytes([s, t, u, v, w, x, y, z]);
        Ok(Some(OutputChunk { run_id: self.run_id, seq, stream, at, data }))
    }
}

/// Bytes before the data of a piece.
const HEAD: usize = 4 + 8 + 8 + 1;

/// A piece of output: length of the data, seq and time in milliseconds (big endian), the
/// stream (0 or 1), the data.
pub(super) fn encode(chunk: &OutputChunk) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD + chunk.data.len());
    out.extend((chunk.data.len() as u32).to_be_bytes());
    out.extend(chunk.seq.to_be_bytes());
    out.extend(chunk.at.as_millisecond().to_be_bytes());
    out.push(u8::from(chunk.stream == Stream::Stderr));
    out.extend(&chunk.data);
    out
}

/// The socket's path by way of an open directory: that of a data directory may be longer
/// than the 108 bytes an address has room for; see unix(7).
fn socket(dir: &File) -> PathBuf {
    format!("/proc/self/fd/{}/sock", dir.as_raw_fd()).into()
}

/// An empty file for this user only; a link in its place is not followed.
fn private(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits()).open(path)
}
