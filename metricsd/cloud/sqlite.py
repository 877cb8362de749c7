"""The embedded backend: a folder with one control database and one SQLite file per tenant.

A tenant's file has a generated name and nothing in it names another tenant, so no query can cross. At most
OPEN_TENANTS_MAX files are open at once; the least recently used idle one is closed first. Any number of processes may
serve one folder on a local disk (never on a network share: SQLite's locks do not hold there).
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec

from metricsd.clock import Clock, SystemClock
from metricsd.cloud.backend import (
    EventBatch,
    EventOutcome,
    FeedQuery,
    News,
    RecordBatch,
    Tenant,
    TenantPolicy,
    Writer,
)
from metricsd.cloud.problems import busy
from metricsd.cloud.sqlite_directory import SqliteDirectory
from metricsd.cloud.sqlite_events import find_hello, push_events
from metricsd.cloud.sqlite_feed import is_known, read_page
from metricsd.cloud.sqlite_file import FileThread, open_file
from metricsd.cloud.sqlite_group import GroupWriter
from metricsd.cloud.sqlite_news import NewsReader
from metricsd.cloud.sqlite_policy import find_policy, find_policy_hash, put_policy
from metricsd.cloud.sqlite_records import push_records
from metricsd.config import Cloud
from metricsd.errors import StoreUnavailable, UsageError
from metricsd.protocol import ChangesReply, HelloReply, HelloRequest, RecordResult
from metricsd.schema import load_steps

OPEN_TENANTS_MAX = 32
"""Each open file costs two threads, two caches of 4 MB and about six descriptors."""
_TENANT_ID = re.compile(r"[0-9a-f]{16}")


def folder_of(url: str) -> Path:
    """Return the folder that `sqlite:/absolute/folder` names; raise UsageError for any other database."""
    scheme, separator, rest = url.partition(":")
    if not separator or scheme != "sqlite":
        raise UsageError(f"database {scheme}: is not supported: write sqlite:/absolute/folder")
    path = Path("/" + rest.lstrip("/")) if rest.startswith("/") else Path(rest)
    if not path.is_absolute():
        raise UsageError(f"database {url}: the folder must be absolute: write sqlite:/absolute/folder")
    return path


class SqliteTenant:
    """`TenantStore` over one file."""

    def __init__(self, path: Path, settings: Cloud) -> None:
        writing, reading = open_file(path, load_steps("metricsd.cloud.schema.tenant"))
        self.writer = GroupWriter(writing, delay_s=settings.commit_delay_ms / 1000, name=path.stem)
        self._reader = FileThread(reading, name=f"read-{path.stem}")

    async def hello(self, writer: Writer, request: HelloRequest, now: int) -> HelloReply:
        def work(db: sqlite3.Connection) -> HelloReply:
            reply = find_hello(db, self._reader.terms, request, is_known(db, request.cursor), now)
            return msgspec.structs.replace(reply, policy_hash=find_policy_hash(db))

        return await self._reader.run(work)

    async def push_events(self, writer: Writer, batch: EventBatch) -> EventOutcome:
        return await self.writer.write(
            lambda transaction: push_events(transaction, writer, batch), items=len(batch.items)
        )

    async def push_records(self, writer: Writer, batch: RecordBatch, now: int) -> list[RecordResult]:
        return await self.writer.write(
            lambda transaction: push_records(transaction, writer, batch, now), items=len(batch.items)
        )

    async def changes(self, writer: Writer, query: FeedQuery, now: int) -> ChangesReply:
        def work(db: sqlite3.Connection) -> ChangesReply:
            return read_page(db, self._reader.terms, writer, query, now)

        return await self._reader.run(work)

    async def find_policy(self) -> TenantPolicy | None:
        return await self._reader.run(find_policy)

    async def put_policy(self, text: str, sha256: str, now: int) -> TenantPolicy:
        return await self.writer.write(lambda transaction: put_policy(transaction, text, sha256, now), items=1)

    def close(self) -> None:
        self.writer.close()
        self._reader.close()


class _Open:
    """An open tenant: its store once opening is done, and how many requests use it now."""

    __slots__ = ("store", "users")

    def __init__(self, store: asyncio.Future[SqliteTenant]) -> None:
        self.store = store
        self.users = 0


class SqliteBackend:
    """`Backend` over a folder, for one event loop."""

    def __init__(self, folder: Path, settings: Cloud, clock: Clock | None = None) -> None:
        """Open the folder, making it private and complete if it is new. Blocks for some milliseconds."""
        self._settings = settings
        self._folder = folder
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._closed_commits = 0
        self._news = NewsReader()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.directory = SqliteDirectory(folder, clock or SystemClock())
        except (OSError, sqlite3.OperationalError) as error:
            raise StoreUnavailable(
                f"{folder}: cannot be used ({error}): check its permissions and free space"
            ) from error

    def tenant(self, tenant: Tenant) -> AbstractAsyncContextManager[SqliteTenant]:
        return self._hold(tenant.id)

    async def news(self, tenant: Tenant, after: int | None, users: Collection[str]) -> News:
        return await self._news.read(self._path_of(tenant.id), after, users)

    @asynccontextmanager
    async def _hold(self, tenant_id: str) -> AsyncIterator[SqliteTenant]:
        entry = self._open.get(tenant_id)
        if entry is None:
            await self._make_room()
            # Another request may have opened it meanwhile.
            entry = self._open.get(tenant_id) or self._begin_opening(tenant_id)
        self._open.move_to_end(tenant_id)
        entry.users += 1
        try:
            yield await self._opened(entry)
        finally:
            entry.users -= 1

    @staticmethod
    async def _opened(entry: _Open) -> SqliteTenant:
        try:
            # Shielded: one client that hangs up must not break the opening that others wait for.
            return await asyncio.shield(entry.store)
        except (OSError, sqlite3.OperationalError) as error:
            raise busy(f"the tenant's database cannot be opened now ({type(error).__name__})") from error

    def _begin_opening(self, tenant_id: str) -> _Open:
        loop = asyncio.get_running_loop()
        path = self._path_of(tenant_id)
        entry = _Open(loop.run_in_executor(None, partial(SqliteTenant, path, self._settings)))
        entry.store.add_done_callback(partial(self._forget_failed, tenant_id, entry))
        self._open[tenant_id] = entry
        return entry

    def _path_of(self, tenant_id: str) -> Path:
        if _TENANT_ID.fullmatch(tenant_id) is None:
            # It is part of a file's name, and was generated by us.
            raise ValueError("not a tenant id")
        return self._folder / f"t_{tenant_id}.db"

    def _forget_failed(self, tenant_id: str, entry: _Open, store: asyncio.Future[SqliteTenant]) -> None:
        if (store.cancelled() or store.exception() is not None) and self._open.get(tenant_id) is entry:
            del self._open[tenant_id]

    async def _make_room(self) -> None:
        while len(self._open) >= OPEN_TENANTS_MAX:
            idle = next((key for key, entry in self._open.items() if entry.users == 0 and entry.store.done()), None)
            if idle is None:
                raise busy("too many tenants are in use at once")
            await self._close_store(self._open.pop(idle).store.result())

    async def _close_store(self, store: SqliteTenant) -> None:
        await asyncio.to_thread(store.close)
        self._closed_commits += store.writer.commits

    def gauges(self) -> dict[str, float]:
        stores = [entry.store.result() for entry in self._open.values() if entry.store.done()]
        return {
            "open_tenants": len(stores),
            "commits_total": self._closed_commits + sum(store.writer.commits for store in stores),
        }

    async def close(self) -> None:
        while self._open:
            _, entry = self._open.popitem()
            await self._close_store(await entry.store)
        await asyncio.to_thread(self._news.close)
        await asyncio.to_thread(self.directory.close)
