-- Who did what. The columns beside `doc` are what queries filter by; `doc` is the whole record
-- as JSON. Records are added, and deleted when they are old enough; nothing changes one.
CREATE TABLE audit (
    audit_id  BLOB    NOT NULL PRIMARY KEY, -- the 16 bytes of the UUID, which sort by time
    at        INTEGER NOT NULL,             -- milliseconds since 1970, UTC
    actor     TEXT    NOT NULL,
    operation TEXT    NOT NULL,
    object    TEXT    NOT NULL,
    result    TEXT    NOT NULL,
    doc       TEXT    NOT NULL
) STRICT;

CREATE INDEX audit_by_actor     ON audit (actor, audit_id);
CREATE INDEX audit_by_operation ON audit (operation, audit_id);
CREATE INDEX audit_by_object    ON audit (object, audit_id);

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'records of the audit are not changed');
END;
