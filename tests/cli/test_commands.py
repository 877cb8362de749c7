"""The command line itself: exit codes, one-line errors, help, and the commands that need no daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from metricsd import __version__
from metricsd.cli import COMMANDS
from metricsd.config import RULES
from metricsd.store import quarantine as kept
from metricsd.store.connection import Store
from tests.homes import REPOSITORY, Home, opened, stop, tool_use, until


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "home") as made:
        yield made


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_with_help(name: str) -> None:
    """The table's every entry is a click command of that name whose first line says what it does."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    command = getattr(import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help


def test_bare_command_is_the_help(home: Home) -> None:
    """It names every command and exits 0."""
    done = home.run()
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_version(home: Home) -> None:
    """The version is the package's."""
    assert __version__ in home.ok("--version")


def test_unknown_command_exits_2_with_a_suggestion(home: Home) -> None:
    """A typing error costs one line to understand."""
    done = home.run("statsu")
    assert done.returncode == 2
    assert "Did you mean 'status'?" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments", [("sync", "--nope"), ("status", "--nope"), ("logs", "-n", "many"), ("config", "nope")]
)
def test_wrong_usage_exits_2(home: Home, arguments: tuple[str, ...]) -> None:
    """Every command reports wrong usage on stderr alone."""
    done = home.run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage:" in done.stderr


def test_any_command_makes_the_spool(home: Home) -> None:
    """Hooks can write as soon as metricsd was called once, whatever was asked of it."""
    home.ok("--version")
    assert (home.paths.spool / "new").is_dir()


@pytest.mark.parametrize(
    "arguments", [("status",), ("run",), ("up",), ("sync", "--now"), ("config", "show"), ("config", "check")]
)
def test_wrong_config_is_one_line_with_exit_2(home: Home, arguments: tuple[str, ...]) -> None:
    """File, line, key and the expected type, from whichever command reads the settings."""
    home.paths.config_file.parent.mkdir(parents=True)
    home.paths.config_file.write_text("[sync]\ninterval_s = 'often'\n")
    done = home.run(*arguments)
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert line.startswith(f"metricsd: {home.paths.config_file}:2: sync.interval_s must be a number")
    assert done.stdout == ""


def test_config_show_names_value_unit_and_origin(home: Home) -> None:
    """Every setting is listed; those that were changed say where."""
    home.paths.config_file.parent.mkdir(parents=True)
    home.paths.config_file.write_text("[sync]\nbatch_size = 7\n")
    home.env["METRICSD_TAIL_RESCAN_S"] = "2"
    rows = {row["key"]: row for row in json.loads(home.ok("config", "show", "--json"))}
    assert list(rows) == list(RULES)
    assert rows["sync.batch_size"]["value"] == 7
    assert rows["sync.batch_size"]["origin"] == f"{home.paths.config_file}:2"
    assert rows["tail.rescan_s"]["origin"] == "METRICSD_TAIL_RESCAN_S"
    assert rows["sync.interval_s"]["origin"] == "default"
    assert rows["sync.interval_s"]["unit"] == "seconds"
    text = home.ok("config", "show")
    assert all(key in text for key in RULES)
    changed = {key for key, row in rows.items() if row["origin"] != "default"}
    # The tests' homes set the folders of the older hooks.
    assert changed - {"tail.older_hooks"} == {"sync.batch_size", "tail.rescan_s"}
    assert home.ok("config", "check").startswith(f"ok: {len(changed)} settings")


@pytest.mark.parametrize("arguments", [("config", "show", "--json"), ("status", "--json"), ("--help",)])
def test_a_closed_pipe_is_quiet(home: Home, arguments: tuple[str, ...]) -> None:
    """`metricsd config show | head -1` prints no traceback."""
    process = home.start(*arguments)
    assert process.stdout is not None
    process.stdout.close()
    process.wait(20)
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


def test_interrupt_exits_130(home: Home) -> None:
    """Ctrl-C in the middle of following the log is an end, not a fault."""
    home.start_daemon()
    process = home.start("logs", "-f", "-n", "9")
    assert process.stdout is not None
    assert " daemon " in process.stdout.readline()
    process.send_signal(2)
    assert process.wait(10) == 130
    assert stop(process) == 130


def test_logs_prints_json_and_text(home: Home) -> None:
    """The same lines, for people and for programs; none yet is no error."""
    assert json.loads(home.ok("logs", "--json")) == []
    daemon = home.start_daemon()
    stop(daemon)
    found = json.loads(home.ok("logs", "--json"))
    written = [line["event"] for line in found]
    assert written[-1] == "daemon.stopped" and "daemon.started" in written
    assert "daemon.stopped" in home.ok("logs", "-n", "1")


@pytest.fixture
def refused(home: Home) -> Home:
    """A home with two captures in quarantine: one of a wrong version, one that is no JSON."""
    home.ok("record", "PostToolUse", json.dumps(tool_use(1)))
    new = home.paths.spool / "new"
    (new / "PostToolUse-1-1-0.jsonl").write_text("not json\n")
    (new / "PostToolUse-1-2-0.jsonl").write_text('{"v":1,"s":1795378739,"app":"claude-code","event"\n')
    daemon = home.start_daemon()
    until(lambda: home.status()["spool"]["quarantined"] == 2)
    stop(daemon)
    return home


