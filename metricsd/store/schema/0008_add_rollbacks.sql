-- Reports used to read every event of a retracted import to take back what it had added to sessions: seconds at a million
-- events. What does not count is kept added up instead, and changes with the records that decide it (store/batches.py).

-- Import batches, and selections of their events, that do not count.
CREATE TABLE retracted_batch (batch INTEGER PRIMARY KEY) STRICT;

INSERT INTO retracted_batch
SELECT t.id FROM record AS r JOIN term AS t ON t.text = r.id
WHERE r.type = 'import_batch' AND (r.deleted = 1 OR json_extract(r.fields, '$.active') = 0);

-- What they brought to each session.
CREATE TABLE retracted_total (
    session INTEGER NOT NULL,
    type INTEGER NOT NULL,
    n INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    lines_added INTEGER NOT NULL,
    lines_removed INTEGER NOT NULL,
    PRIMARY KEY (session, type)
) STRICT, WITHOUT ROWID;

-- 1099511627776 is totals.COUNTED_MAX, the most that one value adds to a sum.
INSERT INTO retracted_total
SELECT session, type, sum(n), sum(failed), sum(ms), sum(added), sum(removed) FROM (
    SELECT session, type, count(*) AS n, sum(coalesce(outcome, 0) != 0) AS failed,
        sum(min(coalesce(duration_ms, 0), 1099511627776)) AS ms,
        sum(min(coalesce(lines_added, 0), 1099511627776)) AS added,
        sum(min(coalesce(lines_removed, 0), 1099511627776)) AS removed
    FROM event WHERE batch IN (SELECT batch FROM retracted_batch) AND session IS NOT NULL GROUP BY session, type
    UNION ALL
    SELECT session, type, n, failed, duration_ms, lines_added, lines_removed FROM folded_batch
    WHERE batch IN (SELECT batch FROM retracted_batch)
) GROUP BY session, type;

INSERT OR REPLACE INTO state (key, value)
SELECT 'retracted_events', count(*) FROM event WHERE batch IN (SELECT batch FROM retracted_batch);

-- What was taken back, and how it was before, so that this can be taken back as well.
CREATE TABLE rollback (
    id TEXT PRIMARY KEY,                -- `<run>~<number>`
    run TEXT NOT NULL,
    at INTEGER NOT NULL,                -- microseconds UTC
    what TEXT NOT NULL,                 -- JSON: what was asked for
    done TEXT NOT NULL                  -- JSON: what it came to
) STRICT, WITHOUT ROWID;

CREATE TABLE rollback_before (
    rollback TEXT NOT NULL,
    part INTEGER NOT NULL,
    type TEXT NOT NULL,                 -- as in import_before
    id TEXT NOT NULL,
    before TEXT,                        -- JSON; NULL: it was not there
    after BLOB NOT NULL,                -- hash of what the rollback made of it
    PRIMARY KEY (rollback, part, type, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX rollback_before_of ON rollback_before (type, id);

-- The events that a rollback took out of what counts, or, taking back another one, brought back.
CREATE TABLE rollback_events (
    rollback TEXT NOT NULL,
    part INTEGER NOT NULL,
    batch TEXT NOT NULL,
    back INTEGER NOT NULL,              -- 1: brought back
    ids BLOB NOT NULL,                  -- event ids, 16 bytes each; empty: whatever there is of the batch, elsewhere
    PRIMARY KEY (rollback, part, batch)
) STRICT, WITHOUT ROWID;

-- Which of a part's events a rule found something about.
CREATE TABLE import_mark (
    run TEXT NOT NULL,
    part INTEGER NOT NULL,
    rule TEXT NOT NULL,                 -- empty: events of older imports that the part brought back
    ids BLOB NOT NULL,                  -- event ids, 16 bytes each
    PRIMARY KEY (run, part, rule)
) STRICT, WITHOUT ROWID;
