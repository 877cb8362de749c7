"""Takes imported events out of what counts and brings them back, by the `import_batch` records alone.

Whole batches go by one flag; a part of one by selections that name its events (store/batches.py). Nothing here deletes an
event or changes one: what was taken out is still known, so neither sync nor the live tail of the same files brings it
back. Functions run inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from metricsd import import_batch
from metricsd.ids import EventId
from metricsd.protocol import FieldValue
from metricsd.store import batches, records
from metricsd.store.connection import Store

_NAMES = """
SELECT t.id, EXISTS (SELECT 1 FROM retracted_batch AS r WHERE r.batch = t.id) FROM term AS t
WHERE t.text = ? OR (t.text > ? AND t.text < ?)
"""
_FOLDED = "SELECT EXISTS (SELECT 1 FROM folded_batch WHERE batch = ?)"


def members(store: Store, batch: str) -> dict[EventId, bool]:
    """Return {event: whether it counts} of a batch."""
    found: dict[EventId, bool] = {}
    for term, out in _names(store, batch):
        counts = not out
        for (event_id,) in store.db.execute("SELECT id FROM event WHERE batch = ?", (term,)):
            found[event_id] = counts
    return found


def counts(store: Store, batch: str) -> bool:
    """Return whether any event of a batch that is here counts."""
    terms = [term for term, out in _names(store, batch) if not out]
    return any(store.db.execute("SELECT 1 FROM event WHERE batch = ? LIMIT 1", (term,)).fetchone() for term in terms)


def switch(store: Store, name: str, *, active: bool) -> None:
    """Let what a batch or a selection covers count, or not."""
    records.edit(store, import_batch.TYPE, name, {import_batch.ACTIVE: active})


def leave_out(store: Store, batch: str, ids: Collection[EventId]) -> list[EventId]:
    """Take some of a batch's events out; return those that counted before."""
    here = members(store, batch)
    gone = sorted(event_id for event_id in set(ids) if here.get(event_id))
    if not gone:
        return []
    if len(gone) == sum(here.values()) and not _is_folded(store, batch):
        switch(store, batch, active=False)
    else:
        _exclude(store, batch, gone)
    return gone


def bring_back(store: Store, ids: Collection[EventId]) -> list[EventId]:
    """Let these events count again, whichever import brought them, and no others; return those that did not."""
    return [event_id for batch, some in by_batch(store, ids) for event_id in let_back(store, batch, some)]


def let_back(store: Store, batch: str, ids: Collection[EventId]) -> list[EventId]:
    """Let these events of a batch count again, and no others; return those that did not."""
    here = members(store, batch)
    back = {event_id for event_id in ids if here.get(event_id) is False}
    if not back:
        return []
    rest = sorted(event_id for event_id, counting in here.items() if not counting and event_id not in back)
    _exclude(store, batch, rest)
    switch(store, batch, active=True)
    kept = {batches.selection_name(batch, some) for some in _pieces(rest)}
    for name, _, inactive in list(batches.selections(store, batch)):
        if inactive and name not in kept:
            switch(store, name, active=True)
    return sorted(back)


def close(store: Store, batch: str) -> None:
    """Take a whole batch out, also what of it is elsewhere or folded into totals."""
    switch(store, batch, active=False)


def reopen(store: Store, batch: str) -> None:
    """Let what of a batch is not here count again, and none of what is."""
    _exclude(store, batch, sorted(event_id for event_id, counting in members(store, batch).items() if not counting))
    switch(store, batch, active=True)


def is_out(store: Store, batch: str) -> bool:
    """Return whether a whole batch does not count."""
    record = records.get(store, import_batch.TYPE, batch)
    return record is not None and import_batch.is_inactive(record.version.fields, deleted=record.version.deleted)


def _names(store: Store, batch: str) -> list[tuple[int, int]]:
    """Return the terms under which events of a batch are kept, and whether each does not count."""
    return list(store.db.execute(_NAMES, (batch, *import_batch.selections_of(batch))))


def _is_folded(store: Store, batch: str) -> bool:
    return any(store.db.execute(_FOLDED, (term,)).fetchone()[0] for term, _ in _names(store, batch))


def _exclude(store: Store, batch: str, ids: Sequence[EventId]) -> None:
    for some in _pieces(ids):
        fields: dict[str, FieldValue] = {import_batch.ACTIVE: False, **batches.selection_fields(some)}
        records.edit(store, import_batch.TYPE, batches.selection_name(batch, some), fields)


def _pieces(ids: Sequence[EventId]) -> Iterator[Sequence[EventId]]:
    for start in range(0, len(ids), batches.NAMED_MAX):
        yield ids[start : start + batches.NAMED_MAX]


def by_batch(store: Store, ids: Collection[EventId]) -> list[tuple[str, list[EventId]]]:
    """Return the imported events among these, by batch."""
    found: dict[str, list[EventId]] = {}
    wanted = list(ids)
    for start in range(0, len(wanted), 500):
        some = wanted[start : start + 500]
        sql = f"SELECT id, batch FROM event WHERE batch IS NOT NULL AND id IN ({', '.join('?' * len(some))})"
        for event_id, term in store.db.execute(sql, some):
            found.setdefault(import_batch.base_of(store.terms.name(term) or ""), []).append(EventId(event_id))
    return sorted(found.items())
