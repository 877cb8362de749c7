"""Who gets in: enrolment, scopes, expiry, revocation, and what lies on disk."""

from __future__ import annotations

import asyncio
import re

import pytest

from metricsd.cloud import tenants
from metricsd.cloud.auth import digest_of, new_token
from metricsd.cloud.backend import Scope
from metricsd.cloud.sqlite_control import LOOKUP_BYTES
from metricsd.errors import UsageError
from tests.cloud.support import CloudUnderTest, Device, bearer, event, ok, problem
from tests.fakes import FakeClock


async def test_enrolment_makes_a_device_with_its_own_token_and_the_tenant_key(cloud: CloudUnderTest) -> None:
    """Every device of a tenant gets the same key for hashed names, and an id and token of its own."""
    first = await cloud.device()
    second = await cloud.device(user="bob")
    assert first.id != second.id and first.token != second.token
    assert re.fullmatch(r"[0-9a-f]{64}", first.enrolled["tenant_key"])
    assert first.enrolled["tenant_key"] == second.enrolled["tenant_key"]
    assert (first.enrolled["tenant"], first.enrolled["user"]) == ("acme", "ann")
    assert first.token.startswith("mdd_")


async def test_a_forked_device_enrols_again_with_its_own_token(cloud: CloudUnderTest) -> None:
    """The new id belongs to the same user, and the old token stays valid for the other installation."""
    old = await cloud.device()
    reply = ok(await cloud.post("/devices", {"name": "laptop", "parent": old.id}, old.token))
    assert reply["device_id"] != old.id and reply["user"] == "ann"
    assert (await old.hello())["last_seq"] == 0


@pytest.mark.parametrize("parent", [None, "0" * 32])
async def test_a_device_token_enrols_only_below_itself(cloud: CloudUnderTest, parent: str | None) -> None:
    """A device token without itself as parent makes no devices."""
    device = await cloud.device()
    assert problem(await cloud.post("/devices", {"name": "x", "parent": parent}, device.token)) == (403, "wrong_device")


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", " padded "])
async def test_an_unfit_device_name_is_refused(cloud: CloudUnderTest, name: str) -> None:
    """Names are shown in terminals: printable, bounded, not blank."""
    await cloud.tenant()
    assert problem(await cloud.post("/devices", {"name": name}, await cloud.token())) == (400, "bad_name")


async def test_a_device_may_not_speak_for_another(cloud: CloudUnderTest) -> None:
    """A body that names another device is 403 on every call, even one of the same user."""
    mine, other = await cloud.device(), await cloud.device()
    for path, body in (
        ("/hello", {"device_id": other.id, "epoch": 1, "acked_seq": 0}),
        ("/events", {"device_id": other.id, "epoch": 1, "base_seq": 0, "events": [event(1)]}),
        ("/records", {"device_id": other.id, "changes": []}),
    ):
        assert problem(await cloud.post(path, body, mine.token)) == (403, "wrong_device")
    assert (await other.hello())["last_seq"] == 0


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "Bearer nonsense", "Bearer " + "x" * 5000])
async def test_without_a_token_nothing_is_told(cloud: CloudUnderTest, header: str) -> None:
    """401 with a challenge, for any malformed header."""
    reply = await cloud.http.get("/sync/v1/capabilities", headers={"authorization": header} if header else {})
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"


async def test_unknown_revoked_and_expired_tokens_get_the_same_answer(cloud: CloudUnderTest, clock: FakeClock) -> None:
    """Nobody learns from an answer whether a token ever existed."""
    await cloud.tenant()
    revoked = await cloud.token(Scope.READ)
    expiring = await cloud.token(Scope.READ, expires_at=clock.now_us() + 1_000_000)
    ok(await cloud.get("/capabilities", expiring))
    for token in await cloud.backend.directory.list_tokens("acme"):
        if token.expires_at is None:
            await tenants.revoke_token(cloud.backend.directory, token.id, clock, actor="test")
    clock.advance(1)
    bodies = set()
    for text in (revoked, expiring, new_token(Scope.READ)):
        reply = await cloud.get("/capabilities", text)
        assert problem(reply) == (401, "bad_token")
        bodies.add(reply.text)
    assert len(bodies) == 1


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        (Scope.ENROL, {"/capabilities", "/devices"}),
        (Scope.READ, {"/capabilities", "/changes"}),
        (Scope.ADMIN, {"/capabilities", "/changes"}),
    ],
)
async def test_a_scope_opens_its_own_doors_only(cloud: CloudUnderTest, scope: Scope, allowed: set[str]) -> None:
    """Every route refuses the scopes that it is not for with 403."""
    await cloud.tenant()
    token = await cloud.token(scope)
    opened = set()
    for path in ("/capabilities", "/changes"):
        if (await cloud.get(path, token)).status_code != 403:
            opened.add(path)
    for path in ("/devices", "/hello", "/events", "/records"):
        if (await cloud.post(path, {}, token)).status_code != 403:
            opened.add(path)
    assert opened == allowed


async def test_a_revocation_counts_at_once_in_another_process(cloud: CloudUnderTest) -> None:
    """A second app over the same files refuses the token with its very next request."""
    device = await cloud.device()
    async with cloud.another() as other:
        there = device.on(other)
        await there.hello()
        [found] = [token for token in await cloud.backend.directory.list_tokens(None) if token.device == device.id]
        await tenants.revoke_token(cloud.backend.directory, found.id, cloud.clock, actor="test")
        reply = await other.post("/hello", {"device_id": device.id, "epoch": 1, "acked_seq": 0}, device.token)
        assert problem(reply) == (401, "bad_token")


