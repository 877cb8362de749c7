"""`status`: complete and true with and without a daemon, fast, and never in need of the heavy libraries."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from metricsd.cli import status
from metricsd.cli.status import exit_code, gather
from metricsd.cli.status_text import render
from metricsd.config import Paths, load_config
from metricsd.identity import Credentials, save_login
from metricsd.ids import DeviceId
from metricsd.instance import InstanceLock
from metricsd.protocol import PROTOCOL_VERSION
from metricsd.store import outbox
from metricsd.store.connection import Store
from tests.homes import REPOSITORY, Home, opened, stop, tool_use, until

SHAPE = {
    "version": None,
    "protocol": None,
    "daemon": {"running", "pid", "uptime_s", "version"},
    "mode": {"current", "reason", "since", "forced"},
    "spool": {"dir", "pending_files", "pending_bytes", "oldest_pending_s", "quarantined"},
    "store": {"path", "events", "sessions", "bytes", "schema", "healthy"},
    "sync": {
        "url", "direction", "interval_s", "realtime", "last_success", "last_error", "next", "pending_events",
        "pending_records", "quarantined", "conflicts_open", "cursor",
    },
    "policy": {"name", "version", "sha256", "source", "error"},
}  # fmt: skip
HEAVY = {"click", "msgspec", "httpx", "structlog", "asyncio", "rich", "litestar", "watchfiles", "apscheduler"}


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "home") as made:
        yield made


def _status(home: Paths) -> dict[str, Any]:
    return gather(home, load_config(home))


def _log_in(home: Paths) -> None:
    save_login(home, Credentials("http://127.0.0.1:9", "t", b"k" * 32, "t", "u", DeviceId("d" * 32)), parent=None)


def _has_shape(found: dict[str, Any]) -> bool:
    assert list(found) == list(SHAPE)
    return all(fields is None or fields <= set(found[name]) for name, fields in SHAPE.items())


def test_shape_in_an_empty_home(real: Home) -> None:
    """Complete JSON and exit 4 where nothing ever ran; not being logged in is no fault."""
    done = real.run("status", "--json")
    assert done.returncode == 4
    found = json.loads(done.stdout)
    assert _has_shape(found)
    assert found["daemon"] == {"running": False, "pid": None, "uptime_s": None, "version": None, "state": "stopped"}
    assert (found["mode"]["current"], found["mode"]["reason"]) == ("local_only", "not logged in")
    assert found["spool"]["dir"] == str(real.paths.spool)
    assert found["store"]["healthy"] is True
    assert not real.paths.store.exists()


def test_shape_with_a_daemon(real: Home) -> None:
    """Exit 0, and figures that match what was captured."""
    process = real.start_daemon()
    real.capture("PostToolUse", tool_use(1, "a"))
    real.capture("PostToolUse", tool_use(2, "b"))
    until(lambda: real.events() == 2)
    done = real.run("status", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert _has_shape(found)
    assert (found["daemon"]["running"], found["daemon"]["pid"]) == (True, process.pid)
    assert (found["store"]["events"], found["store"]["sessions"]) == (2, 2)
    assert real.run("status").returncode == 0


def test_uncounted_work_is_seen_without_a_daemon(real: Home) -> None:
    """What hooks left in the spool is counted and aged, and the text says what to type."""
    real.run("status")
    real.capture("PostToolUse", tool_use(1))
    found = real.status()
    assert found["spool"]["pending_files"] == 1
    assert found["spool"]["pending_bytes"] > 100
    assert 0 <= found["spool"]["oldest_pending_s"] < 60
    done = real.run("status")
    assert done.returncode == 4
    assert "1 capture waiting" in done.stdout
    assert "metricsd up" in done.stdout


def test_figures_survive_the_daemon(real: Home) -> None:
    """The store is read, not asked for: the same numbers after the daemon has gone."""
    process = real.start_daemon()
    real.capture("PostToolUse", tool_use(1))
    until(lambda: real.events() == 1)
    stop(process)
    assert real.status()["store"]["events"] == 1
    assert real.status()["store"]["schema"] >= 1


def test_pending_follows_the_outbox(home: Paths) -> None:
    """Status counts what waits by its own SQL; it agrees with the outbox's."""
    store = Store.open(home.store)
    store.db.execute(
        "INSERT INTO state VALUES ('last_pos', 5), ('stream_device', 'd'), ('stream_base', 1), ('stream_settled', 2)"
    )
    store.db.executemany(
        "INSERT INTO event (pos, id, at, device, type) VALUES (?, ?, 0, 1, 1)",
        [(n, bytes([n]) * 16) for n in (1, 2, 3, 5)],
    )
    assert _status(home)["sync"]["pending_events"] == outbox.pending_events(store) == 1
    assert status.COUNT_MAX == outbox.COUNT_MAX
    store.close()


def test_protocol_is_the_wires() -> None:
    """The number that is repeated to save an import is the right one."""
    assert status.PROTOCOL_VERSION == PROTOCOL_VERSION


@pytest.mark.parametrize("damage", [b"not a database, but long enough to be read as one" * 100, b""])
def test_a_damaged_store_is_said_not_raised(home: Paths, damage: bytes) -> None:
    """`healthy` is false with the reason; everything else is still there."""
    home.state_dir.mkdir(parents=True)
    home.store.write_bytes(damage)
    found = _status(home)
    assert _has_shape(found)
    assert found["store"]["healthy"] is False
    assert str(home.store) in found["store"]["reason"]


