"""Events in the store: inserting them once, reading them back, and moving them to another device.

Inserting is idempotent by event id; only rows that are really new reach the rollups and the session counters, in
the same transaction. Own events take the next positive positions without a gap, which makes the table its own
outbox; events of other devices take negative positions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from metricsd.ids import EventId
from metricsd.model import Event, Kind
from metricsd.store import batches, rollups, state
from metricsd.store.calendar import QUARTER_US
from metricsd.store.connection import Store
from metricsd.store.counters import Tally, add_tallies, subtract_tallies
from metricsd.store.devices import device_id_of as device_id_of
from metricsd.store.devices import device_row as device_row
from metricsd.store.devices import own_device as own_device
from metricsd.store.rollups import NO_DURATION, Hours, Key, Totals, bucket_of
from metricsd.totals import COUNTED_MAX

OUTCOMES: tuple[str, ...] = ("ok", "failed", "interrupted", "denied")
"""Stored as their index; any other text (of a newer version) as OTHER_OUTCOME + its term."""
OTHER_OUTCOME = 16
_OUTCOME_CODES = {text: code for code, text in enumerate(OUTCOMES)}

COLUMNS = (
    "pos, id, at, device, type, session, tool, outcome, duration_ms, call, project, branch, subject, "
    "input_bytes, output_bytes, lines_added, lines_removed, tags, batch, more"
)
_WIDTH = 20
_ROW = f"({', '.join('?' * _WIDTH)})"
_INSERT = f"INSERT OR IGNORE INTO event ({COLUMNS}) VALUES {_ROW}"
_ROWS_AT_ONCE = 48
"""Inserted by one statement: SQLite then stays at the right edge of table and index. 999 values are always allowed."""
_INSERT_ROWS = f"INSERT OR IGNORE INTO event ({COLUMNS}) VALUES {', '.join([_ROW] * _ROWS_AT_ONCE)}"
SELECT = f"""
SELECT {", ".join("event." + name for name in COLUMNS.split(", "))}, t.app, t.kind, t.name, s.session_id
FROM event JOIN event_type AS t ON t.id = event.type LEFT JOIN session AS s ON s.id = event.session
"""
_IDS_PER_QUERY = 500
_CALL_PREFIX = "toolu_"

_encode = msgspec.json.Encoder(order="sorted").encode
_decode_tags = msgspec.json.Decoder(dict[str, str]).decode
_decode_more = msgspec.json.Decoder(dict[str, int]).decode


class Identified(NamedTuple):
    """An event with its id."""

    id: EventId
    event: Event


class Inserted(NamedTuple):
    """How many events were new, and how many were known (or twice in the call)."""

    added: int
    known: int


def insert(store: Store, items: Sequence[Identified], *, device: int) -> Inserted:
    """Insert events that are not there yet, for the device row `device`, inside the caller's transaction."""
    own = device == own_device(store)
    if not items:
        return Inserted(0, 0)
    rollups.calendar(store)
    imported = any(item.event.batch is not None for item in items)
    if imported:
        items = _labelled(store, items)
    rows, aggregates = _prepare(store, items, device, own)
    before = store.db.total_changes
    store.db.execute("SAVEPOINT events")
    _insert_rows(store, rows)
    if store.db.total_changes - before != len(rows):
        # Some were known. Nearly every batch is all new, so only now ask which, and start over with the rest.
        store.db.execute("ROLLBACK TO events")
        fresh = _without_known(store, items)
        rows, aggregates = _prepare(store, fresh, device, own)
        _insert_rows(store, rows)
    store.db.execute("RELEASE events")
    _apply(store, aggregates, device, own)
    state.add(store, "last_pos" if own else "remote_rows", len(rows))
    state.add(store, "live_events", len(rows))
    if imported and rows:
        ends = (rows[0][0], rows[-1][0])
        batches.inserted(store, min(ends), max(ends))
    return Inserted(len(rows), len(items) - len(rows))


def last_pos(store: Store) -> int:
    """Return the newest own position ever given out; positions are never reused."""
    return state.get_int(store, "last_pos")


def read_own(store: Store, after_pos: int, limit: int) -> list[tuple[int, EventId, Event]]:
    """Return up to `limit` own events behind `after_pos`, in position order."""
    rows = store.db.execute(SELECT + " WHERE pos > max(?, 0) ORDER BY pos LIMIT ?", (after_pos, limit))
    return [from_row(store.terms.name, row) for row in rows]


def read_newest(store: Store, limit: int) -> list[tuple[int, EventId, Event]]:
    """Return the newest own events, newest first."""
    rows = store.db.execute(SELECT + " WHERE pos > 0 ORDER BY pos DESC LIMIT ?", (limit,))
    return [from_row(store.terms.name, row) for row in rows]


