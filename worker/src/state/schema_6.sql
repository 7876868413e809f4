-- What has happened to the runs of each job so far, for those who are told of it. `told` is
-- how much of it (`seq`) etcd knows; `at` is when it changed, in milliseconds since 1970.
CREATE TABLE tallies (
    job TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    told INTEGER NOT NULL DEFAULT 0,
    at INTEGER NOT NULL,
    tally TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX tallies_due ON tallies (job) WHERE seq > told;
