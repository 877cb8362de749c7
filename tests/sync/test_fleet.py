"""A thousand devices of one tenant on the real client schedule, the real client and the real cloud, in virtual time.

Only the device's store is left out, which no other device can feel; that the engine plans by the same functions has a
test of its own here, and the soak runs whole engines.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from pathlib import Path
from random import Random

import msgspec
import pytest

from metricsd.client import CloudClient
from metricsd.clock import US_PER_S
from metricsd.cloud.streams import Stream, Streams
from metricsd.errors import CloudBusy, CloudError
from metricsd.protocol import HelloRequest
from metricsd.store import outbox, state
from metricsd.sync import plan
from metricsd.sync.engine import NEXT
from metricsd.sync.login import login
from tests.cloud.support import event
from tests.fakes import FakeClock
from tests.sync.world import SETTINGS, URL, World

DEVICES = 1000
DEVICES_PER_USER = 2
INTERVAL_S = 300.0
TICKS_A_SECOND_MAX = 20
"""A thousand in 300 s are 3.3 a second; 20 in one has a chance of about one in a billion. A herd would be hundreds."""
RECOVERY_A_SECOND_MAX = 60
STEP_US = 100_000


class Laptop:
    """One device: what a round asks of the cloud, and when the real schedule has its next one."""

    def __init__(self, fleet: Fleet, device: str, token: str) -> None:
        self.fleet = fleet
        self.device = device
        self.client = CloudClient(URL, token, SETTINGS, transport=fleet.world.network)
        self.offset_s = plan.offset_s(device, INTERVAL_S)
        self.acked, self.acked_id, self.cursor, self.failures = 0, "", "", 0
        self.got = 0

    async def round(self) -> int:
        """Do one round and return when the next is due (microseconds)."""
        clock = self.fleet.world.clock
        try:
            await self._ask()
        except CloudError as error:
            self.failures += 1
            self.fleet.failed[type(error).__name__] += 1
            wanted_s = error.retry_after_s if isinstance(error, CloudBusy) else None
            pause_s = plan.backoff_s(self.failures, SETTINGS.backoff_max_s, wanted_s, self.fleet.rng)
            return clock.now_us() + int(pause_s * US_PER_S)
        self.failures = 0
        return plan.next_regular_us(clock.now_us(), INTERVAL_S, self.offset_s)

    async def _ask(self) -> None:
        said = HelloRequest(
            device_id=self.device, epoch=1, acked_seq=self.acked, acked_id=self.acked_id, cursor=self.cursor
        )
        reply = await self.client.hello(said)
        assert (reply.last_seq, reply.cursor_ok) == (self.acked, True)
        one = event(self.acked + 1)
        body = {"device_id": self.device, "epoch": 1, "base_seq": self.acked, "events": [one]}
        pushed = await self.client.push_events(msgspec.json.encode(body))
        assert [result.status for result in pushed.results] == ["stored"]
        self.acked, self.acked_id = pushed.acked_through, one["id"]
        page = await self.client.changes(self.cursor, 1000)
        self.got += len(page.items)
        self.cursor = page.cursor


class Fleet:
    """All devices, and the virtual time in which they come when they are due."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = Random(1)
        self.failed: Counter[str] = Counter()
        self.laptops: list[Laptop] = []
        self._due: list[tuple[int, int]] = []

    async def enrol(self, count: int) -> None:
        """Make the devices; every one is due now, as when a whole office logs in at nine."""
        for number in range(count):
            if number % DEVICES_PER_USER == 0:
                token = await self.world.token(f"user {number // DEVICES_PER_USER}")
            made = await CloudClient(URL, token, SETTINGS, transport=self.world.network).enrol(f"laptop {number}")
            self.laptops.append(Laptop(self, made.device_id, made.device_token))
            self._due.append((self.world.clock.now_us(), number))

    async def run(self, seconds: float) -> Counter[int]:
        """Let the time pass; return how many rounds began in each second. Devices due within a step run at once."""
        until_us = self.world.clock.now_us() + int(seconds * US_PER_S)
        began: Counter[int] = Counter()
        while self._due and self._due[0][0] <= until_us:
            # Those of a step come together at its end, never before their time.
            now = max(min(self._due[0][0] + STEP_US, until_us), self.world.clock.now_us())
            self.world.clock.advance((now - self.world.clock.now_us()) / US_PER_S)
            together = []
            while self._due and self._due[0][0] <= now:
                together.append(heapq.heappop(self._due)[1])
            began[now // US_PER_S] += len(together)
            # A cloud's write queue has a bound; what is above it is told to come back, which is part of the test.
            for number, due in zip(
                together, await asyncio.gather(*[self.laptops[number].round() for number in together]), strict=True
            ):
                heapq.heappush(self._due, (due, number))
        self.world.clock.advance((until_us - self.world.clock.now_us()) / US_PER_S)
        return began


@pytest.fixture
async def fleet(world: World) -> Fleet:
    return Fleet(world)


async def test_a_thousand_devices_come_one_after_the_other(fleet: Fleet) -> None:
    """They all logged in at the same moment; from then on each has its own place in the interval, and no error occurs.

    After an outage that hit a third of them they come back spread by the jitter of their pauses, not together.
    """
    await fleet.enrol(DEVICES)
    # The first rounds are at the login itself, which a person makes at a person's pace: 50 at a time here.
    for laptop_group in range(0, DEVICES, 50):
        await asyncio.gather(*[laptop.round() for laptop in fleet.laptops[laptop_group : laptop_group + 50]])
    now = fleet.world.clock.now_us()
    fleet._due = [(plan.next_regular_us(now, INTERVAL_S, one.offset_s), n) for n, one in enumerate(fleet.laptops)]
    heapq.heapify(fleet._due)

    first = await fleet.run(INTERVAL_S)
    assert sum(first.values()) == DEVICES
    assert max(first.values()) <= TICKS_A_SECOND_MAX
    assert fleet.failed == {}
    # Every device has its own two events in the cloud, and the other laptop of its user has seen at least the first.
    assert all(laptop.acked == 2 and laptop.got >= 1 for laptop in fleet.laptops)

    app, fleet.world.network.app = fleet.world.network.app, None
    await fleet.run(100.0)
    assert set(fleet.failed) == {"CloudUnreachable"}
    fleet.world.network.app = app
    fleet.failed.clear()
    after = await fleet.run(INTERVAL_S)
    assert max(after.values()) <= RECOVERY_A_SECOND_MAX
    assert fleet.failed == {}
    assert all(laptop.acked >= 3 for laptop in fleet.laptops)


async def test_the_engine_plans_by_the_same_functions(world: World) -> None:
    """Whenever a round ended, the next lies on the device's own place in the interval."""
    for number in range(5):
        device = await world.device(f"d{number}")
        world.clock.advance(77.7)
        assert (await device.sync()).ok
        planned = state.get_int(device.store, NEXT)
        found = outbox.find(device.store)
        assert found is not None
        offset_s = plan.offset_s(found.device_id, SETTINGS.interval_s)
        assert planned == plan.next_regular_us(world.clock.now_us(), SETTINGS.interval_s, offset_s)


async def test_a_thousand_listeners_are_told_exactly_what_is_theirs(world: World) -> None:
    """Each push wakes the other device of its user and nobody else, and a look costs milliseconds."""
    fleet = Fleet(world)
    await fleet.enrol(DEVICES)
    assert world._backend is not None
    streams = Streams(world._backend, world.settings._replace(streams_max=DEVICES, stream_poll_s=60.0), world.clock)
    [tenant] = await world._backend.directory.list_tenants()
    tokens = {token.device: token for token in await world._backend.directory.list_tokens("team") if token.device}
    opened = [await streams.enter(tokens[laptop.device], laptop.device) for laptop in fleet.laptops]
    assert len(streams) == DEVICES
    writers = range(0, DEVICES, 10)
    for number in writers:
        await fleet.laptops[number].round()
    began = time.perf_counter()
    streams.wake(tenant)
    await _until_told(opened[writers[-1] + 1])
    assert time.perf_counter() - began < 5.0
    told = {number for number, stream in enumerate(opened) if stream.newest > stream.told}
    assert told == {number + 1 for number in writers}
    for stream in opened:
        streams.leave(stream)
    assert len(streams) == 0


async def _until_told(stream: Stream) -> None:
    async with asyncio.timeout(10.0):
        await stream.moved.wait()


@pytest.mark.soak
async def test_a_thousand_whole_devices_over_two_intervals(tmp_path: Path, clock: FakeClock) -> None:
    """The same with real stores and engines, each opened for its round: no error, no herd."""
    world = World(tmp_path, clock)
    await world.start()
    devices = []
    for number in range(DEVICES):
        device = world.unborn(f"d{number}")
        token = await world.token(f"user {number // DEVICES_PER_USER}")
        await login(device.paths, URL, token, f"laptop {number}", SETTINGS, connect=world.connect)
        assert (await device.sync()).ok
        devices.append((state.get_int(device.store, NEXT), number, device))
        await device.close()
    heapq.heapify(devices)
    began: Counter[int] = Counter()
    until_us = clock.now_us() + int(2 * INTERVAL_S * US_PER_S)
    while devices[0][0] <= until_us:
        due, number, device = heapq.heappop(devices)
        clock.advance(max(due - clock.now_us(), 0) / US_PER_S)
        began[due // US_PER_S] += 1
        device.open()
        device.record(3)
        report = await device.engine.tick()
        assert report.ok, report.error
        heapq.heappush(devices, (state.get_int(device.store, NEXT), number, device))
        await device.close()
    assert sum(began.values()) >= 2 * DEVICES
    assert max(began.values()) <= TICKS_A_SECOND_MAX
    world._devices.clear()
    await world.stop()
