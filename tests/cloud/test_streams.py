"""The stream of news over a real socket: who is told what, how soon, and how a stream ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from metricsd.cloud.app import create_app
from metricsd.cloud.backend import Scope
from metricsd.cloud.serve import CloudServer
from metricsd.cloud.tenants import revoke_token
from metricsd.config import Cloud
from metricsd.protocol import Announced, Ended, Opened
from tests.cloud.support import CloudUnderTest, Device, bearer, event, events
from tests.fakes import FakeClock

QUICK = Cloud(heartbeat_s=0.75, stream_poll_s=0.05, streams_max=4)
"""The heartbeat at a twentieth."""
SLOW_POLL = QUICK._replace(stream_poll_s=60.0)
WITHIN_S = 10.0
STREAM = "/sync/v1/changes/stream"

Sent = tuple[str, bytes]


class Listener:
    """One open stream, read event by event."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self, *, beats: bool = False) -> Sent:
        """Return the next event as (name, data); a heartbeat is `("", b"")` and is skipped unless wanted."""
        name = ""
        async with asyncio.timeout(WITHIN_S):
            async for line in self._lines:
                if line.startswith(":") and beats:
                    return ("", b"")
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                if line.startswith("data: "):
                    return (name, line.removeprefix("data: ").encode())
        return ("closed", b"")

    async def opened(self) -> Opened:
        name, data = await self.next()
        assert name == "open"
        return msgspec.json.decode(data, type=Opened)

    async def announced(self) -> Announced:
        name, data = await self.next()
        assert name == "change", name
        return msgspec.json.decode(data, type=Announced)

    async def ended(self) -> str:
        name, data = await self.next()
        assert name == "end", name
        assert await self.next() == ("closed", b"")
        return msgspec.json.decode(data, type=Ended).reason


class Served:
    """A cloud on a socket."""

    def __init__(self, place: Path | str, settings: Cloud, clock: FakeClock | None = None) -> None:
        self.cloud = CloudUnderTest(place, settings, clock)
        self.server = CloudServer(create_app(self.cloud.backend, settings, self.cloud.clock), settings)
        self.url = ""
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Served:
        await self._stack.enter_async_context(self.cloud)
        self.url = await self.server.start()
        self._stack.push_async_callback(self.server.stop)
        self.http = await self._stack.enter_async_context(
            httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=WITHIN_S)
        )
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.aclose()

    async def push(self, device: Device, number: int = 1) -> None:
        """Push one event of the device over the socket."""
        body = {"device_id": device.id, "epoch": 1, "base_seq": number - 1, "events": [event(number)]}
        reply = await self.http.post("/sync/v1/events", json=body, headers=bearer(device.token))
        assert reply.status_code == 200, reply.text

    @contextlib.asynccontextmanager
    async def listen(self, device: Device) -> AsyncIterator[Listener]:
        async with self.http.stream("GET", STREAM, headers=bearer(device.token)) as response:
            assert response.status_code == 200
            yield Listener(response)

    async def streams(self) -> int:
        text = (await self.http.get("/metrics")).text
        [line] = [line for line in text.splitlines() if line.startswith("metricsd_cloud_streams ")]
        return int(float(line.split()[1]))

    async def until_streams(self, count: int) -> None:
        deadline = time.monotonic() + WITHIN_S
        while await self.streams() != count:
            assert time.monotonic() < deadline, f"not {count} streams"
            await asyncio.sleep(0.02)


@pytest.fixture
async def served(cloud_place: Path | str) -> AsyncIterator[Served]:
    async with Served(cloud_place, QUICK) as made:
        yield made


