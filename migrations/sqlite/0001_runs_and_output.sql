-- Runs. The columns beside `doc` are what queries filter and sort by; `doc` is the
-- whole record as JSON. Times are milliseconds since 1970, UTC.
CREATE TABLE runs (
    run_id BLOB    NOT NULL PRIMARY KEY, -- the 16 bytes of the UUID
    job    TEXT,                         -- NULL for synchronous commands
    node   TEXT    NOT NULL,
    slot   INTEGER NOT NULL,
    state  TEXT    NOT NULL,
    cause  TEXT    NOT NULL,
    rank   INTEGER NOT NULL,             -- precedence of the state; the higher wins
    doc    TEXT    NOT NULL
) STRICT;

-- Each serves "newest first" without sorting.
CREATE INDEX runs_by_slot  ON runs (slot, run_id);
CREATE INDEX runs_by_job   ON runs (job, slot, run_id) WHERE job IS NOT NULL;
CREATE INDEX runs_by_node  ON runs (node, slot, run_id);
CREATE INDEX runs_by_state ON runs (state, slot, run_id);

-- Output, appended in order of arrival; the index finds a run's chunks.
CREATE TABLE output (
    run_id BLOB    NOT NULL,
    seq    INTEGER NOT NULL,
    stream INTEGER NOT NULL, -- file descriptor: 1 stdout, 2 stderr
    at     INTEGER NOT NULL,
    data   BLOB    NOT NULL
) STRICT;

CREATE UNIQUE INDEX output_by_run ON output (run_id, seq);
