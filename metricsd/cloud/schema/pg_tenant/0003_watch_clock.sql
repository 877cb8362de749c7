-- When somebody last looked whether events have become too old, and since when the clocks went on from look to look as
-- clocks do. After a leap nothing goes by its age for a while, because a clock that is wrong makes everything look old.

CREATE TABLE retention (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    looked_at BIGINT NOT NULL,          -- microseconds UTC by the earlier of two clocks, the server's and the database's
    steady_since BIGINT NOT NULL
) WITH (fillfactor = 50);
INSERT INTO retention VALUES (1, 0, 0);
