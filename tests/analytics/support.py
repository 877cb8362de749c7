"""What tests of reports share: cells added up, and a store filled from a few words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from metricsd.ids import EventId, line_id
from metricsd.protocol import FieldValue
from metricsd.store import batches, events, records, tool_metrics
from metricsd.store.connection import Store
from metricsd.store.events import Identified
from metricsd.totals import Cell
from tests.samples import make_event

Sums = dict[tuple[object, ...], list[int]]


def added_up(cells: Iterable[Cell]) -> Sums:
    """Return cells by their dimensions, added up; what adds up to nothing is left out."""
    found: Sums = {}
    for cell in cells:
        sums = found.setdefault(cell[:6], [0] * 5)
        for index, value in enumerate(cell[6:]):
            sums[index] += value
    return {key: sums for key, sums in found.items() if any(sums)}


def item(number: int, **changes: Any) -> Identified:
    """Return an event whose id follows from its number and its time, as ids do."""
    event = make_event(**changes)
    return Identified(line_id(b"%d" % number, event.at // 1000, 0), event)


def put(store: Store, items: list[Identified], *, device: int | None = None) -> None:
    """Insert events, of this device or of another one."""
    with store.transaction():
        events.insert(store, items, device=events.own_device(store) if device is None else device)


def delete_session(store: Store, session: str, *, app: str = "claude-code") -> None:
    with store.transaction():
        records.edit(store, "session", f"{app}/{session}", {}, delete=True)


def note_session(store: Store, session: str, *, app: str = "claude-code", **fields: Any) -> None:
    with store.transaction():
        records.edit(store, "session", f"{app}/{session}", fields)


def set_batch(store: Store, batch: str, *, active: bool) -> None:
    with store.transaction():
        records.edit(store, "import_batch", batch, {"active": active, "label": "x"})


def set_selection(store: Store, batch: str, numbers: list[int], *, active: bool) -> None:
    """Switch some of a batch's events: those that are every so-manieth of all that it ever had here."""
    rows = store.db.execute(
        "SELECT e.id FROM event AS e JOIN term AS t ON t.id = e.batch WHERE t.text LIKE ? ORDER BY e.id", (batch + "%",)
    )
    ids = [EventId(event_id) for number, (event_id,) in enumerate(rows.fetchall()) if number in numbers]
    if ids:
        with store.transaction():
            fields: dict[str, FieldValue] = {"active": active, **batches.selection_fields(ids)}
            records.edit(store, "import_batch", batches.selection_name(batch, ids), fields)


def put_metric(store: Store, metric_id: str, **fields: Any) -> None:
    with store.transaction():
        tool_metrics.put(store, metric_id, fields)
