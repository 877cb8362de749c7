"""Simulated days of real engines, real SQLite stores and the real cloud app, in one loop of virtual time.

Three devices record events, edit, tag and delete sessions, sync every two hours and when they like, on a network that
loses requests and answers, with machines that crash in the middle of a round and clocks that are wrong. At midnight
all is well again, and everybody must hold the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path
from random import Random

import httpx
import pytest

from metricsd.protocol import FieldValue
from metricsd.store import conflict_log, records, state
from metricsd.store.outbox import CURSOR
from tests.sim.virtual import LoopClock, VirtualLoop
from tests.sync.world import Device, Network, World

SEEDS = 64
PARTS = 8
SEEDS_SOAK = 4_000
DAY_S = 86_400.0
ROUND_S = 9_000.0
ACTS = 14
"""Edits and batches of events of one device in a day."""
CALM_ROUNDS_MAX = 6
SESSIONS = ("claude-code/s-0", "claude-code/s-1")
SKEWS_S = (0.0, 0.0, -3_600.0, 200.0, 400.0, 10 * 365 * DAY_S)


class BusyNetwork(Network):
    """The way to the cloud; virtual time stands still while the cloud's threads work."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    async def _ask(self, request: httpx.Request, body: bytes) -> httpx.Response:
        with self._loop.working():
            return await super()._ask(request, body)


class Day:
    """One seed's day."""

    def __init__(self, seed: int, root: Path, loop: VirtualLoop) -> None:
        self.rng = Random(seed)
        self.loop = loop
        self.world = World(root, LoopClock(loop))
        self.world.network = BusyNetwork(loop)
        self.cut: set[str] = set()
        self.calm = False
        self.ids: set[bytes] = set()
        self.cursors: dict[str, int] = {}

    async def play(self) -> None:
        """Live the day, then judge."""
        with self.loop.working():
            await self.world.start()
        devices = []
        for name in ("one", "two", "three"):
            clock = LoopClock(self.loop)
            devices.append(await self.world.device(name, clock=clock))
            clock.skew_s = self.rng.choice(SKEWS_S)
        try:
            self.world.network.fault = self._fault
            async with asyncio.TaskGroup() as group:
                for device in devices:
                    group.create_task(self._live(device, Random(self.rng.random())))
            self.calm = True
            await self._settle(devices)
            self._judge(devices)
        finally:
            with self.loop.working():
                await self.world.close()

    async def _live(self, device: Device, rng: Random) -> None:
        end = self.loop.time() + DAY_S
        sync_at = self.loop.time() + rng.random() * ROUND_S
        acts = sorted(self.loop.time() + rng.random() * DAY_S for _ in range(ACTS))
        while (now := self.loop.time()) < end:
            wake = min([sync_at, end, *acts[:1]])
            await asyncio.sleep(max(wake - now, 0))
            if acts and wake == acts[0]:
                acts.pop(0)
                self._act(device, rng)
            elif wake == sync_at:
                sync_at += ROUND_S
                await self._sync(device, rng)

    def _act(self, device: Device, rng: Random) -> None:
        share = rng.random()
        session = rng.choice(SESSIONS)
        if share < 0.4:
            self.ids.update(device.record(rng.randint(1, 60), session=session.partition("/")[2]))
            return
        if share > 0.97 and isinstance(device.clock, LoopClock):
            device.clock.skew_s = rng.choice(SKEWS_S)
        fields: dict[str, FieldValue] = {}
        record = records.get(device.store, "session", session)
        if share < 0.65:
            fields["description"] = f"{device.root.name} at {self.loop.time():.0f}"
        elif share < 0.92:
            known = record.version.fields.get("tags") if record is not None else None
            tags = list(known) if isinstance(known, list) else []
            fields["tags"] = tags[1:] if len(tags) > 2 else [*tags, f"t{self.rng.getrandbits(40)}"]
        delete = not fields and record is not None
        with device.store.transaction():
            records.edit(device.store, "session", session, fields, delete=delete)

    async def _sync(self, device: Device, rng: Random) -> None:
        """Sync, or die in the middle of it."""
        if rng.random() < 0.25:
            self.cut ^= {device.root.name}
        task = asyncio.create_task(device.sync())
        if rng.random() < 0.12:
            for _ in range(rng.randint(1, 120)):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await device.engine.close()
            device.store.db.close()
            device.open()
            return
        await task
        self._watch_cursor(device)

    def _watch_cursor(self, device: Device) -> None:
        name = device.root.name
        number = int(state.get_text(device.store, CURSOR).partition("-")[0] or 0)
        assert number >= self.cursors.get(name, 0), f"{name}: the cursor went back"
        self.cursors[name] = number

    def _fault(self, _: httpx.Request) -> str | None:
        if self.calm:
            return None
        if self.cut and self.rng.random() < 0.3 * len(self.cut):
            return "before"
        return self.rng.choice(("before", "after", "twice", "503")) if self.rng.random() < 0.08 else None

    async def _settle(self, devices: list[Device]) -> None:
        for _ in range(CALM_ROUNDS_MAX):
            for device in devices:
                report = await device.sync()
                assert report.ok, report.error
            if self._difference(devices) is None:
                return

    def _difference(self, devices: list[Device]) -> str | None:
        """Return what two replicas hold differently; None when all are equal."""
        cloud = self.world.event_ids()
        first = _records_of(devices[0])
        for device in devices:
            if device.event_ids() != cloud:
                return f"{device.root.name}: other events than the cloud"
            if device.counted() != len(cloud):
                return f"{device.root.name}: counts {device.counted()} of {len(cloud)} events"
            if records.pending_count(device.store) or conflict_log.count_open(device.store):
                return f"{device.root.name}: something waits or is open"
            if _records_of(device) != first:
                return f"{device.root.name}: other records than {devices[0].root.name}: {_records_of(device)} {first}"
        return None

    def _judge(self, devices: list[Device]) -> None:
        difference = self._difference(devices)
        assert difference is None, difference
        cloud = self.world.event_ids()
        assert set(cloud) == self.ids, "events were lost, or came from nowhere"
        assert set(cloud.values()) <= {1}
        assert self.world.counted() == len(self.ids)
        for device in devices:
            assert (device.counted(), device.rolled_up()) == (len(self.ids), len(self.ids))


def _records_of(device: Device) -> dict[str, object]:
    """Return what each session says, in its wire form: None for a deleted one."""
    found: dict[str, object] = {}
    for session in SESSIONS:
        record = records.get(device.store, "session", session)
        if record is not None:
            version = record.version
            fields = {name: value for name, value in version.fields.items() if value is not None}
            found[session] = None if version.deleted else fields
    return found


def play(seed: int) -> None:
    """Live one day; the message of a failure names the seed."""
    # Crashes are of processes, not of machines: memory is as good as a disk, and days pass faster.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="metricsd-day-", dir=memory) as folder:
        loop = VirtualLoop()
        try:
            loop.run_until_complete(Day(seed, Path(folder), loop).play())
        except Exception as error:
            error.add_note(f"seed {seed}: tests.sim.test_days.play({seed})")
            raise
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_days_end_well(part: int) -> None:
    """After a day of faults nothing is lost or doubled, and all replicas and counters are equal."""
    for seed in range(part, SEEDS, PARTS):
        play(seed)


@pytest.mark.soak
def test_many_days_end_well() -> None:
    """The same for some hours."""
    for seed in range(SEEDS, SEEDS_SOAK):
        play(seed)
