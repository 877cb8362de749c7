"""Versions that meet: a new command and an old daemon, an old command and a new daemon, a store of another schema."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metricsd import __version__
from metricsd.instance import find_holder
from metricsd.schema import load_steps
from tests.homes import REPOSITORY, Home, opened, stop, tool_use, until

OTHER_VERSION = """
import sys
import metricsd
metricsd.__version__ = {version!r}
from metricsd.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
SPEAKS_ANOTHER_CONTROL = """
import json, os, signal, socket, sys
import metricsd
metricsd.__version__ = "0.0.9"
from pathlib import Path
from metricsd.config import find_paths
from metricsd.control import socket_path
from metricsd.instance import InstanceLock
paths = find_paths()
lock = InstanceLock.acquire(paths.lock, "daemon")
path = socket_path(paths.state_dir)
path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(path))
listener.listen()
print("listens", flush=True)
while True:
    client, _ = listener.accept()
    client.recv(65536)
    client.sendall(json.dumps({"v": 99, "answer": "of another time"}).encode() + b"\\n")
    client.close()
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "home", HOME=str(tmp_path)) as made:
        made.run("status")
        yield made


def start_version(home: Home, version: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a daemon that says it is of another version, and wait until it is ready."""
    # Its arguments stand in its command line as those of a real one do.
    process = home._popen(["-c", OTHER_VERSION.format(version=version), "run", *arguments], {})

    def ready() -> bool:
        assert process.poll() is None, process.communicate()
        return bool(home.status()["daemon"]["running"])

    until(ready)
    return process


def version_of(home: Home) -> str:
    holder = find_holder(home.paths.lock)
    assert holder is not None
    return holder.version


def test_up_replaces_an_older_daemon(home: Home) -> None:
    """After an upgrade of the package the process is still the old one: `up` and `doctor --fix` mend that, nothing is lost."""
    old = start_version(home, "0.0.9")
    home.capture("PostToolUse", tool_use(1))
    assert "0.0.9" in home.ok("status")
    said = json.loads(home.ok("doctor", "--json"))
    assert any(row["check"] == "version" and row["level"] == "warn" and "metricsd up" in row["fix"] for row in said)
    printed = home.ok("up")
    assert "0.0.9 stopped" in printed and __version__ in printed
    assert old.wait(10) == 0
    assert version_of(home) == __version__
    until(lambda: home.events() == 1)
    assert "already runs" in home.ok("up")
    assert __version__ not in home.ok("status").splitlines()[0], "versions are named only where they differ"
    home.ok("down")


def test_the_successor_serves_the_cloud_that_its_predecessor_served(home: Home) -> None:
    """Other devices sync with it; an upgrade must not take it away."""
    start_version(home, "0.0.9", "--with-cloud")
    url = home.status()["sync"]["url"]
    home.ok("up")
    assert version_of(home) == __version__
    assert json.loads(home.ok("sync", "--now", "--json"))["ok"] is True
    assert home.status()["sync"]["url"] == url
    home.ok("down")


def test_a_newer_daemon_is_left_alone_and_named(home: Home) -> None:
    """An old command must not end a newer daemon."""
    newer = start_version(home, "99.0.0")
    printed = home.ok("up")
    assert "99.0.0" in printed and "upgrade this one" in printed
    assert newer.poll() is None and version_of(home) == "99.0.0"
    assert "99.0.0" in home.ok("status")


def test_a_daemon_that_speaks_another_control_protocol_is_replaced(home: Home) -> None:
    """What it answers is not understood, so it is asked by signal; every command says what to do."""
    old = home.start_python(SPEAKS_ANOTHER_CONTROL)
    assert old.stdout is not None and old.stdout.readline() == "listens\n"
    done = home.run("status")
    assert done.returncode == 4 and "does not answer" in done.stdout and "metricsd up" in done.stdout
    done = home.run("sync", "--now")
    assert done.returncode != 0 and "another version" in done.stderr and done.stderr.count("\n") == 1
    assert "stopped" in home.ok("up")
    assert stop(old) == -15
    assert version_of(home) == __version__
    home.capture("PostToolUse", tool_use(1))
    until(lambda: home.events() == 1)
    home.ok("down")


