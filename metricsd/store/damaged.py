"""Reads what can be read of a damaged store, and pours it into a whole one.

The file is opened read-only. Rows come in ranges; a range that cannot be read is halved until what is bad is alone, so
that one bad page costs its own rows and nothing else. Whatever comes out is checked before it is used: the bytes of a
damaged file may be anything. Events go in by id, so pouring twice adds nothing, and totals count what is new.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from metricsd.hlc import parse_stamp
from metricsd.ids import EVENT_ID_BYTES, EventId
from metricsd.model import Event
from metricsd.store import batches, counters, events, hlc_mark, outbox, rollups, state
from metricsd.store.connection import Store, sqlite_translated
from metricsd.store.events import Identified

ROWS_PER_READ = 500
ROWS_PER_TRANSACTION = 2000
FAILURES_MAX = 200_000
"""Reads that may fail before the rest of a table is given up: a bad page costs about two for each of its rows."""
DEAD_AFTER = 5000
"""The same while nothing of the table could be read yet."""
ROW_BYTES_MIN = 20
"""No event is smaller: bounds how many positions there can be where nothing else tells."""
WORD_BYTES_MIN = 5
_AT_MAX = 253_402_300_799_999_999
_FOLD_BEFORE = "fold_before_us"

_Row = tuple[Any, ...]
_K = TypeVar("_K", bound=tuple[int, ...])

_EVENTS = f"SELECT {events.COLUMNS} FROM event WHERE pos BETWEEN ? AND ? ORDER BY pos LIMIT {ROWS_PER_READ}"
_BY_ID = "SELECT {} FROM {} WHERE id BETWEEN ? AND ? ORDER BY id LIMIT " + str(ROWS_PER_READ)
COPIED = {
    "conflict_log": "INSERT OR REPLACE",
    "import_before": "INSERT OR IGNORE",
    "import_mark": "INSERT OR IGNORE",
    "import_part": "INSERT OR IGNORE",
    "legacy_extra": "INSERT OR REPLACE",
    "record": "INSERT OR REPLACE",
    "rollback": "INSERT OR IGNORE",
    "rollback_before": "INSERT OR IGNORE",
    "rollback_events": "INSERT OR IGNORE",
    "quarantine": "INSERT OR IGNORE",
}
"""Tables whose rows go over as they are: the damaged file knows them better than an older copy."""
LEFT_OUT = frozenset(("import_run",))
"""Tables that are not copied: how far an import is would be a promise about events that may be missing."""
_JSON_COLUMNS = ("fields", "stamps", "base", "local", "remote", "result", "before")
_LOOSE_CONFLICTS = """
UPDATE record SET conflict = NULL
WHERE conflict IS NOT NULL AND conflict NOT IN (SELECT id FROM conflict_log WHERE state = 'open')
"""
_COUNTERS = f"SELECT session, device, {', '.join(counters.FIELDS)} FROM session_counters ORDER BY session, device"
_TOTALS_COLUMNS = "day, device, type, tool, project, batch, bucket, n, failed, duration_ms, lines_added, lines_removed"
_TOTALS = f"SELECT {_TOTALS_COLUMNS} FROM rollup ORDER BY day"
_HOURS = "SELECT day, hour, device, type, batch, n, failed FROM hour_total ORDER BY day, hour"
_PUT_COUNTERS = f"""
INSERT OR IGNORE INTO session_counters (session, device, {", ".join(counters.FIELDS)})
VALUES ({", ".join("?" * (2 + len(counters.FIELDS)))})
"""


class Found(NamedTuple):
    """What was read. rows: events that were new to the store; own, known: own events read, and had before.

    first_pos, last_pos: the own positions that the damaged file had; None when nothing told.
    """

    rows: int = 0
    own: int = 0
    known: int = 0
    first_pos: int | None = None
    last_pos: int | None = None

    def plus(self, other: Found) -> Found:
        """Return two files' finds as one."""
        first = [pos for pos in (self.first_pos, other.first_pos) if pos is not None]
        last = [pos for pos in (self.last_pos, other.last_pos) if pos is not None]
        return Found(
            self.rows + other.rows,
            self.own + other.own,
            self.known + other.known,
            min(first, default=None),
            max(last, default=None),
        )


