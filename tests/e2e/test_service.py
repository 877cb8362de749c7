"""`metricsd service` against a real systemd user manager: installed, ready, watched, restarted, removed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metricsd.instance import find_holder
from tests.e2e.user_manager import user_manager, why_not
from tests.homes import Home, opened, tool_use, until


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    if reason := why_not():
        pytest.skip(f"NOT TESTED HERE: {reason}")
    try:
        with user_manager(tmp_path) as environ, opened(tmp_path / 'a 100%h "home"', **environ) as made:
            yield made
            made.run("service", "uninstall")
    except AssertionError as error:
        if "cgroup" in str(error) or "mount" in str(error):
            pytest.skip(f"NOT TESTED HERE: no user manager can be started: {error}")
        raise


def standing(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(home.run("service", "status", "--json").stdout)
    return found


def test_the_life_of_a_service(home: Home) -> None:
    """Installed, it runs and takes captures in under all its restrictions; killed, it comes back; removed, it is gone."""
    assert standing(home) | {"installed": False, "running": False} == standing(home)
    printed = home.ok("service", "install")
    assert "installed in" in printed and "started at every login" in printed
    first = standing(home)
    assert (first["manager"], first["installed"], first["running"]) == ("systemd", True, True)
    assert first["current"] is True and first["enabled"] is True
    assert first["says"].startswith("local_only: "), "STATUS carries the mode"
    holder = find_holder(home.paths.lock)
    assert holder is not None and holder.pid == first["pid"]

    home.capture("PostToolUse", tool_use(1))
    until(lambda: home.events() == 1)

    # Installing again, and starting what runs, change nothing.
    assert json.loads(home.ok("service", "install", "--json"))["changed"] is False
    assert "already runs" in home.ok("up")
    assert standing(home)["pid"] == first["pid"]

    # A crash is repaired by the manager, and what came meanwhile is taken in.
    os.kill(first["pid"], signal.SIGKILL)
    home.capture("PostToolUse", tool_use(2))
    until(lambda: standing(home)["pid"] not in (None, first["pid"]))
    until(lambda: home.events() == 2)

    # `down` is the user's word: nothing brings it back but `up`, which uses the service.
    home.ok("down")
    until(lambda: standing(home)["running"] is False)
    assert home.run("service", "status").returncode == 3
    assert "as a service" in home.ok("up")
    assert standing(home)["running"] is True

    file = Path(first["file"])
    assert file.exists()
    assert "removed" in home.ok("service", "uninstall")
    assert not file.exists() and not list(file.parent.glob("*.wants/*"))
    assert find_holder(home.paths.lock) is None
    assert standing(home)["installed"] is False
    assert "no service is installed" in home.ok("service", "uninstall")
    assert home.events() == 2, "what was recorded stays"


def test_installing_takes_over_a_daemon_that_was_started_by_hand(home: Home) -> None:
    """There is never more than one daemon, and none is lost."""
    home.ok("up")
    by_hand = find_holder(home.paths.lock)
    home.ok("service", "install")
    now = find_holder(home.paths.lock)
    assert by_hand is not None and now is not None
    assert now.pid == standing(home)["pid"] != by_hand.pid


def test_a_daemon_that_hangs_is_started_anew(home: Home) -> None:
    """SIGSTOP is the hang: no beat in time, so the manager kills it and starts another one."""
    home.ok("service", "install")
    first = standing(home)
    file = Path(first["file"])
    drop_in = file.parent / f"{file.name}.d" / "test.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\nRestartSec=0\n")
    home.ok("down")
    home.run("service", "install")
    before = standing(home)["pid"]
    os.kill(before, signal.SIGSTOP)
    until(lambda: standing(home)["pid"] not in (None, before))
    until(lambda: home.status()["daemon"]["running"])


def test_a_wrong_setting_is_said_and_not_tried_again(home: Home) -> None:
    """Exit code 2 does not get better: no restart, and the reason is in what the command says."""
    home.ok("service", "install")
    home.ok("down")
    home.paths.config_file.parent.mkdir(exist_ok=True)
    home.paths.config_file.write_text("[sync]\ninterval_s = 'often'\n")
    done = home.run("up")
    assert done.returncode == 2 and "interval_s" in done.stderr
    assert standing(home)["running"] is False


def test_the_doctor_knows_the_service_and_renews_its_unit(home: Home) -> None:
    """A unit of an older version is found and written anew, with its choice of serving a cloud; the daemon is restarted."""

    def told() -> dict[str, Any]:
        rows = json.loads(home.run("doctor", "--json").stdout)
        found: dict[str, Any] = next(row for row in rows if row["check"] == "service")
        return found

    assert told()["level"] == "not_used"
    home.ok("service", "install", "--with-cloud")
    assert told()["level"] == "ok"
    before = standing(home)
    file = Path(before["file"])
    file.write_text(file.read_text().replace("WatchdogSec=60", "WatchdogSec=600"))
    assert told()["level"] == "warn" and home.run("service", "status").returncode == 3
    home.run("doctor", "--fix")
    assert told()["level"] == "ok"
    after = standing(home)
    assert after["pid"] != before["pid"] and "--with-cloud" in file.read_text()
    home.ok("down")
    assert told()["level"] == "fail"
    home.run("doctor", "--fix")
    assert told()["level"] == "ok"
