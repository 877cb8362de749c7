-- For clients of the older API: what their events add up to, so that no answer reads them all, and what a client said
-- beyond metricsd's own fields. The totals are made when somebody asks, from where `through` stands on, so a tenant
-- without such clients pays nothing; days are of UTC. Words are numbers of `term`.

CREATE TABLE legacy_fold (
    person INTEGER PRIMARY KEY,
    through BIGINT NOT NULL,           -- change number up to which this user's events are counted
    anew INTEGER NOT NULL               -- how often counting began anew, because events were taken back
);

CREATE TABLE legacy_session (
    person INTEGER NOT NULL,
    session INTEGER NOT NULL,
    app INTEGER NOT NULL,
    first BIGINT NOT NULL,             -- change number of its first event: sessions are listed in this order
    started_at BIGINT NOT NULL,        -- microseconds UTC, like all times here
    last_at BIGINT NOT NULL,           -- newest event that is not an end; 0: none
    end_at BIGINT NOT NULL,            -- newest end; 0: none
    active_at BIGINT NOT NULL,         -- the later of the two
    branch INTEGER,
    project INTEGER,
    model INTEGER,
    starts BIGINT NOT NULL,
    prompts BIGINT NOT NULL,
    turns BIGINT NOT NULL,
    tool_calls BIGINT NOT NULL,
    tool_failures BIGINT NOT NULL,
    tool_ms BIGINT NOT NULL,
    lines_added BIGINT NOT NULL,
    lines_removed BIGINT NOT NULL,
    agents BIGINT NOT NULL,
    PRIMARY KEY (person, session, app)
);
CREATE INDEX legacy_session_first ON legacy_session (person, first);
CREATE INDEX legacy_session_started ON legacy_session (person, started_at);
CREATE INDEX legacy_session_active ON legacy_session (person, active_at);

CREATE TABLE legacy_cell (
    person INTEGER NOT NULL,
    day BIGINT NOT NULL,
    kind INTEGER NOT NULL,
    tool INTEGER NOT NULL,              -- 0: none
    bucket BIGINT NOT NULL,            -- of durations, as in metricsd/totals.py
    n BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    lines_added BIGINT NOT NULL,
    lines_removed BIGINT NOT NULL,
    PRIMARY KEY (person, day, kind, tool, bucket)
);

CREATE TABLE legacy_hour (
    person INTEGER NOT NULL,
    slot BIGINT NOT NULL,              -- day * 24 + hour
    kind INTEGER NOT NULL,
    n BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    PRIMARY KEY (person, slot, kind)
);

CREATE TABLE legacy_call (
    person INTEGER NOT NULL,
    session INTEGER NOT NULL,
    change BIGINT NOT NULL,
    PRIMARY KEY (person, session, change)
);

CREATE TABLE legacy_document (
    person INTEGER NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,                 -- session | tool
    key TEXT COLLATE "C" NOT NULL,                  -- the session's id; the event's id in hexadecimal
    session INTEGER,                    -- of a session: its term
    who BYTEA,                           -- of a session: a hash of the name that its client gave
    began BIGINT,                      -- of a session: when its client said that it began
    body TEXT NOT NULL,                 -- JSON object
    PRIMARY KEY (person, kind, key)
);
CREATE INDEX legacy_document_who ON legacy_document (person, who) WHERE who IS NOT NULL;
CREATE INDEX legacy_document_began ON legacy_document (person, began) WHERE began IS NOT NULL;
