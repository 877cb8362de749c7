"""The same folder on two devices of one person."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metricsd import spool
from metricsd.config import Tail as Settings
from metricsd.store import sources
from metricsd.store.ingest import Ingest
from metricsd.tail import Tail
from tests.fakes import FakeClock
from tests.older.support import RECORDED
from tests.sync.world import Device, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, FakeClock())
    await made.start()
    yield made
    await made.close()


def take_in(device: Device, folder: Path) -> list[bytes]:
    """Read a person's folders into a device's store; return the ids that are there."""
    settings = Settings(older_hooks=(str(folder / "agent" / "metrics"), str(folder / "mesh" / "metrics")))
    place = device.root / "spool"
    spool.ensure_spool(place)
    checkpoints = sources.load_all(device.store)
    tail = Tail(Ingest(device.store), place, settings, b"k" * 32, device.clock, checkpoints)
    while tail.tick().more:
        continue
    tail.close()
    return sorted(row[0] for row in device.store.db.execute("SELECT id FROM event"))


@pytest.mark.parametrize(("name", "events"), [("first", 17), ("second", 17), ("six", 66)])
async def test_the_same_folder_is_the_same_events(world: World, tmp_path: Path, name: str, events: int) -> None:
    """Copied to another laptop it has the same ids, and the cloud and both laptops count each event once."""
    one, other = await world.device("one"), await world.device("other")
    shutil.copytree(RECORDED / name, tmp_path / "copy")
    ids = take_in(one, RECORDED / name)
    assert take_in(other, tmp_path / "copy") == ids
    for device in (one, other, one, other):
        await device.engine.tick()
    found = world.event_ids()
    assert (sorted(found), set(found.values()), world.counted()) == (ids, {1}, events)
    for device in (one, other):
        assert device.store.db.execute("SELECT sum(n) FROM rollup").fetchone()[0] == events
