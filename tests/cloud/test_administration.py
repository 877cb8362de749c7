"""`metricsd cloud` for administrators: what each command prints, and what it refuses."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from metricsd.cli.cloud import cloud as commands
from metricsd.cli.cloud_options import parse_span_s
from metricsd.cloud.codes import parse_code
from metricsd.config import Paths
from metricsd.errors import UsageError
from tests.cloud.support import CloudUnderTest, Device, event
from tests.cloud.test_cloud_cli import run

TOKEN_FIELDS = ["id", "scope", "tenant", "user", "created_at", "revoked"]


def told(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture
def acme(home: Paths) -> None:
    run("tenant", "create", "acme")


async def filled(home: Paths) -> Device:
    """Push two events and a record into the home's database; return the device, whose cloud is closed again."""
    async with CloudUnderTest(home.cloud) as cloud:
        device = await cloud.device()
        await device.push([event(1, project="p"), event(2)])
        await device.put({"type": "session", "id": "s", "fields": {"description": "d"}})
        return device


def test_tokens_are_listed_and_rotated_without_their_secrets(acme: None) -> None:
    """`token list --json` is an array whose rows have these fields; a secret is printed where it is made, once."""
    shown = told("token", "create", "--tenant", "acme", "--user", "ann", "--scope", "legacy")
    made = shown["token"]
    [row] = told("token", "list")
    assert list(row) == TOKEN_FIELDS and (row["scope"], row["revoked"]) == ("legacy", False)
    assert shown["id"] == row["id"]
    rotated = told("token", "rotate", row["id"], "--overlap", "2h")
    assert rotated["token"].startswith("mdl_") and rotated["replaces"] == row["id"] and rotated["overlap_s"] == 7200
    assert [list(found) for found in told("token", "list")] == [TOKEN_FIELDS] * 2
    listing = run("token", "list", "--json", "--long").stdout
    assert made[4:] not in listing and rotated["token"][4:] not in listing
    rows = {found["id"]: found for found in json.loads(listing)}
    assert rows[row["id"]]["expires_at"] is not None and rows[rotated["id"]]["expires_at"] is None
    assert {found["device"] for found in rows.values()} == {None}
    said = run("token", "rotate", rotated["id"], "--overlap", "0h").stderr
    assert f"token {rotated['id']} has ended" in said and told("token", "list")[-1]["id"] in said
    with pytest.raises(UsageError, match="--overlap"):
        run("token", "rotate", row["id"], "--overlap", "soon")


def test_users_come_and_go(acme: None) -> None:
    """Added by name, listed with what they have, shut out with all of it."""
    assert "user add" in run("user", "list").stdout
    assert told("user", "add", "ann", "--tenant", "acme") == {"name": "ann", "tenant": "acme"}
    told("token", "create", "--tenant", "acme", "--user", "ann")
    [row] = told("user", "list", "--tenant", "acme")
    assert (row["name"], row["tenant"], row["devices"], row["tokens"]) == ("ann", "acme", 0, 1)
    assert told("user", "revoke", "ann", "--tenant", "acme")["tokens_ended"] == 1
    assert told("user", "list")[0]["tokens"] == 0
    with pytest.raises(UsageError, match="no user 'bob'"):
        run("user", "revoke", "bob", "--tenant", "acme")


def test_a_code_is_printed_alone_for_scripts_and_people(acme: None) -> None:
    """stdout has nothing else; its life is bounded."""
    shown = run("enrol", "--tenant", "acme", "--user", "ann")
    assert parse_code(shown.stdout.strip()) is not None and "metricsd login URL" in shown.stderr
    made = told("enrol", "--tenant", "acme", "--user", "ann", "--expires", "30m")
    assert made.keys() == {"code", "tenant", "user", "expires_at"}
    for wrong in ("8d", "0m", "never"):
        with pytest.raises(UsageError, match="--expires"):
            run("enrol", "--tenant", "acme", "--user", "ann", "--expires", wrong)


async def test_devices_are_listed_and_revoked(home: Paths) -> None:
    """By id; an unknown one is a usage error."""
    assert "enrol" in run_in_thread("device", "list")
    device = await filled(home)
    [row] = json.loads(run_in_thread("device", "list", "--json"))
    assert (row["id"], row["name"], row["user"], row["revoked"], row["erased_at"]) == (
        device.id, "laptop", "ann", False, None,
    )  # fmt: skip
    run_in_thread("device", "revoke", device.id)
    assert json.loads(run_in_thread("device", "list", "--tenant", "acme", "--json"))[0]["revoked"] is True


async def test_a_device_is_erased_by_an_administrator(home: Paths) -> None:
    """Only with --yes; twice is harmless; the act is logged once."""
    device = await filled(home)
    for wrong in ((device.id,), ("0" * 32, "--yes")):
        with pytest.raises(UsageError):
            run_in_thread("device", "erase", *wrong)
    for events, records in ((2, 1), (0, 0)):
        gone = json.loads(run_in_thread("device", "erase", device.id, "--yes", "--json"))
        assert gone == {"id": device.id, "events": events, "records": records}
    [row] = json.loads(run_in_thread("device", "list", "--json"))
    assert row["revoked"] is True and row["erased_at"] is not None
    actions = [row["action"] for row in json.loads(run_in_thread("audit", "list", "--json"))]
    assert actions.count("device.erased") == 1


