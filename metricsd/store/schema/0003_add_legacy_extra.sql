-- What the older hooks and the clients of the older API said beyond metricsd's own fields: who, in which folder, with
-- which parameters. It stays on this machine: never sent, not in reports, the oldest dropped at a cap.
CREATE TABLE legacy_extra (
    kind TEXT NOT NULL,                 -- session | tool
    key TEXT NOT NULL,                  -- the session's own id; the event's id in hexadecimal
    at INTEGER NOT NULL,                -- microseconds UTC of the last change
    bytes INTEGER NOT NULL,             -- of `body`
    body TEXT NOT NULL,                 -- JSON object
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX legacy_extra_age ON legacy_extra (at);
