-- Years of days used to be summed over every tool and project, a third of a second at a million events: `day_total`
-- leaves those out. `hour_total` answers at what time of the day people work, which no other table could.
-- Both are filled from what is here. A retracted import is found by its events' batch without reading the others.

CREATE TABLE day_total (
    day INTEGER NOT NULL,               -- as in rollup
    device INTEGER NOT NULL,
    type INTEGER NOT NULL,
    batch INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    n INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    lines_added INTEGER NOT NULL,
    lines_removed INTEGER NOT NULL,
    PRIMARY KEY (day, device, type, batch, bucket)
) STRICT, WITHOUT ROWID;

INSERT INTO day_total
SELECT day, device, type, batch, bucket, sum(n), sum(failed), sum(duration_ms), sum(lines_added), sum(lines_removed)
FROM rollup GROUP BY day, device, type, batch, bucket;

CREATE TABLE hour_total (
    day INTEGER NOT NULL,
    hour INTEGER NOT NULL,              -- 0 to 23, local
    device INTEGER NOT NULL,
    type INTEGER NOT NULL,
    batch INTEGER NOT NULL,
    n INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    PRIMARY KEY (day, hour, device, type, batch)
) STRICT, WITHOUT ROWID;

INSERT INTO hour_total
SELECT coalesce(CAST(julianday(date(at / 1000000, 'unixepoch', 'localtime')) - 2440587.5 AS INTEGER), at / 86400000000),
    coalesce(CAST(strftime('%H', at / 1000000, 'unixepoch', 'localtime') AS INTEGER), at / 3600000000 % 24),
    device, type, coalesce(batch, 0), count(*), sum(outcome IS NOT NULL AND outcome != 0)
FROM event GROUP BY 1, 2, 3, 4, 5;

CREATE INDEX event_batch ON event (batch) WHERE batch IS NOT NULL;

-- What imported events that retention dropped had added to their session: a later retraction takes it back.
CREATE TABLE folded_batch (
    session INTEGER NOT NULL,
    batch INTEGER NOT NULL,
    type INTEGER NOT NULL,
    n INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    lines_added INTEGER NOT NULL,
    lines_removed INTEGER NOT NULL,
    PRIMARY KEY (session, batch, type)
) STRICT, WITHOUT ROWID;
