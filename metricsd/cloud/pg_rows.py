"""Events as rows of PostgreSQL and back: one list of columns, from which every statement about events is put together.

A pushed batch becomes rows of `incoming`, which is a temporary table filled by COPY for large batches and a set of
arrays for small ones; one INSERT moves either into `event`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from metricsd.cloud.backend import EventItem
from metricsd.protocol import WireEvent

_INCOMING = {
    "n": "INTEGER",
    "seq": "BIGINT",
    "at": "BIGINT",
    "duration_ms": "BIGINT",
    "input_bytes": "BIGINT",
    "output_bytes": "BIGINT",
    "lines_added": "BIGINT",
    "lines_removed": "BIGINT",
    "kind": "INTEGER",
    "name": "INTEGER",
    "app": "INTEGER",
    "session": "INTEGER",
    "tool": "INTEGER",
    "outcome": "INTEGER",
    "project": "INTEGER",
    "branch": "INTEGER",
    "model": "INTEGER",
    "agent": "INTEGER",
    "subject": "INTEGER",
    "reason": "INTEGER",
    "batch": "INTEGER",
    "id": "BYTEA",
    "call": "BYTEA",
    "extra": "TEXT",
}
INCOMING_COLUMNS = tuple(_INCOMING)
_STORED = ", ".join(INCOMING_COLUMNS[1:])
CREATE_INCOMING = (
    f"CREATE TEMPORARY TABLE incoming ({', '.join(f'{name} {kind}' for name, kind in _INCOMING.items())})"
    " ON COMMIT DROP"
)
_INSERT = f"INSERT INTO event (change, person, device, epoch, {_STORED}) SELECT $1 + n, $2, $3, $4, {_STORED} FROM "  # noqa: S608 - constants
_BEHIND = " WHERE n >= $5 ORDER BY n ON CONFLICT (id) DO NOTHING"
INSERT_COPIED = f"{_INSERT}incoming{_BEHIND}"
"""Values: the change number of row 0, person, device, epoch, the first row to take."""
INSERT_ARRAYS = (
    f"{_INSERT}unnest({', '.join(f'${number}::{kind}[]' for number, kind in enumerate(_INCOMING.values(), 6))})"
    f" AS incoming ({', '.join(INCOMING_COLUMNS)}){_BEHIND}"
)
"""The same values, then an array for each of INCOMING_COLUMNS."""
EVENT_COLUMNS = f"change, person, device, {_STORED}"
_TERMS_AT = (1, 2, *range(10, 23))
"""Where a row of EVENT_COLUMNS has numbers of terms."""
_decode_extra = msgspec.json.Decoder(dict[str, int | str]).decode


def texts_of(items: Sequence[EventItem]) -> set[str]:
    """Return every text of the events that is interned."""
    texts: set[str | None] = set()
    for item in items:
        event = item.event
        if event is not None:
            texts.update((
                event.kind, event.name, event.app, event.session, event.tool, event.outcome, event.project,
                event.branch, event.model, event.agent, event.subject, event.reason, event.batch,
            ))  # fmt: skip
    return {text for text in texts if text is not None}


def incoming_rows(items: Sequence[EventItem], known: Mapping[str, int], *, sequenced: bool) -> list[tuple[Any, ...]]:
    """Return the rows of the events that can be stored; `n` is an item's place in the batch."""
    ids: dict[str | None, int | None] = {None: None}
    ids.update(known)
    return [
        (
            n, item.seq if sequenced else None, event.at, event.duration_ms, event.input_bytes, event.output_bytes,
            event.lines_added, event.lines_removed, ids[event.kind], ids[event.name], ids[event.app],
            ids[event.session], ids[event.tool], ids[event.outcome], ids[event.project], ids[event.branch],
            ids[event.model], ids[event.agent], ids[event.subject], ids[event.reason], ids[event.batch], item.key,
            None if event.call is None else event.call.encode(),
            None if event.extra is None else msgspec.json.encode(event.extra).decode(),
        )
        for n, item in enumerate(items)
        if (event := item.event) is not None
    ]  # fmt: skip


def term_numbers(rows: Sequence[Any]) -> set[int | None]:
    """Return the numbers of terms that rows of EVENT_COLUMNS hold."""
    return set(chain.from_iterable([row[place] for place in _TERMS_AT] for row in rows))


def wire_event(row: Any, texts: Mapping[int, str]) -> WireEvent:
    """Return a row of EVENT_COLUMNS as it travels."""
    get = texts.get
    return WireEvent(
        seq=row[3] or 0,
        at=row[4],
        duration_ms=row[5],
        input_bytes=row[6],
        output_bytes=row[7],
        lines_added=row[8],
        lines_removed=row[9],
        kind=texts[row[10]],
        name=texts[row[11]],
        app=texts[row[12]],
        session=get(row[13]),
        tool=get(row[14]),
        outcome=get(row[15]),
        project=get(row[16]),
        branch=get(row[17]),
        model=get(row[18]),
        agent=get(row[19]),
        subject=get(row[20]),
        reason=get(row[21]),
        batch=get(row[22]),
        id=row[23].hex(),
        call=None if row[24] is None else row[24].decode(),
        extra=None if row[25] is None else _decode_extra(row[25]),
    )