def test_an_unknown_verb_says_to_restart(home: Home) -> None:
    """A newer command asks an older daemon for something that it does not know."""
    home.start_daemon()
    code = "from metricsd import control; from metricsd.config import find_paths\n"
    code += "control.call(find_paths().state_dir, 'a-verb-of-the-future', timeout_s=5)"
    process = home.start_python(code)
    _, error = process.communicate(timeout=20)
    assert "does not know 'a-verb-of-the-future'" in error and "restart it" in error


def raise_schema(home: Home, version: int) -> None:
    with contextlib.closing(sqlite3.connect(home.paths.store)) as db:
        db.execute(f"PRAGMA user_version = {version}")


def test_a_store_of_a_newer_version_is_refused_and_kept(home: Home) -> None:
    """A downgrade is told at once, by every command, with the way out; the store's bytes stay and captures wait."""
    home.ok("up")
    home.capture("PostToolUse", tool_use(1))
    until(lambda: home.events() == 1)
    home.ok("down")
    raise_schema(home, 9001)
    before = home.paths.store.read_bytes()
    home.paths.backups.mkdir(exist_ok=True)
    newest = load_steps("metricsd.store.schema")[-1].number
    for number in (2, newest + 1, newest + 2):
        (home.paths.backups / f"before-schema-{number:04d}.db").touch()
    home.capture("PostToolUse", tool_use(2))
    done = home.run("up")
    assert done.returncode == 1, done.stdout
    assert "schema 9001" in done.stderr and "upgrade metricsd" in done.stderr
    assert f"before-schema-{newest + 1:04d}.db" in done.stderr, "the latest copy that this version can open"
    assert done.stderr.count("\n") == 1
    assert find_holder(home.paths.lock) is None
    for command in (("status",), ("sync", "--now"), ("session", "list")):
        told = home.run(*command)
        assert told.returncode != 0 and "Traceback" not in told.stderr, command
    assert "schema" in home.run("doctor").stdout
    assert home.paths.store.read_bytes() == before
    assert home.status()["spool"]["pending_files"] == 1
    # The newer version comes back: nothing was lost by the attempt.
    raise_schema(home, newest)
    home.ok("up")
    until(lambda: home.events() == 2)
    home.ok("down")


def test_a_store_of_a_newer_minor_version_is_used(home: Home) -> None:
    """Steps within a major only add, so that going back one release works."""
    home.ok("up")
    home.ok("down")
    raise_schema(home, load_steps("metricsd.store.schema")[-1].number + 7)
    home.ok("up")
    home.capture("PostToolUse", tool_use(1))
    until(lambda: home.events() == 1)
    home.ok("down")


def test_an_older_store_is_copied_and_brought_up_to_date(home: Home) -> None:
    """The copy is the store as it was, named by the step that changed it."""
    steps = load_steps("metricsd.store.schema")
    if len(steps) < 2:
        pytest.skip("NOT TESTED HERE: there is one schema step only, and no older one to come from")
    home.paths.state_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(home.paths.store)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN; {steps[0].sql} PRAGMA user_version = 1; COMMIT;")
    home.paths.store.chmod(0o600)
    home.ok("up")
    home.capture("PostToolUse", tool_use(1))
    until(lambda: home.events() == 1)
    home.ok("down")
    copy = home.paths.backups / "before-schema-0002.db"
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 1
        assert db.execute("PRAGMA quick_check").fetchone()[0] == "ok"
    assert home.status()["store"]["schema"] == steps[-1].number


def test_the_hooks_program_survives_the_package(home: Home, tmp_path: Path) -> None:
    """It was copied to a stable place: the tool's hook works while the package is replaced or gone."""
    home.ok("hooks", "install")
    settings = json.loads((tmp_path / ".claude" / "settings.json").read_text())
    handler = settings["hooks"]["PostToolUse"][0]["hooks"][0]
    assert not Path(handler["command"]).is_relative_to(REPOSITORY)
    bare = {"PATH": os.environ["PATH"]}
    assert shutil.which("awk") is not None and sys.executable
    fired = subprocess.run(
        [handler["command"], *handler["args"]],
        input=json.dumps(tool_use(3)).encode(),
        env=bare,
        capture_output=True,
        check=False,
    )
    assert (fired.returncode, fired.stdout, fired.stderr) == (0, b"", b"")
    assert home.status()["spool"]["pending_files"] == 1
