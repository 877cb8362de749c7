"""`today`, `report` and `export` as programs: over a real store, in the user's time zone, for people and programs."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from metricsd.cli.table import csv_cell, text_table
from metricsd.cli.today import render
from metricsd.config import load_config
from metricsd.identity import find_credentials
from metricsd.store import events, records
from metricsd.store.connection import Store
from metricsd.store.counters import NUMBERS
from metricsd.store.events import Identified
from metricsd.sync.outgoing import Outgoing
from tests.analytics.support import delete_session, item, put, put_metric, set_batch
from tests.homes import REPOSITORY, Home, opened, tool_use, until

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
HEAVY = ("click", "msgspec", "httpx", "structlog", "litestar", "rich")


def now_us() -> int:
    return int(datetime.now(UTC).timestamp() * 1_000_000)


def filled(home: Home, items: list[Identified]) -> Store:
    """Open the home's store with these events in it; days are of the home's zone."""
    store = Store.open(home.paths.store)
    put(store, items)
    return store


def rows(home: Home, *arguments: str) -> list[dict[str, Any]]:
    found = json.loads(home.ok("report", *arguments, "--json"))
    assert isinstance(found, list)
    return found


def test_a_home_without_a_store_has_empty_reports(tmp_path: Path) -> None:
    """Nothing fails before the first event, and nothing is created."""
    home = Home(tmp_path)
    for kind in ("daily", "weekly", "tools", "projects", "sessions"):
        assert rows(home, kind) == []
        assert "nothing recorded" in home.ok("report", kind)
    assert "nothing recorded yet today" in home.ok("today")
    assert json.loads(home.ok("today", "--json"))["events"] == 0
    assert home.ok("export") == ""
    assert not home.paths.store.exists()


def test_what_hooks_captured_is_in_every_report(tmp_path: Path) -> None:
    """From the hook through the daemon into the figures."""
    with opened(tmp_path) as home:
        home.start_daemon()
        for number in range(5):
            home.capture("PostToolUse", tool_use(number))
        home.capture("PostToolUseFailure", tool_use(9))
        until(lambda: home.events() == 6)
        today = json.loads(home.ok("today", "--json"))
        assert (today["events"], today["tool_calls"], today["tool_failures"], today["sessions"]) == (6, 6, 1, 1)
        assert today["tools"] == [{"name": "Read", "calls": 6, "failures": 1}]
        assert sum(today["calls_by_hour"]) == 6
        assert [(row["day"], row["tool_calls"]) for row in rows(home)] == [(today["day"], 6)]
        assert [(row["tool"], row["calls"], row["share"]) for row in rows(home, "tools")] == [("Read", 6, 1)]
        assert [(row["id"], row["tool_calls"]) for row in rows(home, "sessions")] == [("s-1", 6)]
        assert len(home.ok("export").splitlines()) == 7


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "UTC"])
def test_days_are_the_users_and_the_zone_is_said(tmp_path: Path, zone: str) -> None:
    """Around midnight and around both clock changes, whatever zone the store was written in."""
    store = Store.open(Home(tmp_path).paths.store)
    moments = [
        datetime(2026, *day, hour, 30, tzinfo=UTC) for day in ((3, 29), (10, 25), (7, 1)) for hour in range(0, 24, 3)
    ]
    put(store, [item(n, at=int(moment.timestamp()) * 1_000_000) for n, moment in enumerate(moments)])
    store.close()
    home = Home(tmp_path, TZ=zone)
    expected: dict[str, int] = {}
    for moment in moments:
        day = str(moment.astimezone(ZoneInfo(zone)).date())
        expected[day] = expected.get(day, 0) + 1
    assert {row["day"]: row["events"] for row in rows(home)} == expected
    assert {row["zone"] for row in rows(home)} == {zone}
    assert home.ok("report").startswith(f"daily, days in {zone}\n")
    assert all(row["zone"] == zone for row in csv.DictReader(io.StringIO(home.ok("report", "--csv"))))
    assert zone in home.ok("today")


def test_since_begins_with_a_whole_day(tmp_path: Path) -> None:
    """A span cuts no day into halves; `weekly` takes whole weeks; sessions are those active since."""
    home = Home(tmp_path, TZ="UTC")
    noon = now_us() // DAY_US * DAY_US
    store = Store.open(home.paths.store)
    put(store, [item(n, at=noon - n * DAY_US + n, session=f"s{n}") for n in range(30)])
    store.close()
    assert len(rows(home)) == 30
    assert len(rows(home, "--since", "7d")) == 8
    assert [row["day"] for row in rows(home, "--since", "0d")] == [str(datetime.now(UTC).date())]
    assert len(rows(home, "sessions", "--since", "7d")) == 8
    weeks = rows(home, "weekly", "--since", "14d")
    assert sum(row["events"] for row in weeks[1:]) + weeks[0]["events"] >= 15
    assert weeks[0]["events"] == 7
    assert all(datetime.fromisoformat(row["from"]).weekday() == 0 for row in weeks)
    assert sum(row["calls"] for row in rows(home, "tools", "--since", "7d")) == 8


def test_what_was_retracted_or_deleted_does_not_count_and_metrics_do(tmp_path: Path) -> None:
    """In every report; the export still has all of it."""
    home = Home(tmp_path)
    store = Store.open(home.paths.store)
    put(store, [item(1, session="s", project="p"), item(2, session="gone"), item(3, session="s", batch="b")])
    delete_session(store, "gone")
    set_batch(store, "b", active=False)
    put_metric(
        store,
        "m",
        app="claude-code",
        session="s",
        tool="Edit",
        execution_count=4,
        error_count=1,
        started_at=now_us(),
        total_duration_ms=400,
    )
    put_metric(store, "other", app="claude-code", session="s", tool="Edit", execution_count=4, batch="b")
    store.close()
    assert {row["tool"]: (row["calls"], row["failures"]) for row in rows(home, "tools")} == {
        "Edit": (4, 1),
        "Bash": (1, 0),
    }
    assert sum(row["tool_calls"] for row in rows(home)) == 5
    assert [(row["id"], row["tool_calls"]) for row in rows(home, "sessions")] == [("s", 5)]
    assert [(row["project"], row["calls"]) for row in rows(home, "projects")] == [("p", 5)]
    exported = [json.loads(line) for line in home.ok("export").splitlines()]
    kinds = [one["type"] for one in exported]
    assert (kinds.count("event"), kinds.count("tool_metric"), kinds.count("import_batch")) == (3, 2, 1)
    assert [one["deleted"] for one in exported if one["type"] == "session"] == [True]


def test_an_export_holds_every_field(tmp_path: Path) -> None:
    """Nothing is rounded or left out, of events of other devices either."""
    home = Home(tmp_path)
    extra: dict[str, int | str] = {"total_tokens": 2**60, "mode": "plan"}
    full = item(
        1, at=1_790_000_000_123_456, call="toolu_01", model="m", agent="a", subject=".py", reason="r", branch="b",
        project="p", input_bytes=1, output_bytes=2, lines_added=3, lines_removed=4, extra=extra, outcome="from_the_future", batch="x",
    )  # fmt: skip
    store = filled(home, [full])
    with store.transaction():
        events.insert(store, [item(2, session=None)], device=events.device_row(store, "other"))
        records.edit(store, "session", "claude-code/s", {"tags": ["t", "u"], "description": "=1+1"})
    store.close()
    exported = {
        one["type"]: one for one in map(json.loads, home.ok("export").splitlines()) if one.get("device") is None
    }
    assert exported["event"] == {
        "type": "event", "id": full.id.hex(), "at": "2026-09-21T14:13:20.123456Z", "own": True, "app": "claude-code",
        "kind": "tool_used", "name": "PostToolUse", "session": "s", "call": "toolu_01", "tool": "Bash",
        "outcome": "from_the_future", "duration_ms": 10, "project": "p", "branch": "b", "model": "m", "agent": "a",
        "reason": "r", "subject": ".py", "input_bytes": 1, "output_bytes": 2, "lines_added": 3, "lines_removed": 4,
        "batch": "x", "extra": extra,
    }  # fmt: skip
    assert exported["session"]["fields"] == {"tags": ["t", "u"], "description": "=1+1"}
    assert set(exported["session_counters"]["fields"]) <= {
        "started_at",
        "last_at",
        "project",
        "branch",
        "model",
        *NUMBERS,
    }
    table = list(csv.DictReader(io.StringIO(home.ok("export", "--csv"))))
    assert [row["type"] for row in table].count("event") == 2
    assert json.loads(next(row["extra"] for row in table if row["extra"])) == extra


def test_an_export_file_appears_whole_and_private(tmp_path: Path) -> None:
    """0600; an old file stays until the new one is there; a folder that is not there is a wrong command line."""
    home = Home(tmp_path / "home")
    filled(home, [item(n, at=now_us() - n * DAY_US) for n in range(10)]).close()
    target = tmp_path / "all.jsonl"
    target.write_text("old")
    done = home.run("export", "--since", "5d", "--output", str(target))
    assert (done.returncode, done.stdout) == (0, "")
    lines = target.read_text().splitlines()
    assert sum(json.loads(line)["type"] == "event" for line in lines) == 5
    assert f"{len(lines)} documents" in done.stderr
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    wrong = home.run("export", "--output", str(tmp_path / "missing" / "file"))
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_wrong_command_lines_say_what_is_wrong(tmp_path: Path) -> None:
    """Exit code 2 and one line of ours, or click's."""
    home = Home(tmp_path)
    for arguments in (
        ["report", "--json", "--csv"],
        ["report", "--since", "yesterday"],
        ["export", "--since", "x"],
        ["report", "monthly"],
        ["today", "--csv"],
    ):
        done = home.run(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr
    assert home.run("report", "--since", "999999999d").returncode == 0


def test_today_imports_nothing_heavy(tmp_path: Path) -> None:
    """Its whole process has 60 ms above a Python start; click alone would take most of them."""
    home = Home(tmp_path)
    filled(home, [item(1, at=now_us())]).close()
    code = f"import sys; from metricsd.__main__ import main; main(['today']); print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=home.env,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "1 call, " in done.stdout


def test_reports_read_while_another_program_writes(tmp_path: Path) -> None:
    """A report neither waits for a writer nor holds one up."""
    home = Home(tmp_path)
    store = filled(home, [item(1, at=now_us())])
    with store.transaction():
        events.insert(store, [item(2, at=now_us())], device=events.own_device(store))
        assert sum(row["events"] for row in rows(home)) == 1
        assert json.loads(home.ok("today", "--json"))["events"] == 1
    assert sum(row["events"] for row in rows(home)) == 2
    store.close()


def test_a_damaged_store_is_said_in_one_line(tmp_path: Path) -> None:
    """No traceback, exit code 1."""
    home = Home(tmp_path)
    home.paths.store.parent.mkdir(parents=True)
    home.paths.store.write_bytes(os.urandom(8192))
    for arguments in (["report"], ["today"], ["export"]):
        done = home.run(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
        assert "is damaged" in done.stderr


def test_names_of_strangers_steer_no_terminal_and_no_spreadsheet(tmp_path: Path) -> None:
    """Escapes are not shown, and no cell begins a formula."""
    home = Home(tmp_path)
    filled(home, [item(1, tool="=cmd|' /C calc'!A0", project="\x1b[31mred", session="@s")]).close()
    assert "\x1b" not in home.ok("report", "projects") + home.ok("report", "sessions")
    assert home.ok("report", "tools", "--csv").splitlines()[1].startswith("'=cmd")
    assert [csv_cell(value) for value in ("+1", "-x", "a", -1, None, True, ["a", "b"], {}, {"a": 1})] == [
        "'+1", "'-x", "a", -1, "", "true", "a;b", "", '{"a": 1}',
    ]  # fmt: skip
    assert text_table([("x" * 100, "1")], ("a", "b")).splitlines()[1].startswith("x" * 39 + "…")


def test_a_deleted_session_under_a_hashed_id_stays_out_once_logged_in(tmp_path: Path) -> None:
    """Its record's id is a hash that only the tenant's key makes; `today` finds it too."""
    with opened(tmp_path) as home:
        process = home.start("run", "--with-cloud")
        until(lambda: process.poll() is not None or home.status()["daemon"]["running"])
        until(lambda: home.paths.credentials.exists())
        at = now_us()
        filled(home, [item(1, session="no opaque id", at=at), item(2, session="an-opaque-id", at=at)]).close()
        home.ok("session", "edit", "no opaque id", "--delete")
        assert [row["id"] for row in rows(home, "sessions")] == ["an-opaque-id"]
        assert sum(row["tool_calls"] for row in rows(home)) == 1
        assert json.loads(home.ok("today", "--json"))["tool_calls"] == 1


def test_a_project_that_travelled_as_a_hash_is_one_with_its_name(tmp_path: Path) -> None:
    """What another laptop did in a project of this machine stands under its name; an unknown one stays a hash."""
    with opened(tmp_path) as home:
        process = home.start("run", "--with-cloud")
        until(lambda: process.poll() is not None or home.status()["daemon"]["running"])
        until(lambda: home.paths.credentials.exists())
        found = find_credentials(home.paths)
        assert found is not None
        way = Outgoing(
            found.tenant_key, load_config(home.paths, home.env).sync._replace(level="metrics", share_projects=())
        )
        store = filled(home, [item(1, project="mine", tool="mcp__a__b", session="a", at=now_us())])
        there = {"session": "b", "tool": way.tool("mcp__a__b"), "at": now_us()}
        with store.transaction():
            device = events.device_row(store, "other")
        put(
            store, [item(2, project=way.project("mine"), **there), item(3, project="h:unknown", **there)], device=device
        )
        store.close()
        assert {row["project"]: row["calls"] for row in rows(home, "projects")} == {"mine": 2, "h:unknown": 1}
        assert {row["tool"]: row["calls"] for row in rows(home, "tools")} == {"mcp__a__b": 3}


@pytest.mark.parametrize(("number", "said"), [(1, "1 prompt, 1 turn"), (2, "2 prompts, 2 turns")])
def test_today_counts_in_words(number: int, said: str) -> None:
    """One is one."""
    numbers = dict.fromkeys(("sessions", "prompts", "turns", "tool_calls", "lines_added", "lines_removed"), number)
    found = {"day": "2026-01-05", "zone": "UTC", "events": 1, "error_rate": 0.0, "p50_ms": 1, "p95_ms": 1, "tools": []}
    screen = render(found | numbers)
    assert said in screen and f"{number} call{'' if number == 1 else 's'}, " in screen
