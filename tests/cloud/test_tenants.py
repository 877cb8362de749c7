"""The life of tenants, users, devices and tokens: suspension, revocation, rotation, and the end."""

from __future__ import annotations

import asyncio

import pytest

from metricsd.cloud import tenants
from metricsd.cloud.access import Scope
from metricsd.errors import UsageError
from tests.cloud.support import CloudUnderTest, Device, event, events, ok, problem
from tests.fakes import FakeClock


async def statuses_of(device: Device) -> set[tuple[int, str] | int]:
    """Ask every route that a device uses; return what it is told, as (status, code) or 200."""
    cloud = device.cloud
    replies = [
        await cloud.get("/capabilities", device.token),
        await cloud.post("/hello", {"device_id": device.id, "epoch": 1, "acked_seq": 0}, device.token),
        await device.try_push([event(1)]),
        await cloud.post("/records", {"device_id": device.id, "changes": []}, device.token),
        await cloud.post("/have", {"device_id": device.id}, device.token),
        await device.try_changes(),
        await cloud.post("/devices", {"name": "x", "parent": device.id}, device.token),
    ]
    return {200 if reply.status_code == 200 else problem(reply) for reply in replies}


async def test_a_suspended_tenant_is_shut_out_and_keeps_its_data(cloud: CloudUnderTest) -> None:
    """Every route says so, to who holds a valid token; after resuming all is as it was. Others notice nothing."""
    device, other = await cloud.device(), await cloud.device(tenant="rival")
    listener = await cloud.device()
    await device.push(events(3))
    directory = cloud.backend.directory
    await tenants.suspend_tenant(directory, "acme", cloud.clock, actor="test")
    assert await statuses_of(device) == {(403, "tenant_suspended")}
    assert "resume" in (await device.try_changes()).json()["detail"]
    assert await statuses_of(other) == {200}
    revoked = Device(cloud, {**device.enrolled, "device_token": "mdd_" + "x" * 43})
    assert await statuses_of(revoked) == {(401, "bad_token")}
    await tenants.resume_tenant(directory, "acme", cloud.clock, actor="test")
    assert len(await listener.feed()) == 3
    assert (await device.hello())["last_seq"] == 3


async def test_tokens_of_a_suspended_tenant_are_not_live(cloud: CloudUnderTest) -> None:
    """That is what ends open streams."""
    await cloud.device()
    directory, now = cloud.backend.directory, cloud.clock.now_us()
    ids = [token.id for token in await directory.list_tokens(None)]
    assert await directory.live_tokens(ids, now) == set(ids)
    await tenants.suspend_tenant(directory, "acme", cloud.clock, actor="test")
    assert await directory.live_tokens(ids, now) == set()


async def test_a_dropped_tenant_is_gone_with_everybody_in_it(cloud: CloudUnderTest) -> None:
    """Tokens, users and devices too; the name is free again, and the new tenant has nothing of the old one."""
    device, other = await cloud.device(), await cloud.device(tenant="rival")
    await device.push(events(3))
    await other.push([event(1)])
    directory = cloud.backend.directory
    await tenants.drop_tenant(cloud.backend, "acme", cloud.clock, actor="test")
    assert await statuses_of(device) == {(401, "bad_token")}
    assert await tenants.find_tenant(directory, "acme") is None
    for listing in (directory.list_tokens, directory.list_users, directory.list_devices):
        assert {row.tenant if isinstance(row.tenant, str) else row.tenant.name for row in await listing(None)} == {
            "rival"
        }
    assert (await other.hello())["last_seq"] == 1
    again = await cloud.device()
    assert await again.feed() == [] and again.enrolled["tenant_key"] != device.enrolled["tenant_key"]
    with pytest.raises(UsageError, match="no tenant 'nobody'"):
        await tenants.drop_tenant(cloud.backend, "nobody", cloud.clock, actor="test")


