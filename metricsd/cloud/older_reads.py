"""What clients of the older API ask of a tenant, as plans: sessions, calls and recent figures of one user.

Everything is read by index from what `older_fold` has counted. A session is known by its events or by its record; a
deleted one is not told of, its calls are. Days are of UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from metricsd.analytics.baseline import baseline
from metricsd.cloud.older_fold import HOURS, SESSION_COLUMNS
from metricsd.cloud.older_plans import Ask, Events, Head, Many, Number, Plan, Records, Words, marks_of, texts_of
from metricsd.legacy.kept import APP, CALL, SESSION, Call, Document, Figures, Kept, Session, SessionId, Wanted
from metricsd.legacy.local_files import lasting
from metricsd.legacy.session_form import start_of
from metricsd.model import Event
from metricsd.protocol import FieldValue, RecordState, WireEvent
from metricsd.scrubbing import scrub
from metricsd.totals import Cell, HourCell, SessionTotal

CALLS_MAX = 20_000
"""Calls of one session in one answer."""
CHUNK = 200
"""Sessions that are looked at together."""
KEYS_PER_QUERY = 500
SESSIONS_MAX = 20_000
"""Sessions that one figure is made of: the newest."""
NEWEST = 60
"""Sessions that a baseline is looked for among."""
DAY_US = 86_400 * 1_000_000
_WHO_BYTES = 16
_SCORE_MAX = 100

_S = ", ".join(f"s.{name.strip()}" for name in SESSION_COLUMNS.split(","))
_OF_ID = f"SELECT {_S} FROM legacy_session AS s WHERE s.person = ? AND s.session = ? ORDER BY s.first"  # noqa: S608
_ALL = f"SELECT {_S} FROM legacy_session AS s WHERE s.person = ? AND s.first > ?"  # noqa: S608
_BY_USER = f"""
SELECT {_S} FROM legacy_document AS d JOIN legacy_session AS s ON s.person = d.person AND s.session = d.session
WHERE d.person = ? AND s.first > ? AND d.who = ?
"""  # noqa: S608 - constants
_BY_TIME = f"""{_ALL} AND s.session IN (
    SELECT session FROM legacy_session WHERE person = ? AND started_at BETWEEN ? AND ?
    UNION SELECT session FROM legacy_document WHERE person = ? AND began BETWEEN ? AND ?)
"""  # noqa: S608 - constants
_PAGE = f" ORDER BY s.first LIMIT {CHUNK}"
_ACTIVE = f"""
SELECT {_S} FROM legacy_session AS s WHERE s.person = ? AND s.active_at >= ? ORDER BY s.active_at DESC LIMIT {SESSIONS_MAX}
"""  # noqa: S608 - constants
_NEWEST = f"SELECT {_S} FROM legacy_session AS s WHERE s.person = ? ORDER BY s.started_at DESC LIMIT {NEWEST}"  # noqa: S608
_ANEW = "SELECT anew FROM legacy_fold WHERE person = ?"
_CELLS = """
SELECT day, kind, tool, bucket, n, failed, duration_ms, lines_added, lines_removed FROM legacy_cell
WHERE person = ? AND day >= ?
"""
_HOURS = "SELECT slot, kind, n, failed FROM legacy_hour WHERE person = ? AND slot >= ?"
_CALLS = f"SELECT change FROM legacy_call WHERE person = ? AND session = ? ORDER BY change LIMIT {CALLS_MAX}"  # noqa: S608
_DOCUMENTS = "SELECT key, body FROM legacy_document WHERE person = ? AND kind = ? AND key IN ({})"
_PUT = """
INSERT INTO legacy_document (person, kind, key, session, who, began, body) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (person, kind, key) DO UPDATE SET session = excluded.session, who = excluded.who, began = excluded.began,
    body = excluded.body
"""
_DROP = "DELETE FROM legacy_document WHERE person = ? AND kind = ? AND key = ?"
_FOREVER_US = 2**62

_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode

Row = Sequence[Any]
"""The values of SESSION_COLUMNS."""


class Known(NamedTuple):
    """Figures, and what they were made of: the tenant's newest change number, and how often it was counted anew."""

    head: int
    anew: int
    figures: Figures