def locate(store: Store, ids: Iterable[EventId]) -> dict[EventId, tuple[int, int]]:
    """Return {id: (position, device row)} of the events that are here."""
    found: dict[EventId, tuple[int, int]] = {}
    wanted = list(ids)
    for start in range(0, len(wanted), _IDS_PER_QUERY):
        some = wanted[start : start + _IDS_PER_QUERY]
        marks = ", ".join("?" * len(some))
        for event_id, pos, device in store.db.execute(f"SELECT id, pos, device FROM event WHERE id IN ({marks})", some):
            found[EventId(event_id)] = (pos, device)
    return found


def move(store: Store, positions: Sequence[int], to_device: int) -> None:
    """Give own events to another device row; totals and own counters follow, so nothing counts twice.

    Times of the session rows that lose events stay as they are: a minimum cannot be taken back, and the other
    device's row has the same times.
    """
    own = own_device(store)
    rollups.calendar(store)
    for start in range(0, len(positions), _IDS_PER_QUERY):
        some = positions[start : start + _IDS_PER_QUERY]
        marks = ", ".join("?" * len(some))
        by_device: dict[int, list[Identified]] = {}
        for row in store.db.execute(f"{SELECT} WHERE pos IN ({marks}) AND device != ?", (*some, to_device)):
            _, event_id, event = from_row(store.terms.name, row)
            by_device.setdefault(row[3], []).append(Identified(event_id, event))
        for device, items in by_device.items():
            _move_totals(store, items, device, to_device, own)
        store.db.execute(f"UPDATE event SET device = ? WHERE pos IN ({marks})", (to_device, *some))


def pack_call(call: str | None) -> bytes | None:
    """Return an opaque call id in few bytes: a known prefix and hexadecimal digits are not spelt out."""
    if call is None:
        return None
    if not call.startswith(_CALL_PREFIX):
        return b"\0" + call.encode("utf-8", "surrogatepass")
    rest = call[len(_CALL_PREFIX) :]
    if rest.islower() or rest.isdecimal():
        try:
            packed = bytes.fromhex(rest)
        except ValueError:
            packed = b""
        if packed.hex() == rest:
            return b"\2" + packed
    return b"\1" + rest.encode("utf-8", "surrogatepass")


def unpack_call(packed: bytes | None) -> str | None:
    """Return what `pack_call` was given."""
    if packed is None:
        return None
    scheme, rest = packed[0], packed[1:]
    if scheme == 2:
        return _CALL_PREFIX + rest.hex()
    text = rest.decode("utf-8", "surrogatepass")
    return _CALL_PREFIX + text if scheme == 1 else text


def _insert_rows(store: Store, rows: Sequence[tuple[Any, ...]]) -> None:
    whole = len(rows) - len(rows) % _ROWS_AT_ONCE
    for start in range(0, whole, _ROWS_AT_ONCE):
        store.db.execute(_INSERT_ROWS, list(chain.from_iterable(rows[start : start + _ROWS_AT_ONCE])))
    store.db.executemany(_INSERT, rows[whole:])


class _Aggregates(NamedTuple):
    totals: dict[Key, Totals]
    hours: Hours
    tallies: dict[int, Tally]


