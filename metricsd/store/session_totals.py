"""Sessions as reports read them: what each adds up to, in one pass over their counters.

Nothing is read for each session by itself, so that tens of thousands are one short query. Deleted sessions are left
out, and what a retracted import brought is taken back; calls that arrived added up are added to their session.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from metricsd.store import retracted
from metricsd.store.summary import ALL_DAYS, Address, Summary
from metricsd.totals import COUNTED_MAX, SessionTotal

_FIELDS = (
    "started_at", "last_at", "end_at", "idle_at", "end_reason", "project", "branch", "model",
    "prompts", "turns", "tool_calls", "tool_failures", "tool_ms", "lines_added", "lines_removed", "subagents", "starts",
    "events",
)  # fmt: skip
INFERRED = "inferred"
"""counters.INFERRED, whose module costs an import of msgspec."""
_COUNTERS = f"""
SELECT c.session, s.app, s.session_id, d.device_id, {", ".join("c." + name for name in _FIELDS)}
FROM session_counters AS c JOIN session AS s ON s.id = c.session JOIN device AS d ON d.id = c.device
WHERE c.events > 0
"""
_ALL = f"{_COUNTERS} ORDER BY c.session"
_ONE = f"{_COUNTERS} AND c.session = ?"
_NOTED_ONE = "SELECT fields FROM record WHERE type = 'session' AND deleted = 0 AND id = ?"
_METRICS_OF = """
SELECT json_extract(fields, '$.execution_count'), json_extract(fields, '$.error_count'),
    json_extract(fields, '$.total_duration_ms')
FROM record WHERE type = 'tool_metric' AND deleted = 0 AND json_extract(fields, '$.session') = ?
AND json_extract(fields, '$.app') = ?
"""
_ACTIVE = f"""{_COUNTERS} AND c.session IN (
    SELECT a.session FROM session_counters AS a WHERE max(a.last_at, coalesce(a.end_at, 0)) >= ?
    UNION SELECT n.id FROM json_each(?) AS r JOIN session AS n ON n.session_id = substr(r.value, instr(r.value, '/') + 1)
        AND n.app = substr(r.value, 1, instr(r.value, '/') - 1)) ORDER BY c.session
"""
"""All rows of a session of which one device was active, or of which somebody noted that it was."""
_OF_PAGE = f"""
SELECT p.*, r.fields FROM ({_COUNTERS} AND c.session >= ? AND c.session < ?) AS p
LEFT JOIN record AS r ON r.type = 'session' AND r.deleted = 0 AND r.id = p.app || '/' || p.session_id
ORDER BY p.session
"""
_ACTIVE_PAGES = "SELECT DISTINCT session >> ? FROM session_counters WHERE max(last_at, coalesce(end_at, 0)) >= ?"
_RECENT_NOTES = """
SELECT r.id, r.fields, s.id >> ? FROM record AS r LEFT JOIN session AS s
ON s.app = substr(r.id, 1, instr(r.id, '/') - 1) AND s.session_id = substr(r.id, instr(r.id, '/') + 1)
WHERE r.type = 'session' AND r.deleted = 0
AND max(coalesce(json_extract(r.fields, '$.started_at'), 0), coalesce(json_extract(r.fields, '$.ended_at'), 0)) >= ?
"""
_ROW = "SELECT id FROM session WHERE app = ? AND session_id = ?"
_NOTED = """
SELECT id, fields, max(coalesce(json_extract(fields, '$.started_at'), 0), coalesce(json_extract(fields, '$.ended_at'), 0))
    >= ? FROM record WHERE type = 'session' AND deleted = 0
"""
"""All of them, and whether somebody noted that it was active since a time: what is no time at all may say so too."""
_ALL_STARTS = "SELECT session, min(started_at) FROM session_counters WHERE events > 0 GROUP BY session"
_STARTS = """
SELECT c.session, min(c.started_at) FROM session_counters AS c
WHERE c.events > 0 AND c.started_at >= ? AND c.started_at < ? AND NOT EXISTS (
    SELECT 1 FROM session_counters AS o WHERE o.session = c.session AND o.events > 0 AND o.started_at < ?)
