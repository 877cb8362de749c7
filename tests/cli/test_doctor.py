"""`doctor` with real processes: silent about what is not used, exact about what is broken, and without a trace in the figures."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metricsd import spool
from metricsd.client import CloudClient
from metricsd.config import Sync
from metricsd.doctor.cloud import _clock, _trust, _without_login
from metricsd.doctor.finding import Level
from metricsd.errors import CloudUnreachable, ConfigError
from metricsd.filesystem import check_local, kind_of
from metricsd.identity import load_identity
from metricsd.store.connection import Store
from tests.cloud.processes import ServerProcess
from tests.homes import Home, opened, stop, tool_use, until

PEM = Path(__file__).parents[1] / "sync" / "loopback.pem"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    user = tmp_path / "user"
    user.mkdir()
    places = {"HOME": str(user), "XDG_RUNTIME_DIR": str(tmp_path / "none")}
    with opened(tmp_path / "home", **places) as made:
        for name in [name for name in made.env if name.lower().endswith("_proxy")]:
            del made.env[name]
        yield made


def doctor(home: Home, *flags: str) -> dict[str, list[dict[str, Any]]]:
    """Run it and return its findings by check; the exit code must say whether any of them is a failure."""
    done = home.run("doctor", "--json", *flags)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert done.returncode == (1 if any(row["level"] == "fail" for row in found) else 0)
    assert all(row["fix"] for row in found if row["level"] in ("warn", "fail")), "each has one thing to do"
    by_check: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        by_check.setdefault(row["check"], []).append(row)
    return by_check


def level(found: dict[str, list[dict[str, Any]]], check: str) -> str:
    """Return the worst level of a check."""
    levels = {row["level"] for row in found[check]}
    return next(name for name in ("fail", "warn", "not_used", "ok") if name in levels)


def log_in(home: Home, server: Home) -> dict[str, str]:
    token = json.loads(server.ok("cloud", "token", "create", "--tenant", "local", "--user", "local", "--json"))
    home.ok("login", server.status()["sync"]["url"], "--token-stdin", stdin=token["token"])
    found: dict[str, str] = json.loads(home.paths.credentials.read_text())
    return found


def test_a_fresh_machine_has_no_failure(home: Home) -> None:
    """Nothing is set up yet, so nothing is broken: exit 0, and what is not used says how to use it."""
    found = doctor(home)
    assert {row["level"] for rows in found.values() for row in rows} == {"ok", "not_used"}
    assert level(found, "hooks") == level(found, "daemon") == level(found, "cloud") == "not_used"
    text = home.ok("doctor")
    assert "0 broken" in text and "metricsd hooks install" in text
    assert not home.paths.store.exists(), "looking creates nothing"


def test_a_whole_installation_is_well_and_the_probe_leaves_no_trace(home: Home, tmp_path: Path) -> None:
    """Hook, daemon and cloud are ok, the event went the whole way, and no figure changed by it."""
    with opened(tmp_path / "cloud") as server:
        server.start_daemon("--with-cloud")
        home.ok("hooks", "install")
        log_in(home, server)
        home.start_daemon()
        home.capture("PostToolUse", tool_use(1))
        until(lambda: home.events() == 1)
        home.ok("sync", "--now")
        assert home.status()["sync"]["pending_events"] == 0
        before = home.status()
        for _ in range(3):
            found = doctor(home)
            assert {row["level"] for rows in found.values() for row in rows} <= {"ok", "not_used"}, found
            for check in (
                "hooks",
                "hook fires",
                "round trip",
                "permissions",
                "store",
                "token",
                "clock",
                "cloud version",
            ):
                assert level(found, check) == "ok", check
            assert " ms" in found["round trip"][0]["says"] and " ms" in found["hook fires"][0]["says"]
        after = home.status()
        for section, key in (
            ("store", "events"),
            ("store", "sessions"),
            ("spool", "quarantined"),
            ("spool", "pending_files"),
        ):
            assert after[section][key] == before[section][key], key
        home.ok("sync", "--now")
        assert home.status()["sync"]["pending_events"] == 0 and home.events() == 1


def test_a_probe_that_was_left_behind_never_becomes_an_event(home: Home) -> None:
    """A doctor that was killed leaves one; the daemon's next start lets go of it."""
    home.run("status")
    spool.append(spool.PROBE_EVENT, {}, app=spool.PROBE_APP, spool=home.paths.spool)
    home.capture("PostToolUse", tool_use(1))
    home.start_daemon()
    until(lambda: home.events() == 1)
    until(lambda: home.status()["spool"]["pending_files"] == 0)
    assert home.status()["store"]["sessions"] == 1 and home.status()["spool"]["quarantined"] == 0


