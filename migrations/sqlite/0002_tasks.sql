-- Tasks that are over. The columns beside `summary` and `doc` are what queries filter and
-- sort by; `doc` is the whole task as JSON, `summary` the same without its parts.
CREATE TABLE tasks (
    task_id  BLOB    NOT NULL PRIMARY KEY, -- the 16 bytes of the UUID, which sort by time
    queue    TEXT,
    state    TEXT    NOT NULL,
    ended_at INTEGER NOT NULL,             -- milliseconds since 1970, UTC
    summary  TEXT    NOT NULL,
    doc      TEXT    NOT NULL
) STRICT;

CREATE INDEX tasks_by_queue ON tasks (queue, task_id) WHERE queue IS NOT NULL;
CREATE INDEX tasks_by_state ON tasks (state, task_id);
