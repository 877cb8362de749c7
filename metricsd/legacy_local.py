"""The older API's data in the daemon: its sessions and calls in the store, and how this home stands with the cloud.

Requests that write at the same time share a commit, which is on disk before any of them is answered. A call that comes
while the store is away waits in a file of its own. Reading has threads of its own and sees one moment of the store, so
it never waits for who writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import structlog

from metricsd.analytics.baseline import DEFAULT, baseline
from metricsd.clock import Clock
from metricsd.config import Config, Paths
from metricsd.decode.older_hooks import APP, TOOL_LINE
from metricsd.errors import LineRejected, MetricsdError, StoreError, StoreUnavailable
from metricsd.failover import Mode
from metricsd.governor import Governor
from metricsd.growing import place_of
from metricsd.legacy.kept import (
    CALL,
    Call,
    Edit,
    Figures,
    Kept,
    Person,
    Session,
    SessionId,
    Standing,
    Synced,
    Wanted,
    Writes,
)
from metricsd.legacy.local_files import lasting
from metricsd.legacy_journal import Journal, Waiting
from metricsd.model import Event, Kind
from metricsd.store import legacy_extra, older_api, outbox, records, state
from metricsd.store.connection import Store, wal_of
from metricsd.store.events import Identified
from metricsd.store.ingest import Beside, Taken
from metricsd.store.remembered import Remembered
from metricsd.store.sessions import TYPE
from metricsd.store.suggestions import Suggestion
from metricsd.store.summary import DAY_MAX, Summary, reading
from metricsd.storekeeper import StoreKeeper
from metricsd.sync.engine import LAST_SUCCESS
from metricsd.syncing import Syncing

T = TypeVar("T")

WAITING_MAX = 1024
"""Requests that wait for a commit; further ones are told to come again."""
GROUP_MAX = 256
"""Requests that share a commit."""
JOURNAL_GROUP = 1000
READERS = 2
ANSWERS_KEPT = 16
DAYS_WARM = 30
"""Days that are read when the daemon starts, before anybody asks, and remembered."""
SETTLED_NS = 50_000_000
"""A file that changed less than this ago may change again without looking different."""
FILE_BYTES_MAX = 1024 * 1024

_PENDING = """
SELECT count(*) FILTER (WHERE type = 'session'), count(*) FILTER (WHERE type = 'tool_metric'),
    (SELECT count(*) FROM quarantine WHERE state = 'open' AND reason GLOB 'cloud_*')
FROM record WHERE dirty > 0 AND conflict IS NULL
"""

Run = Callable[..., Awaitable[Any]]

log = structlog.get_logger("legacy")


class _Put(NamedTuple):
    """A document to keep, inside a transaction of the store."""

    kept: Kept

    def put(self, store: Store) -> None:
        kind, key, values, add = self.kept
        if values is None:
            legacy_extra.drop(store, kind, key)
        elif add:
            legacy_extra.add(store, kind, key, values)
        else:
            legacy_extra.put(store, kind, key, values)


class _Edited(NamedTuple):
    """An edit of a session's record, inside a transaction of the store."""

    edit: Edit

    def put(self, store: Store) -> None:
        session, fields, delete, unless_set = self.edit
        if unless_set:
            Suggestion(TYPE, session.record_id, fields).put(store)
        else:
            records.edit(store, TYPE, session.record_id, fields, delete=delete)


