"""A device's token in its later life: rotated by an administrator, and given up together with what it sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from metricsd import identity
from metricsd.cloud.auth import new_token
from metricsd.cloud.backend import Scope
from metricsd.store import events
from metricsd.store.connection import Store
from tests.fakes import FakeClock
from tests.homes import Home, opened
from tests.samples import make_item


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "one") as found:
        yield found


@pytest.fixture
def url(home: Home) -> str:
    """Serve a cloud from the home and log the home in to it."""
    home.ok("cloud", "tenant", "create", "team")
    server = home.start("cloud", "serve", "--port", "0", "--json")
    assert server.stdout is not None
    found: str = json.loads(server.stdout.readline())["url"]
    home.ok("login", found, "--code", home.ok("cloud", "enrol", "--tenant", "team", "--user", "ann").strip())
    return found


def record(home: Home, first: int, count: int) -> None:
    """Take events in, as a daemon would have."""
    store = Store.open(home.paths.store, clock=FakeClock())
    with store.transaction():
        events.insert(store, [make_item(first + n) for n in range(count)], device=events.own_device(store))
    store.close()


def stats(home: Home) -> tuple[int, int]:
    [row] = json.loads(home.ok("cloud", "stats", "--json"))
    return row["events"], row["devices"]


def test_a_rotated_token_is_put_in_the_place_of_the_devices_own(home: Home, url: str) -> None:
    """It stays the same device and sends nothing twice; another device's token, or none of a device here, is refused."""
    record(home, 0, 1)
    home.ok("sync", "--now")
    before = identity.get_credentials(home.paths)
    [row] = [row for row in json.loads(home.ok("cloud", "token", "list", "--json")) if row["scope"] == "device"]
    rotated = json.loads(home.ok("cloud", "token", "rotate", row["id"], "--overlap", "0h", "--json"))["token"]
    assert home.run("sync", "--now").returncode == 5
    wrong = home.run("login", url, "--token-stdin", stdin=new_token(Scope.DEVICE))
    assert wrong.returncode == 5 and identity.get_credentials(home.paths) == before
    home.ok("login", url, "--token-stdin", stdin=f"{rotated}\n")
    assert identity.get_credentials(home.paths) == before._replace(token=rotated)
    record(home, 1, 1)
    home.ok("sync", "--now")
    assert stats(home) == (2, 1)
    home.ok("logout")
    assert home.run("login", url, "--token-stdin", stdin=rotated).returncode == 2


def test_logging_out_can_take_back_what_was_sent(home: Home, url: str) -> None:
    """The cloud has nothing left of this device, the home has everything, and is logged out."""
    record(home, 0, 3)
    home.ok("sync", "--now")
    assert stats(home)[0] == 3
    done = json.loads(home.ok("logout", "--take-back", "--json"))
    assert (done["logged_out"], done["events_removed"]) == (True, 3)
    assert stats(home)[0] == 0 and home.status()["store"]["events"] == 3
    assert identity.find_credentials(home.paths) is None
    assert home.run("logout", "--take-back").returncode == 5
