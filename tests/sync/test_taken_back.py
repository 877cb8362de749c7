"""What devices see when a device's data is taken back in the cloud, or their tenant is suspended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from metricsd import identity
from metricsd.cloud import tenants
from metricsd.store import records
from metricsd.sync.login import login
from tests.fakes import FakeClock
from tests.sync.world import SETTINGS, URL, Device, World


@pytest.fixture
async def world(tmp_path: Path, clock: FakeClock) -> AsyncIterator[World]:
    made = World(tmp_path, clock)
    await made.start()
    yield made
    await made.close()


async def take_back(asking: Device, named: Device) -> None:
    """Let one device ask for another's data, or its own."""
    app: Any = asking.world.network.app
    token = identity.get_credentials(asking.paths).token
    device = identity.get_credentials(named.paths).device_id
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=URL) as client:
        reply = await client.delete(f"/sync/v1/devices/{device}/data", headers={"authorization": f"Bearer {token}"})
    assert reply.status_code == 200, reply.text


def describe(device: Device, text: str, session: str = "claude-code/s-1") -> None:
    with device.store.transaction():
        records.edit(device.store, "session", session, {"description": text})


def description(device: Device, session: str = "claude-code/s-1") -> object:
    """Return a session's description as the device has it; None for a deleted record."""
    found = records.get(device.store, "session", session)
    assert found is not None
    return None if found.version.deleted else found.version.fields.get("description")


async def test_the_device_uploads_nothing_again_by_itself(world: World) -> None:
    """Its next syncs stop at the login, whatever it records meanwhile; the cloud stays without its data."""
    device = await world.device("one")
    device.record(3)
    assert (await device.sync()).error is None
    await take_back(device, device)
    device.record(2)
    for _ in range(3):
        report = await device.sync()
        assert report.error is not None and report.error.code == "auth"
        world.clock.advance(600)
    assert not world.event_ids() and world.counted() == 0
    assert sum(device.event_ids().values()) == 5


async def test_other_devices_hear_of_records_and_keep_their_own(world: World) -> None:
    """What that device alone had described is gone everywhere, its counters are zero, others' words stay."""
    gone, kept = await world.device("one"), await world.device("two")
    gone.record(3, session="s-1")
    describe(gone, "theirs")
    await gone.sync()
    kept.record(2, session="s-2")
    describe(kept, "mine", "claude-code/s-2")
    await kept.sync()
    assert description(kept) == "theirs" and kept.counted() == 5
    await take_back(kept, gone)
    report = await kept.sync()
    assert report.error is None and report.rejected == []
    assert description(kept) is None and description(kept, "claude-code/s-2") == "mine"
    assert kept.counted() == 2 and world.counted() == 2
    third = await world.device("three")
    await third.sync()
    assert sum(third.event_ids().values()) == 2 and third.counted() == 2
    assert records.get(third.store, "session", "claude-code/s-1") is None or description(third) is None


async def test_logging_in_again_offers_everything_again(world: World) -> None:
    """Because somebody decided so; nothing is doubled for those who still have it."""
    device, other = await world.device("one"), await world.device("two")
    device.record(3)
    await device.sync()
    await other.sync()
    await take_back(device, device)
    await login(device.paths, URL, await world.token(), "one", SETTINGS, connect=world.connect)
    assert (await device.sync()).error is None
    await other.sync()
    assert device.event_ids() == other.event_ids() == world.event_ids()
    assert sum(world.event_ids().values()) == 3


async def test_a_suspended_tenants_devices_say_so_and_lose_nothing(world: World) -> None:
    """The text names the reason; after resuming, the next sync sends what waited."""
    device = await world.device("one")
    device.record(2)
    await device.sync()
    assert world._backend is not None
    directory = world._backend.directory
    await tenants.suspend_tenant(directory, "team", world.clock, actor="test")
    device.record(2)
    report = await device.sync()
    assert report.error is not None and report.error.code == "auth"
    assert "suspended" in report.error.message and "kept" in report.error.message
    await tenants.resume_tenant(directory, "team", world.clock, actor="test")
    assert (await device.sync()).error is None
    assert sum(world.event_ids().values()) == 4
