"""What the store adds up to, for reports: cells of totals, hours, and the calls that arrived added up already.

Reading only, over a read-only connection and one snapshot, and without scanning events where totals answer. What was
retracted or deleted does not count: retracted imports by their batch, deleted sessions by taking back what their
events say. Totals are kept in one time zone; for a reader in another one, days are counted from events instead.
Imports nothing heavy, because `metricsd today` comes through here.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from metricsd.store import scan
from metricsd.store.calendar import HOURS, Days, days_in, here
from metricsd.store.scan import Window
from metricsd.totals import COUNTED_MAX, Cell, HourCell, bucket_of

READ_TIMEOUT_S = 2.0
SCHEMA_MIN = 9
"""The step that made the tables which are read here."""
TOOL_USED = "tool_used"
DAY_MAX = 2_932_880
"""Two weeks before the end of the year 9999, so that every day's week can be shown."""
ALL_DAYS = (-1, DAY_MAX)
"""1970 begins a day earlier to the west of Greenwich."""
DIMENSIONS = ("day", "app", "kind", "tool", "project", "bucket")

_OF_DAY = frozenset(("day", "app", "kind", "bucket"))
_DEVICES = "SELECT count(*) FROM device"
_PLAIN = "n, failed, duration_ms, lines_added, lines_removed"
_SUMS = "sum(n), sum(failed), sum(duration_ms), sum(lines_added), sum(lines_removed)"
_RETRACTED = "SELECT batch FROM retracted_batch"
_RETRACTED_NAMES = "SELECT t.text FROM retracted_batch AS b JOIN term AS t ON t.id = b.batch"
_DELETED = """
SELECT r.id, s.id FROM record AS r LEFT JOIN session AS s
ON s.app = substr(r.id, 1, instr(r.id, '/') - 1) AND s.session_id = substr(r.id, instr(r.id, '/') + 1)
WHERE r.type = 'session' AND r.deleted = 1
"""
_HASHED = ("h:", "custom:")
_METRICS = """
SELECT json_extract(fields, '$.app'), json_extract(fields, '$.session'), json_extract(fields, '$.tool'),
    coalesce(json_extract(fields, '$.started_at'), json_extract(fields, '$.ended_at')),
    json_extract(fields, '$.execution_count'), json_extract(fields, '$.error_count'),
    json_extract(fields, '$.success_rate'), json_extract(fields, '$.total_duration_ms'),
    json_extract(fields, '$.batch')
FROM record WHERE type = 'tool_metric' AND deleted = 0
"""
_PROJECT = """
SELECT project FROM session_counters AS c JOIN session AS s ON s.id = c.session
WHERE s.session_id = ? AND s.app = ? AND c.project IS NOT NULL ORDER BY c.last_at DESC LIMIT 1
"""

K = TypeVar("K")

Address = Callable[[str, str], str]
"""(app, session id as it is here) -> the id of the session's record."""
Sums = list[int]
"""[n, failed, duration_ms, lines_added, lines_removed]"""


class Metric(NamedTuple):
    """Calls of one tool that arrived added up already; `at` is None when they do not say when they were."""

    app: str | None
    session: str | None
    tool: str | None
    at: int | None
    n: int
    failed: int
    duration_ms: int | None


@contextlib.contextmanager
def reading(path: Path, *, address: Callable[[], Address] | None = None, days: Days | None = None) -> Iterator[Summary]:
    """Give the totals of the store at `path` as they are now; of no store, none.

    `address` makes what gives records' ids, and is asked only when a deleted session cannot be found without it.
    `days` is the reader's calendar (default: the system's). Raises StoreError.
    """
    if not path.exists():
        yield Summary(None, days)
        return
    with snapshot(path) as db:
        yield Summary(db, days, address)


@contextlib.contextmanager
def snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """Give a read-only connection to the store at `path`, in one transaction. Raises StoreError."""
    try:
        with contextlib.closing(_current(path)) as db:
            db.execute("BEGIN")
            yield db
    except sqlite3.Error:
        # Imported only now: nothing of the writing side is needed to read.
        from metricsd.store.connection import sqlite_translated

        with sqlite_translated(path):
            raise


