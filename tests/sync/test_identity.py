"""Who this installation is: one key for ever, secrets that only their owner reads, files that are never half."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from metricsd import identity
from metricsd.config import Paths
from metricsd.errors import AuthError, ConfigError
from metricsd.identity import Credentials
from metricsd.ids import DeviceId

LOGIN = Credentials("https://cloud", "secret-token", b"k" * 32, "team", "ann", DeviceId("a" * 32))


def mode_of(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_the_key_is_made_once_and_kept_through_logins(home: Paths) -> None:
    """Capture ids are keyed by it, so a new device id must not change it."""
    first = identity.load_identity(home)
    assert first == identity.load_identity(home) and first.device_id is None
    identity.save_login(home, LOGIN, parent=None)
    identity.save_login(home, LOGIN._replace(device_id=DeviceId("b" * 32)), parent=LOGIN.device_id)
    assert identity.load_identity(home) == (first.installation_key, "b" * 32, "a" * 32)


def test_many_first_starts_agree_on_one_key(home: Paths) -> None:
    """Hooks, daemon and commands may start at the same moment."""
    with ThreadPoolExecutor(8) as pool:
        keys = {found.installation_key for found in pool.map(lambda _: identity.load_identity(home), range(16))}
    assert keys == {identity.load_identity(home).installation_key}
    assert [file.name for file in home.state_dir.iterdir()] == ["identity.json"]


def test_a_login_is_read_back_and_both_files_are_private(home: Paths) -> None:
    """0600 from the first moment, in folders of 0700."""
    assert identity.find_credentials(home) is None
    identity.save_login(home, LOGIN, parent=None)
    assert identity.get_credentials(home) == LOGIN
    assert {mode_of(home.credentials), mode_of(home.identity)} == {0o600}
    assert {mode_of(home.config_dir), mode_of(home.state_dir)} == {0o700}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_credentials_that_others_can_read_are_refused(home: Paths, mode: int) -> None:
    """The sentence names the file and the command that repairs it."""
    identity.save_login(home, LOGIN, parent=None)
    home.credentials.chmod(mode)
    with pytest.raises(AuthError, match=f"chmod 600 {home.credentials}"):
        identity.find_credentials(home)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"url": 1}), "\x00", "x" * 70_000])
def test_damaged_files_are_named_and_not_replaced(home: Paths, text: str) -> None:
    """A new key in the place of a damaged one would give every capture another id."""
    identity.save_login(home, LOGIN, parent=None)
    for file in (home.credentials, home.identity):
        file.write_text(text)
    with pytest.raises(AuthError, match="metricsd login"):
        identity.find_credentials(home)
    with pytest.raises(ConfigError, match=r"identity\.json"):
        identity.load_identity(home)
    assert home.identity.read_text() == text


def test_logging_out_forgets_the_secrets_alone(home: Paths) -> None:
    """The identity stays; a second logout says that there was nothing."""
    identity.save_login(home, LOGIN, parent=None)
    assert (identity.forget_login(home), identity.forget_login(home)) == (True, False)
    assert identity.load_identity(home).device_id == LOGIN.device_id
    with pytest.raises(AuthError, match="not logged in"):
        identity.get_credentials(home)


def test_secrets_are_not_in_reprs() -> None:
    """Reprs end in logs and tracebacks."""
    assert "secret-token" not in repr(LOGIN) and "kkk" not in f"{LOGIN}"


def test_a_crash_between_the_two_files_is_healed(home: Paths) -> None:
    """The credentials lead; the identity follows with the old id as the parent."""
    identity.save_login(home, LOGIN, parent=None)
    stale = home.identity.read_bytes()
    identity.save_login(home, LOGIN._replace(device_id=DeviceId("b" * 32)), parent=None)
    home.identity.write_bytes(stale)
    identity.confirm_login(home, identity.get_credentials(home))
    assert identity.load_identity(home)[1:] == ("b" * 32, "a" * 32)
