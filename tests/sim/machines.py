"""Machines with real daemons in one loop of virtual time: real stores and spools, the real cloud app, no real second.

Put in the daemon's place are only the operating system's parts that wait or tell the time: file events, the clock of
the scheduler, rtnetlink, the network. Which machine asks is known from the task that does. A machine crashes as by
kill -9: what is on the disk between two transactions is what it comes back with.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextvars import Context, ContextVar, copy_context
from datetime import datetime, tzinfo
from pathlib import Path
from random import Random
from typing import Any

import apscheduler.schedulers.base
import apscheduler.triggers.interval
import httpx
import pytest
import watchfiles

from metricsd import daemon as daemon_module
from metricsd import netwatch, prober, schedule
from metricsd.client import CloudClient
from metricsd.clock import US_PER_S
from metricsd.config import Cloud, Config, Paths, find_paths, load_config
from metricsd.daemon import Daemon
from metricsd.failover import Mode
from metricsd.governor import Governor
from metricsd.protocol import FieldValue
from metricsd.store import records, state
from metricsd.store.connection import Store
from metricsd.store.outbox import CURSOR
from metricsd.sync import engine, realtime
from metricsd.sync.login import login
from metricsd.sync.report import Report
from metricsd.syncing import Syncing
from tests.sim.virtual import LoopClock, VirtualLoop
from tests.sync.world import URL, Network, World

STREAM = "/changes/stream"
WRITER_WAIT_S = 30.0
_HERE: ContextVar[Machine | None] = ContextVar("machine", default=None)
"""The machine on which the running task runs."""


class _Machines(datetime):
    """The wall clock of whichever machine asks, in the scheduler's hands."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        machine = _HERE.get()
        return datetime.now(tz) if machine is None else datetime.fromtimestamp(machine.clock.now_us() / US_PER_S, tz)


async def _file_events(*_: str, rust_timeout: int, stop_event: asyncio.Event, **__: object) -> AsyncIterator[set[Any]]:
    """Tell of a machine's new files, as watchfiles does; and of time that passed, when that was asked for."""
    machine = _HERE.get()
    assert machine is not None
    while not stop_event.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rust_timeout / 1000):
                await machine.written.wait()
        machine.written.clear()
        yield set()


