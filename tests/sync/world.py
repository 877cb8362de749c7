"""A small world for sync tests: the real cloud app in this process, a network that can fail, and devices."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import httpx
from litestar.types import ASGIApp

from metricsd.client import CloudClient
from metricsd.cloud import tenants
from metricsd.cloud.app import create_app
from metricsd.cloud.backend import Scope
from metricsd.cloud.sqlite import SqliteBackend
from metricsd.config import Cloud, Paths, Sync, find_paths
from metricsd.ids import line_id
from metricsd.model import Event, Kind
from metricsd.store import events
from metricsd.store.connection import Store
from metricsd.store.events import Identified
from metricsd.sync.engine import Engine
from metricsd.sync.login import login
from metricsd.sync.report import Report
from tests.fakes import FakeClock

URL = "http://127.0.0.1:9"
"""Nothing listens on the discard port: whatever is not answered in this process fails."""
SETTINGS = Sync(request_timeout_s=20.0)
CLOUD = Cloud(commit_delay_ms=0.0)

Fault = Callable[[httpx.Request], str | None]
"""Says what happens to a request: None, "before", "after", "twice", "html" or a status code."""


class Network(httpx.AsyncBaseTransport):
    """The way to the cloud's app, with faults: requests and answers get lost, come twice, or are not ours."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self.fault: Fault = lambda _: None
        self.requests: list[str] = []
        self.canned: dict[str, httpx.Response] = {}
        """Answers for status codes that a fault names; any other code answers with a text."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(f"{request.method} {request.url.path}")
        if self.app is None:
            raise httpx.ConnectError("offline") from ConnectionRefusedError()
        body = await request.aread()
        match self.fault(request):
            case None:
                return await self._ask(request, body)
            case "before":
                raise httpx.ConnectError("cut") from ConnectionRefusedError()
            case "after":
                await self._ask(request, body)
                raise httpx.ReadError("cut") from ConnectionResetError()
            case "twice":
                await self._ask(request, body)
                return await self._ask(request, body)
            case "html":
                return httpx.Response(200, html="<html>Sign in to this network</html>")
            case status if status in self.canned:
                canned = self.canned[status]
                return httpx.Response(canned.status_code, headers=canned.headers, content=canned.content)
            case status:
                return httpx.Response(int(status), headers={"retry-after": "7"}, text="no")

    async def _ask(self, request: httpx.Request, body: bytes) -> httpx.Response:
        assert self.app is not None
        again = httpx.Request(request.method, request.url, headers=request.headers, content=body)
        answer = await httpx.ASGITransport(app=self.app).handle_async_request(again)  # type: ignore[arg-type]
        content = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)

    async def aclose(self) -> None:
        """Stay open: every client of the world shares this."""


class World:
    """One cloud with one tenant and one user, and the network to it."""

    def __init__(self, root: Path, clock: FakeClock) -> None:
        self.root = root
        self.clock = clock
        self.network = Network()
        self.settings = CLOUD
        self._backend: SqliteBackend | None = None
        self._devices: list[Device] = []

    async def start(self) -> None:
        """Serve the cloud's folder."""
        self._backend = SqliteBackend(self.folder, self.settings, self.clock)
        self.network.app = create_app(self._backend, self.settings, self.clock)

    async def stop(self) -> None:
        """Go offline, with everything on disk."""
        self.network.app = None
        if self._backend is not None:
            await self._backend.close()
            self._backend = None

    @property
    def folder(self) -> Path:
        return self.root / "cloud"

    async def backup(self) -> Path:
        """Copy the cloud's folder as it is now."""
        await self.stop()
        copy = self.root / "cloud-backup"
        shutil.copytree(self.folder, copy)
        await self.start()
        return copy

    async def restore(self, copy: Path) -> None:
        """Put an older copy in the place of the cloud's folder."""
        await self.stop()
        shutil.rmtree(self.folder)
        shutil.copytree(copy, self.folder)
        await self.start()

    async def token(self, user: str = "ann") -> str:
        """Return a new enrolment token."""
        assert self._backend is not None
        registry = self._backend.directory
        if await tenants.find_tenant(registry, "team") is None:
            await tenants.create_tenant(registry, "team", self.clock)
        return await tenants.create_token(registry, "team", user, Scope.ENROL, self.clock)

    def connect(self, url: str, token: str, settings: Sync) -> CloudClient:
        """Make a client whose network is this world's."""
        return CloudClient(url, token, settings, transport=self.network)

    async def device(self, name: str, *, settings: Sync = SETTINGS, clock: FakeClock | None = None) -> Device:
        """Return a new device that is logged in."""
        device = self.unborn(name, settings=settings, clock=clock)
        await login(device.paths, URL, await self.token(), name, settings, connect=self.connect)
        return device

    def unborn(self, name: str, *, settings: Sync = SETTINGS, clock: FakeClock | None = None) -> Device:
        """Return a new device that is not logged in."""
        device = Device(self, self.root / name, settings, clock or self.clock)
        self._devices.append(device)
        return device

    def event_ids(self) -> Counter[bytes]:
        """Return the ids of all events in the cloud."""
        return Counter(row[0] for row in self._query("SELECT id FROM event"))

    def counted(self) -> int:
        """Return what the sessions' counters in the cloud add up to."""
        sql = "SELECT sum(json_extract(fields, '$.events')) FROM record WHERE type = 'session_counters'"
        return int(self._query(sql)[0][0] or 0)

    def _query(self, sql: str) -> list[tuple[bytes]]:
        rows: list[tuple[bytes]] = []
        for file in self.folder.glob("t_*.db"):
            with closing(sqlite3.connect(file)) as db:
                rows += db.execute(sql).fetchall()
        return rows

    async def close(self) -> None:
        for device in self._devices:
            await device.close()
        await self.stop()


