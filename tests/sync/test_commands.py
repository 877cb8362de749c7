"""`login`, `logout`, `privacy show`, `conflicts`: what a person types, against a real cloud process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from metricsd import identity
from metricsd.protocol import RecordState
from metricsd.store import events, records
from metricsd.store.connection import Store
from tests.fakes import FakeClock
from tests.homes import Home, opened
from tests.samples import make_item


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "one") as found:
        yield found


def record(home: Home, count: int) -> None:
    store = Store.open(home.paths.store, clock=FakeClock())
    with store.transaction():
        items = [make_item(n, project="acme-merger") for n in range(count)]
        events.insert(store, items, device=events.own_device(store))
    store.close()


def test_login_and_logout(home: Home) -> None:
    """A login takes the token from stdin and keeps the secrets private; a logout forgets them alone."""
    home.ok("cloud", "tenant", "create", "team")
    token = json.loads(home.ok("cloud", "token", "create", "--tenant", "team", "--user", "ann", "--json"))["token"]
    server = home.start("cloud", "serve", "--port", "0", "--json")
    assert server.stdout is not None
    url = json.loads(server.stdout.readline())["url"]

    wrong = home.run("login", url, "--token-stdin", stdin=token[:-4] + "AAAA\n")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (5, 1)
    assert "metricsd login" in wrong.stderr and token[:-4] not in wrong.stderr

    done = json.loads(home.ok("login", url, "--token-stdin", "--name", "laptop", "--json", stdin=token + "\n"))
    assert (done["url"], done["tenant"], done["user"]) == (url, "team", "ann")
    found = identity.get_credentials(home.paths)
    assert found.device_id == done["device_id"] and found.token != token
    key = identity.load_identity(home.paths).installation_key

    assert json.loads(home.ok("logout", "--json")) == {"logged_out": True}
    assert json.loads(home.ok("logout", "--json")) == {"logged_out": False}
    assert identity.load_identity(home.paths).installation_key == key


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("login", "http://127.0.0.1:9", "--token-stdin"), 1, "refused"),
        (("login", "https://u:p@cloud.example", "--token-stdin"), 2, "leave them out"),
        (("login", "http://cloud.example", "--token-stdin"), 2, "use https"),
        (("login", "https://cloud.example"), 2, "--token-stdin"),
        (("conflicts", "show", "7"), 2, "no conflict 7"),
    ],
)
def test_what_cannot_be_done_says_why_in_one_line(home: Home, arguments: tuple[str, ...], code: int, said: str) -> None:
    """No traceback, the right exit code, and what to do."""
    done = home.run(*arguments, stdin="token\n")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert said in done.stderr


def test_privacy_show_prints_what_would_be_sent(home: Home) -> None:
    """Also before the first login; the project's name is not in it, unless the user shares it."""
    assert json.loads(home.ok("privacy", "show", "--json")) == []
    record(home, 7)
    shown = json.loads(home.ok("privacy", "show", "--limit", "3", "--json"))
    assert [event["seq"] for event in shown] == [5, 6, 7]
    assert all(event["project"].startswith("h:") for event in shown)
    home.env["METRICSD_SYNC_SHARE_PROJECTS"] = "acme-merger"
    assert json.loads(home.ok("privacy", "show", "--json"))[0]["project"] == "acme-merger"


def test_conflicts_are_listed_and_shown_with_both_versions(home: Home) -> None:
    """Base, here and cloud side by side; an empty list is an empty array."""
    assert json.loads(home.ok("conflicts", "list", "--json")) == []
    store = Store.open(home.paths.store, clock=FakeClock())
    with store.transaction():
        records.edit(store, "session", "s-1", {"description": "here"})
        remote = RecordState(type="session", id="s-1", rev="1-x", device="two", fields={"description": "there"})
        records.pulled(store, remote)
    store.close()
    (conflict,) = json.loads(home.ok("conflicts", "list", "--json"))
    assert (conflict["local"]["fields"], conflict["remote"]["fields"]) == (
        {"description": "here"},
        {"description": "there"},
    )
    text = home.ok("conflicts", "show", str(conflict["id"]))
    assert '"here"' in text and '"there"' in text and "open" in text
