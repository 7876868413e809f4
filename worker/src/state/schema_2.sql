-- Scheduled runs of the job that began, since the job is known here.
ALTER TABLE cursor ADD COLUMN runs INTEGER NOT NULL DEFAULT 0;

-- Attempts that were promised when the one before ended, and have not begun. due is in
-- milliseconds since 1970; plan is what the one who promised it needs to keep the promise.
CREATE TABLE waits (
    run_id BLOB PRIMARY KEY,
    due INTEGER NOT NULL,
    plan TEXT NOT NULL
) WITHOUT ROWID;
