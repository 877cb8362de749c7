"""A store made of a backup, of a damaged file, or of nothing meets the cloud: nothing synced is lost, nothing doubled."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import httpx
import pytest

from metricsd.config import load_config
from metricsd.store import outbox, records
from metricsd.store.backup import backup
from metricsd.storekeeper import StoreKeeper
from tests.keeping import pages_of, ruin
from tests.sync.world import Device, World

DAMAGES = ("first page", "root of the events", "last page", "middle", "gone")


def repaired(device: Device, how: str) -> None:
    """Damage the closed store, repair it as the daemon's next start does, and open it again."""
    path = device.paths.store
    root = device.store.db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'event'").fetchone()[0]
    device.store.close()
    match how:
        case "first page":
            ruin(path, 0)
        case "root of the events":
            ruin(path, root - 1)
        case "last page":
            ruin(path, pages_of(path) - 1)
        case "middle":
            ruin(path, pages_of(path) * 2 // 3)
        case _:
            path.unlink()
    if path.exists():
        path.with_name(path.name + "-wal").write_bytes(b"\0")
    keeper = StoreKeeper(device.paths, load_config(device.paths, {}, system_file=Path("/none")), device.clock)
    assert keeper.open() is None
    keeper.close()


async def settled(*devices: Device) -> None:
    """Sync until nobody has anything to say."""
    for _ in range(3):
        for device in devices:
            report = await device.sync()
            assert report.ok, report.error


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("with_backup", [True, False], ids=["backup", "no backup"])
async def test_what_the_cloud_has_comes_back_and_what_it_lacks_is_sent(
    world: World, how: str, with_backup: bool
) -> None:
    """Synced before the backup, after it, and not at all; another device and the cloud agree at the end."""
    device, other = await world.device("one"), await world.device("two")
    ids = device.record(120, session="s-1")
    with device.store.transaction():
        records.edit(device.store, "session", "claude-code/s-1", {"description": "by hand"})
    await settled(device)
    if with_backup:
        backup(device.store, device.paths.backups, keep=1)
    ids += device.record(120, session="s-2")
    await settled(device)
    synced = Counter(ids)
    unsynced = Counter(device.record(60, session="s-3"))
    await device.engine.close()
    repaired(device, how)
    device.open()
    device.record(5, session="s-4", tag="later")
    await settled(device, other, device, other)
    here, cloud, there = device.event_ids(), world.event_ids(), other.event_ids()
    assert here == cloud == there
    assert max(here.values()) == 1
    assert not synced - here, "what the cloud had is there again"
    if how == "middle":
        assert (unsynced & here).total() > 0, "what could be read of the rest is there too"
    assert device.rolled_up() == other.rolled_up() == here.total()
    assert device.counted() == other.counted() == here.total()
    record = records.get(device.store, "session", "claude-code/s-1")
    assert record is not None
    assert record.version.fields == {"description": "by hand"}


async def test_a_repaired_store_goes_on_as_a_new_device_once(world: World) -> None:
    """The device that enrols again names the old one; later rounds keep the new id."""
    device = await world.device("one")
    device.record(10)
    await settled(device)
    first = outbox.find(device.store)
    await device.engine.close()
    backup(device.store, device.paths.backups, keep=1)
    repaired(device, "first page")
    device.open()
    doubted = outbox.find(device.store)
    assert doubted is not None
    assert doubted.epoch == outbox.IN_DOUBT
    await settled(device)
    second = outbox.find(device.store)
    assert first is not None
    assert second is not None
    assert second.device_id != first.device_id
    assert second.epoch == outbox.FIRST_EPOCH
    device.record(3, tag="more")
    await settled(device)
    third = outbox.find(device.store)
    assert third is not None
    assert third.device_id == second.device_id
    assert device.event_ids() == world.event_ids()


@pytest.mark.parametrize("with_backup", [True, False], ids=["backup", "no backup"])
async def test_a_round_that_began_on_the_store_before_notes_nothing_in_the_one_after(
    world: World, with_backup: bool
) -> None:
    """The store is repaired while the cloud is asked: the answer is about other positions."""
    device = await world.device("one")
    device.record(40, session="s-1")
    await settled(device)
    if with_backup:
        backup(device.store, device.paths.backups, keep=1)
    device.record(40, session="s-2")
    asked = 0

    def replace(request: httpx.Request) -> str | None:
        nonlocal asked
        if request.url.path.endswith("/events"):
            asked += 1
            if asked == 1:
                repaired(device, "first page")
                device.store.reopen()
                device.record(60, session="s-3", tag="after")
        return None

    world.network.fault = replace
    report = await device.sync()
    assert asked
    assert report.error is not None
    assert "put back" in report.error.message
    await settled(device)
    assert device.event_ids() == world.event_ids()
    assert device.rolled_up() == device.event_ids().total() >= 140
