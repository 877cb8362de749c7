"""Eight weeks without the cloud: memory, store and WAL stay within their limits, and the first sync is complete."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

import psutil
import pytest

from metricsd.clock import US_PER_S
from metricsd.config import Config, load_config
from metricsd.store.backup import backup
from metricsd.store.connection import wal_of
from metricsd.store.counters import close_idle
from metricsd.storekeeper import StoreKeeper
from metricsd.sync.engine import Engine
from metricsd.syncing import until_done
from tests.fakes import FakeClock
from tests.store.reference import encode
from tests.sync.world import Device, World

T = TypeVar("T")

DAYS = 56
WARM_DAYS = 14
"""Caches fill and SQLite takes its share in the first days."""
GROWTH_BYTES_MAX = 8 * 1024 * 1024
ROUNDS_PER_DAY = 4
EVENT_BYTES_MAX = 400
"""Of the store, all indexes and totals included."""
BASE_BYTES = 1024 * 1024


class Days:
    """One device that lives offline: hooks write, the daemon's parts do their regular work."""

    def __init__(self, world: World, device: Device, clock: FakeClock) -> None:
        device.store.close()
        self.clock = clock
        self.paths = device.paths
        self.config: Config = load_config(device.paths, {}, system_file=Path("/none"))
        self.keeper = StoreKeeper(device.paths, self.config, clock)
        self.keeper.open()
        self.engine = Engine(
            device.paths, self.keeper.store, self.config.sync, clock=clock, run=self._run, rng=Random(1),
            connect=world.connect,
        )  # fmt: skip
        self.written: list[int] = []

    async def _run(self, work: Callable[..., T], /, *args: object) -> T:
        return self.keeper.call(work, *args)

    def work(self, events: int) -> None:
        """Write captures and take them in."""
        new = self.paths.spool / "new"
        for _ in range(events):
            number = len(self.written)
            second = self.clock.now_us() // US_PER_S
            path = new / f"PostToolUse-{number}-1-0.jsonl"
            path.write_bytes(encode(number, s=second))
            os.utime(path, ns=(0, self.clock.now_us() * 1000))
            self.written.append(number)
        while self.keeper.tick().more:
            continue
        assert not any(new.iterdir())

    async def day(self, events: int) -> None:
        """Live one day."""
        for _ in range(ROUNDS_PER_DAY):
            self.work(events // ROUNDS_PER_DAY)
            report = await self.engine.tick()
            assert report.error is not None
            assert self.keeper.check() is None
            assert wal_of(self.paths.store).stat().st_size <= self.config.store.wal_bytes_max
            self.clock.advance(86_400 / ROUNDS_PER_DAY)
        self.keeper.call(close_idle, self.keeper.store, US_PER_S)
        backup(self.keeper.store, self.paths.backups, keep=self.config.store.backup_keep)

    async def close(self) -> None:
        await self.engine.close()
        self.keeper.close()


def memory_bytes() -> int:
    """Return what this process holds."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


async def live(world: World, clock: FakeClock, per_day: int) -> None:
    """Live through the weeks and come back."""
    device, other = await world.device("one"), await world.device("two")
    days = Days(world, device, clock)
    await world.stop()
    warm = 0
    for day in range(DAYS):
        await days.day(per_day)
        if day == WARM_DAYS:
            warm = memory_bytes()
    grown = memory_bytes() - warm
    assert grown < GROWTH_BYTES_MAX, f"{grown} bytes more than after {WARM_DAYS} days"
    total = len(days.written)
    assert days.paths.store.stat().st_size < BASE_BYTES + EVENT_BYTES_MAX * total
    assert len(list(days.paths.backups.glob("*.db"))) == days.config.store.backup_keep
    await world.start()
    report = await until_done(lambda: days.engine.tick(reason="demand"))
    assert report.ok
    assert report.pushed_events == total
    assert world.event_ids().total() == total
    assert max(world.event_ids().values()) == 1
    while (await other.sync()).more:
        continue
    assert other.event_ids() == world.event_ids()
    assert other.counted() == other.rolled_up() == total
    stored = Counter(row[0] for row in days.keeper.store.db.execute("SELECT duration_ms FROM event"))
    assert stored == Counter(days.written)
    await days.close()


async def test_eight_weeks_offline_are_flat_and_the_first_sync_is_complete(world: World, clock: FakeClock) -> None:
    """A fortieth of the events of a busy developer."""
    await live(world, clock, 24)


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_eight_weeks_of_a_thousand_events_a_day(world: World, clock: FakeClock) -> None:
    """56,000 events."""
    await live(world, clock, 1000)