async def test_another_device_of_the_user_is_told_and_nobody_else(served: Served) -> None:
    """Not the writer itself, not another user, not another tenant; the number is the newest change's."""
    ann = [await served.cloud.device(name=name) for name in ("one", "two")]
    ben = await served.cloud.device(user="ben")
    other = await served.cloud.device(tenant="other")
    async with contextlib.AsyncExitStack() as stack:
        first, second, bens, others = [
            await stack.enter_async_context(served.listen(device)) for device in (*ann, ben, other)
        ]
        for listener in (first, second, bens, others):
            await listener.opened()
        await served.push(ann[0])
        assert (await second.announced()).change == 1
        await served.push(ann[1])
        assert (await first.announced()).change == 2
        await served.push(ben)
        await served.push(ann[0], 2)
        assert (await second.announced()).change == 4
        for listener in (first, bens, others):
            assert await listener.next(beats=True) == ("", b""), "told of what is not its own"


async def test_a_record_is_news_too(served: Served) -> None:
    """A hand edit is a record, not an event."""
    one, two = [await served.cloud.device(name=name) for name in ("one", "two")]
    async with served.listen(two) as listener:
        await listener.opened()
        change = {"type": "session", "id": "s", "fields": {"description": "x"}, "stamps": {}}
        body = {"device_id": one.id, "changes": [change]}
        await served.http.post("/sync/v1/records", json=body, headers=bearer(one.token))
        assert (await listener.announced()).change == 1


async def test_what_this_process_stored_is_told_at_once(tmp_path: Path) -> None:
    """Not at the next look of the watch, which is a minute away here."""
    async with Served(tmp_path / "cloud", SLOW_POLL) as served:
        one, two = [await served.cloud.device(name=name) for name in ("one", "two")]
        async with served.listen(two) as listener:
            await listener.opened()
            took = []
            for number in range(1, 6):
                began = time.monotonic()
                await served.push(one, number)
                assert (await listener.announced()).change == number
                took.append(time.monotonic() - began)
            assert sorted(took)[2] < 5.0


async def test_what_another_process_stored_is_told_at_the_next_look(served: Served) -> None:
    """Two processes on one database: the listener of one hears of the pushes to the other."""
    one, two = [await served.cloud.device(name=name) for name in ("one", "two")]
    async with served.listen(two) as listener, served.cloud.another() as elsewhere:
        await listener.opened()
        await one.on(elsewhere).push(events(3))
        assert (await listener.announced()).change == 3


async def test_nothing_is_missed_between_opening_and_telling(served: Served) -> None:
    """Whatever is stored while a stream opens is either before `open`'s number or announced."""
    one, two = [await served.cloud.device(name=name) for name in ("one", "two")]
    for number in range(1, 21):
        pushing = asyncio.create_task(served.push(one, number))
        async with served.listen(two) as listener:
            at_open = (await listener.opened()).change
            await pushing
            if at_open < number:
                # The number may be lower although the row was there: then the pull after `open` has it.
                page = await two.changes()
                if len(page["items"]) < number:
                    assert (await listener.announced()).change == number


async def test_a_silent_stream_beats(served: Served) -> None:
    """A comment line within the setting, so that a dead connection is told from a quiet one."""
    device = await served.cloud.device()
    async with served.listen(device) as listener:
        assert (await listener.opened()).heartbeat_s == QUICK.heartbeat_s
        began = time.monotonic()
        assert await listener.next(beats=True) == ("", b"")
        assert await listener.next(beats=True) == ("", b"")
        assert time.monotonic() - began < 2 * QUICK.heartbeat_s + 3.0


async def test_many_changes_are_one_word(served: Served) -> None:
    """A listener that does not read holds one number, not a queue; the answers of the writer do not wait for it."""
    one, two = [await served.cloud.device(name=name) for name in ("one", "two")]
    async with served.listen(two) as listener:
        await listener.opened()
        for number in range(1, 101):
            await served.push(one, number)
        told = 0
        words = 0
        while told < 100:
            told = (await listener.announced()).change
            words += 1
        assert words < 100


async def test_a_second_stream_of_a_device_ends_the_first(served: Served) -> None:
    """One connection a device: the newer one is the one that lives."""
    device = await served.cloud.device()
    async with served.listen(device) as first:
        await first.opened()
        async with served.listen(device) as second:
            await second.opened()
            assert await first.ended() == "replaced"
            await served.until_streams(1)
            other = await served.cloud.device(name="other")
            await served.push(other)
            assert (await second.announced()).change == 1


