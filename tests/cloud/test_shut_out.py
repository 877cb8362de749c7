"""ASVS 7.4.1: whoever is shut out in one process is shut out in every other at once, open streams included."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from metricsd.cloud import tenants
from metricsd.config import Cloud
from tests.cloud.support import CloudUnderTest, Device, bearer, problem
from tests.cloud.test_matrix import listening
from tests.fakes import FakeClock

DEADLINE_S = 10.0
Shut = Callable[[CloudUnderTest, Device], Awaitable[object]]


async def revoke_token(cloud: CloudUnderTest, device: Device) -> None:
    directory = cloud.backend.directory
    [token] = [token for token in await directory.list_tokens(None) if token.device == device.id]
    await tenants.revoke_token(directory, token.id, cloud.clock, actor="test")


async def rotate_at_once(cloud: CloudUnderTest, device: Device) -> None:
    directory = cloud.backend.directory
    [token] = [token for token in await directory.list_tokens(None) if token.device == device.id]
    await tenants.rotate_token(directory, token.id, 0, cloud.clock, actor="test")


async def revoke_device(cloud: CloudUnderTest, device: Device) -> None:
    await tenants.revoke_device(cloud.backend.directory, device.id, cloud.clock, actor="test")


async def revoke_user(cloud: CloudUnderTest, device: Device) -> None:
    await tenants.revoke_user(cloud.backend.directory, "acme", "ann", cloud.clock, actor="test")


async def suspend(cloud: CloudUnderTest, device: Device) -> None:
    await tenants.suspend_tenant(cloud.backend.directory, "acme", cloud.clock, actor="test")


async def drop(cloud: CloudUnderTest, device: Device) -> None:
    await tenants.drop_tenant(cloud.backend, "acme", cloud.clock, actor="test")


async def erase(cloud: CloudUnderTest, device: Device) -> None:
    await cloud.http.delete(f"/sync/v1/devices/{device.id}/data", headers=bearer(device.token))


WAYS: dict[str, tuple[Shut, tuple[int, str]]] = {
    "token revoked": (revoke_token, (401, "bad_token")),
    "token rotated without overlap": (rotate_at_once, (401, "bad_token")),
    "device revoked": (revoke_device, (401, "bad_token")),
    "user revoked": (revoke_user, (401, "bad_token")),
    "tenant suspended": (suspend, (403, "tenant_suspended")),
    "tenant dropped": (drop, (401, "bad_token")),
    "data taken back": (erase, (401, "bad_token")),
}


@pytest.mark.parametrize("way", WAYS)
async def test_it_counts_for_the_next_request_of_another_process_and_ends_its_stream(
    cloud_place: Path | str, clock: FakeClock, way: str
) -> None:
    """The very next request is refused; the stream ends with the next look at its token."""
    shut, expected = WAYS[way]
    settings = Cloud(stream_poll_s=0.05)
    async with CloudUnderTest(cloud_place, settings, clock) as cloud, cloud.another() as elsewhere:
        device = await cloud.device()
        async with asyncio.timeout(DEADLINE_S), listening(cloud, device.token) as heard:
            while b"event: open" not in b"".join(heard):
                await asyncio.sleep(0.01)
            assert (await device.hello())["last_seq"] == 0
            await shut(elsewhere, device)
            assert problem(await device.try_changes()) == expected
            while b"event: end" not in b"".join(heard):
                await asyncio.sleep(0.01)
            assert b'"reason":"revoked"' in b"".join(heard)