class Summary:
    """One snapshot of the totals, made by `reading`; every day number is of `days`, the reader's calendar."""

    def __init__(
        self, db: sqlite3.Connection | None, days: Days | None = None, address: Callable[[], Address] | None = None
    ) -> None:
        self.days = days or here()
        self.retracted: frozenset[int] = frozenset()
        """Terms of the import batches, and of selections of their events, that do not count."""
        self.deleted: frozenset[int] = frozenset()
        """Rows of the sessions that do not count."""
        self.deleted_ids: frozenset[str] = frozenset()
        """Ids of the records that say so."""
        self._db = db
        self._names: dict[int, str | None] = {0: None}
        self._types: dict[int, tuple[str, str]] = {}
        self._stored = self.days
        if db is not None:
            self._types = {row: (app, kind) for row, app, kind in db.execute("SELECT id, app, kind FROM event_type")}
            self.retracted = frozenset(row for (row,) in db.execute(_RETRACTED))
            self.deleted, self.deleted_ids = _find_deleted(db, address)
            zone = db.execute("SELECT value FROM state WHERE key = 'rollup_zone'").fetchone()
            if zone is not None and zone[0] != self.days.name:
                self._stored = days_in(str(zone[0]))

    @property
    def db(self) -> sqlite3.Connection | None:
        """The snapshot itself; None where there is no store."""
        return self._db

    @property
    def stored_here(self) -> bool:
        """Whether the totals are kept in the reader's zone, and so can be read as they are."""
        return self._stored.name == self.days.name

    def cells(self, *by: str, days: tuple[int, int] = ALL_DAYS, kept: list[Cell] | None = None) -> list[Cell]:
        """Return the totals by these dimensions of Cell, of local days from first to last, added-up calls too.

        Several cells may have the same dimensions: they add up. `kept` is what `kept_cells` would say now, for somebody
        who has remembered it.
        """
        if self._db is None:
            return []
        if self.stored_here:
            found = self._kept(self._db, by, days, kept)
        else:
            found = self._counted(self._db, by, days, self.days)
            if self._folded(self._db):
                # What was counted and is no longer there: its days stay those of the zone it was counted in.
                found.extend(self._kept(self._db, by, days))
                found.extend(map(_negative, self._counted(self._db, by, days, self._stored)))
        return found + self._arrived(by, days)

    def kept_cells(self, *by: str, days: tuple[int, int] = ALL_DAYS) -> list[Cell]:
        """Return what the tables of totals say, in the zone they are kept in; of deleted sessions too.

        With days they are in the order of days, and each day's are the same as long as its mark is.
        """
        if self._db is None:
            return []
        is_named = "tool" in by or "project" in by
        return self._of_names(self._db, by, days) if is_named else self._of_days(self._db, by, days)

    def scanned(self, *by: str, days: tuple[int, int] = ALL_DAYS) -> list[Cell]:
        """Return the same by reading every event: what `cells` must add up to, but for what retention dropped."""
        if self._db is None:
            return []
        return self._counted(self._db, by, days, self.days) + self._arrived(by, days)

    def hours(self, days: tuple[int, int] = ALL_DAYS) -> list[HourCell]:
        """Return counts by local day, hour and kind, added-up calls too, in order."""
        if self._db is None:
            return []
        found = self._hours_kept(self._db, days) if self.stored_here else self._hours_counted(self._db, days)
        for metric in self.metrics(days):
            if metric.at is not None:
                _add(found, (self.days.slot(metric.at), TOOL_USED), (metric.n, metric.failed))
        return [HourCell(*divmod(slot, HOURS), kind, *sums) for (slot, kind), sums in sorted(found.items()) if sums[0]]

    def metrics(self, days: tuple[int, int] = ALL_DAYS) -> list[Metric]:
        """Return the calls that arrived added up, of these days; undated ones only for all days."""
        if self._db is None:
            return []
        retracted = {str(name) for (name,) in self._db.execute(_RETRACTED_NAMES)} if self.retracted else frozenset()
        found = []
        first, last = days
        for app, session, tool, at, n, failed, rate, duration, batch in self._db.execute(_METRICS):
            if f"{app}/{session}" in self.deleted_ids or (batch is not None and batch in retracted):
                continue
            moment = at if isinstance(at, int) and first <= self.days.of(at) <= last else None
            if moment is None and (at is not None or days != ALL_DAYS):
                continue
            count, bad, ms = _whole(n), _whole(failed), _whole(duration)
            count = 1 if count is None else count
            if bad is None:
                bad = round(count * (1 - min(max(rate, 0), 1))) if isinstance(rate, int | float) else 0
            found.append(Metric(_text(app), _text(session), _text(tool), moment, count, min(bad, count), ms))
        return found

    def name(self, term: int | None) -> str | None:
        """Return the text of an interned name; None for none."""
        key = term or 0
        if key not in self._names and self._db is not None:
            row = self._db.execute("SELECT text FROM term WHERE id = ?", (key,)).fetchone()
            self._names[key] = None if row is None else str(row[0])
        return self._names.get(key)

    def window(self, days: tuple[int, int], calendar: Days | None = None) -> Window | None:
        """Return the stretch of time of some local days; None for all."""
        if days == ALL_DAYS:
            return None
        calendar = calendar or self.days
        return Window(calendar.start_us(days[0]), calendar.start_us(days[1] + 1))

    def _kept(
        self, db: sqlite3.Connection, by: Sequence[str], days: tuple[int, int], kept: list[Cell] | None = None
    ) -> list[Cell]:
        """Return what the totals say, less what was deleted."""
        found = self.kept_cells(*by, days=days) if kept is None else kept
        if self.deleted:
            found.extend(map(_negative, self._summed(self._events_of_deleted(db, days), by, days, self._stored)))
        return found

    def _of_names(self, db: sqlite3.Connection, by: Sequence[str], days: tuple[int, int]) -> list[Cell]:
        """Return what the totals with tools and projects say.

        Kinds and names are looked up after adding up, and devices stay apart where days do: in the order of the table's
        key nothing has to be sorted.
        """
        wanted = {*by, *(("device",) if "day" in by else ()), *(("type",) if "app" in by or "kind" in by else ())}
        columns = ", ".join(name if name in wanted else "NULL" for name in ("day", "type", "tool", "project", "bucket"))
        group = ", ".join(name for name in ("day", "device", "type", "tool", "project", "bucket") if name in wanted)
        sql = (
            f"SELECT {columns}, {_SUMS} FROM rollup WHERE day BETWEEN ? AND ? AND batch NOT IN ({_RETRACTED}) "
            f"GROUP BY {group}"
        )
        name = self.name
        types = {
            row: (app if "app" in by else None, kind if "kind" in by else None)
            for row, (app, kind) in self._types.items()
        }
        found = []
        for day, kind, tool, project, bucket, *sums in db.execute(sql, days):
            app, called = (None, None) if kind is None else types[kind]
            found.append(Cell(day, app, called, name(tool), name(project), bucket, *sums))
        return found

    def _of_days(self, db: sqlite3.Connection, by: Sequence[str], days: tuple[int, int]) -> list[Cell]:
        """Return what the totals of days say. Tens of thousands of rows in a long history: nothing is done to each."""
        wanted = [_COLUMNS[name] for name in _COLUMNS if name in by]
        columns = [_COLUMNS[name] if name in by else "NULL" for name in DIMENSIONS]
        # The table of days has a row for each of these and each device: with one device there is nothing to add up.
        is_plain = {"day", "kind", "bucket"} <= set(by) <= _OF_DAY and db.execute(_DEVICES).fetchone()[0] <= 1
        sums, group = (_PLAIN, "") if is_plain else (_SUMS, f" GROUP BY {', '.join(wanted) or 'NULL'}")
        sql = (
            f"SELECT {', '.join(columns)}, {sums} FROM {_source(by)} WHERE day BETWEEN ? AND ? "
            f"AND batch NOT IN ({_RETRACTED}){group}"
        )
        return list(map(Cell._make, db.execute(sql, days)))

    def _counted(self, db: sqlite3.Connection, by: Sequence[str], days: tuple[int, int], calendar: Days) -> list[Cell]:
        """Return what the events say, without what was deleted."""
        rows = scan.events(db, self.window(days, calendar), without=self.deleted)
        return self._summed(rows, by, days, calendar)

    def _summed(self, rows: Iterator[scan.Row], by: Sequence[str], days: tuple[int, int], calendar: Days) -> list[Cell]:
        """Return what these events add up to, of these days. Plain and flat: it may see a million of them."""
        retracted, day_of = self.retracted, calendar.of
        typed, tooled, placed = "app" in by or "kind" in by, "tool" in by, "project" in by
        dated, timed = "day" in by, "bucket" in by
        first, last = days
        found: dict[tuple[int | None, ...], Sums] = {}
        for at, kind, _, tool, project, batch, failed, duration_ms, added, removed in rows:
            day = day_of(at)
            if batch in retracted or not first <= day <= last:
                continue
            key = (
                day if dated else None,
                kind if typed else None,
                tool if tooled else None,
                project if placed else None,
                bucket_of(duration_ms) if timed else None,
            )
            _add(found, key, (1, failed, min(duration_ms or 0, COUNTED_MAX), added, removed))
        named: dict[tuple[object, ...], Sums] = {}
        for (one, row, tool_row, project_row, bucket), sums in found.items():
            app, name = (None, None) if row is None else self._types[row]
            values = (one, app, name, self.name(tool_row), self.name(project_row), bucket)
            _add(named, _only(values, by), sums)
        return _cells(named)

    def _events_of_deleted(self, db: sqlite3.Connection, days: tuple[int, int]) -> Iterator[scan.Row]:
        return scan.events_of(db, self.deleted, self.window(days, self._stored)) if self.deleted else iter(())

    def _hours_kept(self, db: sqlite3.Connection, days: tuple[int, int]) -> dict[tuple[int, str], list[int]]:
        found: dict[tuple[int, str], list[int]] = {}
        sql = (
            f"SELECT day, hour, type, sum(n), sum(failed) FROM hour_total WHERE day BETWEEN ? AND ? "
            f"AND batch NOT IN ({_RETRACTED}) GROUP BY day, hour, type"
        )
        for day, hour, kind, n, failed in db.execute(sql, days):
            _add(found, (day * HOURS + hour, self._types[kind][1]), (n, failed))
        for row in self._events_of_deleted(db, days):
            slot = self._stored.slot(row.at)
            if row.batch not in self.retracted and days[0] <= slot // HOURS <= days[1]:
                _add(found, (slot, self._types[row.type][1]), (-1, -row.failed))
        return found

    def _hours_counted(self, db: sqlite3.Connection, days: tuple[int, int]) -> dict[tuple[int, str], list[int]]:
        found: dict[tuple[int, str], list[int]] = {}
        for row in scan.events(db, self.window(days), without=self.deleted):
            if row.batch not in self.retracted:
                _add(found, (self.days.slot(row.at), self._types[row.type][1]), (1, row.failed))
        return found

    def _arrived(self, by: Sequence[str], days: tuple[int, int]) -> list[Cell]:
        """Return the calls that arrived added up; each counts as one of their mean duration."""
        found: dict[tuple[object, ...], Sums] = {}
        for metric in self.metrics(days):
            day = None if metric.at is None else self.days.of(metric.at)
            if not metric.n or ("day" in by and day is None):
                continue
            each = None if metric.duration_ms is None else metric.duration_ms // metric.n
            project = self._project_of(metric) if "project" in by else None
            values = (day, metric.app, TOOL_USED, metric.tool, project, bucket_of(each))
            _add(found, _only(values, by), (metric.n, metric.failed, metric.duration_ms or 0, 0, 0))
        return _cells(found)

    def _project_of(self, metric: Metric) -> str | None:
        if self._db is None or metric.session is None:
            return None
        row = self._db.execute(_PROJECT, (metric.session, metric.app)).fetchone()
        return None if row is None else str(row[0])

    def _folded(self, db: sqlite3.Connection) -> bool:
        return db.execute("SELECT 1 FROM state WHERE key = 'fold_before_us' AND value > 0").fetchone() is not None


