//! A real MongoDB server for tests, which leaves nothing behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "for tests only: a failure is a panic that says what failed"
)]

use crate::BoxError;
use mongodb::{Client, bson::doc, options::ClientOptions};
use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Names a server to use instead of one of our own; tests make databases named
/// `meepo_test_…` there and leave them.
pub const EXTERNAL: &str = "MEEPO_TEST_MONGODB_URI";

/// How long a server may take to answer after its start.
const START: Duration = Duration::from_secs(60);
/// Name of the replica set of [`TestMongo::start_replica_set`].
const SET: &str = "rs0";

/// Runs the server and outlives whoever started it: when its standard input ends,
/// for whatever reason (also SIGKILL), it kills the server and removes the files.
/// Signals from a terminal reach the whole group, so it must not die of them first.
const KEEPER: &str = r#"
trap '' HUP INT TERM
dir=$1; shift
# Should the keeper itself be killed, the kernel kills the server.
command -v setpriv >/dev/null && set -- setpriv --pdeathsig KILL "$@"
"$@" >"$dir/log" 2>&1 </dev/null & pid=$!
echo "$pid"
files=remove
while read -r order; do
    case $order in
        pause) kill -STOP "$pid" ;;
        resume) kill -CONT "$pid" ;;
        kill) files=keep; break ;;
    esac
done
kill -KILL "$pid" 2>/dev/null; wait "$pid" 2>/dev/null
[ "$files" = keep ] || rm -rf "$dir"
"#;

/// A MongoDB server of the test's own: a free port on the loopback, a directory that
/// goes away, a small cache. It ends when this is dropped, when the test panics, and
/// when the test's process dies in any other way; so it may also stand in a `static`.
///
/// ```no_run
/// # async fn example() {
/// let mongo = meepo_logstore::testing::TestMongo::start().await;
/// let store = meepo_logstore::open(&mongo.fresh_uri()).await.unwrap();
/// store.migrate().await.unwrap();
/// mongo.kill();
/// assert!(store.ping().await.unwrap_err().retryable());
/// mongo.restart().await;
/// store.ping().await.unwrap();
/// # }
/// ```
#[derive(Debug)]
pub struct TestMongo {
    server: Server,
}

#[derive(Debug)]
enum Server {
    Own(Own),
    External(String),
}

#[derive(Debug)]
struct Own {
    binary: PathBuf,
    dir: tempfile::TempDir,
    port: u16,
    replica_set: bool,
    keeper: Mutex<Option<Keeper>>,
}

impl TestMongo {
    /// Starts a server and waits until it answers; or takes the one that [`EXTERNAL`]
    /// names.
    ///
    /// # Panics
    /// If there is no binary (the message says how to get one) or it does not start.
    pub async fn start() -> Self {
        match std::env::var(EXTERNAL) {
            Ok(uri) if !uri.is_empty() => Self { server: Server::External(uri) },
            _ => Self::start_own().await,
        }
    }

    /// Starts a server of our own whatever [`EXTERNAL`] says, for tests that kill it.
    ///
    /// # Panics
    /// As [`TestMongo::start`].
    pub async fn start_own() -> Self {
        Self { server: Server::Own(Own::start(false).await.expect("start mongod")) }
    }

    /// Starts a server of our own as a replica set of one, which has retryable writes
    /// and majorities as production has.
    ///
    /// # Panics
    /// As [`TestMongo::start`].
    pub async fn start_replica_set() -> Self {
        Self { server: Server::Own(Own::start(true).await.expect("start mongod")) }
    }

    /// The URL of database `db` on this server.
    pub fn uri(&self, db: &str) -> String {
        match &self.server {
            Server::Own(own) => own.uri(db),
            Server::External(uri) => with_database(uri, db),
        }
    }

    /// The URL of a database that nobody else uses. Another one at each call.
    pub fn fresh_uri(&self) -> String {
        self.uri(&fresh_name())
    }

    /// Whether the server is somebody else's: it cannot be killed or paused.
    pub fn is_external(&self) -> bool {
        matches!(self.server, Server::External(_))
    }

    /// Kills the server at once (SIGKILL) and returns when it is dead. Its files stay.
    ///
    /// # Panics
    /// If the server is external.
    pub fn kill(&self) {
        if let Some(keeper) = self.own().take_keeper() {
            keeper.kill();
        }
    }

    /// Stops the server in its tracks (SIGSTOP): connections stay, answers do not come.
    ///
    /// # Panics
    /// If the server is external or killed.
    pub fn pause(&self) {
        self.own().order("pause");
    }

    /// Lets a paused server go on.
    ///
    /// # Panics
    /// If the server is external or killed.
    pub fn resume(&self) {
        self.own().order("resume");
    }

    /// Starts the server again on the same port and files, killing it first if it
    /// runs, and waits until it answers.
    ///
    /// # Panics
    /// If the server is external or does not come back.
    pub async fn restart(&self) {
        self.kill();
        self.own().launch().await.expect("restart mongod");
    }

    fn own(&self) -> &Own {
        match &self.server {
            Server::Own(own) => own,
            Server::External(_) => panic!("the server of {EXTERNAL} is not ours to stop"),
        }
    }
}

