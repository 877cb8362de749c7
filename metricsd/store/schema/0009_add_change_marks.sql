-- The first figures after every write used to be put together from all sessions and totals of their days again. A mark
-- becomes another random number with every change, so what was put together of a day, or of a page of sessions, is known
-- to be true still. Triggers move marks: no statement can forget to, not even one of an older metricsd that somebody went
-- back to. Random, because a number that is counted up would come again after the store was put back to a copy.

CREATE TABLE day_mark (
    day INTEGER PRIMARY KEY,            -- as in rollup: whatever changes there changes one of the day's hours too
    mark INTEGER NOT NULL
) STRICT;

CREATE TABLE session_mark (
    page INTEGER PRIMARY KEY,           -- 64 rows of `session`, by their numbers; -1: all their records and numbers
    mark INTEGER NOT NULL
) STRICT;

INSERT INTO day_mark SELECT day, random() FROM (SELECT DISTINCT day FROM day_total);
INSERT INTO session_mark SELECT page, random() FROM (SELECT DISTINCT id >> 6 AS page FROM session);
INSERT INTO session_mark VALUES (-1, random());

CREATE TRIGGER hour_total_added AFTER INSERT ON hour_total BEGIN
    INSERT INTO day_mark VALUES (new.day, random()) ON CONFLICT DO UPDATE SET mark = excluded.mark;
END;
CREATE TRIGGER hour_total_changed AFTER UPDATE ON hour_total BEGIN
    INSERT INTO day_mark VALUES (new.day, random()) ON CONFLICT DO UPDATE SET mark = excluded.mark;
END;
CREATE TRIGGER hour_total_dropped AFTER DELETE ON hour_total BEGIN
    INSERT INTO day_mark VALUES (old.day, random()) ON CONFLICT DO UPDATE SET mark = excluded.mark;
END;

-- Which device's word counts where two say something at the same time goes by their ids.
CREATE TRIGGER device_renamed AFTER UPDATE OF device_id ON device BEGIN
    UPDATE session_mark SET mark = random();
END;

CREATE TRIGGER session_added AFTER INSERT ON session BEGIN
    INSERT INTO session_mark VALUES (-1, random()) ON CONFLICT DO UPDATE SET mark = excluded.mark;
END;

CREATE TRIGGER session_counters_added AFTER INSERT ON session_counters BEGIN
    INSERT INTO session_mark VALUES (new.session >> 6, random()) ON CONFLICT DO UPDATE SET mark = excluded.mark;
END;
CREATE TRIGGER session_counters_changed AFTER UPDATE ON session_counters BEGIN
    INSERT INTO session_mark VALUES (new.session >> 6, random()) ON CONFLICT DO UPDATE SET mark = excluded.mark;
END;
CREATE TRIGGER session_counters_dropped AFTER DELETE ON session_counters BEGIN
    INSERT INTO session_mark VALUES (old.session >> 6, random()) ON CONFLICT DO UPDATE SET mark = excluded.mark;
END;

CREATE TRIGGER retracted_total_added AFTER INSERT ON retracted_total BEGIN
    INSERT INTO session_mark VALUES (new.session >> 6, random()) ON CONFLICT DO UPDATE SET mark = excluded.mark;
END;
CREATE TRIGGER retracted_total_changed AFTER UPDATE ON retracted_total BEGIN
    INSERT INTO session_mark VALUES (new.session >> 6, random()) ON CONFLICT DO UPDATE SET mark = excluded.mark;
END;
CREATE TRIGGER retracted_total_dropped AFTER DELETE ON retracted_total BEGIN
    INSERT INTO session_mark VALUES (old.session >> 6, random()) ON CONFLICT DO UPDATE SET mark = excluded.mark;
END;

CREATE TRIGGER session_record_added AFTER INSERT ON record WHEN new.type = 'session' BEGIN
    INSERT INTO session_mark VALUES (-1, random()) ON CONFLICT DO UPDATE SET mark = excluded.mark;
    INSERT INTO session_mark SELECT id >> 6, random() FROM session
        WHERE session_id = substr(new.id, instr(new.id, '/') + 1) AND app = substr(new.id, 1, instr(new.id, '/') - 1)
        ON CONFLICT DO UPDATE SET mark = excluded.mark;
END;
CREATE TRIGGER session_record_changed AFTER UPDATE OF fields, deleted ON record WHEN new.type = 'session' BEGIN
    INSERT INTO session_mark VALUES (-1, random()) ON CONFLICT DO UPDATE SET mark = excluded.mark;
    INSERT INTO session_mark SELECT id >> 6, random() FROM session
        WHERE session_id = substr(new.id, instr(new.id, '/') + 1) AND app = substr(new.id, 1, instr(new.id, '/') - 1)
        ON CONFLICT DO UPDATE SET mark = excluded.mark;
END;
CREATE TRIGGER session_record_dropped AFTER DELETE ON record WHEN old.type = 'session' BEGIN
    INSERT INTO session_mark VALUES (-1, random()) ON CONFLICT DO UPDATE SET mark = excluded.mark;
    INSERT INTO session_mark SELECT id >> 6, random() FROM session
        WHERE session_id = substr(old.id, instr(old.id, '/') + 1) AND app = substr(old.id, 1, instr(old.id, '/') - 1)
        ON CONFLICT DO UPDATE SET mark = excluded.mark;
END;
