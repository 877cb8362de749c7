"""The tenant's policy on the device: fetched once per change, checked like anything from outside, never worse than before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import httpx
import pytest

from metricsd.cloud.policies import set_policy
from metricsd.cloud.sqlite import SqliteBackend
from metricsd.config import Sync
from metricsd.policy import FILE_BYTES_MAX, Layers, places_of, tenant_file
from metricsd.sync.tenant_policy import TenantPolicyFile
from tests.sync.world import CLOUD, URL, Device, World

TEXT = 'version = 3\nname = "team"\n\n[[rule]]\nmatch = { entity = "session" }\nstrategy = "latest_wins"\n'
FETCH = "GET /sync/v1/policy"


async def give(world: World, text: str) -> None:
    """Set the tenant's policy, as the command does beside a running server."""
    backend = SqliteBackend(world.folder, CLOUD, world.clock)
    await set_policy(backend, "team", text.encode(), "team.toml", world.clock)
    await backend.close()


def fetches(world: World) -> int:
    return world.network.requests.count(FETCH)


async def test_a_device_takes_the_policy_with_its_next_round(world: World) -> None:
    """It is fetched once, lies in a private file, and decides from then on."""
    device = await world.device("one")
    await device.sync()
    assert not tenant_file(device.paths).exists() and fetches(world) == 0
    await give(world, TEXT)
    for _ in range(3):
        assert (await device.sync()).ok
    file = tenant_file(device.paths)
    assert file.read_text() == TEXT and file.stat().st_mode & 0o777 == 0o600
    assert fetches(world) == 1
    rule = Layers(places_of(device.paths)).current().lookup("session", "description")
    assert (rule.layer, rule.strategy) == ("tenant", "latest_wins")


async def test_a_new_version_replaces_the_file_and_a_lost_file_comes_back(world: World) -> None:
    """The hash that comes with every hello decides, not what was fetched before."""
    device = await world.device("one")
    await give(world, TEXT)
    await device.sync()
    await give(world, TEXT.replace("latest_wins", "remote_wins"))
    await device.sync()
    assert "remote_wins" in tenant_file(device.paths).read_text()
    tenant_file(device.paths).unlink()
    await device.sync()
    assert "remote_wins" in tenant_file(device.paths).read_text()


async def test_another_tenant_without_a_policy_takes_the_file_away(world: World) -> None:
    """A login elsewhere must not go on under the rules of the former team."""
    device = await world.device("one")
    tenant_file(device.paths).write_text(TEXT)
    await device.sync()
    assert not tenant_file(device.paths).exists()


def answer_of(text: str, sha256: str | None = None) -> httpx.Response:
    found = sha256 or hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return httpx.Response(200, json={"version": 9, "sha256": found, "text": text})


@pytest.mark.parametrize(
    "answer",
    [
        lambda: answer_of("version = 1\nsurprise = 1\n"),
        lambda: answer_of("not toml ["),
        lambda: answer_of(TEXT, "0" * 64),
        lambda: answer_of(TEXT, "../../etc/passwd"),
        lambda: answer_of("version = 1\n#" + "x" * FILE_BYTES_MAX),
        lambda: answer_of('version = 1\n[[rule]]\nmatch={entity="session"}\nstrategy="custom"\nplugin="../evil.py"\n'),
    ],
    ids=["unknown key", "not TOML", "wrong hash", "no hash", "too long", "a path as plug-in"],
)
async def test_what_cannot_be_a_policy_changes_nothing(world: World, answer: Callable[[], httpx.Response]) -> None:
    """The last good one stays in force, the round succeeds and says why, and the text is not fetched again and again."""
    device = await world.device("one")
    await give(world, TEXT)
    await device.sync()
    await give(world, TEXT + "# next\n")
    world.network.canned = {"evil": answer()}
    world.network.fault = lambda request: "evil" if request.url.path.endswith("/policy") else None
    first = await device.sync()
    assert first.ok and any("last good one stays" in note for note in first.notes)
    await device.sync()
    assert fetches(world) == 2
    assert tenant_file(device.paths).read_text() == TEXT


async def test_a_policy_that_is_gone_between_two_answers_fails_no_round(world: World) -> None:
    """The hello named one, the fetch finds none: the next round looks again."""
    device = await world.device("one")
    await give(world, TEXT)
    problem = httpx.Response(
        404,
        headers={"content-type": "application/problem+json"},
        json={"status": 404, "title": "Not found", "code": "no_policy"},
    )
    world.network.canned = {"gone": problem}
    world.network.fault = lambda request: "gone" if request.url.path.endswith("/policy") else None
    assert (await device.sync()).ok
    world.network.fault = lambda _: None
    assert (await device.sync()).ok
    assert tenant_file(device.paths).exists()


async def test_a_lost_answer_is_a_failed_round_and_heals(world: World) -> None:
    """Like any other call of a round."""
    device = await world.device("one")
    await give(world, TEXT)
    world.network.fault = lambda request: "after" if request.url.path.endswith("/policy") else None
    report = await device.sync()
    assert report.error is not None and report.error.code == "unreachable"
    world.network.fault = lambda _: None
    assert (await device.sync()).ok and tenant_file(device.paths).exists()


async def test_a_folder_that_cannot_be_written_is_said(world: World) -> None:
    """Sync goes on; the policy is tried again with the next round."""
    device: Device = await world.device("one")
    await give(world, TEXT)
    file = tenant_file(device.paths)
    file.mkdir()
    report = await device.sync()
    assert report.ok and any("cannot be kept" in note for note in report.notes)
    file.rmdir()
    await device.sync()
    assert file.read_text() == TEXT
    assert not list(file.parent.glob(f".{file.name}*"))


async def test_a_hash_that_is_none_removes_only_the_file(world: World) -> None:
    """Nothing to remove is no error."""
    device = await world.device("one")
    keeper = TenantPolicyFile(device.paths)
    client = world.connect(URL, "mdd_x", Sync())
    assert await keeper.follow(client, None) is None
    keeper.file.mkdir()
    assert "cannot be removed" in (await keeper.follow(client, None) or "")
    await client.close()
