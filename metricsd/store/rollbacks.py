"""Takes back what a migration brought: whole, from a part on, or what a choice names; and takes a rollback back again.

Events are taken out by their `import_batch` records and stay known; records get back what they were before, each from the
newest change to the oldest. What somebody changed since is left as it is and listed, unless `overwrite` says otherwise.
All of it is one transaction, with its proof and its own journal inside: a kill leaves everything or nothing, and a dry run
is the same transaction, undone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from metricsd import import_batch
from metricsd.crash import crash_point
from metricsd.errors import RollbackUnproven
from metricsd.ids import EventId
from metricsd.protocol import FieldValue
from metricsd.store import batches, befores, legacy_extra, records, switching, tool_metrics
from metricsd.store.befores import EXTRA_PREFIX, Before, Journal
from metricsd.store.choosing import Choice, Chosen, choose, marked, sessions_of, unpacked
from metricsd.store.connection import Store
from metricsd.store.witness import Proof, Witness

KEPT_LISTED_MAX = 1000
_PARTS = "SELECT part FROM import_part WHERE run = ? AND part >= ? ORDER BY part DESC"
_NAMED = "SELECT id FROM record WHERE type = ? AND id > ? AND id < ?"
_RUN_OF = "SELECT run FROM rollback WHERE id = ?"
_NUMBER = "SELECT count(*) FROM rollback WHERE run = ?"
_NOTE = "INSERT INTO rollback VALUES (?, ?, ?, ?, ?)"
_PARTS_OF = """
SELECT part FROM rollback_before WHERE rollback = ? UNION SELECT part FROM rollback_events WHERE rollback = ?
"""
_MOVES = "SELECT batch, back, ids FROM rollback_events WHERE rollback = ? AND part = ? ORDER BY batch"
_UNDONE = "SELECT json_extract(what, '$.undo') FROM rollback WHERE id = ?"
_NOTE_MOVE = "INSERT INTO rollback_events VALUES (?, ?, ?, ?, ?)"

_encode = msgspec.json.Encoder().encode


class Wanted(Struct, frozen=True):
    """What to take back: of a run the parts from `first_part` on, and of these what `choice` names (None: all).

    undo       a rollback to take back instead
    overwrite  also what somebody changed since
    """

    run: str
    first_part: int = 1
    choice: Choice | None = None
    undo: str | None = None
    overwrite: bool = False


class Kept(Struct, frozen=True):
    """A record that somebody changed since, and that was left as it is."""

    type: str
    id: str


class Done(Struct, frozen=True):
    """What a rollback came to. `events` counted before and do not now; of an undone rollback it is the other way."""

    id: str
    run: str
    parts: int
    events: int
    records: int
    already: int
    kept_count: int
    kept: tuple[Kept, ...]
    rest_before: str
    rest_after: str
    rest_rows: int
    dry_run: bool = False


_Move = tuple[str, "list[EventId] | None", bool]
"""A batch, its events to move (None: all of it; of a rollback that found none here, none), and whether they come back."""


class _Work(NamedTuple):
    """What is done about one part."""

    changes: Sequence[Before]
    moves: Sequence[_Move]
    chosen: Chosen | None


class _DryRun(Exception):
    """Ends the transaction of a dry run."""


Progress = Callable[[int, int], None]
"""Told of (parts done, parts in all)."""


def find(store: Store, rollback: str) -> str | None:
    """Return the run that a rollback is of; None when there is no such rollback."""
    row = store.db.execute(_RUN_OF, (rollback,)).fetchone()
    return None if row is None else str(row[0])


def is_known(store: Store, run: str) -> bool:
    """Return whether anything of a run is here."""
    named = store.db.execute(f"{_NAMED} LIMIT 1", (import_batch.TYPE, f"{run}.", f"{run}/")).fetchone()
    return named is not None or is_stored(store, run)


def is_stored(store: Store, run: str) -> bool:
    """Return whether this store took a run in: else only its `import_batch` records came here, from the cloud."""
    return store.db.execute("SELECT 1 FROM import_part WHERE run = ? LIMIT 1", (run,)).fetchone() is not None


def run(store: Store, wanted: Wanted, *, dry_run: bool = False, progress: Progress | None = None) -> Done:
    """Take back what is wanted, proven, or change nothing. Raises RollbackUnproven and StoreError."""
    done: list[Done] = []
    try:
        with store.transaction(full=True):
            done.append(_Rollback(store, wanted, progress or (lambda part, parts: None)).do(dry_run=dry_run))
            if dry_run:
                raise _DryRun
    except _DryRun:
        return done[0]
    crash_point("rolled_back")
    return done[0]


class _Rollback:
    """One rollback, inside its transaction."""

    def __init__(self, store: Store, wanted: Wanted, progress: Progress) -> None:
        self._store = store
        self._wanted = wanted
        self._progress = progress
        number = int(store.db.execute(_NUMBER, (wanted.run,)).fetchone()[0]) + 1
        self._id = f"{wanted.run}~{number}"
        self._hidden = f"{import_batch.SELECTION}metrics{number}"
        self._people = sessions_of(store, wanted.choice.users) if wanted.choice is not None else None
        self._bases: set[str] = set()
        self._events = self._records = self._already = self._kept_count = 0
        self._kept: list[Kept] = []

    def do(self, *, dry_run: bool) -> Done:
        store, wanted = self._store, self._wanted
        parts = self._parts()
        witness = Witness(store, lambda name: name in self._bases)
        witness.begin()
        for part in parts:
            work = self._work_of(part)
            self._bases.update(batch for batch, _, _ in work.moves)
            if work.chosen is not None:
                # Its tool metrics are hidden by a record of this batch.
                self._bases.add(f"{wanted.run}.{part}")
            witness.plan((one.type, one.id) for one in work.changes)
        witness.look()
        crash_point("rollback_planned")
        for number, part in enumerate(parts, start=1):
            self._take_back(part, self._work_of(part))
            crash_point("rollback_part")
            self._progress(number, len(parts))
        proof = witness.prove()
        crash_point("rollback_proven")
        done = self._done(len(parts), proof, dry_run)
        texts = (_encode(wanted).decode(), _encode(done).decode())
        store.db.execute(_NOTE, (self._id, wanted.run, store.clock.now_us(), *texts))
        return done

    def _parts(self) -> list[int]:
        """Return the parts to take back: the newest change first, whichever way it went."""
        wanted, db = self._wanted, self._store.db
        if wanted.undo is not None:
            undone = {row[0] for row in db.execute(_PARTS_OF, (wanted.undo, wanted.undo))}
            return sorted(undone, reverse=_is_of_undo(self._store, wanted.undo))
        found = {row[0] for row in db.execute(_PARTS, (wanted.run, wanted.first_part)).fetchall()}
        # Of a run that went to the cloud alone, only its records came here, with a sync.
        for (name,) in db.execute(_NAMED, (import_batch.TYPE, f"{wanted.run}.", f"{wanted.run}/")).fetchall():
            number = name.removeprefix(f"{wanted.run}.")
            if number.isascii() and number.isdigit() and int(number) >= wanted.first_part:
                found.add(int(number))
        return sorted(found, reverse=True)

    def _work_of(self, part: int) -> _Work:
        """Return what to do about a part. What is done about another part does not change it."""
        wanted, store = self._wanted, self._store
        if wanted.undo is not None:
            rows = store.db.execute(_MOVES, (wanted.undo, part)).fetchall()
            moves = [(batch, unpacked(ids), not back) for batch, back, ids in rows]
            return _Work(list(befores.of_rollback(store, wanted.undo, part)), moves, None)
        changes = befores.of_part(store, wanted.run, part)
        batch = f"{wanted.run}.{part}"
        again = switching.by_batch(store, marked(store, (wanted.run, part), befores.BACK))
        if wanted.choice is None:
            own: list[_Move] = [] if records.get(store, import_batch.TYPE, batch) is None else [(batch, None, False)]
            return _Work(changes, [*own, *((one, ids, False) for one, ids in again)], None)
        brought = [*switching.members(store, batch), *(event_id for _, ids in again for event_id in ids)]
        chosen = choose(store, wanted.choice, self._people, (wanted.run, part), brought, changes)
        moves = [(one, ids, False) for one, ids in chosen.by_batch().items()]
        return _Work([one for one in changes if chosen.covers(one)], moves, chosen)

    def _take_back(self, part: int, work: _Work) -> None:
        for one in work.changes:
            self._put_back(part, one, is_chosen=work.chosen is not None)
        for batch, ids, back in work.moves:
            self._move(part, batch, ids, back=back)

    def _move(self, part: int, batch: str, ids: list[EventId] | None, *, back: bool) -> None:
        """Bring events of a batch back or take them out (None: all of it), and note which ones."""
        store = self._store
        here = switching.members(store, batch)
        before = {event_id for event_id, counts in here.items() if counts}
        moved: set[EventId] = set()
        if ids:
            wanted = here.keys() & set(ids)
            moved = wanted - before if back else wanted & before
            if not moved:
                return
            (switching.let_back if back else switching.leave_out)(store, batch, moved)
        else:
            # As a whole, with what of it is not here: on other machines, or folded into totals.
            if switching.is_out(store, batch) is not back or (ids is not None and not back and before):
                return
            moved = before if not back else moved
            (switching.reopen if back else switching.close)(store, batch)
        left = before | moved if back else before - moved
        if (self._counting_of(batch) != left) if left else switching.counts(store, batch):
            raise RollbackUnproven(f"{batch}: more or less than what was asked for would change; nothing was changed")
        self._events += len(moved)
        store.db.execute(_NOTE_MOVE, (self._id, part, batch, back, b"".join(sorted(moved))))

    def _counting_of(self, batch: str) -> set[EventId]:
        return {event_id for event_id, counts in switching.members(self._store, batch).items() if counts}

    def _put_back(self, part: int, one: Before, *, is_chosen: bool) -> None:
        journal = Journal(self._store, "rollback_before", (self._id, part))
        now = befores.find(self._store, one.type, one.id)
        if _says_the_same(now, one.before) or self._is_hidden(one, now):
            self._already += 1
            return
        changed_since = befores.mark_of(one.type, one.id, now) != one.after
        is_deleted = now is not None and bool(now.get("deleted"))
        if is_deleted or (changed_since and not self._wanted.overwrite):
            self._keep(one, journal)
            return
        if one.type == tool_metrics.TYPE and one.before is None:
            # It goes with its batch, whose record is switched; a part of it goes with a selection of no events.
            if is_chosen:
                journal.change(one.type, one.id, partial(self._hide_metric, one))
            self._records += 1
            return
        if journal.change(one.type, one.id, partial(self._set, one, now)) is not None:
            self._records += 1
        if not _says_the_same(befores.find(self._store, one.type, one.id), one.before):
            raise RollbackUnproven(f"{one.type} {one.id} would not be what it was before; nothing was changed")

    def _is_hidden(self, one: Before, now: Mapping[str, Any] | None) -> bool:
        """Return whether this is a tool metric that a rollback took out already."""
        if one.type != tool_metrics.TYPE or one.before is not None or now is None:
            return False
        batch = now["fields"].get("batch")
        return isinstance(batch, str) and bool(batches.not_counting(self._store, [batch]))

    def _keep(self, one: Before, journal: Journal) -> None:
        """Leave what somebody changed as it is; what would go with its batch is let go of that."""
        self._kept_count += 1
        if len(self._kept) < KEPT_LISTED_MAX:
            self._kept.append(Kept(one.type, one.id))
        if one.type == tool_metrics.TYPE and one.before is None:
            edit = partial(records.edit, self._store, one.type, one.id, {"batch": None})
            record = records.get(self._store, one.type, one.id)
            if record is not None and not record.version.deleted:
                journal.change(one.type, one.id, edit)

    def _hide_metric(self, one: Before) -> None:
        record = records.get(self._store, one.type, one.id)
        batch = record.version.fields.get("batch") if record is not None else None
        if not isinstance(batch, str):
            return
        # A selection of no events, of this rollback alone: so it can be taken back by itself.
        name = import_batch.base_of(batch) + self._hidden
        records.edit(self._store, import_batch.TYPE, name, {import_batch.ACTIVE: False, import_batch.ONLY: ""})
        records.edit(self._store, one.type, one.id, {"batch": name})

    def _set(self, one: Before, now: Mapping[str, Any] | None) -> None:
        """Make an address say what it said before."""
        if one.type.startswith(EXTRA_PREFIX):
            kind = one.type.removeprefix(EXTRA_PREFIX)
            if one.fields:
                legacy_extra.put(self._store, kind, one.id, one.fields)
            else:
                legacy_extra.drop(self._store, kind, one.id)
            return
        # Cleared by name, not deleted: a deleted session would hide what hooks capture of it from now on.
        cleared: dict[str, FieldValue] = dict.fromkeys(now["fields"] if now is not None else ())
        records.edit(self._store, one.type, one.id, cleared | dict(one.fields))

    def _done(self, parts: int, proof: Proof, dry_run: bool) -> Done:
        return Done(
            id=self._id, run=self._wanted.run, parts=parts, events=self._events, records=self._records, already=self._already,
            kept_count=self._kept_count, kept=tuple(self._kept), rest_before=proof.before, rest_after=proof.after,
            rest_rows=proof.rows, dry_run=dry_run,
        )  # fmt: skip


def _is_of_undo(store: Store, rollback: str) -> bool:
    """Return whether a rollback went through its parts from the oldest on, as one that takes back another one does."""
    is_undo = False
    while (row := store.db.execute(_UNDONE, (rollback,)).fetchone()) is not None and row[0] is not None:
        rollback, is_undo = row[0], not is_undo
    return is_undo


def _says_the_same(now: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> bool:
    return _said(now) == _said(before)


def _said(found: Mapping[str, Any] | None) -> tuple[dict[str, Any], bool]:
    """Return the fields with a value: a cleared one and one that was never there say the same."""
    if found is None:
        return {}, False
    return {name: value for name, value in found["fields"].items() if value is not None}, bool(found.get("deleted"))
