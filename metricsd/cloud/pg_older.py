"""Plans of the older API on PostgreSQL: each question is one statement of the transaction that is open."""

from __future__ import annotations

from collections.abc import Sequence
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
    numbered,
)
from metricsd.cloud.pg_errors import schema_not_ready
from metricsd.cloud.pg_install import OLDER_API_STEP_NEEDED
from metricsd.cloud.pg_pool import Db
from metricsd.cloud.pg_records import find_between, find_records
from metricsd.cloud.pg_rows import EVENT_COLUMNS, term_numbers, wire_event
from metricsd.cloud.pg_session import Session

T = TypeVar("T")

_STEP = "SELECT step FROM head"
_EVENTS = f"SELECT {EVENT_COLUMNS} FROM event WHERE person = $1 AND change = ANY($2::bigint[]) ORDER BY change"  # noqa: S608


async def carry_out(plan: Plan[T], session: Session, db: Db, person: int) -> T:
    """Return what a plan makes of its answers. A schema from before the older API is refused with 503."""
    if await db.fetchval(_STEP) < OLDER_API_STEP_NEEDED:
        raise schema_not_ready("the tenant's schema lacks the older API: run `metricsd cloud migrate-schema`")
    answer: Any = None
    while True:
        try:
            question = plan.send(answer)
        except StopIteration as done:
            found: T = done.value
            return found
        answer = await _answered(question, session, db, person)


async def _answered(question: Question, session: Session, db: Db, person: int) -> Any:
    match question:
        case Ask(sql, values):
            statement = numbered(sql.format(person="person"))
            return await db.fetch(statement, *values)
        case Many(sql, rows):
            await _many(db, numbered(sql), rows)
            return None
        case Words(numbers):
            return await session.terms.texts(db, numbers)
        case Number(text):
            [number] = await session.terms.find(db, text)
            return number
        case Records(kind, ids):
            found = await find_records(session, db, person, [(kind, one) for one in ids])
            return {record_id: record for (_, record_id), record in found.items()}
        case Between(kind, after, before, limit):
            return await find_between(session, db, person, (kind, after, before), limit)
        case Head():
            return await db.fetchval("SELECT change FROM head")
        case Events(changes):
            events = await db.fetch(_EVENTS, person, changes)
            texts = await session.terms.texts(db, term_numbers(events))
            return [wire_event(row, texts) for row in events]


async def _many(db: Db, sql: str, rows: Sequence[Sequence[Any]]) -> None:
    if len(rows) == 1:
        await db.execute(sql, *rows[0])
    elif rows:
        await db.executemany(sql, rows)
