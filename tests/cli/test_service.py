"""Units as text, and the command where there is no manager; the real manager is in tests/e2e/test_service.py."""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from metricsd.cli.service import _hints
from metricsd.config import find_paths
from metricsd.errors import ServiceError
from metricsd.service.find import Absent, find_manager
from metricsd.service.launchd import Launchd
from metricsd.service.manager import Done, Standing
from metricsd.service.systemd import Systemd
from metricsd.service.unit import find_program, launchd_text, make_plan, systemd_text, unit_name
from tests.homes import Home, opened

ODD = '/tmp/a home/100%/"quoted"/back\\slash/ö'


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "home", HOME=str(tmp_path / "user"), XDG_RUNTIME_DIR=str(tmp_path / "none")) as made:
        yield made


@pytest.mark.parametrize("place", ["/home/ann", ODD])
def test_systemd_accepts_the_unit(tmp_path: Path, place: str) -> None:
    """`systemd-analyze verify --user` has nothing to say, whatever the home is called."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("NOT TESTED HERE: systemd-analyze is not installed")
    environ = {"HOME": str(tmp_path), "METRICSD_HOME": place}
    file = tmp_path / "metricsd.service"
    text = systemd_text(make_plan(find_paths(environ), environ, with_cloud=True))
    assert "%" not in text.replace("%%", ""), "systemd would expand it, without a word"
    file.write_text(text)
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    done = subprocess.run(
        [analyze, "verify", "--user", "--man=no", str(file)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "metricsd" in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_the_unit_is_ready_watched_restarted_and_limited() -> None:
    """What the manager is asked to do; the path of the very program, and no secrets or settings of this shell."""
    environ = {"HOME": "/home/ann", "METRICSD_SYNC_INTERVAL_S": "1", "HTTPS_PROXY": "http://u:secret@p"}
    text = systemd_text(make_plan(find_paths(environ), environ))
    lines = text.splitlines()
    for line in (
        "Type=notify", "WatchdogSec=60", "Restart=on-failure", "StartLimitBurst=5", "StartLimitIntervalSec=600",
        "RestartPreventExitStatus=2", "NoNewPrivileges=true", "UMask=0077", "MemoryMax=512M", "LimitNOFILE=4096",
        "TasksMax=128", "WantedBy=default.target",
    ):  # fmt: skip
        assert line in lines
    assert f'ExecStart="{find_program()[0][0]}" ' in text
    assert "secret" not in text and "INTERVAL" not in text and "@COMMAND@" not in text
    # The manager's stop must be longer than the daemon's own (daemon.stop_timeout_s, 5 by default).
    assert "TimeoutStopSec=15" in lines


def test_the_agent_is_a_property_list_that_says_the_same() -> None:
    """plistlib reads it; started at login, anew after a crash only, with the home's variables and any path."""
    environ = {"HOME": "/Users/ann", "METRICSD_HOME": ODD}
    plan = make_plan(find_paths(environ), environ, with_cloud=True)
    found = plistlib.loads(launchd_text(plan))
    assert found["ProgramArguments"] == [*find_program()[0], "run", "--with-cloud"]
    assert found["EnvironmentVariables"]["METRICSD_HOME"] == ODD
    assert found["RunAtLoad"] is True and found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["Umask"] == 0o077 and found["ThrottleInterval"] == 10
    assert found["StandardErrorPath"] == f"{ODD}/state/log/service.out"
    assert found["Label"] == unit_name(environ) != "metricsd"


def test_each_home_has_a_unit_of_its_own() -> None:
    """A trial in another home never takes the place of the real service."""
    assert unit_name({}) == "metricsd"
    assert unit_name({"METRICSD_HOME": "/a"}) != unit_name({"METRICSD_HOME": "/b"})
    assert unit_name({"METRICSD_HOME": "/a"}) == unit_name({"METRICSD_HOME": "/a/"})


@pytest.mark.parametrize("place", ["/a\nExecStart=/bin/false", "/a$HOME"])
def test_a_path_that_a_unit_cannot_hold_is_refused(place: str) -> None:
    """Never a unit that means something else than it says."""
    environ = {"HOME": "/home/ann", "METRICSD_HOME": place}
    plan = make_plan(find_paths(environ), environ)
    with pytest.raises(ServiceError, match="install metricsd elsewhere"):
        systemd_text(plan)
    with pytest.raises(ServiceError, match="install metricsd elsewhere"):
        launchd_text(plan)


class FakeManager:
    """A manager's programs: answers by rule, remembers what was asked."""

    def __init__(self, answers: dict[str, Done]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, words: Sequence[str], timeout_s: float) -> Done:
        line = " ".join(words)
        self.asked.append(line)
        return next((done for part, done in self.answers.items() if part in line), Done(0, "", ""))


