"""Which imported events count: the `import_batch` records decide, and everything else here follows from them.

A record with the name of a batch switches all of its events. A *selection*, `<batch>!<hash>`, names some of them in
`only` and switches those: an event counts unless an inactive record covers it. A selection is named after its content, so
two devices never write different ones under one name, and switches of several devices add up in whatever order they come.

Here an event that an inactive selection covers carries the selection's name as its batch, so that totals keep it apart;
what leaves this machine carries the batch itself (`base_of`). `retracted_batch`, `retracted_total` and the state
`retracted_events` add up what does not count. All of it changes in the transaction of the record, event or fold that it
follows from, and `rebuild` makes it anew. Functions that write run inside the caller's transaction.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec

from metricsd.conflict import Version
from metricsd.ids import EventId
from metricsd.import_batch import ONLY, SELECTION, TYPE, base_of, is_inactive, named_by, selections_of
from metricsd.store import rollups, state
from metricsd.store.connection import Store
from metricsd.store.scan import bounded

NAMED_MAX = 768
"""Events that one selection names: as base64 they fill a field of 16 KiB, which is all that the wire carries."""
HASH_BYTES = 8
RETRACTED_EVENTS = "retracted_events"
"""State key: how many of the events that are here do not count."""
_IDS_PER_QUERY = 500

_COUNTED = f"""
SELECT session, type, count(*), sum(coalesce(outcome, 0) != 0), sum({bounded("duration_ms")}),
    sum({bounded("lines_added")}), sum({bounded("lines_removed")})
FROM event WHERE {{}} AND session IS NOT NULL GROUP BY session, type
"""
_FOLDED = "SELECT session, type, n, failed, duration_ms, lines_added, lines_removed FROM folded_batch WHERE batch {}"
_ADD = """
INSERT INTO retracted_total {}
ON CONFLICT DO UPDATE SET n = n + excluded.n, failed = failed + excluded.failed,
    duration_ms = duration_ms + excluded.duration_ms,
    lines_added = lines_added + excluded.lines_added, lines_removed = lines_removed + excluded.lines_removed
"""
_COLUMNS = "(session, type, n, failed, duration_ms, lines_added, lines_removed)"
_WITH = f"WITH found{_COLUMNS} AS ({{}}) SELECT * FROM found WHERE true"
_WITH_NEGATIVE = (
    f"WITH found{_COLUMNS} AS ({{}}) "
    "SELECT session, type, -n, -failed, -duration_ms, -lines_added, -lines_removed FROM found WHERE true"
)
_IN_SET = "IN (SELECT batch FROM retracted_batch)"
_SELECTIONS = "SELECT id, fields, deleted FROM record WHERE type = ? AND id > ? AND id < ? ORDER BY id"
_BASES = "SELECT DISTINCT substr(id, 1, instr(id, '!') - 1) FROM record WHERE type = ? AND instr(id, '!') > 0"
_INACTIVE = "SELECT id FROM record WHERE type = ? AND (deleted = 1 OR json_extract(fields, '$.active') = 0)"
_ROWS = f"""
SELECT pos, id, at, device, type, coalesce(tool, 0), coalesce(project, 0), batch, coalesce(outcome, 0) != 0, duration_ms,
    {bounded("lines_added")}, {bounded("lines_removed")}
FROM event WHERE id IN ({{}})
"""
_DROP_EMPTY = "DELETE FROM retracted_total WHERE n = 0"

_decode_fields = msgspec.json.Decoder(dict[str, Any]).decode

T = TypeVar("T")


def selection_fields(ids: Sequence[EventId]) -> dict[str, str]:
    """Return what the record of a selection of these events says, besides whether it is active."""
    return {ONLY: b64encode(b"".join(sorted(ids))).decode()}


def selection_name(batch: str, ids: Sequence[EventId]) -> str:
    """Return the name of the selection of these events of a batch."""
    return batch + SELECTION + blake2b(b"".join(sorted(ids)), digest_size=HASH_BYTES).hexdigest()


def selections(store: Store, batch: str) -> Iterator[tuple[str, Mapping[str, object], bool]]:
    """Yield name, fields and whether it is inactive of each selection of a batch, in the order of their names."""
    for name, fields, deleted in store.db.execute(_SELECTIONS, (TYPE, *selections_of(batch))).fetchall():
        found = _decode_fields(fields)
        yield str(name), found, is_inactive(found, deleted=bool(deleted))


def labels(store: Store, batch: str) -> dict[bytes, str]:
    """Return {event id: the selection it is kept under} of the events of a batch that inactive selections cover."""
    found: dict[bytes, str] = {}
    for name, fields, inactive in selections(store, batch):
        if inactive:
            for event_id in named_by(fields):
                found.setdefault(event_id, name)
    return found


def changed(store: Store, name: str, old: Version | None, new: Version) -> None:
    """Let everything follow a change of an `import_batch` record."""
    inactive = is_inactive(new.fields, deleted=new.deleted)
    if SELECTION not in name:
        _switch(store, name, counts=not inactive)
        return
    before = named_by(old.fields) if old is not None else []
    if inactive:
        _switch(store, name, counts=False)
    relabel(store, base_of(name), [*before, *named_by(new.fields)])
    if not inactive:
        _switch(store, name, counts=True)


def relabel(store: Store, batch: str, ids: Iterable[bytes]) -> None:
    """Keep these events of a batch under the names that its selections call for."""
    wanted = labels(store, batch)
    _rename(store, {event_id: wanted.get(event_id, batch) for event_id in ids}, only=batch)


def not_counting(store: Store, names: Collection[str]) -> frozenset[str]:
    """Return those of the names under which nothing counts."""
    return frozenset(name for name in names if _is_retracted(store, store.terms.text(name)))


def adopt(store: Store, batches: Mapping[EventId, str | None]) -> None:
    """Give events that are here the batch that the cloud has them under: of two imports the first one's holds."""
    bases = {base_of(batch) for batch in batches.values() if batch is not None}
    wanted = {batch: labels(store, batch) for batch in bases}
    names: dict[bytes, str | None] = {}
    for event_id, batch in batches.items():
        names[event_id] = None if batch is None else wanted[base_of(batch)].get(event_id, base_of(batch))
    _rename(store, names)


