-- Tombstones do not stay for ever: after 400 days a deleted record's row goes, and `horizon` keeps the highest change
-- number that went. A cursor from before it may have missed a deletion, so that device lists everything again. The
-- age counts by the server's clock, because a device's stamp may be from a wrong year.
ALTER TABLE record ADD COLUMN deleted_at INTEGER;   -- microseconds UTC by the server's clock; NULL: not deleted
UPDATE record SET deleted_at = CAST(strftime('%s', 'now') AS INTEGER) * 1000000 WHERE deleted = 1;
CREATE INDEX record_tombstone ON record (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE TABLE horizon (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    change INTEGER NOT NULL
) STRICT;
INSERT INTO horizon VALUES (1, 0);
