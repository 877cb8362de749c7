"""From a hook on one device to another device's store, through the real processes and the real wire."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metricsd.identity import Credentials, find_credentials, save_login
from metricsd.ids import DeviceId
from tests.homes import REPOSITORY, Home, opened, stop, tool_use, until

ON_DEMAND = {"METRICSD_SYNC_REALTIME": "false"}
"""With real time on, a round of its own may have moved what `sync --now` is asked to report."""


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "laptop", **ON_DEMAND) as made:
        yield made


@pytest.fixture
def desktop(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "desktop", **ON_DEMAND) as made:
        yield made


def _enrol(owner: Home, joining: Home) -> None:
    """Make `joining` a device of the user of `owner`'s embedded cloud."""
    token = json.loads(owner.ok("cloud", "token", "create", "--tenant", "local", "--user", "local", "--json"))["token"]
    joining.ok("login", str(owner.status()["sync"]["url"]), "--token-stdin", stdin=token)


def _sync(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(home.ok("sync", "--now", "--json"))
    return found


def _serve(home: Home) -> subprocess.Popen[str]:
    """Start a daemon with a cloud, and wait for the round that each start makes: what follows is left to `sync --now`."""
    process = home.start_daemon("--with-cloud")
    until(lambda: home.status()["sync"]["last_success"])
    return process


def test_an_event_travels_from_hook_to_the_other_device(laptop: Home, desktop: Home) -> None:
    """Captured, stored, pushed by `sync --now`, pulled by the other device's, once each; a second sync moves nothing."""
    _serve(laptop)
    for number in range(3):
        laptop.capture("PostToolUse", tool_use(number))
    sent = _sync(laptop)
    assert (sent["ok"], sent["mode"], sent["pushed_events"]) == (True, "hybrid", 3)
    assert laptop.status()["sync"]["pending_events"] == 0
    _enrol(laptop, desktop)
    desktop.start_daemon()
    got = _sync(desktop)
    assert got["pulled_events"] + desktop.events() >= 3
    assert desktop.events() == 3
    desktop.capture("PostToolUse", tool_use(9, "other"))
    _sync(desktop)
    assert _sync(laptop)["pulled_events"] == 1
    assert (laptop.events(), desktop.events()) == (4, 4)
    again = _sync(laptop)
    assert (again["pushed_events"], again["pulled_events"]) == (0, 0)


def test_shape_of_the_sync_report(laptop: Home) -> None:
    """The documented fields are there."""
    laptop.start_daemon("--with-cloud")
    fields = {
        "ok", "mode", "pushed_events", "pushed_records", "pulled_events", "pulled_records", "conflicts", "rejected",
        "duration_ms",
    }  # fmt: skip
    report = _sync(laptop)
    assert fields <= set(report)
    assert set(report["conflicts"]) == {"resolved", "open", "by_strategy"}


def test_sync_works_in_the_foreground_too(laptop: Home, desktop: Home) -> None:
    """Without a daemon it takes in the spool, syncs under the same lock, and gives the lock back."""
    laptop.start_daemon("--with-cloud")
    _enrol(laptop, desktop)
    desktop.capture("PostToolUse", tool_use(1))
    assert _sync(desktop)["pushed_events"] == 1
    assert desktop.status()["spool"]["pending_files"] == 0
    assert desktop.status()["mode"]["current"] == "hybrid"
    desktop.start_daemon()


def test_the_daemon_syncs_by_itself_and_after_a_login(laptop: Home, desktop: Home) -> None:
    """At the interval, and at once when a login appears; nobody has to restart it."""
    laptop.env["METRICSD_SYNC_INTERVAL_S"] = "0.3"
    laptop.start_daemon("--with-cloud")
    desktop.env["METRICSD_TAIL_RESCAN_S"] = "0.2"
    desktop.start_daemon()
    desktop.capture("PostToolUse", tool_use(1))
    until(lambda: desktop.events() == 1)
    _enrol(laptop, desktop)
    until(lambda: desktop.status()["sync"]["last_success"])
    until(lambda: laptop.events() == 1)
    assert desktop.status()["sync"]["next"] is not None


def test_url_stays_the_same_at_the_next_start(laptop: Home) -> None:
    """The port is kept in the home, and so is the device."""
    process = laptop.start_daemon("--with-cloud")
    before = laptop.status()["sync"]["url"]
    device = find_credentials(laptop.paths)
    stop(process)
    laptop.start_daemon("--with-cloud")
    assert laptop.status()["sync"]["url"] == before
    assert find_credentials(laptop.paths) == device


def test_a_taken_port_moves_the_cloud_and_its_own_login(laptop: Home) -> None:
    """It listens elsewhere, stays the same device, and syncs."""
    process = laptop.start_daemon("--with-cloud")
    before = find_credentials(laptop.paths)
    assert before is not None
    stop(process)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(before.url.rsplit(":", 1)[1])))
        taken.listen()
        laptop.start_daemon("--with-cloud")
        after = find_credentials(laptop.paths)
    assert after is not None
    assert after.url != before.url
    assert after == before._replace(url=after.url)
    assert laptop.status()["sync"]["url"] == after.url
    laptop.capture("PostToolUse", tool_use(1))
    assert _sync(laptop)["ok"]
    assert (laptop.events(), laptop.status()["sync"]["pending_events"]) == (1, 0)