class _Body(httpx.AsyncByteStream):
    """An answer that comes in parts, for as long as the machine is online and the app sends."""

    def __init__(self, parts: asyncio.Queue[bytes | None], task: asyncio.Task[None], silence_s: float | None) -> None:
        self._parts, self._task, self._silence_s = parts, task, silence_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    part = await self._parts.get()
            except TimeoutError as error:
                raise httpx.ReadTimeout("silent") from error
            if part is None:
                return
            yield part

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Air(Network):
    """The way to the cloud. Virtual time stands still while the cloud's threads work; streams of news stay open."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._open: dict[asyncio.Task[None], Machine | None] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        machine = _HERE.get()
        if machine is not None and not machine.online:
            raise httpx.ConnectError("offline") from ConnectionRefusedError()
        return await super().handle_async_request(request)

    def cut(self, machine: Machine | None = None) -> None:
        """Break the streams of a machine, or all."""
        for task, of in list(self._open.items()):
            if machine in (None, of):
                task.cancel()

    async def _ask(self, request: httpx.Request, body: bytes) -> httpx.Response:
        if request.url.path.endswith(STREAM):
            return await self._open_stream(request)
        with self._loop.working():
            return await super()._ask(request, body)

    async def _open_stream(self, request: httpx.Request) -> httpx.Response:
        parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        head: asyncio.Future[tuple[int, list[tuple[bytes, bytes]]]] = self._loop.create_future()
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and not head.done():
                head.set_result((message["status"], list(message.get("headers", []))))
            elif message["type"] == "http.response.body" and message.get("body"):
                parts.put_nowait(message["body"])

        async def serve() -> None:
            try:
                await self.app(_scope(request), receive, send)  # type: ignore[misc, arg-type]
            finally:
                parts.put_nowait(None)
                if not head.done():
                    head.set_exception(httpx.ReadError("cut"))

        task = asyncio.create_task(serve(), name="stream of a machine")
        self._open[task] = _HERE.get()
        task.add_done_callback(lambda ended: self._open.pop(ended, None))
        try:
            status, headers = await head
        except asyncio.CancelledError:
            task.cancel()
            raise
        silence_s = request.extensions.get("timeout", {}).get("read")
        return httpx.Response(status, headers=headers, stream=_Body(parts, task, silence_s))


def _scope(request: httpx.Request) -> dict[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": request.method,
        "headers": [(name.lower(), value) for name, value in request.headers.raw], "scheme": "http",
        "path": request.url.path, "raw_path": request.url.raw_path, "query_string": request.url.query,
        "server": ("127.0.0.1", 9), "client": ("127.0.0.1", 123), "root_path": "", "extensions": {}, "state": {},
    }  # fmt: skip


def settings(paths: Paths, **sections: Mapping[str, Any]) -> Config:
    """Return the settings that ship, with some fields of some sections replaced."""
    config = load_config(paths, {}, system_file=Path("/none"))
    changed = {name: getattr(config, name)._replace(**fields) for name, fields in sections.items()}
    return config._replace(**changed)


@contextlib.contextmanager
def virtual_machines(loop: VirtualLoop, root: Path, seed: int, cloud: Cloud) -> Iterator[World]:
    """Give a world whose daemons live in virtual time; what they draw by lot follows from the seed."""
    rng = Random(seed)
    world = World(root, LoopClock(loop))
    world.settings = cloud
    world.network = Air(loop)
    connect, do_round = CloudClient.__init__, Syncing._round

    def through_the_air(client: CloudClient, *arguments: Any, **options: Any) -> None:
        connect(client, *arguments, **{"transport": world.network, **options})

    async def counted_round(syncing: Syncing, reason: str) -> Report:
        machine = _HERE.get()
        report = await do_round(syncing, reason)
        if machine is not None:
            machine.rounds[reason] += 1
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CloudClient, "__init__", through_the_air)
        patch.setattr(Syncing, "_round", counted_round)
        patch.setattr(watchfiles, "awatch", _file_events)
        patch.setattr(netwatch, "open_socket", lambda: None)
        patch.setattr(apscheduler.schedulers.base, "datetime", _Machines)
        patch.setattr(apscheduler.triggers.interval, "datetime", _Machines)
        patch.setattr(schedule, "datetime", _Machines)
        for module in (engine, prober, realtime):
            patch.setattr(module, "Random", lambda: Random(rng.random()))
        patch.setattr(daemon_module, "random", rng)
        # Idle sessions are looked for each minute at least, which would be most of what a day costs here.
        patch.setattr(schedule, "IDLE_CHECK_MAX_S", 7200.0)
        yield world


class Machine:
    """One home, its clock, its way to the cloud, and the daemon that runs in it."""

    def __init__(self, world: World, name: str, loop: VirtualLoop, number: int, **sections: Mapping[str, Any]) -> None:
        self.world = world
        self.loop = loop
        self.name = name
        self.root = world.root / name
        self.paths: Paths = find_paths({"METRICSD_HOME": str(self.root)})
        self.clock = LoopClock(loop)
        self.online = True
        self.written = asyncio.Event()
        self.captures: list[int] = []
        self.rounds: Counter[str] = Counter()
        self._first = number * 1_000_000
        self._config = settings(self.paths, **sections)
        self._daemon: Daemon | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def daemon(self) -> Daemon:
        assert self._daemon is not None
        return self._daemon

    @property
    def governor(self) -> Governor:
        return self.daemon._opened.governor

    @property
    def mode(self) -> Mode:
        return self.governor.mode

    async def start(self) -> None:
        """Start the daemon and wait until it is ready."""
        self._daemon = Daemon(self.paths, self._config, clock=self.clock)
        ready = asyncio.Event()
        self._task = self.loop.create_task(self._daemon.run(ready.set), name=self.name, context=self._context())
        waiting = asyncio.ensure_future(ready.wait())
        await asyncio.wait({self._task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._task.done():
            await self._task

    async def stop(self) -> None:
        """Stop the daemon as SIGTERM does."""
        assert self._task is not None
        self.daemon.stop()
        await self._task
        self._daemon = self._task = None

    async def crash(self, asked: asyncio.Future[Any]) -> None:
        """End it as kill -9 would, and whoever asked it, and start it again with what is on the disk."""
        photograph = self.root.with_name(f"{self.name}-photograph")
        held, let_go = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            let_go.wait(WRITER_WAIT_S)

        self.daemon._writer._pool.submit(hold)
        assert held.wait(WRITER_WAIT_S)
        # Nothing else runs now: this is the loop's thread, and the store's stands still between two transactions.
        shutil.copytree(self.root, photograph, ignore=shutil.ignore_patterns("*.sock"))
        let_go.set()
        assert self._task is not None
        asked.cancel()
        self._task.cancel()
        await asyncio.gather(asked, self._task, return_exceptions=True)
        shutil.rmtree(self.root)
        photograph.rename(self.root)
        await self.start()

    async def close(self) -> None:
        """End it, whatever state it is in."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def capture(self, count: int, session: str, *, event: str = "PostToolUse") -> None:
        """Write captures as the hook does; their durations are numbers that nobody else writes."""
        now_us = self.clock.now_us()
        for _ in range(count):
            number = self._first + len(self.captures)
            payload = {"session_id": session, "tool_name": "Read", "duration_ms": number}
            line = {"v": 1, "s": now_us // US_PER_S, "app": "claude-code", "event": event, "payload": payload}
            part = self.paths.spool / f"{number}.part"
            part.write_bytes(json.dumps(line).encode() + b"\n")
            os.utime(part, ns=(0, now_us * 1000))
            part.rename(self.paths.spool / "new" / f"{event}-{number}-1-0.jsonl")
            self.captures.append(number)
        self.written.set()

    def edit(self, session: str, fields: Mapping[str, FieldValue], *, delete: bool = False) -> None:
        """Edit a session as `metricsd session edit` does: on the store, beside the daemon, which is told."""
        with self.opened() as store, store.transaction(full=True):
            records.edit(store, "session", session, fields, delete=delete)
        self.daemon.hurry()

    async def sync(self) -> Report:
        """Sync as `metricsd sync --now` does."""

        async def take_and_sync() -> Report:
            await self.daemon.take_all()
            return await self.daemon._opened.syncing.now()

        return await self.loop.create_task(take_and_sync(), context=self._context())

    def _context(self) -> Context:
        context = copy_context()
        context.run(_HERE.set, self)
        return context

    def set_online(self, online: bool) -> None:
        """Plug the network in or out."""
        self.online = online
        if not online and isinstance(self.world.network, Air):
            self.world.network.cut(self)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Store]:
        """Open the store beside the daemon."""
        with contextlib.closing(Store.open(self.paths.store, clock=self.clock)) as store:
            yield store

    def cursor(self) -> int:
        """Return how far it has pulled."""
        with self.opened() as store:
            return int(state.get_text(store, CURSOR).partition("-")[0] or 0)


def durations(stores: Sequence[Path]) -> Counter[int]:
    """Return the durations of all events in some databases."""
    found: Counter[int] = Counter()
    for file in stores:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
            found.update(row[0] for row in db.execute("SELECT duration_ms FROM event"))
    return found


async def make(world: World, machine: Machine) -> None:
    """Log a machine in and start its daemon."""
    await login(machine.paths, URL, await world.token(), machine.name, machine._config.sync, connect=world.connect)
    await machine.start()