def test_each_breakage_is_named_and_repaired(home: Home) -> None:
    """What is ours and safe is mended by --fix; the line says what was wrong."""
    home.ok("hooks", "install")
    home.ok("up")
    capture = home.paths.state_dir / "hooks" / "capture"
    capture.write_text("#!/bin/sh\nexit 0\n")
    home.paths.spool.chmod(0o755)
    home.ok("down")
    # Every command tightens the spool, so its place in the list is tested with a folder that none of them looks at.
    home.paths.log_file.parent.chmod(0o755)
    found = doctor(home)
    assert level(found, "hooks") == "fail" and "other version" in found["hooks"][0]["says"]
    assert level(found, "daemon") == "fail" and found["daemon"][0]["fix"] == "metricsd up"
    assert level(found, "permissions") == "warn"
    found = doctor(home, "--fix")
    assert (
        level(found, "hooks")
        == level(found, "daemon")
        == level(found, "permissions")
        == level(found, "round trip")
        == "ok"
    )
    assert stat.S_IMODE(home.paths.log_file.parent.stat().st_mode) == 0o700
    assert "repaired" not in home.ok("doctor", "--fix"), "a second time there is nothing to do"


def test_a_mistake_in_a_policy_is_said_though_the_policy_is_in_force(home: Home) -> None:
    """A rule with a typo is obeyed and never applies: nobody would look for it."""
    folder = home.paths.config_dir / "conflict_policies"
    folder.mkdir(parents=True, mode=0o700)
    file = folder / "mine.toml"
    file.write_text('version = 1\n\n[[rule]]\nmatch = { field = "descripton" }\nstrategy = "remote_wins"\n')
    file.chmod(0o600)
    found = doctor(home)["policy"][0]
    assert (found["level"], found["fix"]) == ("warn", "metricsd policy lint")
    assert f"{file}:3" in found["says"] and "descripton" in found["says"]
    file.write_text(file.read_text().replace("descripton", "description"))
    assert level(doctor(home), "policy") == "ok"


def test_a_login_that_others_can_read_is_a_failure(home: Home, tmp_path: Path) -> None:
    """It is refused, so sync stands still; --fix closes it."""
    with opened(tmp_path / "cloud") as server:
        server.start_daemon("--with-cloud")
        log_in(home, server)
        home.ok("up")
        home.paths.credentials.chmod(0o644)
        found = doctor(home)
        assert level(found, "permissions") == level(found, "login") == "fail"
        found = doctor(home, "--fix")
        assert level(found, "login") == level(found, "token") == "ok"


def test_a_revoked_token_and_a_cloud_that_is_away_are_told_apart(home: Home, tmp_path: Path) -> None:
    """The one needs a new login, the other patience; secrets are in neither text."""
    with opened(tmp_path / "cloud") as server:
        daemon = server.start_daemon("--with-cloud")
        login = log_in(home, server)
        tokens = json.loads(server.ok("cloud", "token", "list", "--tenant", "local", "--json"))
        for token in tokens:
            server.run("cloud", "token", "revoke", str(token["id"]))
        found = doctor(home)
        assert level(found, "token") == "fail" and "metricsd login" in found["token"][0]["fix"]
        stop(daemon)
        found = doctor(home)
        assert level(found, "cloud") == "fail" and "token" not in found
        assert login["token"] not in home.run("doctor").stdout


def test_a_name_that_cannot_be_resolved_ends_the_questions(home: Home) -> None:
    """Without a name there is no certificate and no token to speak of."""
    paths = home.paths
    load_identity(paths)
    document = {"url": "https://no-such-host.invalid", "token": "t" * 43, "tenant_key": "00" * 32}
    paths.credentials.parent.mkdir(parents=True, exist_ok=True)
    paths.credentials.write_text(json.dumps(document | {"tenant": "t", "user": "u", "device_id": "d" * 32}))
    paths.credentials.chmod(0o600)
    found = doctor(home)
    assert level(found, "dns") == "fail" and "tls" not in found and "token" not in found


def test_a_proxy_is_named_without_its_password_and_compared_with_the_daemons(home: Home) -> None:
    """The shell's proxy is not the daemon's when it was set later."""
    test_a_name_that_cannot_be_resolved_ends_the_questions(home)
    home.ok("up")
    home.env["HTTPS_PROXY"] = "http://ann:secret@127.0.0.1:9"
    found = doctor(home)
    said = " ".join(row["says"] for row in found["proxy"])
    assert "127.0.0.1:9" in said and "secret" not in said and level(found, "dns") == "not_used"
    if os.path.exists("/proc/self/environ"):
        assert level(found, "proxy") == "warn" and "HTTPS_PROXY" in said
    home.ok("down")


@pytest.mark.parametrize(
    ("offset_s", "wanted"), [(0.2, Level.OK), (-30.0, Level.WARN), (30.0, Level.WARN), (3600.0, Level.FAIL)]
)
def test_a_clock_that_is_wrong_is_said(offset_s: float, wanted: Level) -> None:
    """Seconds do no harm, minutes make stamps that the cloud takes back."""
    found = _clock(offset_s)
    assert found.level is wanted and f"{abs(offset_s):.1f} s" in found.says


