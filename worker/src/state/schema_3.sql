-- In the place of `spool`: who puts items in gives them their ids, which saves a second write
-- for each. Ids rise as long as the worker runs, so that an acknowledgement that comes late does
-- no harm. (To rename the table would cost a new worker half a megabyte for the parser.)
CREATE TABLE spooled (
    id INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    at INTEGER NOT NULL,
    payload BLOB NOT NULL
);
INSERT INTO spooled SELECT id, kind, at, payload FROM spool;
DROP TABLE spool;
