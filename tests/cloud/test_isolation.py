"""Tenants and users never see each other: every answer of every route is searched for the others' canaries."""

from __future__ import annotations

import httpx
import pytest

from metricsd.cloud.backend import Scope
from tests.cloud.support import CloudUnderTest, Device, bearer, event


def marked(canary: str, seq: int) -> dict[str, object]:
    texts = ("session", "tool", "call", "project", "branch", "model", "agent", "subject", "reason", "batch")
    return event(seq, **{name: f"{canary}-{name}" for name in texts}, extra={canary: canary})


async def fill(device: Device, canary: str, seq: int = 1) -> str:
    """Write the canary into everything that a device can write; return the id of its event."""
    made = marked(canary, seq)
    await device.push([made], base_seq=seq - 1)
    await device.put(
        {"type": "session", "id": f"{canary}-record", "fields": {"tags": [canary], canary: canary}},
        {"type": "session", "id": "shared-id", "fields": {"description": canary}},
        {"type": "session_counters", "id": f"{device.id}/{canary}", "fields": {"events": 1}},
    )
    return str(made["id"])


async def all_answers(device: Device, others_event: str) -> list[httpx.Response]:
    """Ask everything that this device may ask, with the other's ids where one can be put."""
    cloud = device.cloud
    base = (await device.hello(epoch=1))["last_seq"]
    return [
        await device.try_changes(),
        await device.try_changes(only="records"),
        await cloud.get("/capabilities", device.token),
        await cloud.post("/hello", {"device_id": device.id, "epoch": 1, "acked_seq": 1}, device.token),
        await device.try_push([event(base + 1, id=others_event)], base_seq=base),
        await device.try_push([event(base + 1, id=others_event)], query="?unsequenced=1"),
        await cloud.post(
            "/records", {"device_id": device.id, "changes": [{"type": "session", "id": "shared-id"}]}, device.token
        ),
        await cloud.http.get("/metrics"),
        await cloud.http.get("/schema/openapi.json"),
        await cloud.http.get("/readyz"),
        await cloud.http.get("/nope", headers=bearer(device.token)),
    ]


async def test_tenants_see_nothing_of_each_other(cloud: CloudUnderTest) -> None:
    """No route answers with another tenant's bytes, and the same event id in both is two events."""
    mine = await cloud.device(tenant="acme", user="ann")
    theirs = await cloud.device(tenant="rival", user="ann")
    await fill(mine, "canary-acme")
    their_event = await fill(theirs, "canary-rival")
    for reply in await all_answers(mine, their_event):
        assert "rival" not in reply.text and theirs.id not in reply.text
    stored = (await mine.push([event(50, id=their_event)], base_seq=2))["results"]
    assert stored == [{"status": "duplicate"}]  # its own copy, made by all_answers


@pytest.mark.only_sqlite
async def test_tenants_share_no_file(cloud: CloudUnderTest) -> None:
    """Each canary is in the files of its own tenant alone."""
    for tenant in ("acme", "rival"):
        await fill(await cloud.device(tenant=tenant), f"canary-{tenant}")
    for path in cloud.tenant_files():
        held = path.read_bytes() + path.with_name(path.name + "-wal").read_bytes()
        assert (b"canary-acme" in held) != (b"canary-rival" in held)


async def test_users_of_a_tenant_see_nothing_of_each_other(cloud: CloudUnderTest) -> None:
    """Feed and records are a user's own; the same record id of two users is two records."""
    mine = await cloud.device(user="ann")
    also_mine = await cloud.device(user="ann")
    theirs = await cloud.device(user="bob")
    await fill(mine, "canary-ann")
    their_event = await fill(theirs, "canary-bob")
    for reply in await all_answers(mine, their_event):
        assert "bob" not in reply.text
    records = [item["record"] for item in await also_mine.feed() if "record" in item]
    [shared] = [record for record in records if record["id"] == "shared-id"]
    assert shared["fields"] == {"description": "canary-ann"}
    [result] = await theirs.put({"type": "session", "id": "canary-ann-record", "base_rev": shared["rev"], "fields": {}})
    assert result["status"] == "applied"  # a record of bob's own; ann's is untouched
    assert len([item for item in await also_mine.feed() if "record" in item]) == len(records)


async def test_read_tokens_see_their_own_user_only(cloud: CloudUnderTest) -> None:
    """Read and admin tokens get the user's whole feed, no other's."""
    mine, theirs = await cloud.device(user="ann"), await cloud.device(user="bob")
    await fill(mine, "canary-ann")
    await fill(theirs, "canary-bob")
    for scope in (Scope.READ, Scope.ADMIN):
        reply = await cloud.get("/changes", await cloud.token(scope, user="ann"))
        assert "canary-ann" in reply.text and "bob" not in reply.text


async def test_a_cursor_of_another_tenant_is_of_no_history_here(cloud: CloudUnderTest) -> None:
    """It neither works nor tells whether it works elsewhere."""
    mine, theirs = await cloud.device(tenant="acme"), await cloud.device(tenant="rival")
    await fill(mine, "a")
    await fill(theirs, "b")
    cursor = (await theirs.changes())["cursor"]
    assert (await mine.try_changes(cursor)).status_code == 410
