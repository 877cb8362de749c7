"""What retracted imports brought to sessions, so that whoever reads a session's counters can take it back.

Counters are written by the device whose events they are and know nothing of retractions, which may come from any device
and go again; readers subtract. Imports nothing heavy, because `metricsd today` comes through here.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping

TOOL_USED = "tool_used"
_READ = """
SELECT r.session, t.kind, sum(r.n), sum(r.failed), sum(r.duration_ms), sum(r.lines_added), sum(r.lines_removed)
FROM retracted_total AS r JOIN event_type AS t ON t.id = r.type {} GROUP BY r.session, t.kind
"""
_SOME = "WHERE r.session IN (SELECT value FROM json_each(?))"
_WHOLLY = """
SELECT r.session FROM (SELECT session, sum(n) AS n FROM retracted_total {} GROUP BY session) AS r
WHERE r.n >= (SELECT coalesce(sum(c.events), 0) FROM session_counters AS c WHERE c.session = r.session)
"""
_ANY = "SELECT 1 FROM retracted_total LIMIT 1"
_ONE_EACH = {
    "session_started": "starts",
    "prompt_submitted": "prompts",
    "turn_ended": "turns",
    "turn_failed": "failed_turns",
    "subagent_ended": "subagents",
    "context_compacted": "compactions",
    "tool_denied": "denials",
}
"""The counter of a kind of which each event counts one; counters.py has the same by index (a test holds them together)."""

Kinds = Mapping[str, list[int]]
"""{kind: [n, failed, duration_ms, lines_added, lines_removed]}"""


def read(db: sqlite3.Connection, sessions: Collection[int] | None = None) -> dict[int, dict[str, list[int]]]:
    """Return what does not count of each session's row, of all sessions or of these."""
    found: dict[int, dict[str, list[int]]] = {}
    if db.execute(_ANY).fetchone() is None:
        return found
    some = sessions is not None
    rows = db.execute(_READ.format(_SOME if some else ""), (json.dumps(sorted(sessions or ())),) if some else ())
    for session, kind, *sums in rows:
        found.setdefault(session, {})[kind] = sums
    return found


def wholly(db: sqlite3.Connection, sessions: Collection[int]) -> frozenset[int]:
    """Return those of the sessions of which no event is left that counts."""
    if db.execute(_ANY).fetchone() is None:
        return frozenset()
    where = "WHERE session IN (SELECT value FROM json_each(?))"
    return frozenset(row for (row,) in db.execute(_WHOLLY.format(where), (json.dumps(sorted(sessions)),)))


def taken(kinds: Kinds) -> dict[str, int]:
    """Return by how much the counters of a session go down."""
    found = {"events": sum(sums[0] for sums in kinds.values())}
    for kind, (n, failed, ms, added, removed) in kinds.items():
        if kind == TOOL_USED:
            found |= {
                "tool_calls": n, "tool_failures": failed, "tool_ms": ms, "lines_added": added, "lines_removed": removed,
            }  # fmt: skip
        elif kind in _ONE_EACH:
            found[_ONE_EACH[kind]] = n
    return found
