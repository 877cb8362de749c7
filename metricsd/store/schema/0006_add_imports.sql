-- History is taken in part by part: its rows, how far the source was read and a digest of what the part added commit
-- together, so a run that was cut off goes on exactly there, and what it brought can be proven and taken back.

-- How far each run is. A store that was repaired has no row: the run begins anew, and ids make that harmless.
CREATE TABLE import_run (
    run TEXT PRIMARY KEY,
    part INTEGER NOT NULL,              -- parts that are stored; 0: none yet
    position BLOB NOT NULL,             -- where the source was read up to, in the migration's own words
    kept BLOB NOT NULL,                 -- running figures of the migration's rules
    ledger INTEGER NOT NULL             -- bytes of the run's ledger that belong to these parts
) STRICT, WITHOUT ROWID;

CREATE TABLE import_part (
    run TEXT NOT NULL,
    part INTEGER NOT NULL,              -- from 1; `<run>.<part>` is the import batch of its events
    at INTEGER NOT NULL,
    counts TEXT NOT NULL,               -- JSON: what became of the entries of the source
    events INTEGER NOT NULL,            -- added by this part
    event_digest BLOB NOT NULL,         -- sum of their hashes, 16 bytes (store/digests.py)
    records INTEGER NOT NULL,           -- made or changed by this part
    record_digest BLOB NOT NULL,
    PRIMARY KEY (run, part)
) STRICT, WITHOUT ROWID;

-- What a record, or what is kept for older clients, was before a part changed it.
CREATE TABLE import_before (
    run TEXT NOT NULL,
    part INTEGER NOT NULL,
    type TEXT NOT NULL,                 -- a record's type, or `legacy_extra/<kind>`
    id TEXT NOT NULL,
    before TEXT,                        -- JSON; NULL: it was not there
    after BLOB NOT NULL,                -- hash of what the part made of it, 16 bytes: another one was changed since
    PRIMARY KEY (run, part, type, id)
) STRICT, WITHOUT ROWID;
