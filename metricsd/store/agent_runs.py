"""How often each agent ran: read from events, because totals keep no agents' names.

An app tells of a run by its end, by the call that started it, or by both; the larger count of the two is the runs.
"""

from __future__ import annotations

import json

from metricsd.store import scan
from metricsd.store.summary import ALL_DAYS, Summary

_RUNS = """
SELECT t.kind, m.text, count(*) FROM event AS e
JOIN event_type AS t ON t.id = e.type JOIN term AS m ON m.id = e.tags LEFT JOIN term AS n ON n.id = e.tool
WHERE (t.kind = 'subagent_ended' OR (t.kind = 'tool_used' AND n.text IN ('Task', 'Agent')))
AND e.at >= ? AND e.at < ? AND coalesce(e.batch, 0) NOT IN (SELECT batch FROM retracted_batch) AND coalesce(e.session, 0) NOT IN ({}) AND {}
GROUP BY t.kind, m.text
"""
_FOREVER_US = 2**62


def agent_runs(summary: Summary, days: tuple[int, int] = ALL_DAYS) -> dict[str, int]:
    """Return {agent: runs} of these local days."""
    if summary.db is None:
        return {}
    window = summary.window(days)
    within, bounds = ("1", ()) if window is None else scan.within(window, "e.")
    hidden = tuple(summary.deleted)
    sql = _RUNS.format(", ".join("?" * len(hidden)), within)
    span = (-_FOREVER_US, _FOREVER_US) if window is None else window
    found: dict[str, dict[str, int]] = {}
    for kind, tags, n in summary.db.execute(sql, (*span, *hidden, *bounds)):
        agent = json.loads(tags).get("/agent")
        if agent is not None:
            kinds = found.setdefault(str(agent), {})
            kinds[kind] = kinds.get(kind, 0) + n
    return {agent: max(kinds.values()) for agent, kinds in found.items()}
