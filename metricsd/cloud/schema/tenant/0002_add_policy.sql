-- The tenant's conflict policy: what an administrator decided for all devices. Each text that was set is a version of
-- its own, so that a device and a conflict log can say by which one they went; old versions are kept for a while.

CREATE TABLE policy (
    version INTEGER PRIMARY KEY,
    sha256 TEXT NOT NULL,               -- of the text's UTF-8 bytes, hexadecimal
    text TEXT NOT NULL,
    set_at INTEGER NOT NULL             -- microseconds UTC
) STRICT;
