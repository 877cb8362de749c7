"""Plans of the older API on SQLite: each question is one statement of the transaction that is open."""

from __future__ import annotations

import sqlite3
from typing import Any, TypeVar

from metricsd.cloud.older_plans import (
    Ask,
    Between,
    Events,
    Head,
    Many,
    Number,
    Plan,
    Question,
    Records,
    Words,
    marks_of,
)
from metricsd.cloud.sqlite_events import EVENT_COLUMNS, wire_event
from metricsd.cloud.sqlite_file import Terms
from metricsd.cloud.sqlite_records import find_between, find_record

T = TypeVar("T")

NOBODY = -1
_EVENTS = f"SELECT {EVENT_COLUMNS} FROM event WHERE change IN ({{}}) AND user = ? ORDER BY change"  # noqa: S608


def carry_out(plan: Plan[T], db: sqlite3.Connection, terms: Terms, person: int, *, learns: bool = False) -> T:
    """Return what a plan makes of its answers; with `learns` a text without a number is given one."""
    answer: Any = None
    while True:
        try:
            question = plan.send(answer)
        except StopIteration as done:
            found: T = done.value
            return found
        answer = _answered(question, db, terms, person, learns=learns)


def _answered(question: Question, db: sqlite3.Connection, terms: Terms, person: int, *, learns: bool) -> Any:
    match question:
        case Ask(sql, values):
            return db.execute(sql.format(person="user"), values).fetchall()
        case Many(sql, rows):
            db.executemany(sql, rows)
            return None
        case Words(numbers):
            return {number: terms.text_of(number) for number in numbers if number is not None}
        case Number(text):
            return terms.id_of(text) if learns else terms.find(text)
        case Records(kind, ids):
            found = {one: find_record(db, terms, person, kind, one) for one in ids}
            return {one: record for one, record in found.items() if record is not None}
        case Between(kind, after, before, limit):
            return find_between(db, terms, person, (kind, after, before), limit)
        case Head():
            return int(db.execute("SELECT change FROM counter").fetchone()[0])
        case Events(changes):
            marks = marks_of(changes)
            events = db.execute(_EVENTS.format(marks), (*changes, person))
            return [wire_event(row, terms) for row in events]
