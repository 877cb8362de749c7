"""`session` and `conflicts`: what is shown of sessions, how they are edited, and how a loser comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from metricsd.cli.conflicts import conflicts
from metricsd.cli.session import session
from metricsd.clock import SystemClock
from metricsd.config import Paths, Sync
from metricsd.errors import AuthError, MetricsdError, UsageError
from metricsd.identity import Credentials, save_login
from metricsd.ids import DeviceId, line_id
from metricsd.model import Event, Kind
from metricsd.protocol import RecordState
from metricsd.store import conflict_log, counters, events, outbox, records, sessions
from metricsd.store.connection import Store
from metricsd.store.counters import NUMBERS
from metricsd.store.events import Identified
from metricsd.sync.outgoing import Outgoing

T0 = 1_790_000_000_000_000
MINUTE = 60_000_000
KEY = bytes(range(32))
DEVICE = DeviceId("d" * 32)


def put(store: Store, *found: Event) -> None:
    items = [Identified(line_id(repr(event).encode(), event.at // 1000, 0), event) for event in found]
    with store.transaction():
        events.insert(store, items, device=events.own_device(store))


def used(session_id: str, at: int = T0, **more: Any) -> Event:
    made: dict[str, Any] = {"app": "claude-code", "tool": "Bash", "outcome": "ok", "duration_ms": 7, **more}
    return Event(at=at, kind=Kind.TOOL_USED, name="PostToolUse", session=session_id, **made)


def ended(session_id: str, at: int) -> Event:
    return Event(
        at=at, kind=Kind.SESSION_ENDED, name="SessionEnd", app="claude-code", session=session_id, reason="exit"
    )


@pytest.fixture
def store(home: Paths) -> Store:
    made = Store.open(home.store, clock=SystemClock())
    put(made, used("alpha-1", project="shop", branch="main"), used("alpha-2", T0 + 5 * MINUTE))
    return made


def log_in(home: Paths, store: Store) -> None:
    save_login(home, Credentials("http://127.0.0.1:9", "t" * 43, KEY, "team", "ann", DEVICE), parent=None)
    outbox.enrol(store, DEVICE, "cloud")


def ask(*arguments: str, group: Any = session) -> Any:
    done = attempt(*arguments, "--json", group=group)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def attempt(*arguments: str, group: Any = session) -> Result:
    done = CliRunner().invoke(group, list(arguments), standalone_mode=False)
    if done.exception is not None and not isinstance(done.exception, MetricsdError):
        raise done.exception
    return done


def refused(*arguments: str, group: Any = session) -> str:
    done = attempt(*arguments, group=group)
    assert isinstance(done.exception, UsageError), done.output
    return str(done.exception)


def test_shape_of_a_session(store: Store, home: Paths) -> None:
    """The documented fields are there, times are RFC 3339, and the counters are numbers."""
    log_in(home, store)
    found = ask("show", "alpha-1")
    wanted = "id app project branch user device started_at ended_at end_reason description tags session_type rev dirty"
    assert set(found) >= {*wanted.split(), "deleted", *NUMBERS}
    assert (found["id"], found["app"], found["project"], found["branch"]) == ("alpha-1", "claude-code", "shop", "main")
    assert (found["user"], found["device"], found["tags"], found["rev"]) == ("ann", DEVICE, [], None)
    assert found["started_at"] == "2026-09-21T14:13:20.000Z"
    assert (found["tool_calls"], found["tool_ms"], found["dirty"], found["deleted"]) == (1, 7, False, False)
    assert [one["id"] for one in ask("list")] == ["alpha-2", "alpha-1"]


def test_without_a_store_there_is_nothing_and_none_is_made(home: Paths) -> None:
    """Looking changes nothing."""
    assert ask("list") == [] and ask("list", group=conflicts) == []
    assert "there is no session" in refused("show", "alpha")
    assert not home.store.exists()


def test_an_end_counts_until_something_happens_afterwards(store: Store) -> None:
    """Seen ends, ends that silence stands for, and sessions that were reopened."""
    put(store, ended("alpha-1", T0 + MINUTE))
    found = ask("show", "alpha-1")
    assert (found["ended_at"], found["end_reason"]) == ("2026-09-21T14:14:20.000Z", "exit")
    put(store, used("alpha-1", T0 + 2 * MINUTE))
    assert (ask("show", "alpha-1")["ended_at"], ask("show", "alpha-1")["end_reason"]) == (None, None)
    counters.close_idle(store, MINUTE)
    found = ask("show", "alpha-1")
    assert (found["ended_at"], found["end_reason"]) == ("2026-09-21T14:15:20.000Z", "inferred")


def test_counters_of_all_devices_are_summed_and_times_joined(store: Store, home: Paths) -> None:
    """One session seen on two machines is one session: the earlier start, the later end, the sum of the rest."""
    log_in(home, store)
    put(store, ended("alpha-1", T0 + MINUTE))
    fields = {"started_at": T0 - MINUTE, "last_at": T0 + 3 * MINUTE, "events": 5, "tool_calls": 4, "tool_ms": 10}
    with store.transaction():
        counters.put_remote(store, "other", "claude-code", "alpha-1", fields, "9-x")
    found = ask("show", "alpha-1")
    assert (found["tool_calls"], found["tool_ms"], found["events"]) == (5, 17, 7)
    assert (found["device"], found["started_at"]) == ("other", "2026-09-21T14:12:20.000Z")
    assert found["ended_at"] is None, "it went on elsewhere"


def test_a_hash_of_another_device_is_shown_as_the_name_that_this_machine_knows(store: Store, home: Paths) -> None:
    """With the same tenant key the same name has the same hash; an unknown one stays a hash."""
    log_in(home, store)
    outgoing = Outgoing(KEY, Sync())
    with store.transaction():
        for name, project in (("beta-1", "shop"), ("beta-2", "elsewhere")):
            fields = {"events": 1, "project": outgoing.project(project), "branch": outgoing.branch("main", project)}
            counters.put_remote(store, "other", "claude-code", name, {"last_at": T0, **fields}, "9-x")
    assert (ask("show", "beta-1")["project"], ask("show", "beta-1")["branch"]) == ("shop", "main")
    assert ask("show", "beta-2")["project"] == outgoing.project("elsewhere")


def test_an_id_may_be_shortened_while_it_is_unique(store: Store) -> None:
    """An ambiguous one says which there are; an exact one wins over longer ones; the app tells equal ids apart."""
    put(store, used("alpha-10", T0), used("alpha-1", T0, app="codex"))
    assert ask("show", "alpha-2")["id"] == ask("show", "claude-code/alpha-2")["id"] == "alpha-2"
    assert "names 4 sessions" in refused("show", "alpha")
    assert "codex/alpha-1" in refused("show", "alpha-1")
    assert ask("show", "codex/alpha-1")["app"] == "codex"
    assert ask("show", "alpha-10")["id"] == "alpha-10"
    assert "there is no session" in refused("show", "")
    assert "there is no session" in refused("show", "%")


def test_an_edit_sets_clears_and_tags(store: Store) -> None:
    """The record comes into being with the first edit, and waits to be sent."""
    found = ask(
        "edit", "alpha-1", "--set", "description=a = b", "--set", "score=70", "--add-tag", "x", "--add-tag", "y"
    )
    assert (found["description"], found["score"], found["tags"], found["dirty"]) == ("a = b", 70, ["x", "y"], True)
    assert records.pending_count(store) == 1
    found = ask("edit", "alpha-1", "--set", "score=", "--remove-tag", "x", "--add-tag", "y", "--add-tag", "z")
    assert (found["description"], found["score"], found["tags"]) == ("a = b", None, ["y", "z"])
    assert ask("edit", "alpha-1", "--set", "tags=p,q", "--remove-tag", "p")["tags"] == ["q"]


def test_a_deleted_session_is_hidden_and_comes_back_by_an_edit(store: Store) -> None:
    """Its events stay; the list leaves it out unless asked."""
    assert ask("edit", "alpha-1", "--delete")["deleted"] is True
    assert [one["id"] for one in ask("list")] == ["alpha-2"]
    assert [one["id"] for one in ask("list", "--all")] == ["alpha-2", "alpha-1"]
    assert ask("edit", "alpha-1", "--add-tag", "back")["deleted"] is False
    assert len(ask("list")) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "description"], "write field=value"),
        (["--set", "project=x"], "follows from events"),
        (["--set", "tool_calls=9"], "follows from events"),
        (["--set", "nothing=x"], "only description"),
        (["--set", "score=101"], "from 0 to 100"),
        (["--set", "score=nan"], "expected"),
        (["--set", "description=" + "x" * 1001], "at most 1000"),
        (["--add-tag", ""], "tags: expected"),
        (["--add-tag", "x" * 101], "tags: expected"),
        (["--delete", "--add-tag", "x"], "alone"),
        ([], "nothing to change"),
    ],
)
def test_a_wrong_edit_says_what_is_expected_and_changes_nothing(store: Store, arguments: list[str], says: str) -> None:
    """Exit 2, one sentence, no record."""
    assert says in refused("edit", "alpha-1", *arguments)
    assert records.get(store, sessions.TYPE, "claude-code/alpha-1") is None


def test_since_leaves_older_sessions_out(store: Store) -> None:
    """By the last activity."""
    put(store, used("fresh", SystemClock().now_us()))
    assert [one["id"] for one in ask("list", "--since", "1h")] == ["fresh"]
    assert len(ask("list", "--since", "99999d")) == 3
    for wrong in ("7", "d", "7w", "-1d", "\u0667d", "9" * 40 + "d"):
        assert "--since" in refused("list", "--since", wrong)


def test_an_id_that_travels_as_a_hash_needs_the_tenants_key(store: Store, home: Paths) -> None:
    """Before the login it cannot be named as other devices will; afterwards it can, and stays one session."""
    put(store, used("my notes.txt / x", T0))
    done = attempt("edit", "my notes", "--add-tag", "x")
    assert isinstance(done.exception, AuthError)
    log_in(home, store)
    found = ask("edit", "my notes", "--add-tag", "x")
    assert (found["id"], found["tags"]) == ("my notes.txt / x", ["x"])
    (item,) = records.pending(store, 10)
    assert "notes" not in item.id and item.id.startswith("claude-code/h:")
    assert len(ask("list")) == 3


def test_people_get_a_table_without_control_characters(store: Store) -> None:
    """A description cannot steer the terminal."""
    ask("edit", "alpha-1", "--set", "description=\x1b[31mred")
    shown = attempt("list").stdout + attempt("show", "alpha-1").stdout
    assert "red" in shown and "\x1b" not in shown


def in_conflict(store: Store) -> int:
    """Make a conflict about alpha-1 and return its number."""
    with store.transaction():
        for rev, text in (("1-x", "base"), ("2-x", "there")):
            if rev == "2-x":
                records.edit(store, "session", "claude-code/alpha-1", {"description": "here"})
            stamps = {"description": "0198f0000000-0000-two"}
            records.pulled(
                store,
                RecordState(
                    type="session", id="claude-code/alpha-1", rev=rev, device="two",
                    fields={"description": text}, stamps=stamps,
                ),
            )  # fmt: skip
    (entry,) = conflict_log.list_open(store)
    return entry.id


def test_an_open_conflict_can_be_decided_by_hand(store: Store) -> None:
    """`restore` writes a side back on top of the cloud's version, and the row says who decided."""
    number = str(in_conflict(store))
    (listed,) = ask("list", group=conflicts)
    assert (listed["state"], listed["result"], listed["strategy"]) == ("open", None, None)
    done = ask("restore", number, group=conflicts)
    assert (done["side"], done["fields"]["description"]) == ("local", "here")
    (item,) = records.pending(store, 10)
    assert (item.rev, item.changed) == ("2-x", {"description": "here"})
    assert ask("list", group=conflicts) == []
    (listed,) = ask("list", "--all", group=conflicts)
    assert (listed["state"], listed["strategy"]) == ("resolved", "by_hand")
    shown = attempt("show", number, group=conflicts).stdout
    assert "by_hand" in shown and "result" in shown
    assert ask("restore", number, "--side", "base", group=conflicts)["fields"]["description"] == "base"
    assert "there is no conflict 99" in refused("restore", "99", group=conflicts)


def test_the_loser_is_the_side_that_the_result_is_not(store: Store) -> None:
    """Without --side the version that lost comes back: ours if the cloud's won, the cloud's if ours did."""
    number = in_conflict(store)
    entry = conflict_log.find(store, number)
    assert entry is not None
    with store.transaction():
        assert records.decide(store, entry, entry.local, conflict_log.Decision("local_wins", "x.toml:3", "0" * 64))
    assert ask("restore", str(number), group=conflicts)["side"] == "remote"
    assert ask("show", "alpha-1")["description"] == "there"


def test_a_running_daemon_is_not_needed(store: Store, tmp_path: Path) -> None:
    """Nobody listens, and the edit is durable all the same."""
    ask("edit", "alpha-2", "--set", "session_type=review")
    again = Store.open(store.path)
    found = records.get(again, "session", "claude-code/alpha-2")
    again.close()
    assert found is not None and found.version.fields == {"session_type": "review"}