async def test_a_request_that_got_in_before_the_drop_brings_nothing_back(cloud: CloudUnderTest) -> None:
    """The store that it already holds, and one that it opens now, both refuse to write."""
    from metricsd.cloud.backend import EventBatch, EventItem, Writer
    from metricsd.cloud.problems import Refused
    from metricsd.protocol import WireEvent

    device = await cloud.device()
    await device.push([event(1)])
    [tenant] = await cloud.backend.directory.list_tenants()
    late = WireEvent(id="f" * 32, at=1, kind="k", name="n", app="a", seq=2)
    batch = EventBatch(
        device_id=device.id, epoch=1, base_seq=1, items=[EventItem(2, bytes.fromhex(late.id), late, None)]
    )
    async with cloud.backend.tenant(tenant) as store:
        await tenants.drop_tenant(cloud.backend, "acme", cloud.clock, actor="test")
        with pytest.raises(Refused):
            await store.push_events(Writer("ann", device.id), batch)
    async with cloud.another() as other:
        with pytest.raises(Refused):
            async with other.backend.tenant(tenant) as store:
                await store.push_events(Writer("ann", device.id), batch)


@pytest.mark.only_sqlite
async def test_a_drop_leaves_no_byte_of_the_tenant(cloud: CloudUnderTest) -> None:
    """Also while another process has the file open, and also copies from before schema steps."""
    device = await cloud.device()
    await device.push([event(1, project="canary-project")])
    [path] = cloud.tenant_files()
    path.with_name(path.name + ".schema-0001").write_bytes(b"canary-project")
    async with CloudUnderTest(cloud.folder, clock=cloud.clock) as other:
        await device.on(other).hello()
        await tenants.drop_tenant(cloud.backend, "acme", cloud.clock, actor="test")
        assert cloud.tenant_files() == []
        assert [found.name for found in cloud.folder.iterdir() if b"canary-project" in found.read_bytes()] == []
        assert problem(await device.on(other).try_push([event(2)], base_seq=1)) == (401, "bad_token")
    assert cloud.tenant_files() == []


