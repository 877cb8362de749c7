"""`uninstall` with real processes: what goes, what stays, and that nothing goes unasked."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metricsd.config import find_paths
from metricsd.instance import find_holder
from metricsd.removal import find_data
from tests.homes import Home, opened, tool_use, until

FOREIGN = {"hooks": {"Stop": [{"hooks": [{"type": "command", "command": "/usr/bin/true"}]}]}}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    user = tmp_path / "user"
    (user / ".claude").mkdir(parents=True)
    with opened(tmp_path / "home", HOME=str(user)) as made:
        yield made


def settings_of(home: Home) -> Path:
    return Path(home.env["HOME"]) / ".claude" / "settings.json"


def uninstall(home: Home, *flags: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(home.ok("uninstall", "--json", *flags))
    return found


def used(home: Home) -> None:
    """Live for a while: hook entries beside foreign ones, a daemon, an event."""
    settings_of(home).write_text(json.dumps(FOREIGN))
    home.ok("hooks", "install")
    home.ok("up")
    home.capture("PostToolUse", tool_use(1))
    until(lambda: home.events() == 1)


def test_without_a_terminal_and_flags_all_data_stays(home: Home) -> None:
    """Stopped, exactly our entries gone, and everything recorded is still there."""
    used(home)
    done = uninstall(home)
    assert find_holder(home.paths.lock) is None
    assert json.loads(settings_of(home).read_text()) == FOREIGN
    assert home.events() == 1
    assert any("--delete-data" in line for line in done["remains"])
    again = uninstall(home)
    assert again["done"] == ["nothing was set up"]


def test_delete_data_leaves_only_the_program_that_tools_still_call(home: Home) -> None:
    """After a whole life nothing of ours is left but the hook's program, and what remains is named."""
    used(home)
    home.ok("session", "list")
    done = uninstall(home, "--delete-data")
    left = [path for path in home.root.rglob("*") if path.is_file()]
    assert left == [home.paths.state_dir / "hooks" / "capture"]
    assert any(str(left[0]) in line for line in done["remains"])
    # A session that still runs fires the hook: quiet, and nothing comes back.
    program = [str(left[0]), "claude-code", "PostToolUse", str(home.paths.spool)]
    fired = subprocess.run(
        program, input=b'{"tool_name":"Read"}' * 10_000, capture_output=True, timeout=20, check=False
    )
    assert (fired.returncode, fired.stdout, fired.stderr) == (0, b"", b"")
    assert [path for path in home.root.rglob("*") if path.is_file()] == left


def test_what_is_not_ours_is_never_removed(home: Home) -> None:
    """A home may be a folder that holds other things; settings are the user's."""
    used(home)
    foreign = home.paths.state_dir / "my-notes.txt"
    foreign.write_text("mine")
    home.paths.config_file.parent.mkdir(exist_ok=True)
    home.paths.config_file.write_text("[sync]\ninterval_s = 60\n")
    done = uninstall(home, "--delete-data")
    assert foreign.read_text() == "mine"
    assert home.paths.config_file.exists()
    assert str(foreign) in done["remains"] and str(home.paths.config_file) in done["remains"]


def test_a_dry_run_does_nothing(home: Home) -> None:
    """It says what would go, and all of it is still there."""
    used(home)
    before = settings_of(home).read_bytes()
    printed = home.ok("uninstall", "--dry-run", "--delete-data")
    assert "would have deleted what was recorded here" in printed
    assert f"would have stopped the daemon (pid {home.status()['daemon']['pid']})" in printed
    assert settings_of(home).read_bytes() == before
    assert home.status()["daemon"]["running"] is True and home.events() == 1


def test_another_homes_registration_is_left_alone(home: Home, tmp_path: Path) -> None:
    """Removing a trial does not take the hook away from the real installation."""
    settings_of(home).write_text("{}")
    home.ok("hooks", "install")
    before = settings_of(home).read_bytes()
    with opened(tmp_path / "trial", HOME=home.env["HOME"]) as trial:
        done = uninstall(trial, "--delete-data")
    assert settings_of(home).read_bytes() == before
    assert any("not this home's" in line for line in done["remains"])


def test_the_clouds_copy_is_deleted_by_flag(home: Home, tmp_path: Path) -> None:
    """What this device sent is gone from the cloud, the login with it; other devices' data stays."""
    with opened(tmp_path / "cloud") as server:
        server.start_daemon("--with-cloud")
        server.ok("record", "PostToolUse", json.dumps(tool_use(7, "theirs")))
        until(lambda: server.events() == 1)
        url = server.status()["sync"]["url"]
        token = json.loads(server.ok("cloud", "token", "create", "--tenant", "local", "--user", "local", "--json"))
        home.ok("login", url, "--token-stdin", stdin=token["token"])
        used(home)
        home.ok("sync", "--now")
        server.ok("sync", "--now")
        until(lambda: server.events() == 2)
        done = uninstall(home, "--delete-cloud-data")
        assert any(line.startswith("deleted 1 event and") for line in done["done"])
        assert not home.paths.credentials.exists()
        assert home.events() == 2, "what lies here was not meant"
        assert json.loads(server.ok("sync", "--now", "--json"))["ok"] is True


def test_a_cloud_that_does_not_answer_stops_it_before_anything_changed(home: Home, tmp_path: Path) -> None:
    """A failure can be tried again: login, entries and daemon are as they were."""
    with opened(tmp_path / "cloud") as server:
        daemon = server.start_daemon("--with-cloud")
        token = json.loads(server.ok("cloud", "token", "create", "--tenant", "local", "--user", "local", "--json"))
        home.ok("login", server.status()["sync"]["url"], "--token-stdin", stdin=token["token"])
        used(home)
        daemon.terminate()
        daemon.wait(10)
    before = settings_of(home).read_bytes()
    failed = home.run("uninstall", "--delete-cloud-data", "--delete-data")
    assert failed.returncode == 1 and "cannot be reached" in failed.stderr
    assert settings_of(home).read_bytes() == before
    assert home.paths.credentials.exists() and home.events() == 1
    assert home.status()["daemon"]["running"] is True


def test_deleting_in_the_cloud_without_a_login_is_a_wrong_request(home: Home) -> None:
    """Nothing happens, and the reason is said."""
    done = home.run("uninstall", "--delete-cloud-data")
    assert done.returncode == 2 and "not logged in" in done.stderr


def test_every_file_of_a_home_is_known(home: Home) -> None:
    """A file that the daemon makes and `uninstall --delete-data` does not know would stay for ever."""
    used(home)
    home.ok("down")
    known = {*find_data(find_paths(home.env)), home.paths.state_dir / "hooks"}
    assert set(home.paths.state_dir.iterdir()) <= known


@pytest.mark.parametrize(("answer", "kept"), [("n", 1), ("", 1), ("y", 0)])
def test_a_person_is_asked_about_the_data(home: Home, answer: str, kept: int) -> None:
    """At a terminal the question says what there is; anything but yes keeps it."""
    used(home)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "metricsd", "uninstall"],
        env=home.env,
        cwd=home.root,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = ""
    with contextlib.suppress(OSError):  # how a terminal ends on Linux
        while part := os.read(ours, 4096):
            shown += part.decode()
            if shown.endswith("[y/N]: "):
                os.write(ours, f"{answer}\n".encode())
                shown += "\n"
    assert process.wait(30) == 0, shown
    os.close(ours)
    assert "Delete what was recorded here (1 event, " in shown and "remains:" in shown
    assert home.events() == kept
