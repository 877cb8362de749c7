-- One tenant's data. Every change has a number of its own, taken from one counter inside the writing transaction:
-- numbers become visible in their order, so a puller that continues after the last one it saw skips nothing. Each
-- writing transaction has a random nonce; a cursor or a revision is "<number>-<nonce>", which a database that was
-- restored from an older copy and went on differently cannot verify. Repeated strings are interned in `term`.

CREATE TABLE counter (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    change INTEGER NOT NULL
) STRICT;
INSERT INTO counter VALUES (1, 0);

CREATE TABLE change_log (
    first INTEGER PRIMARY KEY,
    last INTEGER NOT NULL,
    nonce INTEGER NOT NULL
) STRICT;

CREATE TABLE term (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE
) STRICT;

-- device, user, app, kind, name and the short texts are terms.
CREATE TABLE event (
    change INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    user INTEGER NOT NULL,
    device INTEGER NOT NULL,
    epoch INTEGER,                      -- NULL: arrived unsequenced; its seq, if it got one, is in `binding`
    seq INTEGER,
    at INTEGER NOT NULL,                -- microseconds UTC
    kind INTEGER NOT NULL,
    name INTEGER NOT NULL,
    app INTEGER NOT NULL,
    session INTEGER,
    tool INTEGER,
    outcome INTEGER,
    duration_ms INTEGER,
    call TEXT,
    project INTEGER,
    branch INTEGER,
    model INTEGER,
    agent INTEGER,
    subject INTEGER,
    reason INTEGER,
    input_bytes INTEGER,
    output_bytes INTEGER,
    lines_added INTEGER,
    lines_removed INTEGER,
    batch INTEGER,
    extra TEXT                          -- JSON object
) STRICT;
CREATE UNIQUE INDEX event_position ON event (device, epoch, seq) WHERE seq IS NOT NULL;
-- The row number ends every index, so this one is (user, change): the feed.
CREATE INDEX event_feed ON event (user);

-- Settled positions of a stream whose event is not stored there: duplicates and rejected items.
CREATE TABLE binding (
    device INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    id BLOB NOT NULL,                   -- event id; for a malformed one a longer hash of its text
    reason TEXT,                        -- why it was rejected; NULL: a duplicate
    PRIMARY KEY (device, epoch, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE device_stream (
    device INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    start_seq INTEGER NOT NULL,         -- positions up to here were never offered to this database
    last_seq INTEGER NOT NULL,
    last_id BLOB,
    PRIMARY KEY (device, epoch)
) STRICT, WITHOUT ROWID;

CREATE TABLE record (
    user INTEGER NOT NULL,
    type TEXT NOT NULL,
    id TEXT NOT NULL,
    change INTEGER NOT NULL,            -- with the nonce: its revision
    nonce INTEGER NOT NULL,
    device INTEGER NOT NULL,            -- last writer
    fields TEXT NOT NULL,               -- JSON object
    stamps TEXT NOT NULL,               -- JSON object: field -> HLC text
    deleted INTEGER NOT NULL DEFAULT 0,
    stamp TEXT,                         -- HLC text of the deletion
    PRIMARY KEY (user, type, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX record_feed ON record (user, change);