def test_quarantine_lists_and_shows(refused: Home) -> None:
    """File, reason and bytes of what was refused; the good event went through."""
    assert refused.events() == 1
    rows = json.loads(refused.ok("quarantine", "list", "--json"))
    assert {row["file"] for row in rows} == {"new/PostToolUse-1-1-0.jsonl", "new/PostToolUse-1-2-0.jsonl"}
    row = next(row for row in rows if row["file"].endswith("1-1-0.jsonl"))
    assert json.loads(refused.ok("quarantine", "show", str(row["id"]), "--json"))["data"] == "not json\n"
    assert "not json" in refused.ok("quarantine", "show", str(row["id"]))
    assert str(row["id"]) in refused.ok("quarantine", "list")


def test_quarantine_retry_hands_back_and_reopens_what_is_still_wrong(refused: Home) -> None:
    """A retry that fails again is open again, with its bytes; nothing is doubled or lost."""
    assert {row["retried"] for row in json.loads(refused.ok("quarantine", "retry", "--all", "--json"))} == {True}
    assert refused.status()["spool"]["quarantined"] == 0
    assert refused.status()["spool"]["pending_files"] == 2
    stop(refused.start_daemon())
    until(lambda: refused.status()["spool"]["quarantined"] == 2)
    assert refused.events() == 1
    [first, *_] = json.loads(refused.ok("quarantine", "list", "--json"))
    assert json.loads(refused.ok("quarantine", "show", str(first["id"]), "--json"))["data"]


def test_quarantine_retry_accepts_what_can_be_read_now(refused: Home) -> None:
    """Bytes that a newer version can read are taken in: here, what a person repaired."""
    row = next(
        row for row in json.loads(refused.ok("quarantine", "list", "--json")) if row["file"].endswith("1-1-0.jsonl")
    )
    line = json.dumps({"v": 1, "s": 1795378739, "app": "claude-code", "event": "Stop", "payload": {"session_id": "s"}})
    (refused.paths.quarantine / row["stored"]).write_text(line + "\n")
    refused.ok("quarantine", "retry", str(row["id"]))
    refused.start_daemon()
    until(lambda: refused.events() == 2)
    assert refused.status()["spool"]["quarantined"] == 1


def test_quarantine_purge_drops_bytes_and_keeps_the_summary(refused: Home) -> None:
    """Purged entries are not open any more, their bytes are gone, `show` still knows them."""
    rows = json.loads(refused.ok("quarantine", "list", "--json"))
    assert json.loads(refused.ok("quarantine", "purge", "--older-than", "1h", "--json")) == []
    refused.ok("quarantine", "purge", str(rows[0]["id"]))
    refused.ok("quarantine", "purge", "--all")
    assert json.loads(refused.ok("quarantine", "list", "--json")) == []
    assert list(refused.paths.quarantine.iterdir()) == []
    shown = json.loads(refused.ok("quarantine", "show", str(rows[0]["id"]), "--json"))
    assert (shown["state"], shown["data"], shown["sha256"]) == ("purged", None, rows[0]["sha256"])


def test_what_was_refused_on_the_wire_is_counted_apart_and_not_handed_to_the_spool(home: Home) -> None:
    """Its bytes are the wire's, not a capture's; the event itself is in the store."""
    store = Store.open(home.paths.store)
    with store.transaction():
        kept.add(store, "event:00ff", 0, b'{"id":"00ff"}', "cloud_too_large")
        kept.add(store, "https://cloud.example", 0, b"{}", "bad_change")
        kept.add(store, "new/a.jsonl", 0, b"x\n", "bad_json")
    store.close()
    found = home.status()
    assert (found["spool"]["quarantined"], found["sync"]["quarantined"]) == (1, 2)
    assert "3 items could not be accepted" in home.run("status").stdout
    rows = json.loads(home.ok("quarantine", "retry", "--all", "--json"))
    assert sorted(row["retried"] for row in rows) == [False, False, True]
    assert [file.name for file in home.paths.spool.glob("*.jsonl")] == []


def test_quarantine_says_what_is_wrong_with_a_request(home: Home) -> None:
    """No entry, no choice, a wrong age: one line each."""
    for arguments, code, why in (
        (("show", "7"), 1, "no entry 7"),
        (("retry",), 2, "name one entry"),
        (("retry", "7", "--all"), 2, "name one entry"),
        (("purge", "--older-than", "soon"), 2, "30d"),
    ):
        done = home.run("quarantine", *arguments)
        assert (done.returncode, why in done.stderr) == (code, True), done.stderr


def test_module_runs_as_a_program() -> None:
    """`python -m metricsd` is the console script."""
    done = subprocess.run(
        [sys.executable, "-m", "metricsd", "--version"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert __version__ in done.stdout
