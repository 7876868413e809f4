-- Last slot started of each job; slots are milliseconds since 1970.
CREATE TABLE cursor (job TEXT PRIMARY KEY, slot INTEGER NOT NULL) WITHOUT ROWID;

-- Runs begun and not known to have ended. pid_start is the process' start time in
-- clock ticks since boot.
CREATE TABLE journal (
    run_id BLOB PRIMARY KEY,
    pid INTEGER,
    pid_start INTEGER,
    record TEXT NOT NULL
) WITHOUT ROWID;

-- Runs begun or ended lately, oldest first by id; `at` is when, in milliseconds.
CREATE TABLE seen (id INTEGER PRIMARY KEY, run_id BLOB NOT NULL UNIQUE, at INTEGER NOT NULL);

-- What waits to be delivered. kind 1: a run record as JSON; 2: a chunk of output.
-- Ids are never used again, so that an acknowledgement that comes late does no harm.
CREATE TABLE spool (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind INTEGER NOT NULL,
    at INTEGER NOT NULL,
    payload BLOB NOT NULL
);

-- The last known assignments by key.
CREATE TABLE snapshot (
    key TEXT PRIMARY KEY,
    mod_revision INTEGER NOT NULL,
    value BLOB NOT NULL
) WITHOUT ROWID;
