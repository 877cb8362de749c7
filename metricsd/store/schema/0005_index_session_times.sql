-- Reports and dashboards of the last days used to read the counters of every session ever. A session begins once and
-- is active for hours, so these indexes are written rarely beside the events that are counted.

CREATE INDEX session_counters_started ON session_counters (started_at);
CREATE INDEX session_counters_active ON session_counters (max(last_at, coalesce(end_at, 0)));
