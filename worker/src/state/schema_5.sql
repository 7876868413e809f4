-- When a cursor was last removed, in milliseconds; one row. What a job without a cursor had here
-- before then is not known.
CREATE TABLE forgotten (at INTEGER NOT NULL);
INSERT INTO forgotten VALUES (CAST(unixepoch('subsec') * 1000 AS INTEGER));
