-- What further questions filter by, and the indexes that answer them.
ALTER TABLE runs ADD COLUMN code  INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN took  INTEGER; -- milliseconds; NULL until it has ended
ALTER TABLE runs ADD COLUMN ended INTEGER; -- milliseconds since 1970
ALTER TABLE runs ADD COLUMN user  TEXT;

UPDATE runs SET
    code = json_extract(doc, '$.code'),
    ended = CAST(round(unixepoch(json_extract(doc, '$.ended_at'), 'subsec') * 1000) AS INTEGER),
    took = max(0, CAST(round(unixepoch(json_extract(doc, '$.ended_at'), 'subsec') * 1000) AS INTEGER)
                - CAST(round(unixepoch(json_extract(doc, '$.started_at'), 'subsec') * 1000) AS INTEGER));

-- A job's runs, newest first; also all that its statistics need.
DROP INDEX runs_by_job;
CREATE INDEX runs_by_job ON runs (job, slot, run_id, state, took) WHERE job IS NOT NULL;
-- Its last success, its failures.
CREATE INDEX runs_by_job_state ON runs (job, state, slot, run_id) WHERE job IS NOT NULL;
-- A node's runs, state by state; all states together are merged.
DROP INDEX runs_by_node;
CREATE INDEX runs_by_node_state ON runs (node, state, slot, run_id);
-- Most runs succeed and most have no user: these stay small.
CREATE INDEX runs_by_code ON runs (code, slot, run_id) WHERE code > 0;
CREATE INDEX runs_by_user ON runs (user, slot, run_id) WHERE user IS NOT NULL;
