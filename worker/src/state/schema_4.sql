-- Bytes of output that were given up for want of room or for their age, of runs whose last
-- record is yet to be delivered: it is to tell of them.
CREATE TABLE dropped (run_id BLOB PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
