"""`metricsd mode`: what it shows, what it keeps without a daemon, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from metricsd import modes
from metricsd.failover import Forced, Mode, Reason
from metricsd.modes import Change, State
from tests.failover.test_governor import log_in
from tests.homes import Home, opened


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "home") as made:
        yield made


def test_without_a_daemon_it_shows_what_will_be_in_force(there: Home) -> None:
    """The words of `status`, and the same JSON."""
    assert there.ok("mode") == "local_only: not logged in\n"
    found = json.loads(there.ok("mode", "--json"))
    assert found == there.status()["mode"]
    assert found == {
        "current": "local_only", "reason": "not logged in", "since": None, "forced": False, "forced_until": None,
    }  # fmt: skip


def test_a_force_is_kept_shown_and_ended(there: Home) -> None:
    """By `mode`, by `status` and in the history; `auto` ends it."""
    log_in(there.paths)
    done = there.run("mode", "degraded", "--for", "2h")
    assert done.returncode == 0
    assert done.stdout.startswith("degraded since ") and "forced until " in done.stdout
    assert "no daemon runs" in done.stderr
    found = there.status()["mode"]
    assert (found["current"], found["reason"], found["forced"]) == ("degraded", "forced", True)
    assert found["forced_until"] > found["since"]
    assert "forced until `metricsd mode auto`" in there.ok("mode", "local_only")
    assert there.status()["mode"]["forced_until"] is None
    assert there.ok("mode", "auto").startswith("hybrid since ")
    assert there.status()["mode"]["forced"] is False
    rows = json.loads(there.ok("mode", "--history", "--json"))
    assert [row["mode"] for row in rows] == ["hybrid", "local_only", "degraded", "hybrid"]
    assert [row["reason"] for row in rows][1:3] == ["forced", "forced"]
    assert len(there.ok("mode", "--history").splitlines()) == len(rows)


def test_an_old_force_is_over_though_no_daemon_saw_its_end(there: Home) -> None:
    """The file says until when, and the clock says that it is later."""
    log_in(there.paths)
    forced = State((Change(1, Mode.LOCAL_ONLY, Reason.FORCED),), Forced(Mode.LOCAL_ONLY, 2))
    modes.save_state(there.paths.mode, forced)
    assert there.status()["mode"]["forced"] is False
    assert there.ok("mode") == "hybrid: not synced yet\n"


def test_a_login_since_the_last_daemon_counts(there: Home) -> None:
    """What was true of another login, or of none, is not shown."""
    modes.save_state(there.paths.mode, State((Change(1, Mode.LOCAL_ONLY, Reason.AUTH),)))
    assert there.ok("mode") == "local_only: not logged in\n"
    log_in(there.paths)
    assert there.ok("mode") == "hybrid: not synced yet\n"
    modes.save_state(there.paths.mode, State((Change(2**52, Mode.LOCAL_ONLY, Reason.AUTH),)))
    assert there.status()["mode"]["reason"] == "auth"
    there.paths.credentials.unlink()
    assert there.ok("mode") == "local_only: not logged in\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["sideways"], 2, "sideways"),
        (["--for", "2h"], 2, "--for needs a mode"),
        (["auto", "--for", "2h"], 2, "--for needs a mode"),
        (["hybrid", "--for", "soon"], 2, "30d"),
        (["hybrid", "--for", "99999999999d"], 2, "too long"),
        (["hybrid", "--for", "9999999d"], 2, "too long"),
        (["--history", "hybrid"], 2, "--history only looks"),
        (["remote_only"], 5, "metricsd login URL"),
    ],
)
def test_what_makes_no_sense_is_refused(there: Home, arguments: list[str], code: int, said: str) -> None:
    """With what to do, and nothing is kept."""
    done = there.run("mode", *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert modes.find_state(there.paths.mode) is None


def test_a_damaged_file_is_none(there: Home) -> None:
    """Whatever lies there, `status` and `mode` answer, and the next force replaces it."""
    there.ok("mode")
    there.paths.mode.write_bytes(b"\xff{" * 1000)
    assert there.ok("mode") == "local_only: not logged in\n"
    there.ok("mode", "degraded")
    assert there.status()["mode"]["forced"] is True
