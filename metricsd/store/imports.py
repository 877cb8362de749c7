"""What an import of history stores: part by part, each with its checkpoint, its digest and what it changed.

A part is one transaction. Its new events carry the part's import batch, whose `import_batch` record decides whether they
count; events that are here already stay as they are, whoever brought them. A record that the part touches is noted as it
was before. A second time changes nothing, and a part is only taken behind the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import NamedTuple

import msgspec

from metricsd import import_batch
from metricsd.crash import crash_point
from metricsd.errors import StoreReplaced
from metricsd.ids import EventId
from metricsd.model import Kind
from metricsd.protocol import FieldValue
from metricsd.store import batches, befores, digests, events, quarantine, records, state, switching
from metricsd.store.befores import EXTRA_PREFIX, Journal
from metricsd.store.connection import Store
from metricsd.store.digests import Digest
from metricsd.store.events import Identified
from metricsd.store.ingest import FOLD_BEFORE, Beside
from metricsd.store.legacy_extra import Extra
from metricsd.store.quarantine import Reject
from metricsd.store.suggestions import Suggestion

TYPE = import_batch.TYPE
IDS_PER_QUERY = 500

_RUN = "SELECT part, position, kept, ledger FROM import_run WHERE run = ?"
_PUT_RUN = """
INSERT INTO import_run VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET part = excluded.part, position = excluded.position, kept = excluded.kept, ledger = excluded.ledger
"""
_PUT_PART = "INSERT OR REPLACE INTO import_part VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_HOOKED = """
SELECT DISTINCT s.session_id FROM event AS e JOIN event_type AS t ON t.id = e.type JOIN session AS s ON s.id = e.session
WHERE e.batch IS NULL AND t.app = ? AND t.kind = ?
"""
_encode = msgspec.json.Encoder(order="sorted").encode


class Fate(Enum):
    """What became of an entry."""

    NEW = "new"
    TWICE = "twice"
    """Known, and brought by this very run."""
    KNOWN = "known"
    TOO_OLD = "too_old"
    """Older than what retention has folded: whether it was counted can no longer be told."""
    REFUSED = "refused"
    """The target will not take it."""
    NOTHING = "nothing"
    """There is nothing to store of it."""


class Entry(NamedTuple):
    """One entry of a source: its events, and values beside them."""

    items: Sequence[Identified]
    beside: Sequence[Beside]
    rules: Sequence[str] = ()
    """Rules that found something about it."""


class Batch(NamedTuple):
    """Which part of which run it is, and what its `import_batch` record says."""

    run: str
    part: int
    name: str
    label: str
    source: str


class Progress(NamedTuple):
    """How far a run is: parts stored, and what the migration noted behind the last one."""

    part: int
    position: bytes
    kept: bytes
    ledger: int


class Stored(NamedTuple):
    """One part that was stored. The digests are of what it added or changed."""

    fates: Sequence[Fate]
    events: Digest
    records: Digest


Finish = Callable[[Stored], tuple[Progress, Sequence[Reject], bytes]]
"""What to store with a part once its fates are known: the progress, what goes to quarantine, and the counts as JSON."""


def progress(store: Store, run: str) -> Progress | None:
    """Return how far a run is; None when nothing of it is stored."""
    row = store.db.execute(_RUN, (run,)).fetchone()
    return None if row is None else Progress(*row)


def digest(store: Store, run: str) -> tuple[Digest, Digest]:
    """Return the digests of all events and of all records that a run added."""
    total = (Digest(), Digest())
    sql = "SELECT events, event_digest, records, record_digest FROM import_part WHERE run = ?"
    for rows, one, changed, other in store.db.execute(sql, (run,)):
        total = (total[0].plus(digests.unpack(rows, one)), total[1].plus(digests.unpack(changed, other)))
    return total


def hooked_sessions(store: Store, app: str) -> frozenset[str]:
    """Return the sessions of an app whose tool calls hooks have captured. Reads every event: once a run."""
    return frozenset(row[0] for row in store.db.execute(_HOOKED, (app, Kind.TOOL_USED.value)) if row[0] is not None)


def take(store: Store, batch: Batch, entries: Sequence[Entry], finish: Finish, *, full: bool = False) -> Stored:
    """Store one part; with `full` it is on disk when this returns. Raises StoreError, and then nothing of it is stored.

    StoreReplaced says that the part before is not here: the run has to look again how far it is.
    """
    with store.transaction(full=full):
        before = progress(store, batch.run)
        if (before.part if before is not None else 0) != batch.part - 1:
            raise StoreReplaced("the store is not the one that the migration began on: resume the migration")
        part = _Part(store, batch)
        fates = part.settle(entries)
        events.insert(store, part.fresh, device=events.own_device(store))
        crash_point("migrate_part_inserted")
        stored = Stored(fates, digests.of_events(part.fresh), part.changed)
        if part.fresh or part.changed.rows:
            _note_batch(store, batch, stored)
        _put_marks(store, batch, entries, part.back)
        after, rejects, counts = finish(stored)
        quarantine.add_all(store, rejects, each_max=0)
        row = (batch.run, batch.part, store.clock.now_us(), counts.decode())
        sums = (stored.events.rows, stored.events.pack(), stored.records.rows, stored.records.pack())
        store.db.execute(_PUT_PART, (*row, *sums))
        store.db.execute(_PUT_RUN, (batch.run, *after))
    return stored


def _note_batch(store: Store, batch: Batch, stored: Stored) -> None:
    values: dict[str, FieldValue] = {
        "active": True, "label": batch.label, "source": batch.source, "imported_at": store.clock.now_us(),
        "events": stored.events.rows, "records": stored.records.rows,
    }  # fmt: skip
    records.edit(store, TYPE, batch.name, values)


def _put_marks(store: Store, batch: Batch, entries: Sequence[Entry], back: list[EventId]) -> None:
    """Note which events rules found something about, so that these can be taken back by themselves, and which came back."""
    found: dict[str, list[EventId]] = {befores.BACK: back} if back else {}
    for entry in entries:
        for rule in entry.rules:
            found.setdefault(rule, []).extend(item.id for item in entry.items)
    rows = [(batch.run, batch.part, rule, b"".join(sorted(set(ids)))) for rule, ids in sorted(found.items())]
    store.db.executemany("INSERT OR REPLACE INTO import_mark VALUES (?, ?, ?, ?)", rows)


class _Part:
    """One part, inside its transaction."""

    def __init__(self, store: Store, batch: Batch) -> None:
        self._store = store
        self._batch = batch
        self._own = f"{batch.run}."
        self._fold_before = state.get_int(store, FOLD_BEFORE)
        self._known: dict[EventId, str | None] = {}
        self._journal = Journal(store, "import_before", (batch.run, batch.part))
        self.fresh: list[Identified] = []
        self.changed = Digest()
        self.back: list[EventId] = []

    def settle(self, entries: Sequence[Entry]) -> list[Fate]:
        """Store the values of the entries, collect their new events, and return what becomes of each entry."""
        self._known = locate(self._store, [item.id for entry in entries for item in entry.items])
        # What was rolled back and is brought in again counts again, and is this run's to take back as well.
        out = batches.not_counting(self._store, {name for name in self._known.values() if name is not None})
        self.back = switching.bring_back(self._store, [one for one, name in self._known.items() if name in out])
        return [self._settle(entry) for entry in entries]

    def _settle(self, entry: Entry) -> Fate:
        if not entry.items:
            return self._settle_values(entry)
        if self._fold_before and any(item.event.at < self._fold_before for item in entry.items):
            return Fate.TOO_OLD
        known = self._known
        fresh = [item for item in entry.items if item.id not in known]
        owner = known.get(entry.items[0].id)
        for item in fresh:
            known[item.id] = self._batch.name
        self.fresh.extend(fresh)
        for one in entry.beside:
            self._put(one)
        if fresh:
            return Fate.NEW
        return Fate.TWICE if owner is not None and owner.startswith(self._own) else Fate.KNOWN

    def _settle_values(self, entry: Entry) -> Fate:
        """Store what has no events; a tool metric that is here already, from whomever, stays as it is."""
        if not entry.beside:
            return Fate.NOTHING
        for one in entry.beside:
            if isinstance(one, Suggestion) and one.values.get("batch") is not None:
                record = records.get(self._store, one.type, one.id)
                owner = record.version.fields.get("batch") if record is not None else None
                if isinstance(owner, str) and switching.is_out(self._store, owner):
                    self._note(one.type, one.id, partial(self._take_over, one))
                    return Fate.KNOWN
                if record is not None:
                    return Fate.TWICE if isinstance(owner, str) and owner.startswith(self._own) else Fate.KNOWN
        is_new = [self._put(one) for one in entry.beside]
        return Fate.NEW if any(is_new) else Fate.KNOWN

    def _put(self, one: Beside) -> bool:
        """Store values, noting what was there; return whether anything changed."""
        kind, key = _address(one)
        return self._note(kind, key, partial(self._set, one))

    def _set(self, one: Beside) -> None:
        one.put(self._store)
        if isinstance(one, Suggestion):
            # What a rollback cleared has its stamp, which a suggestion respects: only this very import may set it again.
            cleared = befores.cleared_fields(self._store, one.type, one.id)
            again = {name: value for name, value in one.values.items() if name in cleared}
            if again:
                records.edit(self._store, one.type, one.id, again)

    def _take_over(self, one: Suggestion) -> None:
        records.edit(self._store, one.type, one.id, {"batch": one.values["batch"]})

    def _note(self, kind: str, key: str, do: Callable[[], object]) -> bool:
        mark = self._journal.change(kind, key, do)
        if mark is None:
            return False
        self.changed = self.changed.plus(Digest(1, int.from_bytes(mark, "big")))
        return True


def locate(store: Store, ids: Sequence[EventId]) -> dict[EventId, str | None]:
    """Return {id: import batch} of the events that are here; None for one that no import brought."""
    found: dict[EventId, str | None] = {}
    for start in range(0, len(ids), IDS_PER_QUERY):
        some = ids[start : start + IDS_PER_QUERY]
        marks = ", ".join("?" * len(some))
        for event_id, batch in store.db.execute(f"SELECT id, batch FROM event WHERE id IN ({marks})", some):
            found[EventId(event_id)] = store.terms.name(batch)
    return found


def _address(one: Beside) -> tuple[str, str]:
    """Return type and id of what a value belongs to."""
    match one:
        case Suggestion():
            return one.type, one.id
        case Extra():
            return EXTRA_PREFIX + one.kind, one.key
        case _:
            raise TypeError(f"{type(one).__name__} cannot be imported")
