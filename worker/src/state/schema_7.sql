-- The newest signature that was accepted of each key, so that an older one cannot be put back.
-- `closed`: what it stood for is gone. `keep` is until when this is needed. Times are
-- milliseconds since 1970.
CREATE TABLE accepted (
    key TEXT PRIMARY KEY,
    term INTEGER NOT NULL,
    issued INTEGER NOT NULL,
    closed INTEGER NOT NULL,
    keep INTEGER NOT NULL
) WITHOUT ROWID;