def test_launchd_is_told_what_to_do(tmp_path: Path) -> None:
    """Loaded once, loaded anew when the text changed, taken out whole."""
    environ = {"HOME": str(tmp_path), "METRICSD_HOME": str(tmp_path / "home")}
    fake = FakeManager({"print": Done(113, "", "Could not find service")})
    agent = find_manager(find_paths(environ), environ, platform="darwin", run=fake)
    assert isinstance(agent, Launchd)
    assert agent.install(with_cloud=False) is True
    domain = f"gui/{os.getuid()}"
    assert fake.asked[-2:] == [
        f"launchctl enable {domain}/{unit_name(environ)}",
        f"launchctl bootstrap {domain} {agent.file}",
    ]
    fake.answers["print"] = Done(0, "\tstate = running\n\tpid = 4711\n", "")
    standing = agent.standing()
    assert (standing.running, standing.pid, standing.current) == (True, 4711, True)
    assert agent.install(with_cloud=False) is False
    fake.asked.clear()
    assert agent.install(with_cloud=True) is True
    assert [line.split()[1] for line in fake.asked] == ["print", "bootout", "enable", "bootstrap"]
    assert agent.uninstall() is True
    assert not agent.file.exists()
    fake.answers["print"] = Done(113, "", "")
    assert agent.uninstall() is False


def test_a_refusal_of_the_manager_is_handed_on(tmp_path: Path) -> None:
    """What systemd did not like is in the error, with the command."""
    environ = {"HOME": str(tmp_path)}
    fake = FakeManager({"enable": Done(1, "", "Failed to enable unit:\n it is masked.")})
    unit = Systemd(find_paths(environ), environ, fake)
    with pytest.raises(ServiceError, match=r"enable metricsd.service` failed \(Failed to enable unit: it is masked.\)"):
        unit.install(with_cloud=False)


@pytest.mark.parametrize(
    ("environ", "word"),
    [({"container": "podman"}, "container"), ({"WSL_DISTRO_NAME": "Ubuntu"}, "wsl.conf"), ({}, "metricsd up")],
)
def test_without_a_manager_the_answer_says_what_to_do_instead(
    tmp_path: Path, environ: dict[str, str], word: str
) -> None:
    """Containers, WSL and all the rest: a reason, and `metricsd up`."""
    fake = FakeManager({"show": Done(1, "", "Failed to connect to bus")})
    found = find_manager(
        find_paths({"HOME": str(tmp_path)}), {"HOME": str(tmp_path)} | environ, platform="linux", run=fake
    )
    assert isinstance(found, Absent)
    assert word in f"{found.reason} {found.instead}" and "metricsd up" in found.instead


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED HERE: without a manager, which only Linux can be")
def test_the_command_without_a_manager(home: Home) -> None:
    """Install fails with one line, status is an answer, and nothing is left behind."""
    done = home.run("service", "install")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "metricsd up" in done.stderr
    assert not (Path(home.env["HOME"]) / ".config").exists()
    found = json.loads(home.ok("service", "status", "--json"))
    assert (found["manager"], found["installed"], found["running"]) == (None, False, False)
    assert "instead:" in home.ok("service", "status")
    assert "no service is installed" in home.ok("service", "uninstall")
    assert json.loads(home.ok("service", "uninstall", "--json")) == {"removed": False}
    logs = home.run("service", "logs")
    assert logs.returncode == 1 and "metricsd logs" in logs.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED HERE: a unit that no manager reads")
def test_a_unit_is_removed_where_its_manager_cannot_be_reached(home: Home) -> None:
    """The file and the link that would start it at the next login; and `up` does not wait for a manager that is not there."""
    environ = home.env
    unit = Systemd(home.paths, environ, FakeManager({}))
    unit.install(with_cloud=False)
    wants = unit.file.parent / "default.target.wants" / unit.file.name
    wants.parent.mkdir()
    wants.symlink_to(unit.file)
    assert str(unit.file) in home.ok("service", "status")
    home.ok("up")
    home.ok("down")
    assert "removed" in home.ok("service", "uninstall")
    assert not unit.file.exists() and not wants.is_symlink()


def test_hints_name_what_a_service_does_not_see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings and proxies of this shell, and the end at logout; never a value, which may hold a password."""
    for name in [name for name in os.environ if name.startswith("METRICSD_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    found = Standing(
        "systemd", "metricsd.service", tmp_path / "u", True, True, True, True, "active/running", 1, "", True
    )
    monkeypatch.setenv("METRICSD_HOME", str(tmp_path))
    assert _hints(found) == []
    monkeypatch.setenv("METRICSD_SYNC_INTERVAL_S", "60")
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:secret@proxy")
    hints = " ".join(_hints(found._replace(lingers=False)))
    for word in ("METRICSD_SYNC_INTERVAL_S", "HTTPS_PROXY", str(tmp_path / "config" / "environment"), "enable-linger"):
        assert word in hints
    assert "METRICSD_HOME" not in hints and "secret" not in hints