async def test_stats_count_what_a_tenant_holds(home: Paths) -> None:
    """One row a tenant."""
    await filled(home)
    [row] = json.loads(run_in_thread("stats", "--json"))
    size = row.pop("size_bytes")
    assert size > 0 and row == {
        "tenant": "acme", "suspended": False, "users": 1, "devices": 1, "tokens": 2, "events": 2, "records": 1,
        "tombstones": 0, "change": 3,
    }  # fmt: skip


async def test_an_export_holds_everything_and_says_where_it_ends(home: Paths, tmp_path: Path) -> None:
    """To stdout or to a new private file; the act is logged."""
    device = await filled(home)
    target = tmp_path / "acme.jsonl"
    run_in_thread("tenant", "export", "acme", "--output", str(target))
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["tenant", "user", "device", "event", "event", "record", "end"]
    assert lines[-1] == {"kind": "end", "events": 2, "records": 1, "change": 3}
    assert lines[3]["event"]["project"] == "p" and lines[3]["device"] == device.id
    assert lines[5]["record"]["fields"] == {"description": "d"}
    with pytest.raises(UsageError, match="new file"):
        run_in_thread("tenant", "export", "acme", "--output", str(target))
    with pytest.raises(UsageError, match="no tenant 'nobody'"):
        run_in_thread("tenant", "export", "nobody", "--output", str(tmp_path / "nobody.jsonl"))
    assert list(tmp_path.glob("*.jsonl")) == [target], "what cannot be exported leaves no file"
    again = run_in_thread("tenant", "export", "acme").splitlines()
    assert [json.loads(line)["kind"] for line in again] == [line["kind"] for line in lines]
    assert [row["action"] for row in json.loads(run_in_thread("audit", "list", "--json"))][-2:] == [
        "tenant.exported"
    ] * 2


async def test_an_export_of_many_pages_and_users_is_whole(home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of changes, each line once, whoever wrote it."""
    from metricsd.cloud import export

    monkeypatch.setattr(export, "PAGE_ITEMS", 3)
    async with CloudUnderTest(home.cloud) as cloud:
        devices = [await cloud.device(user=name) for name in ("ann", "bob", "eve")]
        for turn in range(4):
            for device in devices:
                await device.push([event(turn + 1)], base_seq=turn)
                await device.put({"type": "session", "id": f"s{turn}", "fields": {"score": turn}})
    lines = [json.loads(line) for line in run_in_thread("tenant", "export", "acme").splitlines()]
    changes = [line["change"] for line in lines if line["kind"] in ("event", "record")]
    assert changes == list(range(1, 25))
    assert lines[-1] == {"kind": "end", "events": 12, "records": 12, "change": 24}


def test_a_tenant_is_suspended_resumed_and_dropped(acme: None) -> None:
    """Dropping asks for --yes and says what it would remove."""
    assert told("tenant", "suspend", "acme")["suspended_at"] is not None
    assert told("tenant", "list")[0]["suspended_at"] is not None
    assert told("tenant", "resume", "acme")["suspended_at"] is None
    with pytest.raises(UsageError, match="--yes"):
        run("tenant", "drop", "acme")
    assert len(told("tenant", "list")) == 1
    assert told("tenant", "drop", "acme", "--yes")["dropped"] is True
    assert told("tenant", "list") == []
    for arguments in (("suspend", "acme"), ("resume", "acme"), ("drop", "acme", "--yes"), ("export", "acme")):
        with pytest.raises(UsageError, match="no tenant 'acme'"):
            run("tenant", *arguments)


def test_the_audit_log_is_listed_and_verified(acme: None, home: Paths) -> None:
    """With the system's user as the actor; a tampered log exits 1 and names the row."""
    run("user", "add", "ann", "--tenant", "acme")
    rows = told("audit", "list")
    assert [(row["seq"], row["action"], row["subject"]) for row in rows][1] == (2, "user.added", "ann")
    assert all(row["actor"].startswith("cli:") for row in rows)
    assert [row["seq"] for row in told("audit", "list", "--after", "1", "--limit", "1")] == [2]
    good = told("audit", "verify")
    assert good == {"ok": True, "rows": 2, "head": f"2:{rows[1]['hash']}", "fault": None}
    assert told("audit", "verify", "--expect", good["head"])["ok"] is True
    with pytest.raises(UsageError, match="ROW:HASH"):
        run("audit", "verify", "--expect", "x")
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(home.cloud / "directory.db")) as db:
        db.executescript("DROP TRIGGER audit_is_not_changed; UPDATE audit SET at = 1 WHERE seq = 1")
    for arguments in (("audit", "verify"), ("audit", "verify", "--json")):
        result = CliRunner().invoke(commands, arguments)
        assert result.exit_code == 1 and "row 1 was changed" in result.output


@pytest.mark.parametrize(("text", "seconds"), [("0h", 0), ("30m", 1800), ("24h", 86400), ("7d", 604800)])
def test_a_span_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    """Minutes, hours and days."""
    assert parse_span_s("--x", text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1", "-1h", "1w", "1.5h", "9999999d", "١h"])
def test_other_spans_are_refused(text: str) -> None:
    """With the option's name."""
    with pytest.raises(UsageError, match="--x"):
        parse_span_s("--x", text)


def run_in_thread(*arguments: str) -> str:
    """Run a command from a test that has a loop of its own; return its stdout."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run, *arguments).result(30).stdout
