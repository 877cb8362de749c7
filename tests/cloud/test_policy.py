"""The tenant's conflict policy: set by an administrator, versioned, fetched by devices, kept through upgrades."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from metricsd.cloud.policies import set_policy
from metricsd.cloud.sqlite_file import open_file
from metricsd.cloud.sqlite_policy import VERSIONS_KEPT
from metricsd.config import Paths
from metricsd.errors import PolicyError, UsageError
from metricsd.policy import FILE_BYTES_MAX
from metricsd.schema import load_steps, version_of
from tests.cloud.support import CloudUnderTest, bearer
from tests.cloud.test_cloud_cli import run

TEXT = 'version = 1\ndefault = "latest_wins"\n'
STEPS = load_steps("metricsd.cloud.schema.tenant")


async def give(cloud: CloudUnderTest, text: str | bytes, tenant: str = "acme") -> str:
    raw = text if isinstance(text, bytes) else text.encode()
    made = await set_policy(cloud.backend, tenant, raw, "team.toml", cloud.clock)
    assert made.sha256 == hashlib.sha256(raw).hexdigest()
    return f'"{made.version}-{made.sha256}"'


async def test_a_device_fetches_the_policy_and_learns_of_a_new_one(cloud: CloudUnderTest) -> None:
    """Its hash comes with each hello and with the capabilities; the text once, then 304 until it changes."""
    device = await cloud.device()
    assert (await cloud.get("/policy", device.token)).json()["code"] == "no_policy"
    assert "policy_hash" not in await device.hello()
    tag = await give(cloud, TEXT)
    reply = await cloud.get("/policy", device.token)
    assert reply.json() == {"version": 1, "sha256": hashlib.sha256(TEXT.encode()).hexdigest(), "text": TEXT}
    assert reply.headers["etag"] == tag
    assert (await device.hello())["policy_hash"] == reply.json()["sha256"]
    assert (await cloud.get("/capabilities", device.token)).json()["policy_hash"] == reply.json()["sha256"]

    async def again(tags: str) -> int:
        headers = {**bearer(device.token), "if-none-match": tags}
        return (await cloud.http.get("/sync/v1/policy", headers=headers)).status_code

    assert [await again(tag), await again(f'"x", W/{tag}'), await again('"1-x"')] == [304, 304, 200]
    await give(cloud, TEXT + "# second\n")
    assert await again(tag) == 200
    assert (await cloud.get("/policy", device.token)).json()["version"] == 2


@pytest.mark.only_sqlite
async def test_the_same_text_makes_no_new_version_and_old_ones_are_bounded(cloud: CloudUnderTest) -> None:
    """A script may repeat itself; a thousand versions do not pile up."""
    await cloud.device()
    assert await give(cloud, TEXT) == await give(cloud, TEXT)
    for number in range(VERSIONS_KEPT + 5):
        last = await give(cloud, f"{TEXT}# {number}\n")
    assert last.startswith(f'"{VERSIONS_KEPT + 6}-')
    [file] = cloud.tenant_files()
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("SELECT count(*) FROM policy").fetchone() == (VERSIONS_KEPT,)


async def test_a_tenant_sees_its_own_policy_alone(cloud: CloudUnderTest) -> None:
    """And needs a token of its own for it."""
    acme, other = await cloud.device(), await cloud.device(tenant="other")
    await give(cloud, TEXT)
    assert (await cloud.get("/policy", acme.token)).status_code == 200
    assert (await cloud.get("/policy", other.token)).status_code == 404
    assert (await cloud.http.get("/sync/v1/policy")).status_code == 401
    assert (await cloud.get("/policy", await cloud.token())).status_code == 403


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"version = ", "team.toml:1"),
        (b"version = 1\nsurprise = 2\n", "team.toml:2"),
        (b"version = 1\nname = '\xff'\n", "UTF-8"),
        (b"version = 1\n#" + b"x" * FILE_BYTES_MAX, "bytes"),
        (b'version = 1\n[[rule]]\nmatch = {entity = "session"}\nstrategy = "no_such"\n', "team.toml:4"),
    ],
)
async def test_a_file_that_devices_could_not_use_is_not_handed_out(
    cloud: CloudUnderTest, raw: bytes, said: str
) -> None:
    """The sentence names the file and the line, and the policy in force stays."""
    device = await cloud.device()
    await give(cloud, TEXT)
    with pytest.raises(PolicyError, match=said):
        await give(cloud, raw)
    assert (await cloud.get("/policy", device.token)).json()["version"] == 1


async def test_an_unknown_tenant_is_said(cloud: CloudUnderTest) -> None:
    """Nothing is made for it."""
    with pytest.raises(UsageError, match="no tenant 'nobody'"):
        await give(cloud, TEXT, tenant="nobody")


def test_the_commands_set_and_show(home: Paths, tmp_path: Path) -> None:
    """As text that can be piped into a file again, and as JSON."""
    file = tmp_path / "team.toml"
    file.write_text(TEXT)
    run("tenant", "create", "acme")
    assert json.loads(run("policy", "show", "--tenant", "acme", "--json").stdout) is None
    made = json.loads(run("policy", "set", "--tenant", "acme", str(file), "--json").stdout)
    assert made == {"tenant": "acme", "version": 1, "sha256": hashlib.sha256(TEXT.encode()).hexdigest()}
    assert run("policy", "show", "--tenant", "acme").stdout == TEXT
    shown = json.loads(run("policy", "show", "--tenant", "acme", "--json").stdout)
    assert (shown["version"], shown["text"], shown["set_at"][-1]) == (1, TEXT, "Z")
    with pytest.raises(UsageError, match="cannot be read"):
        run("policy", "set", "--tenant", "acme", str(tmp_path / "none.toml"))


def test_a_tenants_file_is_copied_before_an_upgrade(tmp_path: Path) -> None:
    """The rows of the older schema are in a private copy; a second upgrade replaces it; a current file is not copied."""
    path = tmp_path / "t_0123456789abcdef.db"
    for connection in open_file(path, STEPS[:1]):
        connection.close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO term (text) VALUES ('kept')")
    assert list(tmp_path.glob("*.schema-*")) == []
    for _ in range(2):
        for connection in open_file(path, STEPS):
            assert version_of(connection) == len(STEPS)
            connection.close()
    [copy] = tmp_path.glob("*.schema-*")
    assert copy.name.endswith(".schema-0001") and copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as db:
        assert (version_of(db), db.execute("SELECT text FROM term").fetchall()) == (1, [("kept",)])
