-- The control database: who exists and who may do what. It holds no event and no token, only the hashes of tokens,
-- so that a stolen copy lets nobody in. It is read on every request, so that a revocation counts at once everywhere.

CREATE TABLE tenant (
    id TEXT PRIMARY KEY,                -- 16 hex characters, generated; the tenant's file is t_<id>.db
    name TEXT NOT NULL UNIQUE,
    key BLOB NOT NULL,                  -- 32 random bytes: keys the hashes of names on its devices
    created_at INTEGER NOT NULL         -- microseconds UTC, as everywhere
) STRICT, WITHOUT ROWID;

CREATE TABLE user (
    id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenant (id),
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (tenant, name)
) STRICT;

CREATE TABLE device (
    id TEXT PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES user (id),
    name TEXT NOT NULL,
    parent TEXT,                        -- the device whose identity this one shared before a fork
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE token (
    id TEXT PRIMARY KEY,
    lookup BLOB NOT NULL,               -- first 8 bytes of the hash: what the index compares tells little
    hash BLOB NOT NULL,                 -- SHA-256 of the token's text
    scope TEXT NOT NULL,
    user INTEGER NOT NULL REFERENCES user (id),
    device TEXT REFERENCES device (id),
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX token_lookup ON token (lookup);