def test_a_wanted_port_that_is_taken_is_an_error(laptop: Home) -> None:
    """An explicit --port is not silently another one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = laptop.run("run", "--with-cloud", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "choose another --host or --port" in done.stderr


def test_a_login_elsewhere_is_kept_and_said(laptop: Home) -> None:
    """`run --with-cloud` serves, but does not take the device away from its cloud."""
    elsewhere = Credentials("http://127.0.0.1:9", "t", b"k" * 32, "team", "ann", DeviceId("d" * 32))
    save_login(laptop.paths, elsewhere, parent=None)
    process = laptop.start_daemon("--with-cloud")
    assert find_credentials(laptop.paths) == elsewhere
    process.terminate()
    _, said = process.communicate(timeout=10)
    assert "logged in to http://127.0.0.1:9" in said


def test_a_cloud_folder_that_was_emptied_is_joined_anew(laptop: Home) -> None:
    """The old token means nothing to a new cloud; the first start's steps are done again, and everything is sent."""
    process = _serve(laptop)
    laptop.capture("PostToolUse", tool_use(1))
    assert _sync(laptop)["pushed_events"] == 1
    stop(process)
    address = (laptop.paths.cloud / "address.json").read_bytes()
    shutil.rmtree(laptop.paths.cloud)
    laptop.paths.cloud.mkdir(mode=0o700)
    (laptop.paths.cloud / "address.json").write_bytes(address)
    laptop.start_daemon("--with-cloud")
    laptop.ok("sync", "--now")
    assert laptop.status()["sync"]["pending_events"] == 0
    assert laptop.status()["mode"]["current"] == "hybrid"


@pytest.mark.parametrize("with_daemon", [True, False])
def test_not_logged_in_exits_5_and_says_what_to_do(laptop: Home, with_daemon: bool) -> None:
    """One line, with and without a daemon; status goes on being fine."""
    if with_daemon:
        laptop.start_daemon()
    done = laptop.run("sync", "--now")
    assert done.returncode == 5
    [line] = done.stderr.strip().splitlines()
    assert "metricsd login URL" in line
    report = json.loads(laptop.run("sync", "--json").stdout)
    assert (report["ok"], report["error"]["code"]) == (False, "auth")
    assert laptop.status()["mode"]["reason"] == "not logged in"
    assert laptop.run("status").returncode == (0 if with_daemon else 4)


@pytest.mark.parametrize("with_daemon", [True, False])
def test_an_unreachable_cloud_exits_1_in_one_line(laptop: Home, with_daemon: bool) -> None:
    """The events stay, and status says since when and why."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    save_login(laptop.paths, Credentials(url, "t", b"k" * 32, "t", "u", DeviceId("d" * 32)), parent=None)
    laptop.capture("PostToolUse", tool_use(1))
    if with_daemon:
        laptop.start_daemon()
    done = laptop.run("sync", "--now")
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert line.startswith(f"metricsd: {url} cannot be reached")
    found = laptop.status()
    assert (found["mode"]["current"], found["sync"]["pending_events"]) == ("local_only", 1)
    assert found["mode"]["reason"].startswith("unreachable: ")
    assert found["mode"]["since"] is not None
    assert found["sync"]["last_error"] is not None
    assert laptop.run("status").returncode == (3 if with_daemon else 4)
    report = json.loads(laptop.run("sync", "--now", "--json").stdout)
    assert (report["ok"], report["error"]["code"]) == (False, "unreachable")


def test_a_wrong_token_exits_5(laptop: Home) -> None:
    """A token that the cloud does not know calls for a login, in sync and in status."""
    laptop.start_daemon("--with-cloud")
    login = find_credentials(laptop.paths)
    assert login is not None
    save_login(laptop.paths, login._replace(token="wrong"), parent=None)
    done = laptop.run("sync", "--now")
    assert done.returncode == 5
    assert len(done.stderr.strip().splitlines()) == 1
    assert laptop.run("status").returncode == 5


def test_dry_run_asks_nobody(laptop: Home) -> None:
    """It counts what would go and shows it as it would go, without a cloud or a daemon."""
    laptop.start_daemon()
    laptop.capture("PostToolUse", tool_use(1))
    until(lambda: laptop.events() == 1)
    found = json.loads(laptop.ok("sync", "--dry-run", "--json"))
    assert (found["pending_events"], len(found["events"])) == (1, 1)
    assert "would send 1 event and" in laptop.ok("sync", "--dry-run")


def test_demo_ends_well_and_leaves_nothing(tmp_path: Path) -> None:
    """Exit 0, every count equal on both devices, no folder and no process left."""
    environment = {**Home(tmp_path / "mine").env, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "metricsd", "demo", "--json"],
        env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len({row[key] for row in rows for key in ("captured", "stored", "in_cloud", "seen_from_other")}) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]
    assert not (tmp_path / "mine" / "state" / "store.db").exists()