GROUP BY c.session
"""
_NOTED_STARTS = """
SELECT json_extract(r.fields, '$.started_at'), s.id,
    (SELECT sum(c.starts) FROM session_counters AS c WHERE c.session = s.id AND c.events > 0) AS told
FROM record AS r LEFT JOIN session AS s
ON s.app = substr(r.id, 1, instr(r.id, '/') - 1) AND s.session_id = substr(r.id, instr(r.id, '/') + 1)
WHERE r.type = 'session' AND r.deleted = 0 AND json_type(r.fields, '$.started_at') = 'integer'
AND json_extract(r.fields, '$.started_at') >= 0 AND {}
"""
_UNTOLD = "coalesce(told, 0) <= 0"
_HASHED = ("h:", "custom:")
_TIMES, _TEXTS = ("started_at", "ended_at"), ("end_reason", "project", "branch")
_BESIDE_START = frozenset(
    ("ended_at", "project", "branch", "description", "tags", "score", "focus_time_ms", "interruptions_count")
)
"""Fields of a note that tell something of a session whose start an event tells."""
_AT_MAX = 253_402_300_799_999_999
"""The last microsecond of the year 9999: later times cannot be shown."""
PAGE_BITS = 6
"""A page is 64 sessions by their rows' numbers, as in the table session_mark."""
SCORE_MAX = 100
"""Of a score set by hand."""
_FOREVER_US = 2**62

_NAMES = ("session", "app", "session_id", "device_id", *_FIELDS)
_STARTS_AT = _NAMES.index("starts")

Values = dict[str, Any]
Row = tuple[Any, ...]
"""The values of _NAMES."""


def starts(summary: Summary, days: tuple[int, int] = ALL_DAYS) -> dict[int, int]:
    """Return {local day: sessions that began on it}."""
    if summary.db is None:
        return {}
    window = summary.window(days)
    bounds = (-_FOREVER_US, _FOREVER_US) if window is None else window
    noted = _noted_starts(summary)
    found_starts = (
        summary.db.execute(_ALL_STARTS) if window is None else summary.db.execute(_STARTS, (*bounds, bounds[0]))
    )
    rows = found_starts.fetchall()
    hidden = summary.deleted | {session for _, session in noted}
    if summary.retracted:
        hidden |= retracted.wholly(summary.db, [session for session, _ in rows])
    began = [at for session, at in rows if session not in hidden]
    began.extend(at for at, _ in noted if bounds[0] <= at < bounds[1])
    found: dict[int, int] = {}
    for at in began:
        day = summary.days.of(at)
        if days[0] <= day <= days[1]:
            found[day] = found.get(day, 0) + 1
    return found


def _noted_starts(summary: Summary) -> list[tuple[int, int | None]]:
    """Return when sessions began of which no event that counts tells it, and their rows."""
    if summary.db is None:
        return []
    if not summary.retracted:
        return [row[:2] for row in summary.db.execute(_NOTED_STARTS.format(_UNTOLD))]
    noted = summary.db.execute(_NOTED_STARTS.format("true")).fetchall()
    back = retracted.read(summary.db, {session for _, session, told in noted if told})
    return [
        (at, session)
        for at, session, told in noted
        if not told or told <= retracted.taken(back.get(session, {})).get("starts", 0)
    ]


