//! Opens the state file: the lock, the settings, the migrations.

use super::error::{StateError, StateProblem};
pub use meepo_runtime::files::private_dir;
use rusqlite::Connection;
use std::{
    fs::{File, Permissions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The migrations in order; the file's `user_version` counts those applied.
const MIGRATIONS: &[&str] = &[
    include_str!("schema_1.sql"),
    include_str!("schema_2.sql"),
    include_str!("schema_3.sql"),
    include_str!("schema_4.sql"),
    include_str!("schema_5.sql"),
    include_str!("schema_6.sql"),
    include_str!("schema_7.sql"),
    include_str!("schema_8.sql"),
];

/// Files up to this size are checked for damage when opened; larger ones would take
/// seconds.
const CHECK_UP_TO: u64 = 32 << 20;

/// How long to wait for a lock.
const PATIENCE: Duration = Duration::from_millis(500);

/// The file's name in its directory.
pub(super) const FILE: &str = "state.db";

/// An open file and the lock on its directory.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) conn: Connection,
    pub(super) path: PathBuf,
    /// Held as long as this lives.
    pub(super) lock: Lock,
}

/// The lock on a state directory.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    /// Closing alone does not unlock while a child process that is just being started
    /// still has the descriptor.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Opens the file in `dir`, creating both if they are missing.
pub(super) fn open(dir: &Path) -> Result<Opened, StateError> {
    let io = |what: &str, path: &Path, e: std::io::Error| {
        StateError::new(StateProblem::Io, format!("cannot {what} {}: {e}", path.display()))
    };
    private_dir(dir).map_err(|e| io("create the state directory", dir, e))?;
    let lock = lock(dir)?;
    let path = dir.join(FILE);
    let size = path.metadata().map_or(0, |m| m.len());
    // The file holds commands with their environment and output: for this user only.
    // SQLite gives the files beside it the same permissions.
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))
        .map_err(|e| io("open the state file", &path, e))?;
    let conn = Connection::open(&path).map_err(|e| StateError::sqlite(&path, &e))?;
    let opened = Opened { conn, path, lock };
    opened.prepare(size).map_err(|e| StateError::sqlite(&opened.path, &e))??;
    Ok(opened)
}

/// One worker at a time. The lock goes away with the process, however it ends.
fn lock(dir: &Path) -> Result<Lock, StateError> {
    let path = dir.join("lock");
    let io = |e: std::io::Error| {
        StateError::new(StateProblem::Io, format!("cannot lock {}: {e}", path.display()))
    };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io)?;
    // For the same reason a worker that was killed may leave its lock for a moment.
    let deadline = Instant::now() + PATIENCE;
    let mut locked = file.try_lock();
    while matches!(locked, Err(TryLockError::WouldBlock)) && Instant::now() < deadline {
        std::thread::sleep(PATIENCE / 50);
        locked = file.try_lock();
    }
    match locked {
        Ok(()) => {}
        Err(TryLockError::Error(e)) => return Err(io(e)),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                pid => format!("the process with pid {pid}"),
            };
            return Err(StateError::new(
                StateProblem::Locked,
                format!(
                    "the state directory {} is in use by {holder}; stop it or give this worker a \
                     directory of its own",
                    dir.display()
                ),
            ));
        }
    }
    // Only for the message above.
    let _ = file.set_len(0).and_then(|()| file.rewind());
    let _ = write!(file, "{}", std::process::id());
    Ok(Lock(file))
}

impl Opened {
    fn prepare(&self, size: u64) -> rusqlite::Result<Result<(), StateError>> {
        let conn = &self.conn;
        // Takes effect only on a file without tables, before anything else.
        conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        conn.busy_timeout(Duration::from_secs(5))?;
        let version: usize =
            conn.pragma_query_value(None, "user_version", |r| r.get::<_, u32>(0))? as usize;
        if version > MIGRATIONS.len() {
            return Ok(Err(StateError::new(
                StateProblem::Newer,
                format!(
                    "state file {} has version {version}, this program knows versions up to {}; \
                     run the newer meepo again or give this one a directory of its own",
                    self.path.display(),
                    MIGRATIONS.len()
                ),
            )));
        }
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.pragma_update(None, "journal_size_limit", 64 << 20)?;
        // 16 MiB: what the journal inserts and deletes again mostly never leaves the log.
        conn.pragma_update(None, "wal_autocheckpoint", 4000)?;
        if size > 0 && size <= CHECK_UP_TO {
            let found: String = conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
            if found != "ok" {
                return Ok(Err(StateError::new(
                    StateProblem::Corrupt,
                    format!(
                        "state file {} is damaged ({found}); restore it or move it away to start \
                         afresh (records of runs that wait in it are lost then)",
                        self.path.display()
                    ),
                )));
            }
        }
        for (n, sql) in MIGRATIONS.iter().enumerate().skip(version) {
            let done = n + 1;
            conn.execute_batch(&format!("BEGIN;{sql};PRAGMA user_version={done};COMMIT;"))?;
        }
        Ok(Ok(()))
    }
}
