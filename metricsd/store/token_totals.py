"""Tokens that events say were used, added up by local day and model.

Counted from the events themselves: few have any, and totals do not hold them, so tokens of what retention dropped are
not here. What was retracted or deleted does not count. No prices: they differ by contract and change.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from metricsd.store import scan
from metricsd.store.scan import bounded
from metricsd.store.summary import ALL_DAYS, Summary

TOKENS_USED = "tokens_used"
"""model.Kind.TOKENS_USED, whose module costs an import of msgspec."""
NUMBERS = ("input_tokens", "output_tokens", "cache_creation_tokens", "cache_read_tokens")
"""As an event's `extra` names them."""
STRETCH_US = 15 * 60 * 1_000_000
"""Every zone's day begins at a quarter of an hour, so the database may add up so much of it."""
_SUMS = ", ".join(f"sum(max({bounded(f'''json_extract(e.more, '$.{name}')''')}, 0))" for name in NUMBERS)
_TYPES = "SELECT id FROM event_type WHERE kind = ?"
_READ = f"""
SELECT e.at / {STRETCH_US}, e.tags, count(*), {_SUMS} FROM event AS e
WHERE e.type IN ({_TYPES}) AND coalesce(e.batch, 0) NOT IN (SELECT value FROM json_each(?))
AND coalesce(e.session, 0) NOT IN (SELECT value FROM json_each(?))
"""
_GROUPED = " GROUP BY 1, 2"


class TokenDay(NamedTuple):
    """What one model took and gave on a local day (since 1970), in so many requests."""

    day: int
    model: str | None
    requests: int
    input_tokens: int
    output_tokens: int
    cache_creation_tokens: int
    cache_read_tokens: int


def read(summary: Summary, days: tuple[int, int] = ALL_DAYS) -> list[TokenDay]:
    """Return the tokens of these local days, the oldest first, by model."""
    if summary.db is None:
        return []
    values: list[object] = [TOKENS_USED, json.dumps(sorted(summary.retracted)), json.dumps(sorted(summary.deleted))]
    sql, window = _READ, summary.window(days)
    if window is not None:
        where, ids = scan.within(window, "e.")
        sql += f" AND {where} AND e.at >= ? AND e.at < ?"
        values += [*ids, window.from_us, window.until_us]
    found: dict[tuple[int, str], list[int]] = {}
    for stretch, tags, *sums in summary.db.execute(sql + _GROUPED, values):
        key = (summary.days.of(stretch * STRETCH_US), _model_of(summary, tags))
        known = found.get(key)
        found[key] = sums if known is None else [a + b for a, b in zip(known, sums, strict=True)]
    return [TokenDay(day, model or None, *sums) for (day, model), sums in sorted(found.items())]


def _model_of(summary: Summary, tags: int | None) -> str:
    """Return the model of an event's interned categories; empty for none."""
    text = summary.name(tags)
    model = json.loads(text).get("/model") if text else None
    return model if isinstance(model, str) else ""