def read(summary: Summary, *, since_us: int = 0, address: Address | None = None) -> list[SessionTotal]:
    """Return the sessions that were active since a time, the newest first.

    With `address` a session whose id travels as a hash is one with its rows of other devices.
    """
    if summary.db is None:
        return []
    written: dict[str, str] = {}
    notes: dict[str, Values] = {}
    for record_id, fields, is_recent in summary.db.execute(_NOTED, (since_us,)):
        written[record_id] = fields
        if is_recent and _noted_until(note := _object(fields)) >= since_us:
            notes[record_id] = note
    groups: dict[str, list[Row]] = {}
    for rows in _rows(summary, since_us, list(notes)):
        app, session_id = rows[0][1], rows[0][2]
        record_id = address(app, session_id) if address is not None else f"{app}/{session_id}"
        known = groups.get(record_id)
        groups[record_id] = rows if known is None else known + rows
    found = {}
    for one, rows in groups.items():
        if one not in written:
            found[one] = _combined(rows)
        else:
            found[one] = _combined(rows, notes[one] if one in notes else _object(written[one]))
    for one, fields in notes.items():
        if one not in found and "started_at" in fields:
            found[one] = _noted(one, fields)
    return finished(summary, found, since_us)


def active_pages(summary: Summary, since_us: int) -> set[int]:
    """Return the pages of the sessions of which an event says that they were active since a time."""
    if summary.db is None:
        return set()
    return {page for (page,) in summary.db.execute(_ACTIVE_PAGES, (PAGE_BITS, since_us))}


def of_page(summary: Summary, page: int) -> dict[str, SessionTotal]:
    """Return the sessions of a page of which events tell, by their records' ids, before `finished`."""
    if summary.db is None:
        return {}
    bounds = (page << PAGE_BITS, (page + 1) << PAGE_BITS)
    read_rows = [row for row in summary.db.execute(_OF_PAGE, bounds) if row[0] not in summary.deleted]
    back = retracted.read(summary.db, {row[0] for row in read_rows})
    found = {}
    for session, group in groupby(read_rows, key=itemgetter(0)):
        noted = list(group)
        rows, fields = [row[:-1] for row in noted], noted[0][-1]
        if session in back:
            rows = _without(rows, back[session])
            if sum(row[-1] for row in rows) <= 0:
                continue
        found[f"{rows[0][1]}/{rows[0][2]}"] = _combined(rows, None if fields is None else _object(fields))
    return found


def recent_notes(summary: Summary, since_us: int) -> tuple[dict[str, str], frozenset[int]]:
    """Return the notes that may say of a session that it was active since a time, by record, and those sessions' pages."""
    if summary.db is None:
        return {}, frozenset()
    rows = summary.db.execute(_RECENT_NOTES, (PAGE_BITS, since_us)).fetchall()
    return {record_id: text for record_id, text, _ in rows}, frozenset(page for *_, page in rows if page is not None)


def of_note(record_id: str, text: str) -> SessionTotal | None:
    """Return a session that no event tells of; None when its note does not say that it began."""
    fields = _object(text)
    return _noted(record_id, fields) if "started_at" in fields else None


def finished(summary: Summary, found: dict[str, SessionTotal], since_us: int) -> list[SessionTotal]:
    """Return sessions with the calls that arrived added up, those that were active since a time, the newest first."""
    _add_metrics(summary, found)
    recent = [one for one in found.values() if one.last_at >= since_us]
    return sorted(recent, key=lambda one: (-one.started_at, one.app, one.id))


def one(summary: Summary, app: str, session_id: str) -> SessionTotal | None:
    """Return one session, as `read` would; None when no event tells of it and nobody noted its start."""
    if summary.db is None:
        return None
    record_id = f"{app}/{session_id}"
    noted = summary.db.execute(_NOTED_ONE, (record_id,)).fetchone()
    fields = _object(noted[0]) if noted is not None else {}
    row = summary.db.execute(_ROW, (app, session_id)).fetchone()
    rows = summary.db.execute(_ONE, row).fetchall() if row is not None else []
    back = retracted.read(summary.db, [row[0]]).get(row[0]) if rows and summary.retracted else None
    if back is not None:
        rows = _without(rows, back)
        rows = rows if sum(each[-1] for each in rows) > 0 else []
    if rows:
        found = _combined(rows, fields)
    elif "started_at" in fields:
        found = _noted(record_id, fields)
    else:
        return None
    for n, failed, ms in summary.db.execute(_METRICS_OF, (session_id, app)):
        n = _count(n)
        calls = 1 if n is None else n
        found = found._replace(
            tool_calls=found.tool_calls + calls,
            tool_failures=found.tool_failures + min(_count(failed) or 0, calls),
            tool_ms=found.tool_ms + (_count(ms) or 0),
        )
    return found


