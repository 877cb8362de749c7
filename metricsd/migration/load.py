"""Stores parts in the local store: rows, checkpoint and digest of one in one transaction.

It writes beside a running daemon, as an edit from the command line does: SQLite lets one of them write at a time, each
transaction is short, and whoever waits longer than five seconds tries again. What the daemon's tail brings of the same
files has the same ids, so whoever comes second finds it there. A store that is put back or repaired meanwhile is noticed
before the next part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterable, Sequence

import msgspec
from msgspec.structs import replace

from metricsd.decode.transcript import APP as TRANSCRIPT_APP
from metricsd.decode.transcript import NAME as TRANSCRIPT_NAME
from metricsd.errors import StoreReplaced, StoreUnavailable
from metricsd.ids import EventId
from metricsd.migration.model import (
    Counts,
    Part,
    Place,
    Planned,
    Position,
    Progress,
    Rejected,
    Stored,
    Subject,
    Tally,
    batch_name,
)
from metricsd.migration.work import Work
from metricsd.model import Kind
from metricsd.reasons import Reason
from metricsd.sink import REFUSALS
from metricsd.store import events, imports, records
from metricsd.store.connection import Store
from metricsd.store.imports import Batch, Entry, Fate
from metricsd.store.quarantine import Reject
from metricsd.store.suggestions import Suggestion

_encode = msgspec.msgpack.Encoder().encode
_decode_position = msgspec.msgpack.Decoder(Position).decode
_encode_json = msgspec.json.Encoder().encode
_decode_counts = msgspec.json.Decoder(Counts).decode
_COUNTS = "SELECT counts FROM import_part WHERE run = ?"


class StoreSink:
    """The local store as a target. Belongs to one thread."""

    def __init__(self, store: Store, run: str, label: str) -> None:
        """`label` is what the `import_batch` records say of the source, in a few words."""
        self._store = store
        self._run = run
        self._label = label
        self._hooked = Hooked(store)

    def progress(self) -> Progress:
        """Return how far this run is in the store."""
        found = imports.progress(self._store, self._run)
        if found is None:
            return Progress()
        counts = Counts()
        for (text,) in self._store.db.execute(_COUNTS, (self._run,)):
            counts += _decode_counts(text)
        return Progress(found.part, _decode_position(found.position), found.kept, found.ledger, counts)

    def take(self, part: Part, ledger: Callable[[Sequence[Rejected]], int]) -> Stored:
        """Store a part; raise StoreError, and then nothing of it is stored. A row that the database refuses is rejected."""
        try:
            return self._take(part, ledger)
        except REFUSALS:
            refused = [_refused(one) for one in part.planned if not self._is_storable(one)]
            if not refused:
                raise
        gone = {one.place for one in refused}
        kept = [one for one in part.planned if one.row.place not in gone]
        rest = replace(part, planned=kept, rejected=[*part.rejected, *refused])
        stored = self._take(rest, lambda others: ledger([*refused, *others]))
        return replace(stored, refused=(*refused, *stored.refused))

    def _is_storable(self, planned: Planned) -> bool:
        """Return whether the database takes a row, by trying it alone and taking it back."""
        try:
            with contextlib.suppress(_TakenBack), self._store.transaction():
                events.insert(self._store, planned.items, device=events.own_device(self._store))
                for one in planned.beside:
                    one.put(self._store)
                raise _TakenBack
        except REFUSALS:
            return False
        return True

    def _take(self, part: Part, ledger: Callable[[Sequence[Rejected]], int]) -> Stored:
        if not self._store.is_in_place():
            raise StoreReplaced("the store was put back or repaired meanwhile: resume the migration")
        batch = Batch(part.run, part.number, batch_name(part.run, part.number), self._label, "migration")
        entries = self._entries(part)
        done = Stored(Counts())

        def finish(stored: imports.Stored) -> tuple[imports.Progress, Sequence[Reject], bytes]:
            nonlocal done
            refused = _too_old(part.planned, stored.fates)
            counts = count(part, stored.fates)
            done = Stored(counts, tuple(refused), f"{stored.events.text()} {stored.records.text()}")
            size = ledger(refused)
            after = imports.Progress(part.number, _encode(part.after), part.rules, size)
            return after, [to_quarantine(one) for one in (*part.rejected, *refused)], _encode_json(counts)

        imports.take(self._store, batch, entries, finish)
        return done

    def digest(self) -> str:
        """Return the digests of all events and of all records that the run added."""
        added, changed = imports.digest(self._store, self._run)
        return f"{added.text()} {changed.text()}"

    def close(self) -> None:
        """Empty the WAL if nobody reads, and close the store."""
        if self._store.is_open:
            try:
                self._store.checkpoint(wait_ms=0)
            except StoreUnavailable:
                # The daemon or a reader holds it: it empties the WAL itself.
                self._store.close()
                return
        self._store.close()

    def _entries(self, part: Part) -> list[Entry]:
        entries = [self._entry(one) for one in part.planned]
        if part.findings:
            rules: dict[Place | None, list[str]] = {}
            for finding in part.findings:
                rules.setdefault(finding.place, []).append(finding.rule)
            for index, planned in enumerate(part.planned):
                if planned.row.place in rules:
                    entries[index] = entries[index]._replace(rules=tuple(dict.fromkeys(rules[planned.row.place])))
        return entries

    def _entry(self, planned: Planned) -> Entry:
        return Entry((), ()) if self._hooked.is_hooked(planned) else Entry(planned.items, planned.beside)


class Hooked:
    """Tells what of a transcript hooks have captured already, so that it would count twice."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sessions: frozenset[str] | None = None

    def is_hooked(self, planned: Planned) -> bool:
        """Return whether a row is of a transcript whose session's calls came by hooks. Hooks do not know of tokens."""
        if not planned.items or planned.items[0].event.name != TRANSCRIPT_NAME:
            return False
        event = planned.items[0].event
        if event.kind == Kind.TOKENS_USED:
            return False
        if self._sessions is None:
            self._sessions = imports.hooked_sessions(self._store, TRANSCRIPT_APP)
        return event.session in self._sessions


