"""Compares source and target: every row by digest and by identity, every session field by field, every count exactly.

The source side is what the second reader wrote down, the target side what the target says now; neither has gone
through parse, transform or load. Digests by table, day and tool say where the sides differ; matching identities says
by how many rows, so the share of faithful rows is exact and not an estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from metricsd.fields import problem
from metricsd.migration.digest import NOTHING, Cell, Cells, Digest, RowHash
from metricsd.migration.figures import Figures
from metricsd.migration.rows import EVENT, SESSION, day_of, flat
from metricsd.migration.second.books import Books, Kept
from metricsd.migration.second.lines import APP
from metricsd.migration.second.words import session_id
from metricsd.migration.side import Entry, Side, pairs

MISMATCHES_MAX = 200
"""Rows that are named one by one; all are counted."""
CELLS_SHOWN_MAX = 100
DAYS_MAX = 4000
"""More than ten years."""
_MONTH = 30
OURS = 1
EXTRA_ITEM_BYTES_MAX = 64 * 1024
EXTRA_BYTES_MAX = 64 * 1024 * 1024
"""Bounds of what is kept of sessions on this machine (legacy_extra.py): beyond them the oldest is dropped."""
_US_PER_MS = 1000
_LINE_BITS = 32
_LINE_MASK = (1 << _LINE_BITS) - 1


class Mismatch(Struct, frozen=True):
    """One row that is not the same on both sides. `how` is missing, extra, different; file and line where it was read.

    `fields` names what differs of a record, never a value.
    """

    how: str
    table: str
    day: int
    tool: str
    file: str = ""
    line: int = 0
    fields: tuple[str, ...] = ()


class CellDiffers(Struct, frozen=True):
    """A cell in which the digests differ: rows and sum of hashes (hexadecimal) of either side."""

    table: str
    day: int
    tool: str
    source_rows: int
    source_sum: str
    target_rows: int
    target_sum: str


class Matched(Struct):
    """What became of the rows of one kind. Every row of the source is one of the first five; `extra` are beyond them.

    equal      the same on both sides
    missing    in the source alone
    different  there, brought by this run, and not the same
    otherwise  there in another shape: known before this run, edited since, or captured by hooks; it stays as it is
    excluded   left out by the run with a reason that the second reader cannot know (a rule of one's own, too old)
    extra      brought by this run, and not in the source
    merged     entries that tell of a row which another one told of first
    conflicts  of those, entries that told of it otherwise
    ours       rows of the target that this run brought
    """

    equal: int = 0
    missing: int = 0
    different: int = 0
    otherwise: int = 0
    excluded: int = 0
    extra: int = 0
    merged: int = 0
    conflicts: int = 0
    ours: int = 0

    @property
    def expected(self) -> int:
        """Rows that should have arrived."""
        return self.equal + self.missing + self.different + self.otherwise

    @property
    def unfaithful(self) -> int:
        """Rows that are missing, doubled or different."""
        return self.missing + self.different + self.extra


class Comparison(Struct):
    """What a comparison found. `source` and `target` are the digests of all rows that were compared."""

    rows: Matched = msgspec.field(default_factory=Matched)
    records: Matched = msgspec.field(default_factory=Matched)
    source: dict[str, Digest] = msgspec.field(default_factory=dict)
    target: dict[str, Digest] = msgspec.field(default_factory=dict)
    cells: int = 0
    differing: list[CellDiffers] = msgspec.field(default_factory=list)
    mismatches: list[Mismatch] = msgspec.field(default_factory=list)
    days: dict[int, tuple[int, int]] = msgspec.field(default_factory=dict)
    """Events of each day, source and target; of each 30 days where there are more than DAYS_MAX."""
    calls_ours: int = 0
    """Calls that this run brought, as the target counts them, with the figures that arrived added up."""
    sessions_without_calls: int = 0
    counters_disagree: int = 0

    @property
    def expected(self) -> int:
        return self.rows.expected + self.records.expected

    @property
    def unfaithful(self) -> int:
        return self.rows.unfaithful + self.records.unfaithful


class Stored(Protocol):
    """A record of the target."""

    @property
    def fields(self) -> Mapping[str, Any]: ...
    @property
    def set_ms(self) -> Mapping[str, int]: ...
    @property
    def deleted(self) -> bool: ...
    @property
    def ours(self) -> bool: ...


class Counted(Protocol):
    """What a target's events of a session add up to."""

    @property
    def calls(self) -> int: ...
    @property
    def start(self) -> int | None: ...
    @property
    def end(self) -> int | None: ...
    @property
    def project(self) -> str | None: ...


class Records(Protocol):
    """A target, as the comparison of records asks it."""

    by: Figures
    keeps_local: bool
    """Whether what stays on a machine (folders, names of people) is part of it."""

    def record(self, kind: str, record_id: str) -> Stored | None: ...
    def kept_of(self, session: str) -> Mapping[str, Any] | None: ...
    def kept_bytes(self) -> int: ...
    def session(self, app: str, session: str) -> Counted: ...


class Comparer:
    """One comparison. `excluded` are places of the source, as file << 32 | line."""

    def __init__(self, excluded: frozenset[int] = frozenset()) -> None:
        self._excluded = excluded
        self._is_elsewhere: Callable[[int], bool] = lambda _: False
        self._named: list[tuple[str, Cell, int | None, tuple[str, ...]]] = []
        self._source, self._target = Cells(), Cells()
        self.found = Comparison()

    def rows(self, source: Side, target: Side, is_elsewhere: Callable[[int], bool] = lambda _: False) -> None:
        """Compare the rows of both sides. `is_elsewhere` says which identities the target holds in another shape."""
        self._is_elsewhere = is_elsewhere
        sums = _Sums(source.cells), _Sums(target.cells)
        for one, other in pairs(source, target):
            self._part(one, other, sums[0], sums[1], source.cells, target.cells)
        sums[0].into(self._source)
        sums[1].into(self._target)

    def records(self, books: Books, target: Records, key: bytes, started_us: int) -> None:
        """Compare sessions and added-up figures field by field; fields set before `started_us` stand over the source's."""
        self.found.calls_ours = target.by.calls
        hashed = RowHash(key)
        is_full = target.kept_bytes() > EXTRA_BYTES_MAX * 9 // 10
        for kept in books.sessions():
            if kept.refused:
                continue
            if kept.place in self._excluded:
                self.found.records.excluded += 1
                continue
            self._session(kept, target, hashed, started_us // _US_PER_MS, is_full)
        for kind, record_id, place, told in books.figures():
            if place in self._excluded:
                self.found.records.excluded += 1
                continue
            values = {
                name: value for name, value in told.items() if name != "batch" and problem(kind, name, value) is None
            }
            there = target.record(kind, record_id)
            wrong, otherwise = _fields(values, there, started_us // _US_PER_MS)
            self.found.calls_ours += there is not None and there.ours
            cell = Cell(kind, day_of(values.get("started_at")), str(values.get("tool", "")))
            actual = {} if there is None else {name: there.fields.get(name) for name in values}
            self._record(cell, hashed, (record_id, values), (record_id, actual), place, wrong, otherwise)

    def finish(self, names: Iterable[str]) -> Comparison:
        """Return what was found; `names` are those of the source's files, in the order of their numbers."""
        found = self.found
        wanted = {place >> _LINE_BITS for _, _, place, _ in self._named if place is not None}
        known = {number: name for number, name in enumerate(names) if number in wanted} if wanted else {}
        for how, cell, place, fields in self._named:
            file = "" if place is None else known.get(place >> _LINE_BITS, "")
            line = 0 if place is None else place & _LINE_MASK
            found.mismatches.append(Mismatch(how, *cell, file=file, line=line, fields=fields))
        found.cells = sum(1 for _ in self._source.items())
        differing = self._source.differing(self._target)
        found.differing = [
            CellDiffers(cell.table, cell.day, cell.tool, a.rows, f"{a.sum:016x}", b.rows, f"{b.sum:016x}")
            for cell, a, b in differing[:CELLS_SHOWN_MAX]
        ]
        for digests, cells in ((found.source, self._source), (found.target, self._target)):
            for cell, digest in cells.items():
                digests[cell.table] = digests.get(cell.table, NOTHING).plus(digest)
        found.days = _by_day(self._source, self._target)
        return found

    def _part(
        self,
        one: Iterable[Entry],
        other: Iterable[Entry],
        mine: _Sums,
        its: _Sums,
        cells: list[Cell],
        theirs: list[Cell],
    ) -> None:
        rows = self.found.rows
        want: dict[int, Entry] = {}
        for entry in one:
            known = want.get(entry.identity)
            if known is None:
                want[entry.identity] = entry
            else:
                # The one that stands first in the source is the one that counts.
                rows.merged += 1
                rows.conflicts += known.hash != entry.hash
                if entry.place < known.place:
                    want[entry.identity] = entry
        for there in other:
            ours = there.place & OURS
            rows.ours += ours
            asked = want.pop(there.identity, None)
            if asked is None:
                if ours:
                    rows.extra += 1
                    its.add(there)
                    self._mismatch("extra", theirs[there.cell])
            elif asked.hash == there.hash:
                rows.equal += 1
                mine.add(asked)
                its.add(there)
            elif ours:
                rows.different += 1
                mine.add(asked)
                its.add(there)
                self._mismatch("different", cells[asked.cell], asked.place)
            else:
                rows.otherwise += 1
        for asked in want.values():
            if asked.place in self._excluded:
                rows.excluded += 1
            elif self._is_elsewhere(asked.identity):
                rows.otherwise += 1
            else:
                rows.missing += 1
                mine.add(asked)
                self._mismatch("missing", cells[asked.cell], asked.place)

    def _session(self, kept: Kept, target: Records, hashed: RowHash, before_ms: int, is_full: bool) -> None:
        note = kept.note
        fields = dict(note.fields) if note.score is None else {**note.fields, "score": note.score}
        stored = session_id(note.session)
        there = target.record(SESSION, f"{APP}/{stored}")
        wrong, otherwise = _fields(fields, there, before_ms)
        who = {"user": note.user, "working_directory": note.directory, "git_branch": note.branch}
        local = {name: value for name, value in {**who, **note.kept}.items() if value and target.keeps_local}
        extra: Mapping[str, Any] = (target.kept_of(stored) or {}) if local else {}
        if local and not extra and (is_full or len(msgspec.json.encode(local)) > EXTRA_ITEM_BYTES_MAX):
            local = {}
        wrong += [name for name, value in local.items() if flat({"": extra.get(name)}) != flat({"": value})]
        actual = {name: there.fields.get(name) for name in fields} if there is not None else {}
        row = (note.session, flat(fields), flat(local))
        its = (note.session, flat(actual), flat({name: extra.get(name) for name in local}))
        counted = target.session(APP, stored)
        calls = counted.calls
        self.found.sessions_without_calls += not calls
        final = note.kept.get("final_metrics")
        written = final.get("commands_executed") if isinstance(final, Mapping) else None
        # The hooks lost the first call of each session (a fault of theirs), so one less is what they mostly wrote.
        if isinstance(written, int) and written and not written <= calls <= written + 1:
            self.found.counters_disagree += 1
        if counted.start is not None:
            target.by.session(counted.start, counted.end, extra.get("user"), actual.get("score"), counted.project)
        self._record(Cell(SESSION, day_of(note.start), ""), hashed, row, its, kept.place, wrong, otherwise)

    def _record(
        self, cell: Cell, hashed: RowHash, row: tuple[Any, ...], its: tuple[Any, ...], place: int, wrong: list[str],
        otherwise: bool,
    ) -> None:  # fmt: skip
        records = self.found.records
        if otherwise and not wrong:
            records.otherwise += 1
            return
        self._source.add(cell, Digest(1, hashed(_canonical(row))))
        if not wrong:
            records.equal += 1
            self._target.add(cell, Digest(1, hashed(_canonical(row))))
            return
        records.different += 1
        self._target.add(cell, Digest(1, hashed(_canonical(its))))
        self._mismatch("different", cell, place, tuple(sorted(wrong)))

    def _mismatch(self, how: str, cell: Cell, place: int | None = None, fields: tuple[str, ...] = ()) -> None:
        if len(self._named) < MISMATCHES_MAX:
            self._named.append((how, cell, place, fields))


class _Sums:
    """Digests by the number of a cell: adding to them is what every row costs."""

    def __init__(self, cells: list[Cell]) -> None:
        self._cells = cells
        self._rows = [0] * len(cells)
        self._sums = [0] * len(cells)

    def add(self, entry: Entry) -> None:
        self._rows[entry.cell] += 1
        self._sums[entry.cell] += entry.hash

    def into(self, cells: Cells) -> None:
        for cell, rows, total in zip(self._cells, self._rows, self._sums, strict=True):
            cells.add(cell, Digest(rows, total & ((1 << 64) - 1)))


def _fields(wanted: Mapping[str, Any], there: Stored | None, before_ms: int) -> tuple[list[str], bool]:
    """Return the fields that differ, and whether some differ because they were set before the run, or by a deletion."""
    if there is None:
        return list(wanted), False
    if there.deleted:
        return [], True
    differing = [name for name, value in wanted.items() if flat({"": there.fields.get(name)}) != flat({"": value})]
    wrong = [name for name in differing if there.set_ms.get(name, before_ms) >= before_ms]
    return wrong, len(wrong) < len(differing)


def _by_day(source: Cells, target: Cells) -> dict[int, tuple[int, int]]:
    days: dict[int, list[int]] = {}
    for side, cells in enumerate((source, target)):
        for cell, digest in cells.items():
            if cell.table == EVENT:
                days.setdefault(cell.day, [0, 0])[side] += digest.rows
    if len(days) > DAYS_MAX:
        exact, days = days, {}
        for day, counts in exact.items():
            known = days.setdefault(day - day % _MONTH, [0, 0])
            known[0] += counts[0]
            known[1] += counts[1]
    return {day: (days[day][0], days[day][1]) for day in sorted(days)}


def _canonical(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(flat(part) if isinstance(part, Mapping) else part for part in row)


def excluded_places(rejects: Iterable[tuple[str, int]], numbers: Mapping[str, int]) -> Iterator[int]:
    """Yield the places of rejected entries, given as file and line; `numbers` are those of the files' names."""
    for name, line in rejects:
        if name in numbers:
            yield numbers[name] << _LINE_BITS | line
