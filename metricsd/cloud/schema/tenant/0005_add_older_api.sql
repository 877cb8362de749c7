-- For clients of the older API: what their events add up to, so that no answer reads them all, and what a client said
-- beyond metricsd's own fields. The totals are made when somebody asks, from where `through` stands on, so a tenant
-- without such clients pays nothing; days are of UTC. Words are numbers of `term`.

CREATE TABLE legacy_fold (
    person INTEGER PRIMARY KEY,
    through INTEGER NOT NULL,           -- change number up to which this user's events are counted
    anew INTEGER NOT NULL               -- how often counting began anew, because events were taken back
) STRICT;

CREATE TABLE legacy_session (
    person INTEGER NOT NULL,
    session INTEGER NOT NULL,
    app INTEGER NOT NULL,
    first INTEGER NOT NULL,             -- change number of its first event: sessions are listed in this order
    started_at INTEGER NOT NULL,        -- microseconds UTC, like all times here
    last_at INTEGER NOT NULL,           -- newest event that is not an end; 0: none
    end_at INTEGER NOT NULL,            -- newest end; 0: none
    active_at INTEGER NOT NULL,         -- the later of the two
    branch INTEGER,
    project INTEGER,
    model INTEGER,
    starts INTEGER NOT NULL,
    prompts INTEGER NOT NULL,
    turns INTEGER NOT NULL,
    tool_calls INTEGER NOT NULL,
    tool_failures INTEGER NOT NULL,
    tool_ms INTEGER NOT NULL,
    lines_added INTEGER NOT NULL,
    lines_removed INTEGER NOT NULL,
    agents INTEGER NOT NULL,
    PRIMARY KEY (person, session, app)
) STRICT, WITHOUT ROWID;
CREATE INDEX legacy_session_first ON legacy_session (person, first);
CREATE INDEX legacy_session_started ON legacy_session (person, started_at);
CREATE INDEX legacy_session_active ON legacy_session (person, active_at);

CREATE TABLE legacy_cell (
    person INTEGER NOT NULL,
    day INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    tool INTEGER NOT NULL,              -- 0: none
    bucket INTEGER NOT NULL,            -- of durations, as in metricsd/totals.py
    n INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    lines_added INTEGER NOT NULL,
    lines_removed INTEGER NOT NULL,
    PRIMARY KEY (person, day, kind, tool, bucket)
) STRICT, WITHOUT ROWID;

CREATE TABLE legacy_hour (
    person INTEGER NOT NULL,
    slot INTEGER NOT NULL,              -- day * 24 + hour
    kind INTEGER NOT NULL,
    n INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    PRIMARY KEY (person, slot, kind)
) STRICT, WITHOUT ROWID;

CREATE TABLE legacy_call (
    person INTEGER NOT NULL,
    session INTEGER NOT NULL,
    change INTEGER NOT NULL,
    PRIMARY KEY (person, session, change)
) STRICT, WITHOUT ROWID;

CREATE TABLE legacy_document (
    person INTEGER NOT NULL,
    kind TEXT NOT NULL,                 -- session | tool
    key TEXT NOT NULL,                  -- the session's id; the event's id in hexadecimal
    session INTEGER,                    -- of a session: its term
    who BLOB,                           -- of a session: a hash of the name that its client gave
    began INTEGER,                      -- of a session: when its client said that it began
    body TEXT NOT NULL,                 -- JSON object
    PRIMARY KEY (person, kind, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX legacy_document_who ON legacy_document (person, who) WHERE who IS NOT NULL;
CREATE INDEX legacy_document_began ON legacy_document (person, began) WHERE began IS NOT NULL;