/// A replica set of several servers of the test's own, each as [`TestMongo`] is one.
#[derive(Debug)]
pub struct TestMongoSet {
    members: Vec<Own>,
}

impl TestMongoSet {
    /// Starts `n` servers and waits until one of them leads all others.
    ///
    /// # Panics
    /// As [`TestMongo::start`].
    pub async fn start(n: usize) -> Self {
        let mut members = Vec::new();
        for _ in 0..n {
            members.push(Own::boot(true).await.expect("start mongod"));
        }
        let set = Self { members };
        set.initiate().await.expect("initiate the replica set");
        set
    }

    async fn initiate(&self) -> Result<(), BoxError> {
        let hosts = (0..).zip(&self.members);
        let members: Vec<_> = hosts
            .map(|(i, m)| doc! { "_id": i, "host": format!("127.0.0.1:{}", m.port) })
            .collect();
        let settings = doc! { "electionTimeoutMillis": 2_000, "heartbeatIntervalMillis": 200 };
        let config = doc! { "_id": SET, "members": members, "settings": settings };
        let admin = self.members[0].client().await?.database("admin");
        admin.run_command(doc! { "replSetInitiate": config }).await?;
        let deadline = Instant::now() + START;
        for member in &self.members {
            let admin = member.client().await?.database("admin");
            loop {
                let hello = admin.run_command(doc! { "hello": 1 }).await?;
                let there = ["isWritablePrimary", "secondary"];
                if there.iter().any(|role| hello.get_bool(role).unwrap_or(false)) {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(format!("no member: {hello}\n{}", member.log_end()).into());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// The URL of a database that nobody else uses, with all members. Another one at each
    /// call.
    pub fn fresh_uri(&self) -> String {
        let hosts: Vec<_> = self.members.iter().map(|m| format!("127.0.0.1:{}", m.port)).collect();
        format!("mongodb://{}/{}?replicaSet={SET}", hosts.join(","), fresh_name())
    }

    /// Makes the primary give up its role for a while, so that another is elected.
    /// Returns once it has.
    ///
    /// # Panics
    /// If there is no primary for long.
    pub async fn step_down(&self) {
        let deadline = Instant::now() + START;
        loop {
            for member in &self.members {
                let admin = member.client().await.expect("a client").database("admin");
                // Only a primary does it; it may not before the others have caught up.
                let command = doc! { "replSetStepDown": 10, "secondaryCatchUpPeriodSecs": 8 };
                if admin.run_command(command).await.is_ok() {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "nobody steps down");
        }
    }
}

/// The name of a database that nobody else uses.
fn fresh_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = jiff::Timestamp::now().as_nanosecond();
    format!("meepo_test_{}_{now}_{count}", std::process::id())
}

impl Own {
    async fn start(replica_set: bool) -> Result<Self, BoxError> {
        let own = Self::boot(replica_set).await?;
        own.initiate().await?;
        Ok(own)
    }

    /// A server that runs; of a replica set it is not yet a member.
    async fn boot(replica_set: bool) -> Result<Self, BoxError> {
        let binary = tokio::task::spawn_blocking(find_mongod).await??;
        let mut tries = 0;
        loop {
            let dir = tempfile::Builder::new().prefix("meepo-mongod-").tempdir()?;
            let port = free_port()?;
            let keeper = Mutex::default();
            let own = Self { binary: binary.clone(), dir, port, replica_set, keeper };
            match own.launch().await {
                Ok(()) => return Ok(own),
                // Somebody else took the port between our look and the start.
                Err(e) if tries < 5 && e.to_string().contains("in use") => tries += 1,
                Err(e) => return Err(e),
            }
        }
    }

    fn uri(&self, db: &str) -> String {
        let options = if self.replica_set { "?directConnection=true" } else { "" };
        format!("mongodb://127.0.0.1:{}/{db}{options}", self.port)
    }

    fn take_keeper(&self) -> Option<Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn order(&self, order: &str) {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        keeper.as_mut().expect("mongod was killed; restart it first").order(order);
    }

    async fn launch(&self) -> Result<(), BoxError> {
        let keeper = Keeper::spawn(self)?;
        let pid = keeper.server;
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        let client = self.client().await?;
        let deadline = Instant::now() + START;
        loop {
            let answer = client.database("admin").run_command(doc! { "ping": 1 }).await;
            let Err(e) = answer else { return Ok(()) };
            let dead = !is_alive(pid);
            if dead || Instant::now() > deadline {
                let what = if dead { "ended at once" } else { "does not answer" };
                return Err(format!("mongod {what}: {e}\n{}", self.log_end()).into());
            }
        }
    }

    async fn client(&self) -> Result<Client, BoxError> {
        let mut options = ClientOptions::parse(self.uri("admin")).await?;
        options.direct_connection = Some(true);
        // Short, so that a server that died is noticed; this is also the pause
        // between two looks.
        options.server_selection_timeout = Some(Duration::from_millis(250));
        Ok(Client::with_options(options)?)
    }

    /// Makes the server the only member of a set and waits until it leads it.
    async fn initiate(&self) -> Result<(), BoxError> {
        if !self.replica_set {
            return Ok(());
        }
        let admin = self.client().await?.database("admin");
        let host = format!("127.0.0.1:{}", self.port);
        let config = doc! { "_id": SET, "members": [{ "_id": 0, "host": host }] };
        admin.run_command(doc! { "replSetInitiate": config }).await?;
        let deadline = Instant::now() + START;
        loop {
            let hello = admin.run_command(doc! { "hello": 1 }).await?;
            if hello.get_bool("isWritablePrimary").unwrap_or(false) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("no primary: {hello}\n{}", self.log_end()).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn log_end(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // The server must be dead before its directory goes.
        drop(self.take_keeper());
    }
}

/// The shell that runs the server, see [`KEEPER`].
#[derive(Debug)]
struct Keeper {
    shell: Child,
    server: u32,
}

impl Keeper {
    fn spawn(own: &Own) -> Result<Self, BoxError> {
        let dir = own.dir.path();
        let db = dir.join("db");
        std::fs::create_dir_all(&db)?;
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh"]).arg(dir).arg(&own.binary).arg("--dbpath").arg(&db);
        command.args(["--port", &own.port.to_string(), "--bind_ip", "127.0.0.1"]);
        command.args(["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"]);
        command.args(["--setParameter", "diagnosticDataCollectionEnabled=false"]);
        if own.replica_set {
            command.args(["--replSet", SET, "--oplogSize", "64"]);
        }
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let out = shell.stdout.take().ok_or("no pipe")?;
        BufReader::new(out).read_line(&mut line)?;
        Ok(Self { shell, server: line.trim().parse()? })
    }

    fn order(&mut self, order: &str) {
        let pipe = self.shell.stdin.as_mut().expect("the keeper's pipe");
        writeln!(pipe, "{order}").expect("the keeper of mongod has ended");
    }

    fn kill(mut self) {
        self.order("kill");
        // Dropped here: waits for the end.
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // Nothing can be done about a failure; the shell ends by itself.
        let _ = self.shell.wait();
    }
}

/// Whether the process is there and no zombie.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // `pid (name) state …`, and the name may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The path of a `mongod`, fetched if need be.
fn find_mongod() -> Result<PathBuf, BoxError> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/fetch-mongod.sh");
    let out = Command::new(&script)
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| format!("cannot run {}: {e}", script.display()))?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).trim().to_owned().into());
    }
    Ok(String::from_utf8(out.stdout)?.trim().into())
}

/// `uri` with its database replaced.
fn with_database(uri: &str, db: &str) -> String {
    let (place, options) = uri.split_once('?').map_or((uri, None), |(p, o)| (p, Some(o)));
    let start = place.find("://").map_or(0, |i| i + 3);
    let end = place[start..].find('/').map_or(place.len(), |i| start + i);
    let options = options.map(|o| format!("?{o}")).unwrap_or_default();
    format!("{}/{db}{options}", &place[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until `done`, with a deadline.
    fn eventually(what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + START;
        while !done() {
            assert!(Instant::now() < deadline, "still waiting: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn pid_and_dir(mongo: &TestMongo) -> (u32, PathBuf) {
        let own = mongo.own();
        let keeper = own.keeper.lock().unwrap();
        (keeper.as_ref().unwrap().server, own.dir.path().to_owned())
    }

    #[tokio::test]
    async fn nothing_is_left_behind() {
        let mongo = TestMongo::start_own().await;
        let (pid, dir) = pid_and_dir(&mongo);
        assert!(is_alive(pid) && dir.exists());
        drop(mongo);
        assert!(!is_alive(pid) && !dir.exists(), "after a drop");

        let mongo = TestMongo::start_own().await;
        let (pid, dir) = pid_and_dir(&mongo);
        mongo.pause();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _mongo = mongo;
            std::panic::resume_unwind(Box::new("on purpose"));
        }));
        assert!(panicked.is_err());
        assert!(!is_alive(pid) && !dir.exists(), "after a panic");

        // What a process leaves that dies without a chance to clean up: the pipe ends.
        let mongo = TestMongo::start_own().await;
        let (pid, dir) = pid_and_dir(&mongo);
        let mut keeper = mongo.own().take_keeper().unwrap();
        drop(keeper.shell.stdin.take());
        eventually("the keeper cleans up", || !is_alive(pid) && !dir.exists());
        drop(keeper);

        let mongo = TestMongo::start_own().await;
        let (pid, _) = pid_and_dir(&mongo);
        let mut keeper = mongo.own().take_keeper().unwrap();
        keeper.shell.kill().unwrap();
        eventually("the server dies with its keeper", || !is_alive(pid));
    }

    #[test]
    fn databases_are_put_into_urls() {
        for (uri, want) in [
            ("mongodb://h", "mongodb://h/db"),
            ("mongodb://h/", "mongodb://h/db"),
            ("mongodb://u:p@h:1,i:2/old?w=1", "mongodb://u:p@h:1,i:2/db?w=1"),
            ("mongodb://h?w=1", "mongodb://h/db?w=1"),
        ] {
            assert_eq!(with_database(uri, "db"), want);
        }
    }
}