class Device:
    """One home with its store and engine."""

    def __init__(self, world: World, root: Path, settings: Sync, clock: FakeClock) -> None:
        self.world = world
        self.root = root
        self.clock = clock
        self.settings = settings
        self.paths: Paths = find_paths({"METRICSD_HOME": str(root)})
        self.open()

    def open(self) -> None:
        """Open the store and make the engine, as a daemon's start does."""
        self.store = Store.open(self.paths.store, clock=self.clock)
        self.engine = Engine(
            self.paths, self.store, self.settings, clock=self.clock, rng=Random(1), connect=self.world.connect
        )

    async def close(self) -> None:
        """Stop the engine and close the store."""
        await self.engine.close()
        self.store.close()

    async def backup(self) -> Path:
        """Copy the whole home as it is now."""
        await self.close()
        copy = self.root.with_name(self.root.name + "-backup")
        shutil.copytree(self.root, copy)
        self.open()
        return copy

    async def restore(self, copy: Path) -> None:
        """Put an older copy of the home in its place."""
        await self.close()
        shutil.rmtree(self.root)
        shutil.copytree(copy, self.root)
        self.open()

    def record(self, count: int, *, session: str = "s-1", tag: str = "") -> list[bytes]:
        """Store `count` new own events; return their ids."""
        first = events.last_pos(self.store)
        items = [make_event(f"{tag or self.root.name}-{first + n}", self.clock, session) for n in range(count)]
        with self.store.transaction():
            events.insert(self.store, items, device=events.own_device(self.store))
        return [bytes(item.id) for item in items]

    async def sync(self) -> Report:
        """Run one round as `sync --now` does."""
        return await self.engine.tick(reason="now")

    def event_ids(self) -> Counter[bytes]:
        """Return the ids of all events in the store."""
        return Counter(row[0] for row in self.store.db.execute("SELECT id FROM event"))

    def counted(self) -> int:
        """Return what the sessions' counters of all devices add up to here."""
        return int(self.store.db.execute("SELECT coalesce(sum(events), 0) FROM session_counters").fetchone()[0])

    def rolled_up(self) -> int:
        """Return what the daily totals add up to here."""
        return int(self.store.db.execute("SELECT coalesce(sum(n), 0) FROM rollup").fetchone()[0])


def make_event(fact: str, clock: FakeClock, session: str) -> Identified:
    """Return an event whose id follows from `fact`."""
    at = clock.now_us()
    event = Event(
        at=at, kind=Kind.TOOL_USED, name="PostToolUse", app="claude-code", session=session, tool="Read",
        outcome="ok", duration_ms=12, project="secret-project", branch="main",
    )  # fmt: skip
    return Identified(line_id(fact.encode(), at // 1000, 0), event)