def find(person: int, session: str) -> Plan[Session | None]:
    """Return a session by its id; None for none and for a deleted one.

    Of several apps' the older API's own comes first if a client wrote it; else its own is only what strayed there.
    """
    number = yield Number(session)
    rows = [] if number is None else (yield Ask(_OF_ID, (person, number)))
    found = yield from _sessions(person, rows, and_record_of=SessionId(APP, session))
    return min(found, key=lambda one: (one.key.app == APP) != bool(one.document), default=None)


def page(person: int, wanted: Wanted) -> Plan[list[Session]]:
    """Return a page of sessions in the order in which this cloud came to know them."""
    found: list[Session] = []
    left, after = wanted.skip, 0
    seen: set[str] = set()
    while True:
        rows = yield _candidates(person, wanted, after)
        for one in (yield from _sessions(person, rows)):
            if one.key.id in seen or not _is_wanted(one, wanted):
                continue
            seen.add(one.key.id)
            if left:
                left -= 1
            elif len(found) < wanted.limit:
                found.append(one)
        if len(found) >= wanted.limit or len(rows) < CHUNK:
            return found
        after = rows[-1][2]


def calls(person: int, session: str) -> Plan[list[Call]]:
    """Return a session's calls in the order of time, with what their clients said of them."""
    number = yield Number(session)
    changes = [] if number is None else [row[0] for row in (yield Ask(_CALLS, (person, number)))]
    found: list[Call] = []
    for start in range(0, len(changes), KEYS_PER_QUERY):
        events: list[WireEvent] = yield Events(changes[start : start + KEYS_PER_QUERY])
        said = yield from _documents(person, CALL, [event.id for event in events])
        found += [Call(_event(event), said.get(event.id, {})) for event in events]
    return sorted(found, key=lambda call: call.event.at)