class DryRun:
    """Stores nothing, and says what a run would: of the store, where there is one, it only reads."""

    def __init__(self, work: Work, store: Store | None) -> None:
        self._work = work
        self._store = store
        work.begin_dry_run()

    def progress(self) -> Progress:
        """Return the beginning: a dry run is not resumed."""
        return Progress()

    def take(self, part: Part, ledger: Callable[[Sequence[Rejected]], int]) -> Stored:
        """Return what would become of a part."""
        ids = [item.id for one in part.planned for item in one.items]
        known = set(imports.locate(self._store, ids)) if self._store is not None else set()
        ledger([])
        return Stored(count(part, [self._fate(one, known) for one in part.planned]))

    def digest(self) -> str:
        """Return nothing: nothing was stored."""
        return ""

    def close(self) -> None:
        """Let go of the store."""
        if self._store is not None:
            self._store.close()

    def _fate(self, planned: Planned, known: Container[EventId]) -> Fate:
        if not planned.items and not planned.beside:
            return Fate.NOTHING
        keys = [bytes(item.id) for item in planned.items]
        for one in planned.beside if not keys else ():
            if isinstance(one, Suggestion):
                if self._store is not None and records.get(self._store, one.type, one.id) is not None:
                    return Fate.KNOWN
                keys.append(f"{one.type}/{one.id}".encode())
        if all(item.id in known for item in planned.items) and planned.items:
            return Fate.KNOWN
        return Fate.NEW if any(self._work.first_seen(keys)) else Fate.TWICE


def count(part: Part, fates: Iterable[Fate]) -> Counts:
    """Return what became of a part's entries; each has exactly one fate. Pure."""
    tallies = {subject: [0, 0, 0, 0] for subject in Subject}
    for planned, fate in zip(part.planned, fates, strict=True):
        tally, others = tallies[planned.row.subject], len(planned.row.others)
        match fate:
            case Fate.NEW:
                tally[0] += 1
                tally[1] += others
            case Fate.TWICE:
                tally[1] += 1 + others
            case Fate.TOO_OLD | Fate.REFUSED:
                tally[2] += 1 + others
            case Fate.KNOWN | Fate.NOTHING:
                tally[3] += 1 + others
    for rejected in part.rejected:
        tallies[rejected.subject][2] += rejected.entries
    found = {subject: Tally(sum(tally), *tally) for subject, tally in tallies.items()}
    return Counts(found[Subject.SESSION], found[Subject.TOOL_EVENT], found[Subject.OTHER_EVENT])


def to_quarantine(rejected: Rejected) -> Reject:
    """Return what the quarantine keeps of a rejected entry."""
    place = rejected.place
    detail = f"line {place.line}: {rejected.detail}" if rejected.detail else f"line {place.line}"
    return Reject(place.file, place.offset, rejected.data, rejected.reason, detail, rejected.size)


class _TakenBack(Exception):
    """Undoes a trial."""


def _refused(planned: Planned) -> Rejected:
    row = planned.row
    return Rejected(
        row.place, row.subject, Reason.STORE_REFUSED.value, "", row.data or None, len(row.data), 1 + len(row.others)
    )


def _too_old(planned: Sequence[Planned], fates: Sequence[Fate]) -> list[Rejected]:
    return [
        Rejected(one.row.place, one.row.subject, Reason.TOO_OLD.value, "", one.row.data or None, len(one.row.data),
                 1 + len(one.row.others))
        for one, fate in zip(planned, fates, strict=True)
        if fate is Fate.TOO_OLD
    ]  # fmt: skip