def _prepare(
    store: Store, items: Sequence[Identified], device: int, own: bool
) -> tuple[list[tuple[Any, ...]], _Aggregates]:
    """Return the rows to insert and what they add up to. The hottest loop of the product: plain and flat on purpose."""
    terms = store.terms
    text_of, type_of, session_of = terms.texts, terms.types, terms.sessions
    slot_of, outcome_codes = store.days.slot, _OUTCOME_CODES
    pos = last_pos(store) if own else -state.get_int(store, "remote_rows")
    step = 1 if own else -1
    quarter: int | None = None
    slot = 0
    rows: list[tuple[Any, ...]] = []
    totals: dict[Key, Totals] = {}
    hours: Hours = {}
    tallies: dict[int, Tally] = {}
    for event_id, e in items:
        pos += step
        key3 = (e.app, e.kind, e.name)
        kind = type_of.get(key3) or terms.type(*key3)
        session = None
        if e.session is not None:
            session = session_of.get((e.app, e.session)) or terms.session(e.app, e.session)
        tool = None if e.tool is None else text_of.get(e.tool) or terms.text(e.tool)
        project = None if e.project is None else text_of.get(e.project) or terms.text(e.project)
        branch = None if e.branch is None else text_of.get(e.branch) or terms.text(e.branch)
        subject = None if e.subject is None else text_of.get(e.subject) or terms.text(e.subject)
        batch = None if e.batch is None else terms.text(e.batch)
        outcome = None if e.outcome is None else outcome_codes.get(e.outcome)
        if outcome is None and e.outcome is not None:
            outcome = OTHER_OUTCOME + terms.text(e.outcome)
        tags, more = (None, None)
        if e.extra is not None or e.model is not None or e.agent is not None or e.reason is not None:
            tags, more = _tags_and_more(store, e)
        duration, added, removed = e.duration_ms, e.lines_added, e.lines_removed
        # What is stored is what was said; what is added up has a bound.
        ms, plus, minus = duration or 0, added or 0, removed or 0
        if ms > COUNTED_MAX or plus > COUNTED_MAX or minus > COUNTED_MAX:
            ms, plus, minus = min(ms, COUNTED_MAX), min(plus, COUNTED_MAX), min(minus, COUNTED_MAX)
        rows.append(
            (pos, event_id, e.at, device, kind, session, tool, outcome, duration, pack_call(e.call), project, branch, subject,
             e.input_bytes, e.output_bytes, added, removed, tags, batch, more)
        )  # fmt: skip
        failed = 1 if outcome else 0
        bucket = NO_DURATION if duration is None else bucket_of(duration)
        if e.at // QUARTER_US != quarter:
            quarter, slot = e.at // QUARTER_US, slot_of(e.at)
        key = (slot // 24, device, kind, tool or 0, project or 0, batch or 0, bucket)
        total = totals.get(key)
        if total is None:
            totals[key] = [1, failed, ms, plus, minus]
        else:
            total[0] += 1
            total[1] += failed
            total[2] += ms
            total[3] += plus
            total[4] += minus
        hour_key = (slot, device, kind, batch or 0)
        hour = hours.get(hour_key)
        if hour is None:
            hours[hour_key] = [1, failed]
        else:
            hour[0] += 1
            hour[1] += failed
        if own and session is not None:
            tally = tallies.get(session)
            if tally is None:
                tally = tallies[session] = Tally()
            tally.count(e)
    return rows, _Aggregates(totals, hours, tallies)


def _tags_and_more(store: Store, e: Event) -> tuple[int | None, str | None]:
    """Return the interned categories and the JSON of the numbers."""
    texts: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for name, value in (e.extra or {}).items():
        if isinstance(value, str):
            texts[name] = value
        else:
            numbers[name] = value
    if e.model is not None:
        texts["/model"] = e.model
    if e.agent is not None:
        texts["/agent"] = e.agent
    if e.reason is not None:
        texts["/reason"] = e.reason
    tags = store.terms.text(_encode(texts).decode()) if texts else None
    return tags, _encode(numbers).decode() if numbers else None


def _labelled(store: Store, items: Sequence[Identified]) -> list[Identified]:
    """Return the items under the batches that they are kept under here (store/batches.py)."""
    ids: dict[str, list[EventId]] = {}
    for event_id, event in items:
        if event.batch is not None:
            ids.setdefault(event.batch, []).append(event_id)
    names = batches.names_for(store, ids)
    return [
        item if item.event.batch is None or names[item.id] == item.event.batch
        else Identified(item.id, replace(item.event, batch=names[item.id]))
        for item in items
    ]  # fmt: skip


def _apply(store: Store, aggregates: _Aggregates, device: int, own: bool) -> None:
    rollups.add(store, aggregates.totals, aggregates.hours)
    if own:
        add_tallies(store, device, aggregates.tallies)


def _without_known(store: Store, items: Sequence[Identified]) -> list[Identified]:
    seen = set(locate(store, (item.id for item in items)))
    fresh = []
    for item in items:
        if item.id not in seen:
            seen.add(item.id)
            fresh.append(item)
    return fresh


def _move_totals(store: Store, items: list[Identified], source: int, target: int, own: int) -> None:
    _, lost = _prepare(store, items, source, True)
    _, won = _prepare(store, items, target, True)
    rollups.add(store, lost.totals, lost.hours, sign=-1)
    rollups.add(store, won.totals, won.hours)
    subtract_tallies(store, source, lost.tallies)
    if target == own:
        add_tallies(store, target, won.tallies)


def from_row(
    term: Callable[[int | None], str | None], row: sqlite3.Row | tuple[Any, ...]
) -> tuple[int, EventId, Event]:
    """Return position, id and event of a row of COLUMNS and of its type and session; `term` knows interned strings."""
    (pos, event_id, at, _device, _type, _session, tool, outcome, duration_ms, call, project, branch, subject,
     input_bytes, output_bytes, lines_added, lines_removed, tags, batch, more, app, kind, name, session_id) = row  # fmt: skip
    texts = _decode_tags(term(tags) or "{}") if tags else {}
    numbers = _decode_more(more) if more else {}
    special = {key: texts.pop(key, None) for key in ("/model", "/agent", "/reason")}
    extra: dict[str, int | str] = {**texts, **numbers}
    event = Event(
        at=at,
        kind=kind,
        name=name,
        app=app,
        session=session_id,
        tool=term(tool),
        outcome=_outcome_text(term, outcome),
        duration_ms=duration_ms,
        call=unpack_call(call),
        project=term(project),
        branch=term(branch),
        model=special["/model"],
        agent=special["/agent"],
        subject=term(subject),
        reason=special["/reason"],
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        lines_added=lines_added,
        lines_removed=lines_removed,
        extra=extra or None,
        batch=term(batch),
    )
    return pos, EventId(event_id), event


def _outcome_text(term: Callable[[int | None], str | None], code: int | None) -> str | None:
    if code is None:
        return None
    return OUTCOMES[code] if code < len(OUTCOMES) else term(code - OTHER_OUTCOME)


def is_tool_call(event: Event) -> bool:
    """Return whether the event counts as one call of a tool."""
    return event.kind == Kind.TOOL_USED