def _rows(summary: Summary, since_us: int, noted: list[str]) -> Iterator[list[Row]]:
    """Yield the rows of the sessions that count, one for each device; `noted` are records to look at as well."""
    if summary.db is None:
        return
    back = retracted.read(summary.db)
    found = summary.db.execute(_ACTIVE, (since_us, json.dumps(noted))) if since_us else summary.db.execute(_ALL)
    if not back:
        # Nothing has to be taken back from a session's rows together: thousands go through one by one.
        yield from ([row] for row in found if row[0] not in summary.deleted)
        return
    for session, group in groupby(found, key=itemgetter(0)):
        rows = list(group)
        if session in summary.deleted:
            continue
        if session in back:
            rows = _without(rows, back[session])
            if sum(row[-1] for row in rows) <= 0:
                continue
        yield rows


def _without(rows: list[Row], kinds: retracted.Kinds) -> list[Row]:
    """Return the rows less what a retracted import brought. Who of several devices did does not matter to a sum."""
    rows = sorted(rows, key=itemgetter(-1))
    part = dict(zip(_NAMES, rows[-1], strict=True))
    for name, value in retracted.taken(kinds).items():
        if name in part:
            part[name] = part[name] - value if name == "events" else max(part[name] - value, 0)
    return [*rows[:-1], tuple(part.values())]


def _only_one(row: Row) -> SessionTotal:
    """Return the session of one device's row. Nearly all are: a list of thousands is made here."""
    (_, app, session_id, _, started, last, end, idle, reason, project, branch, model,
     prompts, turns, calls, failures, ms, added, removed, agents, _, _) = row  # fmt: skip
    if end is None or end < last:
        end, reason = (last, INFERRED) if idle is not None and idle >= last else (None, None)
    return SessionTotal(
        session_id, app, project, branch, model, started, max(last, end or 0), end, reason,
        calls, failures, ms, prompts, turns, agents, added, removed,
    )  # fmt: skip


def _combined(rows: list[Row], noted: Values | None = None) -> SessionTotal:
    """Return one session of its devices' rows and of what was noted of it."""
    found = _only_one(rows[0]) if len(rows) == 1 else _added(rows)
    return found if noted is None else _with_notes(found, noted, told=any(row[_STARTS_AT] for row in rows))


def _added(rows: list[Row]) -> SessionTotal:
    """Return one session of several devices' rows, by the rules of store/sessions.py (a test holds the two together)."""
    parts = [dict(zip(_NAMES, row, strict=True)) for row in rows]
    parts.sort(key=lambda part: (part["last_at"], part["device_id"]))
    # A plain id is this machine's own; where it travels as a hash, the other devices have that.
    own = next((part for part in reversed(parts) if not part["session_id"].startswith(_HASHED)), parts[-1])
    ended_at, reason = _end(parts)
    return SessionTotal(
        id=own["session_id"],
        app=own["app"],
        project=_latest(parts, "project"),
        branch=_latest(parts, "branch"),
        model=_latest(parts, "model"),
        started_at=min(part["started_at"] for part in parts),
        last_at=max(max(part["last_at"], part["end_at"] or 0) for part in parts),
        ended_at=ended_at,
        end_reason=reason,
        tool_calls=_sum(parts, "tool_calls"),
        tool_failures=_sum(parts, "tool_failures"),
        tool_ms=_sum(parts, "tool_ms"),
        prompts=_sum(parts, "prompts"),
        turns=_sum(parts, "turns"),
        agents=_sum(parts, "subagents"),
        lines_added=_sum(parts, "lines_added"),
        lines_removed=_sum(parts, "lines_removed"),
    )


