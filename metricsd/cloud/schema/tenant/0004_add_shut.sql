-- Whose writes are refused for good, whatever a token says: a request that was authenticated before its device's data
-- was taken back (or before the tenant was dropped) may reach the database after that.

CREATE TABLE shut (
    device TEXT PRIMARY KEY             -- '' stands for all: the tenant was dropped
) STRICT, WITHOUT ROWID;