@pytest.mark.parametrize(
    "url", ["http://u:secret@p:3128", "u:secret@p:3128", "http://u:secret@p:port", "//secret@", "secret"]
)
def test_no_proxy_login_is_shown(url: str) -> None:
    """Whatever people write there."""
    assert "secret" not in _without_login(url) or url == "secret"


def test_a_damaged_store_is_found(home: Home) -> None:
    """Every page is looked at, not only the first."""
    home.ok("up")
    home.capture("PostToolUse", tool_use(1))
    until(lambda: home.events() == 1)
    home.ok("down")
    data = bytearray(home.paths.store.read_bytes())
    data[4096 * 3 : 4096 * 6] = b"\xff" * 4096 * 3
    home.paths.store.write_bytes(data)
    assert level(doctor(home), "store") == "fail"


def test_settings_that_are_wrong_come_first(home: Home) -> None:
    """One line, with file, line and key; nothing is guessed behind it."""
    home.paths.config_file.parent.mkdir(parents=True)
    home.paths.config_file.write_text("[sync]\ninterval_s = 'often'\n")
    found = doctor(home)
    assert list(found) == ["settings"] and "config.toml:2" in found["settings"][0]["says"]


def test_a_network_file_system_is_refused_with_the_way_out(home: Home, tmp_path: Path) -> None:
    """SQLite's log does not work there; other kinds, and none that is known, are fine."""
    mounts = tmp_path / "mountinfo"
    for kind, refused in (("nfs4", True), ("cifs", True), ("ext4", False), ("9p", False), ("", False)):
        mounts.write_text(f"1 0 0:1 / / rw - {kind or 'ext4'} none rw\n" if kind else "")
        assert kind_of(home.paths, mounts) == kind
        with pytest.raises(ConfigError, match="METRICSD_HOME") if refused else contextlib.nullcontext():
            check_local(home.paths, mounts)


def test_an_older_store_and_a_newer_one(home: Home) -> None:
    """A newer store is named with what to do; see tests/e2e/test_upgrade.py for the daemon's part."""
    Store.open(home.paths.store).close()
    with contextlib.closing(sqlite3.connect(home.paths.store)) as db:
        db.execute("PRAGMA user_version = 9001")
    found = doctor(home)
    assert level(found, "schema") == "fail"
    assert "9001" in found["schema"][0]["says"] and "upgrade" in found["schema"][0]["fix"]


async def test_the_issuer_of_the_certificate_is_named(tmp_path: Path) -> None:
    """Who vouches for the cloud, which on a network that opens TLS is somebody else; one that is not trusted is an error."""
    arguments = ("--tls-cert", str(PEM), "--tls-key", str(PEM))
    async with ServerProcess(tmp_path / "cloud", tmp_path / "home", *arguments) as server:
        async with CloudClient(server.url, "a-token", Sync(ca_file=str(PEM))) as client:
            certificate = await client.certificate()
            assert certificate is not None and certificate.issuer not in ("", "unknown")
            assert "GMT" in certificate.until
            trusted = _trust(server.url, certificate)
            assert trusted.level is Level.OK and certificate.issuer in trusted.says
        async with CloudClient(server.url, "a-token", Sync()) as stranger:
            with pytest.raises(CloudUnreachable, match=r"not trusted.*sync\.ca_file"):
                await stranger.certificate()


def test_a_store_that_cannot_be_used_is_said_in_the_daemons_words(home: Home) -> None:
    """The daemon knows why; the probe is not sent into a spool that nobody empties."""
    home.env["METRICSD_STORE_CHECK_S"] = "0.05"
    home.start_daemon()
    # A folder in its place cannot be opened as a file by any user, root included.
    home.paths.store.unlink()
    home.paths.store.mkdir()
    until(lambda: home.status()["store"]["healthy"] is False)
    found = doctor(home)
    assert level(found, "store") == "fail"
    assert level(found, "round trip") == "warn"
    assert not list((home.paths.spool / "new").glob(f"{spool.PROBE_EVENT}-*"))


def test_up_can_be_quiet(home: Home) -> None:
    """In a shell's profile it says nothing, the first time and every other; errors are still said."""
    for _ in range(2):
        done = home.run("up", "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    home.ok("down")
    home.paths.config_file.parent.mkdir(parents=True, exist_ok=True)
    home.paths.config_file.write_text("[sync]\ninterval_s = 'often'\n")
    assert "interval_s" in home.run("up", "--quiet").stderr


def test_a_look_from_another_home_changes_no_registration(home: Home, tmp_path: Path) -> None:
    """--fix in a trial must not take the hook away from the real installation; it is said and left alone."""
    home.ok("hooks", "install")
    settings = Path(home.env["HOME"]) / ".claude" / "settings.json"
    before = settings.read_bytes()
    with opened(tmp_path / "trial", HOME=home.env["HOME"], XDG_RUNTIME_DIR=str(tmp_path / "none")) as trial:
        found = doctor(trial, "--fix")
        assert level(found, "hooks") == "warn" and "another home" in " ".join(row["says"] for row in found["hooks"])
        assert level(found, "daemon") == "not_used"
    assert settings.read_bytes() == before