async def test_a_token_is_known_by_its_whole_hash(cloud: CloudUnderTest) -> None:
    """The index on eight bytes only finds candidates: one that shares them is not taken for it."""
    digest = digest_of((await cloud.device()).token)
    directory = cloud.backend.directory
    assert await directory.find_token(digest) is not None
    assert await directory.find_token(digest[:LOOKUP_BYTES] + bytes(len(digest) - LOOKUP_BYTES)) is None


async def test_a_token_that_is_rotated_under_load_loses_nothing(cloud: CloudUnderTest, clock: FakeClock) -> None:
    """While a device pushes, its token is exchanged again and again: old and new ones count through the overlap, no push
    is refused, and what was pushed is there once."""
    device, reader = await cloud.device(), await cloud.device()
    directory = cloud.backend.directory
    [row] = [token for token in await directory.list_tokens("acme") if token.device == device.id]
    used, over = {device.token}, asyncio.Event()
    sent: list[str] = []

    async def push() -> None:
        while not over.is_set():
            made = event(len(sent) + 1)
            await device.push([made], base_seq=len(sent))
            sent.append(made["id"])
            used.add(device.token)

    pushing = asyncio.create_task(push())
    token_id = row.id
    for _ in range(10):
        text, renewed = await tenants.rotate_token(directory, token_id, 3600, clock, actor="test")
        before = len(sent)
        while len(sent) < before + 3 and not pushing.done():
            await asyncio.sleep(0.001)
        device.token, token_id = text, renewed.id
    over.set()
    await pushing
    assert len(used) >= 10 and [item["event"]["id"] for item in await reader.feed()] == sent
    clock.advance(3601)
    assert await directory.find_token_by_id(row.id) is not None
    old = Device(cloud, {"device_id": device.id, "device_token": next(iter(used - {device.token}))})
    assert problem(await old.try_push([])) == (401, "bad_token")
    assert (await device.hello())["last_seq"] == len(sent)


@pytest.mark.only_sqlite
async def test_no_token_lies_on_disk(cloud: CloudUnderTest) -> None:
    """Only hashes are stored: neither a token nor its random part is in any file."""
    device = await cloud.device()
    secrets = [device.token, await cloud.token(), await cloud.token(Scope.ADMIN)]
    await device.push([event(1)])
    held = b"".join(path.read_bytes() for path in cloud.folder.iterdir())
    assert b"laptop" in held
    for secret in secrets:
        assert secret.encode() not in held and secret[4:].encode() not in held


@pytest.mark.only_sqlite
async def test_files_of_the_cloud_are_private(cloud: CloudUnderTest) -> None:
    """Folder 0700, databases and their logs 0600."""
    device = await cloud.device()
    await device.push([event(1)])
    assert cloud.folder.stat().st_mode & 0o777 == 0o700
    databases = [path for path in cloud.folder.iterdir() if ".db" in path.name]
    assert len(databases) >= 4
    assert {path.stat().st_mode & 0o777 for path in databases} == {0o600}


@pytest.mark.only_sqlite
async def test_a_name_never_reaches_a_file_name(cloud: CloudUnderTest) -> None:
    """A tenant's file has a generated name, whatever the tenant is called."""
    device = await cloud.device(tenant="../../etc/x'; DROP TABLE tenant; --")
    await device.push([event(1)])
    assert all(re.fullmatch(r"t_[0-9a-f]{16}\.db", path.name) for path in cloud.tenant_files())
    assert len(cloud.tenant_files()) == 1


async def test_tokens_need_an_existing_tenant_and_tenants_a_free_name(cloud: CloudUnderTest) -> None:
    """Both errors say what to do."""
    await cloud.tenant()
    with pytest.raises(UsageError, match="exists already"):
        await cloud.tenant()
    with pytest.raises(UsageError, match="cloud tenant create nobody"):
        await cloud.token(tenant="nobody")
    with pytest.raises(UsageError, match="enrolment"):
        await tenants.create_token(cloud.backend.directory, "acme", "ann", Scope.DEVICE, cloud.clock)


async def test_capabilities_tell_the_limits(cloud: CloudUnderTest) -> None:
    """The client adapts to these, so they are the settings in force."""
    device = await cloud.device()
    told = ok(await cloud.get("/capabilities", device.token))
    assert told["protocol"] == 1
    assert told["server_time"] == cloud.clock.now_us()
    for name in ("items_max", "body_bytes_max", "inflated_bytes_max", "item_bytes_max", "page_max"):
        assert told[name] == getattr(cloud.settings, name)
    assert {"zstd", "gzip"} <= set(told["features"])


async def test_unknown_paths_and_methods_are_problem_documents(cloud: CloudUnderTest) -> None:
    """And every answer carries the security headers and no CORS."""
    for reply, expected in (
        (await cloud.http.get("/nope", headers={"origin": "https://evil.example"}), (404, "not_found")),
        (await cloud.http.get("/sync/v1/events", headers=bearer("x")), (405, "method_not_allowed")),
        (await cloud.http.get("/../etc/passwd"), (404, "not_found")),
    ):
        assert problem(reply) == expected
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert not [name for name in reply.headers if name.startswith("access-control")]
