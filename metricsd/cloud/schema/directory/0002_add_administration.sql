-- The life of tenants and tokens: suspension, enrolment codes that a person types, a device's data taken back, and a log
-- of every administrative act. The log is only ever appended to: its rows cannot be updated or deleted by this schema's
-- own statements, each row's hash covers the row before it, and where it ends is kept beside it.

ALTER TABLE tenant ADD COLUMN suspended_at INTEGER;     -- NULL: not suspended
ALTER TABLE tenant ADD COLUMN dropped_at INTEGER;       -- dropping has begun: nothing opens its file any more
ALTER TABLE device ADD COLUMN erased_at INTEGER;        -- its user took its data back
CREATE INDEX device_user ON device (user);
CREATE INDEX token_user ON token (user);
CREATE INDEX token_device ON token (device) WHERE device IS NOT NULL;

CREATE TABLE code (
    id TEXT PRIMARY KEY,                -- the first characters of the code; not secret
    salt BLOB NOT NULL,
    digest BLOB NOT NULL,               -- scrypt of the rest
    user INTEGER NOT NULL REFERENCES user (id),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    spent_at INTEGER                    -- used, or revoked
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,            -- from 1 without gaps
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    tenant TEXT NOT NULL,               -- its name: the tenant may be dropped
    subject TEXT NOT NULL,
    detail TEXT NOT NULL,               -- JSON object of texts
    hash BLOB NOT NULL                  -- SHA-256 over the hash before and the row; see audit.py
) STRICT;
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;

CREATE TABLE audit_head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL
) STRICT;
INSERT INTO audit_head VALUES (1, 0, zeroblob(32));
