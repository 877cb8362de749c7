"""`metricsd cloud ...`: what the commands print, and that they work beside a running server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from metricsd.cli.cloud import cloud as commands
from metricsd.cli.cloud_options import parse_expiry
from metricsd.config import Paths
from metricsd.errors import UsageError
from tests.cloud.processes import ServerProcess
from tests.cloud.test_serve import http

NOW_US = 1_790_000_000_000_000


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(commands, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_a_token_is_created_listed_and_revoked_in_the_homes_database(home: Paths) -> None:
    """Without --database; the listing never shows the secret."""
    made = json.loads(run("tenant", "create", "local", "--json").stdout)
    assert made["name"] == "local"
    shown = json.loads(run("token", "create", "--tenant", "local", "--user", "local", "--json").stdout)
    assert list(shown) == ["token", "tenant", "user", "scope", "id"]
    assert (shown["tenant"], shown["user"], shown["scope"]) == ("local", "local", "enrol")
    assert (home.cloud / "directory.db").is_file()
    listing = run("token", "list", "--json").stdout
    assert shown["token"] not in listing and shown["token"][4:] not in listing
    [row] = json.loads(listing)
    assert row["id"] == shown["id"]
    assert (row["scope"], row["tenant"], row["user"], row["revoked"]) == ("enrol", "local", "local", False)
    assert row["created_at"].endswith("Z")
    run("token", "revoke", row["id"])
    [row] = json.loads(run("token", "list", "--tenant", "local", "--json").stdout)
    assert row["revoked"] is True
    assert json.loads(run("token", "list", "--tenant", "other", "--json").stdout) == []


def test_listings_for_people_are_tables(home: Paths) -> None:
    """Empty ones say what to do next."""
    assert "tenant create" in run("tenant", "list").stdout
    run("tenant", "create", "acme")
    assert [line.split()[0] for line in run("tenant", "list").stdout.splitlines()] == ["name", "acme"]
    made = run("token", "create", "--tenant", "acme", "--user", "ann", "--scope", "read")
    names, row = (line.split() for line in run("token", "list").stdout.splitlines())
    assert made.stdout.startswith("mdr_") and f"token revoke {row[0]}" in made.stderr
    assert (names[-1], row[-1]) == ("revoked", "no")


def test_another_database_is_named_by_url(home: Paths, tmp_path: Path) -> None:
    """And the home's stays untouched."""
    run("tenant", "create", "acme", "--database", f"sqlite:{tmp_path}/elsewhere")
    assert (tmp_path / "elsewhere" / "directory.db").is_file()
    assert not home.cloud.exists()


def test_errors_say_what_to_do(home: Paths) -> None:
    """Unknown tenants and tokens, a taken name, a wrong expiry."""
    run("tenant", "create", "acme")
    for arguments, words in (
        (("tenant", "create", "acme"), "exists already"),
        (("token", "create", "--tenant", "nobody", "--user", "ann"), "tenant create nobody"),
        (("token", "create", "--tenant", "acme", "--user", "ann", "--expires", "soon"), "90d"),
        (("token", "revoke", "nothing"), "token list"),
    ):
        with pytest.raises(UsageError, match=words):
            run(*arguments)


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [("12h", 12 * 3600), ("90d", 90 * 86400), ("2026-09-22T00:00:00Z", None), ("2027-01-31", None)],
)
def test_expiry_is_a_span_or_a_date(text: str, expected_s: int | None) -> None:
    """Dates without a zone are UTC."""
    at = parse_expiry(text, NOW_US)
    assert at > NOW_US and (expected_s is None or at == NOW_US + expected_s * 1_000_000)


@pytest.mark.parametrize("text", ["", "0d", "-1d", "1y", "2020-01-01", "tomorrow"])
def test_other_expiries_are_refused(text: str) -> None:
    """One clear line."""
    with pytest.raises(UsageError, match="--expires"):
        parse_expiry(text, NOW_US)


async def test_commands_work_while_a_server_runs_on_the_same_files(home: Paths, tmp_path: Path) -> None:
    """A tenant and a token made now let a device in now; a revocation counts at once."""
    import asyncio

    database = f"sqlite:{tmp_path}/cloud"
    async with ServerProcess(tmp_path / "cloud", tmp_path / "home") as server, http(server.url) as client:
        await asyncio.to_thread(run, "tenant", "create", "acme", "--database", database)
        made = await asyncio.to_thread(
            run, "token", "create", "--tenant", "acme", "--user", "ann", "--database", database, "--json"
        )
        headers = {"authorization": f"Bearer {json.loads(made.stdout)['token']}"}
        assert (await client.post("/sync/v1/devices", json={"name": "laptop"}, headers=headers)).status_code == 200
        rows = json.loads((await asyncio.to_thread(run, "token", "list", "--database", database, "--json")).stdout)
        enrol = next(row for row in rows if row["scope"] == "enrol")
        await asyncio.to_thread(run, "token", "revoke", enrol["id"], "--database", database)
        assert (await client.get("/sync/v1/capabilities", headers=headers)).status_code == 401