def _with_notes(one: SessionTotal, noted: Values, *, told: bool) -> SessionTotal:
    """Return a session with what was noted of it; with `told` an event tells its start."""
    if told and _BESIDE_START.isdisjoint(noted):
        return one
    last_at, ended_at, reason = one.last_at, one.ended_at, one.end_reason
    if noted.get("ended_at") is not None and (ended_at is None or reason == INFERRED):
        ended_at, reason = noted["ended_at"], noted.get("end_reason")
        last_at = max(last_at, noted["ended_at"])
    began = None if told else noted.get("started_at")
    return one._replace(
        project=one.project or noted.get("project"),
        branch=one.branch or noted.get("branch"),
        started_at=one.started_at if began is None else _int(began),
        last_at=last_at,
        ended_at=ended_at,
        end_reason=reason,
        **_by_hand(noted),
    )


def _noted(record_id: str, noted: Values) -> SessionTotal:
    """Return a session that no event tells of."""
    app, _, session_id = record_id.partition("/")
    began = _int(noted.get("started_at"))
    return SessionTotal(
        id=session_id,
        app=app,
        project=noted.get("project"),
        branch=noted.get("branch"),
        model=None,
        started_at=began,
        last_at=max(began, _int(noted.get("ended_at"))),
        ended_at=noted.get("ended_at"),
        end_reason=noted.get("end_reason"),
        **_by_hand(noted),
    )


def _by_hand(noted: Values) -> Values:
    tags = noted.get("tags")
    return {
        "description": _text(noted.get("description")),
        "tags": tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        "score": _score(noted.get("score")),
        "focus_ms": _count(noted.get("focus_time_ms")),
        "interruptions": _count(noted.get("interruptions_count")),
    }


def _end(parts: list[Values]) -> tuple[int | None, str | None]:
    last_at = max(part["last_at"] for part in parts)
    ends = [part for part in parts if part["end_at"] is not None]
    if ends:
        end = max(ends, key=lambda part: (part["end_at"], part["device_id"]))
        if end["end_at"] >= last_at:
            return end["end_at"], end["end_reason"]
    if max(part["idle_at"] or -1 for part in parts) >= last_at:
        return last_at, INFERRED
    return None, None


def _latest(parts: Iterable[Values], name: str) -> str | None:
    return next((part[name] for part in reversed(list(parts)) if part[name] is not None), None)


def _sum(parts: Iterable[Values], name: str) -> int:
    return sum(part[name] for part in parts)


def _add_metrics(summary: Summary, found: dict[str, SessionTotal]) -> None:
    for metric in summary.metrics():
        record_id = f"{metric.app}/{metric.session}"
        one = found.get(record_id)
        if one is not None:
            found[record_id] = one._replace(
                tool_calls=one.tool_calls + metric.n,
                tool_failures=one.tool_failures + metric.failed,
                tool_ms=one.tool_ms + (metric.duration_ms or 0),
            )


def _object(text: str) -> Values:
    """Return a record's fields. They come from other devices as they are: times that are none are left out."""
    found = json.loads(text)
    if not isinstance(found, dict):
        return {}
    for name in _TIMES:
        if name in found and not _is_time(found[name]):
            del found[name]
    for name in _TEXTS:
        if name in found and not isinstance(found[name], str):
            del found[name]
    return found


def _count(value: object) -> int | None:
    return min(value, COUNTED_MAX) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _is_time(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _AT_MAX


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _score(value: object) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= SCORE_MAX
    return float(value) if known and isinstance(value, int | float) else None


def _noted_until(fields: Values) -> int:
    return max(_int(fields.get("started_at")), _int(fields.get("ended_at")))


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