class _Device(NamedTuple):
    device_id: str
    own: bool


_OURS = _Device("", own=True)


class _Item(NamedTuple):
    pos: int
    device: _Device
    item: Identified


class Damaged:
    """A damaged store. Close it. Raises StoreCorrupt when not even the list of its tables can be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ended = False
        self._state: dict[str, Any] = {}
        self._terms: dict[int, str] = {}
        self._types: dict[int, tuple[str, str, str]] = {}
        self._sessions: dict[int, tuple[str, str]] = {}
        self._devices: dict[int, _Device] = {}
        with sqlite_translated(path):
            self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
            try:
                self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def pour_into(self, store: Store) -> Found:
        """Add everything that can be read and is not in the store yet. Raises what the store fails with."""
        self._read_words()
        fresh = not events.last_pos(store) and outbox.find(store) is None
        with store.transaction():
            if fresh:
                self._begin_stream(store)
            self._raise_clock(store)
        found = self._pour_events(store)
        with store.transaction(full=True):
            self._pour_tables(store)
            self._pour_counters(store)
            if fresh:
                self._pour_folded(store)
            batches.rebuild(store)
        return found

    def _read_words(self) -> None:
        """Read the small tables that events refer to."""
        for key, value in self._all("SELECT key, value FROM state ORDER BY key"):
            self._state[key] = value
        for number, text in self._words("id, text", "term"):
            self._terms[number] = text
        for number, *words in self._words("id, app, kind, name", "event_type"):
            self._types[number] = (words[0], words[1], words[2])
        for number, session, app in self._words("id, session_id, app", "session"):
            self._sessions[number] = (app, session)
        for number, device_id, own in self._by_id("id, device_id, own", "device"):
            self._devices[number] = _Device(device_id, bool(own))

    def _begin_stream(self, store: Store) -> None:
        """Give a store without a past the device that the damaged one was; its positions are new, so none is settled."""
        device_id, cloud = self._text("stream_device"), self._text("stream_cloud")
        if device_id and cloud:
            outbox.resume(store, device_id, cloud)
        before = self._state.get(_FOLD_BEFORE)
        if isinstance(before, int):
            state.put(store, _FOLD_BEFORE, before)

    def _raise_clock(self, store: Store) -> None:
        mark = self._text(hlc_mark.MARK)
        try:
            parse_stamp(mark)
        except ValueError:
            return
        hlc_mark.witness(store, [mark])

    def _pour_events(self, store: Store) -> Found:
        last, remote = self._int("last_pos"), self._int("remote_rows")
        most = self._path.stat().st_size // ROW_BYTES_MIN + events.last_pos(store)
        # Without retention the first position is 1, whether it can still be read or not.
        found = Found(first_pos=None if self._int(_FOLD_BEFORE) else 1, last_pos=last)
        ranges = [(-(most if remote is None else remote), 0), (1, most if last is None else last)]
        for low, high in ranges:
            batch: list[_Item] = []
            for row in self._readable(_EVENTS, low, high):
                item = self._event_of(row)
                if item is None:
                    continue
                batch.append(item)
                if len(batch) == ROWS_PER_TRANSACTION:
                    found = found.plus(self._insert(store, batch))
                    batch = []
            if batch:
                found = found.plus(self._insert(store, batch))
        return found._replace(last_pos=last)

    def _insert(self, store: Store, batch: Sequence[_Item]) -> Found:
        """Insert events with their devices; own ones go on to be own."""
        here = events.locate(store, [item.id for _, _, item in batch])
        by_device: dict[_Device, list[Identified]] = {}
        for _, device, item in batch:
            if item.id not in here:
                by_device.setdefault(device, []).append(item)
        added = 0
        with store.transaction():
            own_row = events.own_device(store)
            own_id = events.device_id_of(store, own_row)
            for (device_id, own), items in by_device.items():
                is_ours = device_id in ("", own_id)
                row = own_row if is_ours else events.device_row(store, device_id, own=own)
                added += events.insert(store, items, device=row).added
        ours = [(pos, item) for pos, _, item in batch if pos > 0]
        known = sum(1 for _, item in ours if item.id in here)
        return Found(added, len(ours), known, min((pos for pos, _ in ours), default=None))

    def _event_of(self, row: _Row) -> _Item | None:
        """Return position, device and event of a row; None for one that is not whole."""
        pos, event_id, at, device, kind, session = row[:6]
        words = self._types.get(kind)
        # What the cloud gave is given again; an own event is ours even if the page that says so is gone.
        owner = self._devices.get(device, _OURS if pos > 0 else None)
        if words is None or owner is None or len(event_id) != EVENT_ID_BYTES or not 0 <= at <= _AT_MAX:
            return None
        session_id = self._sessions.get(session, ("", None))[1]
        try:
            _, _, event = events.from_row(self._term, (*row, *words, session_id))
            msgspec.convert(msgspec.to_builtins(event), Event)
        except (ValueError, TypeError, IndexError, msgspec.MsgspecError):
            return None
        return _Item(pos, owner, Identified(EventId(event_id), event))

    def _pour_tables(self, store: Store) -> None:
        """Copy the rows of the tables that stand alone, as far as both files know their columns."""
        for table, verb in COPIED.items():
            mine, theirs = _columns(store.db, table), self._columns(table)
            shared = [name for name in mine if name in theirs and not (table == "quarantine" and name == "id")]
            if not shared:
                continue
            names = ", ".join(shared)
            rows = [row for row in self._all(f"SELECT {names} FROM {table} ORDER BY 1") if _is_sound(shared, row)]
            store.db.executemany(f"{verb} INTO {table} ({names}) VALUES ({', '.join('?' * len(shared))})", rows)
        store.db.execute(_LOOSE_CONFLICTS)

    def _pour_counters(self, store: Store) -> None:
        """Add session counters where the store has none: of other devices, and of sessions that retention has folded.

        Others of our own follow from the events that came back.
        """
        folded = self._int(_FOLD_BEFORE) or 0
        own_row = events.own_device(store)
        for session, device, started_at, last_at, *values in self._all(_COUNTERS):
            known, owner = self._sessions.get(session), self._devices.get(device)
            if known is None or owner is None:
                continue
            is_ours = owner.device_id in ("", events.device_id_of(store, own_row))
            if is_ours and last_at >= folded:
                continue
            row = own_row if is_ours else events.device_row(store, owner.device_id, own=owner.own)
            store.db.execute(_PUT_COUNTERS, (store.terms.session(*known), row, started_at, last_at, *values))

    def _pour_folded(self, store: Store) -> None:
        """Add the totals of what retention has dropped: of the days before, less what came back as events.

        The day on which retention stopped stays as its events tell it: what is missing of it may come from the cloud.
        """
        before = self._int(_FOLD_BEFORE)
        if not before:
            return
        first_kept = store.days.of(before)
        totals: dict[rollups.Key, rollups.Totals] = {}
        for day, device, kind, tool, project, batch, bucket, *values in self._all(_TOTALS):
            numbers = self._numbers(store, device, kind, tool, project, batch)
            if numbers is not None and day < first_kept:
                totals[day, *numbers, bucket] = values
        hours: rollups.Hours = {}
        for day, hour, device, kind, batch, *values in self._all(_HOURS):
            numbers = self._numbers(store, device, kind, 0, 0, batch)
            if numbers is not None and day < first_kept:
                hours[day * 24 + hour, numbers[0], numbers[1], numbers[4]] = values
        for row in store.db.execute(_TOTALS).fetchall():
            _take_away(totals, row[:7], row[7:])
        for day, hour, *row in store.db.execute(_HOURS).fetchall():
            _take_away(hours, (day * 24 + hour, *row[:3]), row[3:])
        rollups.add(store, totals, hours)

    def _numbers(
        self, store: Store, device: int, kind: int, tool: int, project: int, batch: int
    ) -> tuple[int, int, int, int, int] | None:
        """Return in the store's numbers what totals are of: device, type, tool, project, batch; None if it is unknown."""
        words, owner = self._types.get(kind), self._devices.get(device)
        if words is None or owner is None:
            return None
        own_row = events.own_device(store)
        is_ours = owner.device_id in ("", events.device_id_of(store, own_row))
        row = own_row if is_ours else events.device_row(store, owner.device_id, own=owner.own)
        texts = [self._terms.get(number, "") if number else "" for number in (tool, project, batch)]
        terms = [store.terms.text(text) if text else 0 for text in texts]
        return row, store.terms.type(*words), terms[0], terms[1], terms[2]

    def _term(self, number: int | None) -> str | None:
        return self._terms.get(number) if number else None

    def _text(self, key: str) -> str:
        value = self._state.get(key)
        return value if isinstance(value, str) else ""

    def _int(self, key: str) -> int | None:
        value = self._state.get(key)
        return value if isinstance(value, int) and value >= 0 else None

    def _columns(self, table: str) -> list[str]:
        try:
            return _columns(self._db, table)
        except sqlite3.DatabaseError:
            return []

    def _all(self, ordered: str) -> Iterator[_Row]:
        """Yield the rows of a query from its start up to what cannot be read, then from its end back to it."""
        front = list(self._until_failure(ordered))
        yield from front
        if self._ended:
            return
        seen = set(map(repr, front))
        query, _, names = ordered.partition(" ORDER BY ")
        backwards = f"{query} ORDER BY {', '.join(f'{name} DESC' for name in names.split(', '))}"
        yield from (row for row in self._until_failure(backwards) if repr(row) not in seen)

    def _until_failure(self, sql: str) -> Iterator[_Row]:
        self._ended = False
        try:
            yield from self._db.execute(sql)
            self._ended = True
        except sqlite3.DatabaseError:
            return

    def _words(self, columns: str, table: str) -> Iterator[_Row]:
        """Yield the rows of a table of words from its pages, and from its unique index, which has the same words."""
        yield from self._by_id(columns, table)
        yield from self._all(f"SELECT {columns} FROM {table} ORDER BY {columns.removeprefix('id, ')}")

    def _by_id(self, columns: str, table: str) -> Iterable[_Row]:
        return self._readable(_BY_ID.format(columns, table), 0, self._path.stat().st_size // WORD_BYTES_MIN)

    def _readable(self, sql: str, low: int, high: int) -> Iterator[_Row]:
        """Yield the rows whose first column lies within the bounds, in parts, around what cannot be read.

        Halves are tried in breadth, so that what can be read is found soon, and a table of which nothing can be read
        is given up soon.
        """
        waiting = deque([(low, high)])
        failures, succeeded = 0, False
        while waiting and failures < (FAILURES_MAX if succeeded else DEAD_AFTER):
            low, high = waiting.popleft()
            if low > high:
                continue
            try:
                rows = self._db.execute(sql, (low, high)).fetchall()
            except sqlite3.DatabaseError:
                failures += 1
                if low < high:
                    middle = (low + high) // 2
                    waiting += [(low, middle), (middle + 1, high)]
                continue
            succeeded = True
            yield from rows
            if len(rows) == ROWS_PER_READ:
                waiting.append((rows[-1][0] + 1, high))


def _take_away(sums: dict[_K, list[int]], key: _K, counted: Sequence[int]) -> None:
    """Take what is counted already from what was; nothing is left of what retention has not dropped."""
    known = sums.pop(key, None)
    if known is not None and known[0] > counted[0]:
        sums[key] = [max(was - now, 0) for was, now in zip(known, counted, strict=True)]


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in db.execute(f"PRAGMA table_info({table})")]


def _is_sound(names: Sequence[str], row: _Row) -> bool:
    """Return whether the JSON in a row is JSON: what would not be read again must not replace what can."""
    try:
        for name, value in zip(names, row, strict=True):
            if name in _JSON_COLUMNS and value is not None:
                msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError):
        return False
    return True