async def test_a_revoked_token_ends_its_stream(served: Served) -> None:
    """Within a look of the watch; the other stream goes on, and the token opens none again."""
    gone, stays = [await served.cloud.device(name=name) for name in ("gone", "stays")]
    [row] = [token for token in await served.cloud.backend.directory.list_tokens(None) if token.device == gone.id]
    async with served.listen(gone) as listener, served.listen(stays) as other:
        await listener.opened()
        await other.opened()
        began = time.monotonic()
        async with served.cloud.another() as elsewhere:
            await revoke_token(elsewhere.backend.directory, row.id, served.cloud.clock, actor="test")
        assert await listener.ended() == "revoked"
        assert time.monotonic() - began < 5.0
        assert await other.next(beats=True) == ("", b"")
    assert (await served.http.get(STREAM, headers=bearer(gone.token))).status_code == 401


async def test_only_a_device_may_listen(served: Served) -> None:
    """Without a token 401; a token of another scope 403."""
    await served.cloud.tenant()
    assert (await served.http.get(STREAM)).status_code == 401
    for scope in (Scope.ENROL, Scope.READ, Scope.ADMIN):
        reply = await served.http.get(STREAM, headers=bearer(await served.cloud.token(scope)))
        assert (reply.status_code, reply.json()["code"]) == (403, "wrong_scope")


async def test_streams_are_bounded(served: Served) -> None:
    """Above the limit 503 with a time to come back; a device that replaces its own always may; one that left makes room."""
    devices = [await served.cloud.device(name=f"d{number}") for number in range(QUICK.streams_max + 1)]
    async with contextlib.AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(served.listen(device)) for device in devices[:-1]]
        for listener in listeners:
            await listener.opened()
        reply = await served.http.get(STREAM, headers=bearer(devices[-1].token))
        assert (reply.status_code, reply.json()["code"]) == (503, "streams_full")
        assert int(reply.headers["retry-after"]) >= 10
        again = await stack.enter_async_context(served.listen(devices[0]))
        await again.opened()
        await served.until_streams(QUICK.streams_max)
    await served.until_streams(0)
    async with served.listen(devices[-1]) as listener:
        await listener.opened()


async def test_a_stop_ends_streams_at_once(tmp_path: Path) -> None:
    """With a word why, and without waiting for the drain's limit."""
    async with Served(tmp_path / "cloud", QUICK._replace(drain_timeout_s=30.0)) as served:
        device = await served.cloud.device()
        async with served.listen(device) as listener:
            await listener.opened()
            began = time.monotonic()
            stopping = asyncio.create_task(served.server.stop())
            assert await listener.ended() == "drain"
            await asyncio.wait_for(stopping, WITHIN_S)
            assert time.monotonic() - began < 5


async def test_a_client_that_hangs_up_is_forgotten(served: Served) -> None:
    """The stream, its place and the tenant's watch go with it."""
    device = await served.cloud.device()
    for _ in range(3):
        async with served.listen(device) as listener:
            await listener.opened()
    await served.until_streams(0)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("stream-")]


async def test_a_user_with_many_devices_is_told_to_spread(served: Served) -> None:
    """Each of them waits a random part of a time that grows with their number."""
    devices = [await served.cloud.device(name=f"d{number}") for number in range(3)]
    async with served.listen(devices[0]) as first, served.listen(devices[1]) as second:
        await first.opened()
        await second.opened()
        await served.push(devices[2])
        assert (await first.announced()).spread_ms > 0


@pytest.mark.only_sqlite
async def test_a_database_that_went_back_is_news(served: Served) -> None:
    """Its number is lower than what was told: everybody is called to pull, and learns there that history changed."""
    one, two = [await served.cloud.device(name=name) for name in ("one", "two")]
    async with served.listen(two) as listener:
        await listener.opened()
        for number in range(1, 4):
            await served.push(one, number)
        while (await listener.announced()).change < 3:
            continue
        [file] = served.cloud.tenant_files()
        import sqlite3

        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
            db.execute("UPDATE counter SET change = 1")
        assert (await listener.announced()).change == 1