def figures(person: int, days: int, now_us: int, known: Known | None) -> Plan[Known]:
    """Return what the analytics of the last days are made of; what is known already while nothing was written since."""
    head = yield Head()
    counted = yield Ask(_ANEW, (person,))
    anew = counted[0][0] if counted else 0
    if known is not None and (known.head, known.anew, known.figures.today) == (head, anew, now_us // DAY_US):
        return known
    return Known(head, anew, (yield from _figures(person, days, now_us)))


def _figures(person: int, days: int, now_us: int) -> Plan[Figures]:
    today = now_us // DAY_US
    first = max(today - days + 1, 0)
    active = yield from _sessions(person, (yield Ask(_ACTIVE, (person, first * DAY_US))))
    newest = yield from _sessions(person, (yield Ask(_NEWEST, (person,))))
    cells = yield Ask(_CELLS, (person, first))
    hours = yield Ask(_HOURS, (person, first * HOURS))
    words = yield Words({row[1] for row in cells} | {row[2] or None for row in cells} | {row[1] for row in hours})
    counted = [
        Cell(day, None, words[kind], words[tool] if tool else None, None, bucket, *sums)
        for day, kind, tool, bucket, *sums in cells
    ]
    return Figures(
        sessions=[one.total for one in active if one.total is not None],
        cells=counted,
        uses=counted,
        hours=[HourCell(slot // HOURS, slot % HOURS, words[kind], n, failed) for slot, kind, n, failed in hours],
        usual=baseline(lasting([one.total for one in newest if one.total is not None])),
        day_of=lambda at_us: at_us // DAY_US,
        today=today,
    )


def nothing(now_us: int) -> Known:
    """Return the figures of a user that never wrote."""
    return Known(0, 0, Figures([], [], [], [], baseline([]), lambda at_us: at_us // DAY_US, now_us // DAY_US))


def put(person: int, documents: Sequence[Kept]) -> Plan[None]:
    """Keep documents, or forget them."""
    for kept in documents:
        if kept.values is None:
            yield Many(_DROP, [(person, kept.kind, kept.key)])
            continue
        values: dict[str, Any] = dict(kept.values)
        if kept.add:
            known = yield from _documents(person, kept.kind, [kept.key])
            values = {**known.get(kept.key, {}), **values}
        number = (yield Number(kept.key)) if kept.kind == SESSION else None
        body = scrub(_encode(values)).decode()
        began = values.get("start_us")
        known_as = (number, _who(values.get("user")), began) if kept.kind == SESSION else (None, None, None)
        yield Many(_PUT, [(person, kept.kind, kept.key, *known_as, body)])


def _candidates(person: int, wanted: Wanted, after: int) -> Ask:
    if wanted.user is not None and wanted.user != wanted.owner:
        return Ask(_BY_USER + _PAGE, (person, after, _who(wanted.user)))
    if wanted.from_us is not None or wanted.until_us is not None:
        bounds = (person, wanted.from_us or 0, _FOREVER_US if wanted.until_us is None else wanted.until_us)
        return Ask(_BY_TIME + _PAGE, (person, after, *bounds, *bounds))
    return Ask(_ALL + _PAGE, (person, after))


def _sessions(person: int, rows: Sequence[Row], and_record_of: SessionId | None = None) -> Plan[list[Session]]:
    """Return the sessions of rows, without deleted ones, with their documents and records."""
    words = yield Words({number for row in rows for number in (*row[:2], *row[7:10])})
    keyed = [(SessionId(words[row[1]], words[row[0]]), row) for row in rows]
    keys = [key for key, _ in keyed]
    if and_record_of is not None and and_record_of not in keys:
        keys.append(and_record_of)
    records: dict[str, RecordState] = {}
    for start in range(0, len(keys), KEYS_PER_QUERY):
        records |= yield Records(SESSION, [key.record_id for key in keys[start : start + KEYS_PER_QUERY]])
    said = yield from _documents(person, SESSION, [key.id for key in keys])
    found = [
        Session(key, said.get(key.id, {}), fields, _total(key, row, words, fields))
        for key, row in keyed
        if (fields := _fields(records.get(key.record_id))) is not None
    ]
    if and_record_of is not None and len(keys) > len(keyed) and and_record_of.record_id in records:
        alone = _fields(records[and_record_of.record_id])
        if alone is not None:
            found.append(Session(and_record_of, said.get(and_record_of.id, {}), alone, None))
    return found


def _documents(person: int, kind: str, keys: Sequence[str]) -> Plan[dict[str, Document]]:
    found: dict[str, Document] = {}
    for start in range(0, len(keys), KEYS_PER_QUERY):
        some = keys[start : start + KEYS_PER_QUERY]
        rows = yield Ask(_DOCUMENTS.format(marks_of(some)), (person, kind, *some))
        found |= {key: _decode(body) for key, body in rows}
    return found


def _fields(record: RecordState | None) -> Mapping[str, FieldValue] | None:
    """Return a record's fields; nothing without one, None for a deleted one."""
    if record is None:
        return {}
    return None if record.deleted else record.fields


def _total(key: SessionId, row: Row, words: Mapping[int, str], fields: Mapping[str, FieldValue]) -> SessionTotal:
    _, _, _, started_at, last_at, end_at, active_at, *_ = row
    branch, project, model = texts_of(row, (7, 8, 9), words)
    starts, prompts, turns, tool_calls, tool_failures, tool_ms, added, removed, agents = row[10:]
    ended_at = end_at if end_at and end_at >= last_at else None
    noted_start, noted_end = _time(fields.get("started_at")), _time(fields.get("ended_at"))
    if ended_at is None and noted_end is not None:
        ended_at = noted_end
    return SessionTotal(
        id=key.id, app=key.app, project=project, branch=branch, model=model,
        started_at=noted_start if not starts and noted_start is not None else started_at,
        last_at=max(active_at, ended_at or 0), ended_at=ended_at, end_reason=None,
        tool_calls=tool_calls, tool_failures=tool_failures, tool_ms=tool_ms, prompts=prompts, turns=turns, agents=agents,
        lines_added=added, lines_removed=removed,
        score=_score(fields.get("score")), focus_ms=_count(fields.get("focus_time_ms")),
        interruptions=_count(fields.get("interruptions_count")),
    )  # fmt: skip


def _is_wanted(one: Session, wanted: Wanted) -> bool:
    if wanted.user is not None and one.document.get("user", wanted.owner) != wanted.user:
        return False
    if wanted.from_us is not None and start_of(one) < wanted.from_us:
        return False
    return wanted.until_us is None or start_of(one) <= wanted.until_us


def _event(event: WireEvent) -> Event:
    return Event(
        at=event.at, kind=event.kind, name=event.name, app=event.app, session=event.session, tool=event.tool,
        outcome=event.outcome, duration_ms=event.duration_ms, output_bytes=event.output_bytes,
    )  # fmt: skip


def _who(name: object) -> bytes | None:
    if not isinstance(name, str):
        return None
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_WHO_BYTES).digest()


def _time(value: FieldValue) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _FOREVER_US else None


def _count(value: FieldValue) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _score(value: FieldValue) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _SCORE_MAX
    return float(value) if known and isinstance(value, int | float) else None