def names_for(store: Store, ids_by_batch: Mapping[str, Collection[EventId]]) -> dict[EventId, str]:
    """Return the names under which new events of these batches are kept."""
    found: dict[EventId, str] = {}
    for name, ids in ids_by_batch.items():
        batch = base_of(name)
        wanted = labels(store, batch)
        found.update({event_id: wanted.get(event_id, batch) for event_id in ids})
    return found


def inserted(store: Store, first_pos: int, last_pos: int) -> None:
    """Count those of the new events at these positions that do not count."""
    where = f"pos BETWEEN {int(first_pos)} AND {int(last_pos)} AND batch {_IN_SET}"
    found = store.db.execute(f"SELECT count(*) FROM event WHERE {where}").fetchone()[0]
    if found:
        store.db.execute(_ADD.format(_WITH.format(_COUNTED.format(where))))
        state.add(store, RETRACTED_EVENTS, found)


def before_drop(store: Store, positions_sql: str, values: tuple[int, ...]) -> None:
    """Note that retention drops the events at these positions; their sums stay."""
    sql = f"SELECT count(*) FROM event WHERE pos IN ({positions_sql}) AND batch {_IN_SET}"
    state.add(store, RETRACTED_EVENTS, -store.db.execute(sql, values).fetchone()[0])


def rebuild(store: Store) -> None:
    """Make everything that follows from the records anew, whatever it was."""
    for table in ("retracted_batch", "retracted_total"):
        store.db.execute(f"DELETE FROM {table}")
    state.put(store, RETRACTED_EVENTS, 0)
    for (batch,) in store.db.execute(_BASES, (TYPE,)).fetchall():
        relabel(store, batch, [one for _, fields, _ in selections(store, batch) for one in named_by(fields)])
    for (name,) in store.db.execute(_INACTIVE, (TYPE,)).fetchall():
        _switch(store, name, counts=False)


def _switch(store: Store, name: str, *, counts: bool) -> None:
    """Let all events that are kept under a name count, or not count."""
    term = store.terms.text(name)
    is_in = store.db.execute("SELECT 1 FROM retracted_batch WHERE batch = ?", (term,)).fetchone() is not None
    if is_in is not counts:
        return
    if counts:
        store.db.execute("DELETE FROM retracted_batch WHERE batch = ?", (term,))
    else:
        store.db.execute("INSERT INTO retracted_batch VALUES (?)", (term,))
    rows = store.db.execute("SELECT count(*) FROM event WHERE batch = ?", (term,)).fetchone()[0]
    state.add(store, RETRACTED_EVENTS, -rows if counts else rows)
    made = _WITH_NEGATIVE if counts else _WITH
    store.db.execute(_ADD.format(made.format(_COUNTED.format("batch = ?"))), (term,))
    store.db.execute(_ADD.format(made.format(_FOLDED.format("= ?"))), (term,))
    if counts:
        store.db.execute(_DROP_EMPTY)


def _rename(store: Store, names: Mapping[bytes, str | None], *, only: str | None = None) -> None:
    """Keep events under these names; with `only`, those of that batch alone. Totals follow."""
    days = rollups.calendar(store)
    moved: dict[tuple[int | None, int | None], list[int]] = {}
    into, back = rollups.Sums({}, {}), rollups.Sums({}, {})
    for some in _chunks(list(names)):
        marks = ", ".join("?" * len(some))
        for row in store.db.execute(_ROWS.format(marks), some).fetchall():
            pos, event_id, at, device, kind, tool, project, old, failed, duration, added, removed = row
            known, name = store.terms.name(old), names[event_id]
            if name == known or (only is not None and (known is None or base_of(known) != only)):
                continue
            new = None if name is None else store.terms.text(name)
            moved.setdefault((old, new), []).append(pos)
            fact = rollups.Fact(days.slot(at), device, kind, tool, project, failed, duration, added, removed)
            back.plus(fact, old or 0)
            into.plus(fact, new or 0)
    rollups.add(store, *into)
    rollups.add(store, *back, sign=-1)
    for (old, new), positions in moved.items():
        _move(store, positions, old, new)


def _move(store: Store, positions: Sequence[int], old: int | None, new: int | None) -> None:
    was_in, is_in = _is_retracted(store, old), _is_retracted(store, new)
    for some in _chunks(positions):
        marks = ", ".join("?" * len(some))
        if was_in != is_in:
            made = _WITH if is_in else _WITH_NEGATIVE
            store.db.execute(_ADD.format(made.format(_COUNTED.format(f"pos IN ({marks})"))), some)
            state.add(store, RETRACTED_EVENTS, len(some) if is_in else -len(some))
        store.db.execute(f"UPDATE event SET batch = ? WHERE pos IN ({marks})", (new, *some))
    if was_in and not is_in:
        store.db.execute(_DROP_EMPTY)


def _is_retracted(store: Store, term: int | None) -> bool:
    return store.db.execute("SELECT 1 FROM retracted_batch WHERE batch = ?", (term,)).fetchone() is not None


def _chunks(some: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(some), _IDS_PER_QUERY):
        yield some[start : start + _IDS_PER_QUERY]
