-- The store of one installation. Event ids are unique so that every replay is harmless; repeated strings are
-- interned in `term` because text ids cost three times the bytes; few indexes, because each one costs every insert.
-- Own events have positive positions without gaps (until retention), which makes the table its own outbox:
-- seq = pos - stream base. Events pulled from other devices have negative positions.

CREATE TABLE state (
    key TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE term (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE device (
    id INTEGER PRIMARY KEY,
    device_id TEXT NOT NULL UNIQUE,
    own INTEGER NOT NULL DEFAULT 0      -- 1: this installation wrote under this id, now or before a fork
) STRICT;

-- (app, kind, name) of an event is one of a few dozen triples.
CREATE TABLE event_type (
    id INTEGER PRIMARY KEY,
    app TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    UNIQUE (app, kind, name)
) STRICT;

CREATE TABLE session (
    id INTEGER PRIMARY KEY,
    app TEXT NOT NULL,
    session_id TEXT NOT NULL,
    UNIQUE (session_id, app)
) STRICT;

CREATE TABLE event (
    pos INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    at INTEGER NOT NULL,                -- microseconds UTC
    device INTEGER NOT NULL,
    type INTEGER NOT NULL,
    session INTEGER,
    tool INTEGER,
    outcome INTEGER,                    -- events.OUTCOMES
    duration_ms INTEGER,
    call BLOB,                          -- tool_use_id, packed (events.pack_call)
    project INTEGER,
    branch INTEGER,
    subject INTEGER,
    input_bytes INTEGER,
    output_bytes INTEGER,
    lines_added INTEGER,
    lines_removed INTEGER,
    tags INTEGER,                       -- term: JSON of the categories (model, agent, reason, extra texts)
    batch INTEGER,                      -- term: the import that brought it
    more TEXT                           -- JSON: extra numbers
) STRICT;

-- Daily totals with a log-linear histogram: one row per bucket of durations; sums over buckets are the totals.
CREATE TABLE rollup (
    day INTEGER NOT NULL,               -- days since 1970 in the user's time zone (state 'rollup_zone')
    device INTEGER NOT NULL,
    type INTEGER NOT NULL,
    tool INTEGER NOT NULL,              -- 0: none
    project INTEGER NOT NULL,           -- 0: none
    batch INTEGER NOT NULL,             -- 0: live; else the term of the import batch
    bucket INTEGER NOT NULL,            -- -1: no duration
    n INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    lines_added INTEGER NOT NULL,
    lines_removed INTEGER NOT NULL,
    PRIMARY KEY (day, device, type, tool, project, batch, bucket)
) STRICT, WITHOUT ROWID;

-- What a session's events add up to, one row per device that saw it. Own rows are written by ingest alone,
-- others come from the cloud; readers sum them. Times are microseconds UTC.
CREATE TABLE session_counters (
    session INTEGER NOT NULL,
    device INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,           -- newest event that is not a session end; 0: only ends were seen
    end_at INTEGER,                     -- newest session end; ends the session only if not older than last_at
    end_reason TEXT,
    idle_at INTEGER,                    -- last_at when silence was taken for an end; void once last_at moved on
    project TEXT, branch TEXT, model TEXT,
    events INTEGER NOT NULL DEFAULT 0,
    starts INTEGER NOT NULL DEFAULT 0,
    prompts INTEGER NOT NULL DEFAULT 0,
    turns INTEGER NOT NULL DEFAULT 0,
    failed_turns INTEGER NOT NULL DEFAULT 0,
    tool_calls INTEGER NOT NULL DEFAULT 0,
    tool_failures INTEGER NOT NULL DEFAULT 0,
    tool_ms INTEGER NOT NULL DEFAULT 0,
    lines_added INTEGER NOT NULL DEFAULT 0,
    lines_removed INTEGER NOT NULL DEFAULT 0,
    subagents INTEGER NOT NULL DEFAULT 0,
    compactions INTEGER NOT NULL DEFAULT 0,
    denials INTEGER NOT NULL DEFAULT 0,
    rev TEXT,                           -- the cloud's revision of this row; NULL: it has none
    dirty INTEGER NOT NULL DEFAULT 1,   -- bumped by every change, zero when the cloud has it
    PRIMARY KEY (session, device)
) STRICT, WITHOUT ROWID;
CREATE INDEX session_counters_dirty ON session_counters (device) WHERE dirty > 0;

-- Mutable things with hand-made fields: what can conflict.
CREATE TABLE record (
    type TEXT NOT NULL,
    id TEXT NOT NULL,
    fields TEXT NOT NULL,               -- JSON object
    stamps TEXT NOT NULL,               -- JSON object: field -> HLC text
    base TEXT,                          -- JSON {fields, stamps, deleted} both sides last agreed on; NULL: never pushed
    rev TEXT,                           -- revision of that base
    dirty INTEGER NOT NULL DEFAULT 0,
    deleted INTEGER NOT NULL DEFAULT 0,
    stamp TEXT,                         -- HLC of the deletion
    conflict INTEGER,                   -- open row of conflict_log: not pushed until it is settled
    PRIMARY KEY (type, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX record_dirty ON record (type) WHERE dirty > 0;

CREATE TABLE conflict_log (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    type TEXT NOT NULL,
    record_id TEXT NOT NULL,
    base TEXT, local TEXT NOT NULL, remote TEXT NOT NULL,   -- JSON {fields, stamps, deleted}
    remote_rev TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'open',
    strategy TEXT, rule TEXT, policy TEXT, result TEXT
) STRICT;
CREATE INDEX conflict_log_open ON conflict_log (type, record_id) WHERE state = 'open';

-- Files that grow: found by device and inode, trusted by hashes of head and of the bytes before the offset.
CREATE TABLE source (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL,
    form TEXT NOT NULL,                 -- format of the lines; part of their ids
    dev INTEGER NOT NULL,
    ino INTEGER NOT NULL,
    head_len INTEGER NOT NULL,
    head_hash BLOB NOT NULL,
    mark_len INTEGER NOT NULL,
    mark_hash BLOB NOT NULL,
    offset INTEGER NOT NULL,
    lines INTEGER NOT NULL,
    occurrences BLOB NOT NULL,          -- ids.Occurrences
    seen_at INTEGER NOT NULL,
    UNIQUE (path)
) STRICT;

-- What could not be accepted. The bytes lie in files of the quarantine folder; this row stays for ever.
CREATE TABLE quarantine (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,           -- hash of file, offset, reason and bytes: a replay adds nothing
    at INTEGER NOT NULL,
    file TEXT NOT NULL,
    offset INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    sha256 BLOB NOT NULL,
    stored TEXT,                        -- file name in the quarantine folder; NULL: bytes are not kept
    state TEXT NOT NULL DEFAULT 'open'  -- open | retried | purged
) STRICT;
