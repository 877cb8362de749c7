"""The target side of a comparison where the target is the cloud: everything that the user has there, by its API.

What the cloud answers is what it stored; nothing of it comes from what was sent. Pages are read once, from the beginning
of its history, and records and sums of sessions are kept in a small database of the run's private folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from metricsd.client import CloudClient
from metricsd.clock import Clock, SystemClock
from metricsd.config import Sync
from metricsd.errors import CloudBusy, CloudUnreachable
from metricsd.identity import Credentials
from metricsd.migration.digest import Cell, RowHash
from metricsd.migration.figures import Figures
from metricsd.migration.rows import EVENT, SESSION_ENDED, SESSION_STARTED, TOOL_USED, TRANSCRIPT, day_of, flat
from metricsd.migration.side import Side
from metricsd.migration.target_store import OURS, Counted, Stored
from metricsd.protocol import Change, ChangesReply, RecordState, WireEvent

PAGE_ITEMS = 1000
TRIES_MAX = 8
PAUSE_S, PAUSE_S_MAX = 1.0, 60.0
_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE record (type TEXT, id TEXT, fields TEXT, stamps TEXT, deleted INTEGER, PRIMARY KEY (type, id)) WITHOUT ROWID;
CREATE TABLE session (app TEXT, session TEXT, calls INTEGER, start INTEGER, ended INTEGER, project TEXT,
    PRIMARY KEY (session, app)) WITHOUT ROWID;
"""
_ADD = """
INSERT INTO session VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET calls = calls + excluded.calls,
    start = min(start, excluded.start), ended = coalesce(max(ended, excluded.ended), ended, excluded.ended),
    project = coalesce(project, excluded.project)
"""
_HALF = 1 << 63


class Pages(Protocol):
    """A cloud, as this module asks it."""

    async def everything(self, cursor: str, limit: int) -> ChangesReply:
        """Return a page of all that the user has there."""
        ...

    async def close(self) -> None:
        """Let go of the cloud."""
        ...


Connect = Callable[[str, str, Sync], Pages]


class CloudTarget:
    """What the cloud has of one user. Use within `open_cloud`."""

    name = "cloud"
    keeps_local = False
    """What stays on a machine is not there."""

    def __init__(
        self, folder: Path, run: str, login: Credentials, settings: Sync, connect: Connect, clock: Clock | None = None
    ) -> None:
        self._db = sqlite3.connect(folder / "cloud.db", isolation_level=None)
        self._db.executescript(_SCHEMA)
        self._prefix = f"{run}."
        self._login = login
        self._settings = settings
        self._connect = connect
        self._clock = clock or SystemClock()
        self.hooked: Callable[[str], bool] = lambda session: False
        """Whether hooks captured a session of Claude Code: the store tells, and the load asked it."""
        self.by = Figures()

    def read_events(self, side: Side, key: bytes, *, everything: bool) -> int:
        """Write all events into `side`, whether this run brought them or not, and keep the records. Return how many it did."""
        return asyncio.run(self.read(side, key))

    async def read(self, side: Side, key: bytes) -> int:
        """Do what `read_events` does, from within an event loop."""
        row_hash, own, number = RowHash(key), 0, 0
        client = self._connect(self._login.url, self._login.token, self._settings)
        try:
            cursor, more = "", True
            self._db.execute("BEGIN")
            while more:
                page = await self._page(client, cursor)
                for item in page.items:
                    number += 1
                    own += self._take(item, number, side, row_hash)
                cursor, more = page.cursor, page.more
            self._db.execute("COMMIT")
        finally:
            await client.close()
        return own

    def record(self, kind: str, record_id: str) -> Stored | None:
        """Return a record; None where there is none."""
        sql = "SELECT fields, stamps, deleted FROM record WHERE type = ? AND id = ?"
        found = self._db.execute(sql, (kind, record_id)).fetchone()
        if found is None:
            return None
        fields: dict[str, Any] = json.loads(found[0])
        set_ms = {name: int(text[:12], 16) for name, text in json.loads(found[1]).items()}
        return Stored(fields, set_ms, bool(found[2]), str(fields.get("batch") or "").startswith(self._prefix))

    def kept_of(self, session: str) -> Mapping[str, Any] | None:
        """Return nothing: what is kept of a session on a machine never leaves it."""
        return None

    def kept_bytes(self) -> int:
        """Return nothing, as above."""
        return 0

    def is_hooked(self, session: str) -> bool:
        """Return whether hooks captured a session, so that its transcript was left out."""
        return self.hooked(session)

    def session(self, app: str, session: str) -> Counted:
        """Return what the cloud's events of a session add up to."""
        sql = "SELECT calls, start, ended, project FROM session WHERE session = ? AND app = ?"
        found = self._db.execute(sql, (session, app)).fetchone()
        return Counted(0, None, None, None) if found is None else Counted(*found)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    async def _page(self, client: Pages, cursor: str) -> ChangesReply:
        """Return the next page; a cloud that is away or busy is asked again for a while."""
        pause_s = PAUSE_S
        for _ in range(TRIES_MAX - 1):
            try:
                return await client.everything(cursor, PAGE_ITEMS)
            except (CloudUnreachable, CloudBusy) as error:
                asked_s = error.retry_after_s if isinstance(error, CloudBusy) else None
                await self._clock.sleep(min(pause_s if asked_s is None else asked_s, PAUSE_S_MAX))
                pause_s *= 2
        return await client.everything(cursor, PAGE_ITEMS)

    def _take(self, item: Change, number: int, side: Side, row_hash: RowHash) -> bool:
        if item.event is None:
            if item.record is not None:
                self._keep(item.record)
            return False
        event = item.event
        is_ours = (event.batch or "").startswith(self._prefix)
        cell = side.number(Cell(EVENT, day_of(event.at), event.tool or ""))
        identity = int(event.id[16:], 16)
        side.add(identity, row_hash(_row(event)), cell, number << 1 | (OURS if is_ours else 0))
        if is_ours and event.kind == TOOL_USED:
            self.by.call(event.tool or "", event.outcome != "ok", event.duration_ms)
        self._count(event)
        return is_ours

    def _count(self, event: WireEvent) -> None:
        if event.session is not None:
            start = event.at if event.kind != SESSION_ENDED else None
            end = event.at if event.kind == SESSION_ENDED else None
            project = event.project if event.kind == SESSION_STARTED else None
            calls = int(event.kind == TOOL_USED)
            self._db.execute(_ADD, (event.app, event.session, calls, start if start is not None else end, end, project))

    def _keep(self, record: RecordState) -> None:
        row = (record.type, record.id, json.dumps(record.fields), json.dumps(record.stamps), record.deleted)
        self._db.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?)", row)


@contextlib.contextmanager
def open_cloud(
    folder: Path,
    run: str,
    login: Credentials,
    settings: Sync,
    connect: Connect = CloudClient,
    clock: Clock | None = None,
) -> Iterator[CloudTarget]:
    """Give the cloud as a target; `folder` is private to the run."""
    target = CloudTarget(folder, run, login, settings, connect, clock)
    try:
        yield target
    finally:
        target.close()


def _row(event: WireEvent) -> tuple[object, ...]:
    is_transcript = event.name == TRANSCRIPT
    return (
        event.kind, event.app, event.name, event.at, event.session, event.tool, event.outcome, event.duration_ms, event.call,
        None if is_transcript else event.project, event.branch, event.model, event.agent, event.subject, event.reason,
        None if is_transcript else event.input_bytes, None if is_transcript else event.output_bytes, event.lines_added,
        event.lines_removed, flat(event.extra),
    )  # fmt: skip