def test_a_locked_store_is_said_in_time(home: Paths) -> None:
    """A store that another program holds exclusively costs a tenth of a second, not a hang."""
    Store.open(home.store).close()
    holder = sqlite3.connect(home.store, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    found = _status(home)
    assert found["store"]["healthy"] is False
    assert "locked" in found["store"]["reason"]
    holder.close()


def test_a_daemon_that_does_not_answer_is_told_from_none(home: Paths) -> None:
    """The lock is held but nobody is at the socket: starting, not running, exit 4."""
    with InstanceLock.acquire(home.lock, "daemon"):
        found = _status(home)
    assert (found["daemon"]["state"], found["daemon"]["running"], found["daemon"]["pid"]) == (
        "starting",
        False,
        os.getpid(),
    )
    assert exit_code(found) == 4


def test_a_foreground_sync_is_no_daemon(home: Paths) -> None:
    """Another holder of the lock is not reported as the daemon."""
    with InstanceLock.acquire(home.lock, "sync"):
        assert _status(home)["daemon"]["state"] == "stopped"


def test_a_login_that_never_synced_says_so(home: Paths) -> None:
    """Address and names are shown, secrets are not."""
    _log_in(home)
    found = _status(home)
    assert found["sync"]["url"] == "http://127.0.0.1:9"
    assert found["mode"]["reason"] == "not synced yet"
    assert "token" not in json.dumps(found)


def test_credentials_that_cannot_be_read_need_a_login(home: Paths) -> None:
    """A damaged file is no crash; it calls for a login."""
    home.config_dir.mkdir(parents=True)
    home.credentials.write_text("{")
    assert _status(home)["mode"]["reason"] == "auth"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 0),
        ({"mode": {"current": "hybrid", "reason": "synced"}}, 0),
        ({"mode": {"current": "local_only", "reason": "unreachable: x"}}, 3),
        ({"mode": {"current": "local_only", "reason": "auth"}}, 5),
        ({"store": {"healthy": False}}, 3),
        ({"store": {"healthy": False}, "mode": {"current": "local_only", "reason": "auth"}}, 5),
        ({"daemon": {"running": False}, "mode": {"current": "local_only", "reason": "auth"}}, 4),
    ],
)
def test_exit_codes(change: dict[str, Any], code: int) -> None:
    """The most urgent thing decides: no daemon, then a login, then health."""
    healthy: dict[str, Any] = {
        "daemon": {"running": True},
        "mode": {"current": "local_only", "reason": "not logged in"},
        "store": {"healthy": True},
    }
    assert exit_code(healthy | change) == code


def test_the_screen_shows_what_to_type(home: Paths) -> None:
    """One line a thing, a symbol each, ASCII where the terminal needs it, no colour unless asked."""
    found = _status(home)
    text = render(found, colour=False, encoding="utf-8", now=datetime.now(UTC))
    assert len(text.splitlines()) <= 12
    assert "next: metricsd up" in text
    assert "next: metricsd login URL" in text
    plain = render(found, colour=False, encoding="ascii")
    assert plain.isascii()
    assert "\x1b" not in text
    assert "\x1b[" in render(found, colour=True, encoding="utf-8")


@pytest.mark.parametrize(
    ("mode", "said", "next_command"),
    [
        (("local_only", "unreachable: refused", False), "off: unreachable: refused", "metricsd sync --now"),
        (("local_only", "forced", True), "off: you said so, until 2026-11-29T11:46:21Z", "metricsd mode auto"),
        (("degraded", "forced", True), "slowed down: you said so", "metricsd mode auto"),
        (("degraded", "slow: answers take over 5 s", False), "slowed down: slow: answers take over 5 s", ""),
        (("degraded", "store and cloud: disk; away", False), "off: store and cloud: disk; away", ""),
        (("remote_only", "store: disk full", False), "captures go straight to the cloud: store: disk full", ""),
        (
            ("hybrid", "forced", True),
            "kept on: you said so, until 2026-11-29T11:46:21Z; refused; 0",
            "metricsd mode auto",
        ),
        (("remote_only", "forced", True), "captures go straight to the cloud: you said so", "metricsd mode auto"),
    ],
)
def test_the_screen_says_how_a_mode_goes_and_what_ends_it(
    home: Paths, mode: tuple[str, str, bool], said: str, next_command: str
) -> None:
    """Only `off` is off; a forced mode is ended by `mode auto`, never by a sync that it would refuse."""
    _log_in(home)
    found = _status(home)
    current, reason, forced = mode
    until = "2026-11-29T11:46:21Z" if forced else None
    found["mode"] = {"current": current, "reason": reason, "since": None, "forced": forced, "forced_until": until}
    found["sync"]["last_error"] = "refused" if current == "hybrid" else None
    lines = render(found, colour=False, encoding="ascii").splitlines()
    [at] = [number for number, line in enumerate(lines) if line.startswith("! sync")]
    assert said in lines[at]
    suggested = lines[at + 1].partition("next: ")[2] if len(lines) > at + 1 else ""
    assert suggested == next_command


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"]])
def test_it_imports_nothing_heavy(home: Paths, arguments: list[str]) -> None:
    """The 60 ms are kept by not importing; this names the module that creeps in."""
    _log_in(home)
    Store.open(home.store).close()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "metricsd", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "metricsd" in imported
    assert not imported & HEAVY