@pytest.mark.only_sqlite
async def test_a_drop_that_was_cut_short_is_finished_by_the_next(
    cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the tenant stays shut out and cannot be resumed."""
    from metricsd.cloud import sqlite
    from metricsd.errors import StoreUnavailable

    def fail(_: object) -> None:
        raise OSError("the disk is gone")

    device = await cloud.device()
    await device.push([event(1)])
    with monkeypatch.context() as patched:
        patched.setattr(sqlite, "destroy", fail)
        with pytest.raises(StoreUnavailable, match="drop it again"):
            await tenants.drop_tenant(cloud.backend, "acme", cloud.clock, actor="test")
    with pytest.raises(UsageError, match="is being dropped"):
        await tenants.resume_tenant(cloud.backend.directory, "acme", cloud.clock, actor="test")
    assert await statuses_of(device) == {(403, "tenant_suspended")}
    await tenants.drop_tenant(cloud.backend, "acme", cloud.clock, actor="test")
    assert cloud.tenant_files() == []


async def test_users_are_listed_with_what_they_have(cloud: CloudUnderTest, clock: FakeClock) -> None:
    """Devices ever made, and tokens that count now."""
    await cloud.device(user="ann")
    await cloud.token(Scope.READ, user="ann", expires_at=clock.now_us() + 1_000_000)
    directory = cloud.backend.directory
    await tenants.add_user(directory, "acme", "bob", clock, actor="test")
    with pytest.raises(UsageError, match="already"):
        await tenants.add_user(directory, "acme", "bob", clock, actor="test")
    assert [(u.name, u.devices, u.tokens) for u in await directory.list_users("acme")] == [("ann", 1, 3), ("bob", 0, 0)]
    clock.advance(1)
    assert (await directory.list_users("acme"))[0].tokens == 2
    assert await directory.list_users("rival") == []


async def test_a_revoked_user_and_a_revoked_device_are_shut_out_at_once(cloud: CloudUnderTest) -> None:
    """All tokens of the one end, the other devices of a user go on."""
    lost, kept, colleague = await cloud.device(), await cloud.device(), await cloud.device(user="bob")
    directory = cloud.backend.directory
    await tenants.revoke_device(directory, lost.id, cloud.clock, actor="test")
    assert await statuses_of(lost) == {(401, "bad_token")} and await statuses_of(kept) == {200}
    live = {row.id: row.live for row in await directory.list_devices("acme")}
    assert [live[device.id] for device in (lost, kept, colleague)] == [False, True, True]
    # What is left are two enrolment tokens, the kept device's token, and the one of the fork that it enrolled.
    assert await tenants.revoke_user(directory, "acme", "ann", cloud.clock, actor="test") == 4
    assert await tenants.revoke_user(directory, "acme", "ann", cloud.clock, actor="test") == 0
    assert await statuses_of(kept) == {(401, "bad_token")} and await statuses_of(colleague) == {200}
    for unknown in (
        tenants.revoke_device(directory, "0" * 32, cloud.clock, actor="test"),
        tenants.revoke_user(directory, "acme", "nobody", cloud.clock, actor="test"),
    ):
        with pytest.raises(UsageError, match="see `metricsd cloud"):
            await unknown


async def test_a_rotated_token_overlaps_with_its_successor(cloud: CloudUnderTest, clock: FakeClock) -> None:
    """ASVS 13.3.4. Both work until the overlap ends; the new one is the same device and pushes on without a loss."""
    device = await cloud.device()
    directory = cloud.backend.directory
    [old] = [token for token in await directory.list_tokens(None) if token.device == device.id]
    await device.push(events(2))
    text, made = await tenants.rotate_token(directory, old.id, 3600, clock, actor="test")
    renewed = Device(cloud, {**device.enrolled, "device_token": text})
    assert (made.device, made.scope, made.user) == (device.id, Scope.DEVICE, "ann")
    await renewed.push(events(2, first=3), base_seq=2)
    clock.advance(3599)
    await device.push(events(2, first=5), base_seq=4)
    clock.advance(1)
    assert problem(await device.try_push(events(1, first=7), base_seq=6)) == (401, "bad_token")
    assert (await renewed.push(events(1, first=7), base_seq=6))["acked_through"] == 7
    assert len(await (await cloud.device()).feed()) == 7


async def test_a_rotation_never_makes_a_token_live_longer(cloud: CloudUnderTest, clock: FakeClock) -> None:
    """The old one ends when it would have at the latest, and so does the new one."""
    await cloud.tenant()
    directory = cloud.backend.directory
    await cloud.token(Scope.READ, expires_at=clock.now_us() + 60_000_000)
    [old] = await directory.list_tokens(None)
    _, made = await tenants.rotate_token(directory, old.id, 3600, clock, actor="test")
    found = await directory.find_token_by_id(old.id)
    assert found is not None and found.expires_at == old.expires_at == made.expires_at


async def test_what_has_ended_is_not_rotated(cloud: CloudUnderTest, clock: FakeClock) -> None:
    """A revoked token must not come back by rotation; two rotations at once make one successor each, or none."""
    await cloud.tenant()
    directory = cloud.backend.directory
    await cloud.token(Scope.READ)
    [old] = await directory.list_tokens(None)
    with pytest.raises(UsageError, match="--overlap"):
        await tenants.rotate_token(directory, old.id, tenants.OVERLAP_S_MAX + 1, clock, actor="test")
    await tenants.rotate_token(directory, old.id, 0, clock, actor="test")
    for token_id in (old.id, "nothing"):
        with pytest.raises(UsageError, match="metricsd cloud token"):
            await tenants.rotate_token(directory, token_id, 0, clock, actor="test")
    assert len(await directory.list_tokens(None)) == 2


async def test_every_scope_but_device_can_be_made(cloud: CloudUnderTest) -> None:
    """Each has its prefix; `legacy` opens no door of this API but the limits."""
    await cloud.tenant()
    made = {scope: await cloud.token(scope) for scope in Scope if scope is not Scope.DEVICE}
    assert {text[:4] for text in made.values()} == {"mde_", "mdr_", "mda_", "mdl_"}
    ok(await cloud.get("/capabilities", made[Scope.LEGACY]))
    assert problem(await cloud.get("/changes", made[Scope.LEGACY])) == (403, "wrong_scope")


async def test_rotation_and_revocation_at_once_leave_no_live_successor_of_a_revoked_user(cloud: CloudUnderTest) -> None:
    """Whichever comes first, the user has no live token afterwards, or the rotation came last and says so."""
    await cloud.tenant()
    directory = cloud.backend.directory
    await cloud.token(Scope.READ)
    [old] = await directory.list_tokens(None)
    await asyncio.gather(
        tenants.rotate_token(directory, old.id, 60, cloud.clock, actor="test"),
        tenants.revoke_user(directory, "acme", "ann", cloud.clock, actor="test"),
        return_exceptions=True,
    )
    await tenants.revoke_user(directory, "acme", "ann", cloud.clock, actor="test")
    ids = [token.id for token in await directory.list_tokens(None)]
    assert await directory.live_tokens(ids, cloud.clock.now_us()) == set()
