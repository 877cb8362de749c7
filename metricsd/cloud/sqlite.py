"""The embedded backend: a folder with one control database and one SQLite file per tenant.

A tenant's file has a generated name and nothing in it names another tenant, so no query can cross. At most
OPEN_TENANTS_MAX files are open at once; the least recently used idle one is closed first. Any number of processes may
serve one folder on a local disk (never on a network share: SQLite's locks do not hold there).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import sqlite3
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

from metricsd.clock import Clock, SystemClock
from metricsd.cloud.access import Act, Tenant
from metricsd.cloud.backend import News
from metricsd.cloud.problems import busy, refuse
from metricsd.cloud.sqlite_archive import destroy
from metricsd.cloud.sqlite_control import FILE_NAME
from metricsd.cloud.sqlite_directory import SqliteDirectory
from metricsd.cloud.sqlite_meter import SqliteMeter
from metricsd.cloud.sqlite_news import NewsReader
from metricsd.cloud.sqlite_tenant import SqliteTenant
from metricsd.config import Cloud
from metricsd.errors import StoreUnavailable, UsageError

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
        self.meter = SqliteMeter(folder)
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
            if entry.store.done():
                return entry.store.result()
            # Shielded: one client that hangs up must not break the opening that others wait for.
            return await asyncio.shield(entry.store)
        except (OSError, sqlite3.OperationalError) as error:
            raise busy(f"the tenant's database cannot be opened now ({type(error).__name__})") from error

    def _begin_opening(self, tenant_id: str) -> _Open:
        loop = asyncio.get_running_loop()
        path = self._path_of(tenant_id)
        entry = _Open(loop.run_in_executor(None, partial(_open_tenant, path, tenant_id, self._settings)))
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
                raise busy("too many tenants are in use at once", "open_tenants_max")
            await self._close_store(self._open.pop(idle).store.result())

    async def _close_store(self, store: SqliteTenant) -> None:
        await asyncio.to_thread(store.close)
        self._closed_commits += store.writer.commits

    async def drop_tenant(self, tenant: Tenant, act: Act) -> None:
        await self.directory.begin_drop(tenant, act.at)
        entry = self._open.get(tenant.id)
        if entry is not None and entry.users == 0 and entry.store.done():
            await self._close_store(self._open.pop(tenant.id).store.result())
        path = self._path_of(tenant.id)
        try:
            await asyncio.to_thread(_destroy_tenant, path)
        except (OSError, sqlite3.OperationalError) as error:
            raise StoreUnavailable(
                f"{path}: cannot be removed now ({error}): the tenant is shut out; drop it again in a moment"
            ) from error
        await self.directory.end_drop(tenant, act)

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
        await asyncio.to_thread(self.meter.close)
        await asyncio.to_thread(self.directory.close)


def _open_tenant(path: Path, tenant_id: str, settings: Cloud) -> SqliteTenant:
    """Open a tenant's file, making it if it is new, unless the tenant is gone: then no file must come back."""
    with _drop_lock(path.parent, fcntl.LOCK_SH):
        if _is_dropped(path.parent, tenant_id):
            raise refuse(403, "tenant_suspended", "this tenant is being removed")
        return SqliteTenant(path, settings)


def _destroy_tenant(path: Path) -> None:
    with _drop_lock(path.parent, fcntl.LOCK_EX):
        destroy(path)


@contextlib.contextmanager
def _drop_lock(folder: Path, kind: int) -> Iterator[None]:
    """Hold the folder's lock that keeps files from being opened while one is removed."""
    lock = os.open(folder / "drop.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, kind)
        yield
    finally:
        os.close(lock)


def _is_dropped(folder: Path, tenant_id: str) -> bool:
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as db:
        row = db.execute("SELECT dropped_at FROM tenant WHERE id = ?", (tenant_id,)).fetchone()
    return row is None or row[0] is not None