_COLUMNS = {"day": "day", "app": "t.app", "kind": "t.kind", "bucket": "bucket"}


def _current(path: Path) -> sqlite3.Connection:
    """Return a connection to a store whose schema has what is read here."""
    db = _connect(path)
    if db.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_MIN:
        # Nothing has opened the store since the upgrade; opening brings its schema up to date.
        from metricsd.store.connection import Store

        db.close()
        Store.open(path, backups=path.parent / "backups").close()
        db = _connect(path)
    return db


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=READ_TIMEOUT_S, isolation_level=None
    )


def _find_deleted(
    db: sqlite3.Connection, address: Callable[[], Address] | None
) -> tuple[frozenset[int], frozenset[str]]:
    """Return the rows and the records' ids of deleted sessions."""
    rows = db.execute(_DELETED).fetchall()
    found = {session for _, session in rows if session is not None}
    hidden = {one for one, session in rows if session is None and _is_hashed(one)}
    if hidden and address is not None:
        # Its id travels as a hash that only the tenant's key makes of the plain one.
        of = address()
        for session, app, session_id in db.execute("SELECT id, app, session_id FROM session"):
            if of(app, session_id) in hidden:
                found.add(session)
    return frozenset(found), frozenset(str(one) for one, _ in rows)


def _whole(value: object) -> int | None:
    """Return a count of a record; None for what is none, because records come from other devices as they are."""
    return min(value, COUNTED_MAX) if isinstance(value, int) and value >= 0 else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _is_hashed(record_id: str) -> bool:
    app, _, session = record_id.partition("/")
    return app.startswith(_HASHED) or session.startswith(_HASHED)


def _source(by: Sequence[str]) -> str:
    return "day_total JOIN event_type AS t ON t.id = type" if "app" in by or "kind" in by else "day_total"


def _only(values: tuple[object, ...], by: Sequence[str]) -> tuple[object, ...]:
    return tuple(value if name in by else None for name, value in zip(DIMENSIONS, values, strict=True))


def _add(found: dict[K, Sums], key: K, sums: Sequence[int]) -> None:
    known = found.get(key)
    if known is None:
        found[key] = list(sums)
    else:
        for index, value in enumerate(sums):
            known[index] += value


def _cells(found: Mapping[tuple[object, ...], Sums]) -> list[Cell]:
    return [Cell._make((*key, *sums)) for key, sums in found.items()]


def _negative(cell: Cell) -> Cell:
    return Cell._make((*cell[:6], *(-value for value in cell[6:])))
