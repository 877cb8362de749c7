"""Twenty kinds of faults that migrations really have, each of them seeded where it would happen.

A fault picks its victim and its size at random from a seed, and always changes something: one that would change nothing
picks again. None of them is chosen to be easy to find; most change one value of one row of one stage.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from msgspec.structs import replace

from metricsd.decode.older_hooks import NO_SESSION, SessionNote
from metricsd.ids import EventId
from metricsd.migration.model import Planned
from metricsd.migration.sensitivity.seams import Seams
from metricsd.model import Event
from metricsd.store.events import Identified
from metricsd.store.ingest import Beside
from metricsd.store.suggestions import Suggestion

QUARTER_US = 15 * 60 * 1_000_000
MINUTE_US = 60 * 1_000_000
TRIES = 200
_NUMBERS = ("execution_time_ms", "lines_added", "lines_removed", "file_size_bytes", "content_length", "lines_written")
_FIELDS = (*_NUMBERS, "subagent_type", "file_path", "command", "session_id")


class Line(NamedTuple):
    """A line with a call: its number in the file, its bytes and the object that it is."""

    number: int
    raw: bytes
    values: dict[str, Any]


class Victims(NamedTuple):
    """What a fault can hit in a sample: its calls, and its merged sessions."""

    lines: Sequence[Line]
    sessions: Sequence[SessionNote]


class Kind(NamedTuple):
    """One kind of fault, and the stage that it is seeded into."""

    name: str
    stage: str
    make: Callable[[Random, Victims], Seams | None]


def _line_lost(random: Random, victims: Victims) -> Seams:
    number = random.choice(victims.lines).number
    return Seams(line=lambda line, data: [] if line == number else [data])


def _line_twice(random: Random, victims: Victims) -> Seams:
    number = random.choice(victims.lines).number
    return Seams(line=lambda line, data: [data, data] if line == number else [data])


def _line_cut(random: Random, victims: Victims) -> Seams:
    number, raw, _ = random.choice(victims.lines)
    end = random.randrange(1, len(raw))
    return Seams(line=lambda at, data: [data[:end]] if at == number else [data])


def _wrong_encoding(random: Random, victims: Victims) -> Seams | None:
    note = random.choice(victims.sessions)
    name = random.choice(("directory", "branch", "user"))
    text = getattr(note, name)
    if text is None or text.isascii():
        return None
    wrong = random.choice((text.encode().decode("latin-1"), text.encode("ascii", "replace").decode()))
    return _of_note(note, {name: wrong})


def _number_off(random: Random, victims: Victims) -> Seams | None:
    number, _, line = random.choice(victims.lines)
    names = [name for name in _NUMBERS if isinstance(line.get(name), int) and not _is_unread(name, line)]
    if not names:
        return None
    name = random.choice(names)
    return _other_line(number, line | {name: line[name] + random.choice((1, 2, 10))})


def _field_lost(random: Random, victims: Victims) -> Seams | None:
    number, _, line = random.choice(victims.lines)
    name = random.choice(_FIELDS)
    if line.get(name) is None or line[name] in (*NO_SESSION,) or _is_unread(name, line):
        return None
    return _other_line(number, {key: value for key, value in line.items() if key != name})


def _is_unread(name: str, line: dict[str, Any]) -> bool:
    """Return whether another field of the line stands for this one, so that losing it loses nothing."""
    others = {"file_path": ("command", "command_type"), "command": ("command_type",), "lines_written": ("lines_added",)}
    return any(other in line for other in others.get(name, ()))


def _zone_shift(random: Random, victims: Victims) -> Seams:
    shift = random.choice((-1, 1)) * random.randrange(1, 57) * QUARTER_US
    return _of_call(random, victims, lambda event: replace(event, at=event.at + shift))


def _rounded(random: Random, victims: Victims) -> Seams:
    step = random.choice((10, 50, 100))

    def change(event: Event) -> Event:
        near = None if event.duration_ms is None else round(event.duration_ms / step) * step
        if near is not None and near != event.duration_ms:
            return replace(event, duration_ms=near)
        return replace(event, at=event.at // MINUTE_US * MINUTE_US)

    return _of_call(random, victims, change)


def _unit_mistaken(random: Random, victims: Victims) -> Seams:
    def change(event: Event) -> Event:
        if not event.duration_ms:
            return event
        return replace(event, duration_ms=random.choice((event.duration_ms * 1000, event.duration_ms // 1000)))

    return _of_call(random, victims, change)


def _outcome_turned(random: Random, victims: Victims) -> Seams:
    return _of_call(
        random, victims, lambda event: replace(event, outcome="ok" if event.outcome == "failed" else "failed")
    )


def _null_and_empty(random: Random, victims: Victims) -> Seams:
    name = random.choice(("branch", "project", "agent", "subject", "model", "reason", "tool", "outcome"))

    def change(event: Event) -> Event:
        return replace(event, **{name: "" if getattr(event, name) is None else None})

    return _of_call(random, victims, change)


def _letters_changed(random: Random, victims: Victims) -> Seams:
    name = random.choice(("tool", "session", "subject", "agent"))
    how = random.choice((str.swapcase, str.upper, str.title))

    def change(event: Event) -> Event:
        text = getattr(event, name)
        return event if text is None else replace(event, **{name: how(text)})

    return _of_call(random, victims, change)


def _name_cut(random: Random, victims: Victims) -> Seams:
    name, length = random.choice((("tool", 3), ("session", 8), ("session", 32), ("subject", 2), ("agent", 5)))

    def change(event: Event) -> Event:
        text = getattr(event, name)
        return event if text is None else replace(event, **{name: text[:length]})

    return _of_call(random, victims, change)


def _values_swapped(random: Random, victims: Victims) -> Seams:
    name = random.choice(("duration_ms", "tool", "outcome", "at", "session", "subject", "lines_added"))

    def plan(rows: list[Planned]) -> list[Planned]:
        calls = [index for index, row in enumerate(rows) if row.items and row.items[0].event.tool is not None]
        for _ in range(TRIES):
            one, other = random.sample(calls, 2)
            first, second = (getattr(rows[index].items[0].event, name) for index in (one, other))
            if first != second:
                swapped = {one: second, other: first}
                return [_with(row, **{name: swapped[i]}) if i in swapped else row for i, row in enumerate(rows)]
        return rows

    return Seams(plan=plan)


def _other_session(random: Random, victims: Victims) -> Seams:
    others = [note.session for note in victims.sessions] + ["default-session"]
    other = random.choice(others)
    return _of_call(random, victims, lambda event: replace(event, session=other))


def _row_lost(random: Random, victims: Victims) -> Seams:
    share = random.random()

    def insert(items: list[Identified]) -> list[Identified]:
        gone = int(share * len(items))
        return items[:gone] + items[gone + 1 :]

    return Seams(insert=insert)


def _row_twice(random: Random, victims: Victims) -> Seams:
    share, salt = random.random(), random.getrandbits(48)

    def insert(items: list[Identified]) -> list[Identified]:
        if not items:
            return items
        item = items[int(share * len(items))]
        return [*items, Identified(_another(item.id, salt), item.event)]

    return Seams(insert=insert)


def _id_changed(random: Random, victims: Victims) -> Seams:
    share, bit = random.random(), 1 << random.randrange(62)

    def insert(items: list[Identified]) -> list[Identified]:
        at = int(share * len(items))
        return [Identified(_another(item.id, bit), item.event) if i == at else item for i, item in enumerate(items)]

    return Seams(insert=insert)


def _record_lost(random: Random, victims: Victims) -> Seams | None:
    note = random.choice(victims.sessions)
    is_field = random.random() < 0.5
    if is_field and note.score is None and not note.fields:
        return None

    def put(one: Beside) -> bool:
        if is_field:
            # The mapped id of a person is no value of the source, so it is not what is lost here.
            told = isinstance(one, Suggestion) and one.id.endswith(f"/{note.session}") and "user_id" not in one.values
        else:
            told = getattr(one, "key", None) == note.session
        return not told

    return Seams(put=put)


def _value_changed(random: Random, victims: Victims) -> Seams:
    column, change = random.choice(
        (
            ("duration_ms", "coalesce(duration_ms, 0) + 1"), ("at", "at + 1000000"), ("lines_added", "coalesce(lines_added, 0) + 1"),
            ("outcome", "1 - outcome"), ("tool", "subject"), ("more", "NULL"), ("session", "session + 1"),
        )
    )  # fmt: skip
    share = random.random()

    def stored(db: sqlite3.Connection) -> None:
        differs = f"{column} IS NOT {change} AND tool IS NOT NULL"
        if column == "session":
            differs += " AND session + 1 IN (SELECT id FROM session)"
        rows = [row[0] for row in db.execute(f"SELECT pos FROM event WHERE {differs} ORDER BY pos")]  # noqa: S608
        if rows:
            pos = rows[int(share * len(rows))]
            db.execute(f"UPDATE event SET {column} = {change} WHERE pos = ?", (pos,))  # noqa: S608

    return Seams(stored=stored)


KINDS: tuple[Kind, ...] = (
    Kind("line lost", "parse", _line_lost),
    Kind("line read twice", "parse", _line_twice),
    Kind("line cut", "parse", _line_cut),
    Kind("wrong encoding", "parse", _wrong_encoding),
    Kind("number off", "parse", _number_off),
    Kind("field lost", "parse", _field_lost),
    Kind("time zone shifted", "transform", _zone_shift),
    Kind("rounded", "transform", _rounded),
    Kind("unit mistaken", "transform", _unit_mistaken),
    Kind("outcome turned round", "transform", _outcome_turned),
    Kind("null and empty exchanged", "transform", _null_and_empty),
    Kind("letters changed", "transform", _letters_changed),
    Kind("name cut", "transform", _name_cut),
    Kind("values of two rows swapped", "transform", _values_swapped),
    Kind("another session's", "transform", _other_session),
    Kind("row lost", "load", _row_lost),
    Kind("row stored twice", "load", _row_twice),
    Kind("id changed", "load", _id_changed),
    Kind("record not written", "load", _record_lost),
    Kind("stored value changed", "target", _value_changed),
)


def _other_line(number: int, line: dict[str, Any]) -> Seams:
    data = json.dumps(line).encode()
    return Seams(line=lambda at, old: [data] if at == number else [old])


def _of_note(note: SessionNote, values: dict[str, Any]) -> Seams:
    return Seams(note=lambda one: one._replace(**values) if one.session == note.session else one)


def _of_call(random: Random, victims: Victims, change: Callable[[Event], Event]) -> Seams:
    """Return a fault that changes one call of the part, one that it really changes."""

    def plan(rows: list[Planned]) -> list[Planned]:
        order = [index for index, row in enumerate(rows) if row.items and row.items[0].event.tool is not None]
        random.shuffle(order)
        for index in order:
            event = rows[index].items[0].event
            changed = change(event)
            if changed != event:
                return [_given(row, changed) if i == index else row for i, row in enumerate(rows)]
        return rows

    return Seams(plan=plan)


def _with(row: Planned, **values: Any) -> Planned:
    return _given(row, replace(row.items[0].event, **values))


def _given(row: Planned, event: Event) -> Planned:
    return replace(row, items=(Identified(row.items[0].id, event), *row.items[1:]))


def _another(event_id: EventId, bits: int) -> EventId:
    return EventId((int.from_bytes(event_id, "big") ^ (bits or 1)).to_bytes(16, "big"))