class LocalShelf:
    """`Shelf` over the store of one home. Belongs to the daemon's event loop."""

    def __init__(
        self, home: tuple[Paths, Config, Clock], keeper: StoreKeeper, run: Run, *, on_critical: Callable[[], None]
    ) -> None:
        """`run` does work in the store's thread; `on_critical` is called for what others should hear of soon."""
        self._paths, self._config, self._clock = home
        self._keeper = keeper
        self._run = run
        self._on_critical = on_critical
        self._journal = Journal(self._paths.state_dir / "older_api_waiting.jsonl")
        self._waiting: list[tuple[Writes, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="legacy-read")
        self._figures: dict[tuple[int, bool, int, tuple[int, ...]], Figures] = {}
        self._remembered = Remembered()

    async def loop(self) -> None:
        """Take in what waits for the store, as soon as it can be used, for ever."""
        is_prepared = is_warm = not self._config.legacy.listen
        while True:
            if not is_prepared and self._keeper.trouble is None:
                with contextlib.suppress(StoreUnavailable):
                    await self._run(older_api.prepare, self._keeper.store)
                    is_prepared = True
            if not self._journal.is_empty and self._keeper.trouble is None:
                await self._take_waiting()
            if is_prepared and not is_warm:
                await self._warm()
                is_warm = True
            await self._clock.sleep(self._config.store.check_s)

    async def _warm(self) -> None:
        """Read the sessions of the last days before anybody asks."""
        try:
            # Of a store that cannot be read whoever asks is told.
            with contextlib.suppress(StoreError):
                await self.figures(DAYS_WARM, uses=False)
        except Exception:
            # A fault of ours: it must be seen, and it must not end the daemon, because only time is lost by it.
            log.exception("legacy.not_warmed")

    async def write(self, writes: Writes) -> None:
        """Store it with whatever else waits; a call that the store cannot take now is written beside it."""
        if len(self._waiting) >= WAITING_MAX:
            raise StoreUnavailable("too many requests wait for the store")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((writes, done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all(), name="legacy-write")
        await done

    async def find(self, session: str) -> Session | None:
        found = await self._read(partial(older_api.find, session_id=session))
        return None if found is None else _session(found)

    async def list(self, wanted: Wanted) -> Sequence[Session]:
        page = older_api.Page(*wanted)
        return [_session(one) for one in await self._read(partial(older_api.page, wanted=page))]

    async def calls(self, session: str) -> Sequence[Call]:
        return await self._read(partial(_calls, session=session))

    async def figures(self, days: int, *, uses: bool) -> Figures:
        now_us = self._clock.now_us()
        mark = self._mark()
        key = None if mark is None else (days, uses, self._keeper.store.days.of(now_us), mark)
        found = self._figures.get(key) if key is not None else None
        if found is None:
            found = await self._read(partial(_figures, self._remembered, days=days, now_us=now_us, uses=uses))
            if key is not None and self._mark() == mark:
                if len(self._figures) >= ANSWERS_KEPT:
                    self._figures.clear()
                self._figures[key] = found
        return found

    def close(self) -> None:
        """End the threads that read."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    async def _write_all(self) -> None:
        """Commit what waits, group by group, until nothing does."""
        while self._waiting:
            group, self._waiting = self._waiting[:GROUP_MAX], self._waiting[GROUP_MAX:]
            try:
                await self._store([writes for writes, _ in group])
            except Exception:
                # Whatever it was, it may be the fault of one of them alone.
                for writes, done in group:
                    await self._write_alone(writes, done)
            else:
                for _, done in group:
                    if not done.done():
                        done.set_result(None)

    async def _write_alone(self, writes: Writes, done: asyncio.Future[None]) -> None:
        """Commit one request after its group failed, so that it fails for itself alone."""
        try:
            if self._keeper.trouble is None:
                await self._store([writes])
            else:
                await self._put_aside(writes)
        except Exception as error:
            if not done.done():
                done.set_exception(StoreUnavailable(str(error)) if isinstance(error, LineRejected) else error)
        else:
            if not done.done():
                done.set_result(None)

    async def _store(self, group: Sequence[Writes]) -> None:
        items = [Identified(event_id, event) for writes in group for event_id, event in writes.events]
        beside: list[Beside] = [_Edited(edit) for writes in group for edit in writes.edits]
        beside += [_Put(kept) for writes in group for kept in writes.documents]
        taken: Taken = await self._run(self._keeper.take, items, beside)
        if taken.critical or any(writes.edits for writes in group):
            self._on_critical()

    async def _put_aside(self, writes: Writes) -> None:
        """Keep calls for when the store is back; what edits a session has to see it."""
        if writes.edits or not writes.events:
            trouble = self._keeper.trouble
            raise StoreUnavailable(trouble.reason if trouble is not None else None)
        said = {kept.key: dict(kept.values or {}) for kept in writes.documents if kept.kind == CALL}
        calls = [Waiting(event_id.hex(), event, said.get(event_id.hex())) for event_id, event in writes.events]
        await asyncio.to_thread(self._journal.append, calls)

    async def _take_waiting(self) -> None:
        """Store the calls that were put aside, and forget them once they are on disk."""
        try:
            calls = await asyncio.to_thread(self._journal.begin)
            for start in range(0, len(calls), JOURNAL_GROUP):
                some = calls[start : start + JOURNAL_GROUP]
                kept = [Kept(CALL, one.id, one.document) for one in some if one.document is not None]
                await self._store([Writes([(one.event_id, one.event) for one in some], (), kept)])
            await asyncio.to_thread(self._journal.end)
        except StoreError as error:
            log.debug("waiting.postponed", reason=str(error))
        else:
            log.info("waiting.taken", calls=len(calls))

    async def _read(self, work: Callable[[Summary], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, _reading, self._paths.store, work)

    def _mark(self) -> tuple[int, ...] | None:
        """Return how the store's files look; None when they have only just changed."""
        found: list[int] = []
        now_ns = self._clock.now_us() * 1000
        for path in (self._paths.store, wal_of(self._paths.store)):
            try:
                status = path.stat()
            except OSError:
                continue
            if now_ns - status.st_mtime_ns < SETTLED_NS:
                return None
            found += [status.st_ino, status.st_size, status.st_mtime_ns]
        return tuple(found)


class LocalHost:
    """`Host` of one daemon."""

    def __init__(self, home: tuple[Paths, Config], keeper: StoreKeeper, parts: tuple[Governor, Syncing, Run]) -> None:
        self._paths, self._config = home
        self._keeper = keeper
        self._governor, self._syncing, self._run = parts
        self._roots = [Path(place_of(root)) for root in self._config.tail.older_hooks]

    @property
    def person(self) -> Person:
        return person()

    async def trouble(self) -> str | None:
        return None if self._keeper.trouble is None else f"the local store cannot be used ({self._keeper.trouble.kind})"

    async def standing(self) -> Standing:
        pending = _Pending(0, 0, 0, None)
        if self._keeper.trouble is None:
            pending = await self._run(_pending, self._keeper.store)
        return Standing(
            mode=self._governor.mode.value,
            has_cloud=self._paths.credentials.exists(),
            is_local=True,
            pending_sessions=pending.sessions,
            pending_calls=pending.calls,
            failed_sessions=0,
            failed_calls=pending.failed,
            synced_us=pending.synced_us,
            follows_hooks=bool(self._config.tail.older_hooks),
            is_syncing=self._governor.allows_rounds,
        )

    async def sync(self) -> Synced:
        """Sync now. Without a login there is nothing to send anything to, which is no failure of it."""
        if not self._paths.credentials.exists():
            return Synced(True, 0, 0)
        if self._governor.is_silent_by_hand:
            return Synced(False, 0, 0, ["somebody forced the mode local_only"])
        if self._keeper.trouble is not None or self._governor.mode is Mode.REMOTE_ONLY:
            return Synced(False, 0, 0, ["the local store cannot be used now"])
        try:
            report = await self._syncing.now()
        except MetricsdError as error:
            return Synced(False, 0, 0, [str(error)])
        errors = [] if report.error is None else [report.error.message]
        return Synced(report.ok, report.pushed_records, report.pushed_events, errors)

    def find_file(self, name: str) -> bytes | None:
        """Return a file of the first of the older hooks' folders that has it. The name is one of ours."""
        for root in self._roots:
            try:
                with (root / name).open("rb") as file:
                    return file.read(FILE_BYTES_MAX)
            except OSError:
                continue
        return None


class _Pending(NamedTuple):
    sessions: int
    calls: int
    failed: int
    synced_us: int | None


def person() -> Person:
    """Return who runs this daemon, and in which folder."""
    try:
        directory = os.getcwd()  # noqa: PTH109
    except OSError:
        directory = ""
    return Person(os.environ.get("USER") or "unknown", directory)


def _reading(path: Path, work: Callable[[Summary], T]) -> T:
    with reading(path) as summary:
        return work(summary)


def _session(found: older_api.Found) -> Session:
    return Session(SessionId(found.app, found.id), found.document, found.fields, found.total)


def _calls(summary: Summary, session: str) -> list[Call]:
    found = [Call(event, document) for event, document in older_api.calls(summary, session)]
    for metric in older_api.metrics(summary, session):
        each = None if metric.duration_ms is None else metric.duration_ms // max(metric.n, 1)
        event = Event(
            at=metric.at or 0, kind=Kind.TOOL_USED.value, name=TOOL_LINE, app=metric.app or APP, session=session,
            tool=metric.tool, duration_ms=each,
        )  # fmt: skip
        found.append(Call(event, {}, metric.n, metric.failed))
    return sorted(found, key=lambda call: call.event.at)


def _figures(remembered: Remembered, summary: Summary, *, days: int, now_us: int, uses: bool) -> Figures:
    today = summary.days.of(now_us)
    first = max(today - days + 1, 0)
    if uses:
        window = (first, DAY_MAX)
        used = summary.cells("kind", "tool", "bucket", days=window)
        return Figures([], [], used, summary.hours(window), DEFAULT, summary.days.of, today)
    since_us = summary.days.start_us(first)
    newest = remembered.sessions(summary, min(since_us, older_api.newest_since_us(summary)))
    return Figures(
        sessions=[one for one in newest if one.last_at >= since_us],
        cells=remembered.cells(summary, first),
        uses=[],
        hours=[],
        usual=baseline(lasting(newest)),
        day_of=summary.days.of,
        today=today,
    )


def _pending(store: Store) -> _Pending:
    sessions, metrics, failed = store.db.execute(_PENDING).fetchone()
    return _Pending(
        sessions, outbox.pending_events(store) + metrics, failed, state.get_int(store, LAST_SUCCESS) or None
    )
