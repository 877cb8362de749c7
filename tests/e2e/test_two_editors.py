"""Two real daemons and one cloud: the same session edited on both while they cannot reach each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.homes import Home, opened, stop, tool_use, until

SESSION = "shared-session"


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "laptop", METRICSD_SYNC_REALTIME="false") as made:
        yield made


@pytest.fixture
def desktop(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "desktop", METRICSD_SYNC_REALTIME="false") as made:
        yield made


def _json(home: Home, *arguments: str) -> Any:
    return json.loads(home.ok(*arguments, "--json"))


def _sync(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = _json(home, "sync", "--now")
    assert found["ok"], found
    return found


def test_offline_edits_of_one_session_converge_and_the_conflict_is_logged(laptop: Home, desktop: Home) -> None:
    """Both devices then show the same session, rev included; the deciding one knows what lost, and can restore it."""
    cloud = laptop.start_daemon("--with-cloud")
    laptop.capture("PostToolUse", tool_use(1, SESSION))
    laptop.capture("PostToolUse", tool_use(2, "gone-session"))
    _sync(laptop)
    token = _json(laptop, "cloud", "token", "create", "--tenant", "local", "--user", "local")["token"]
    desktop.ok("login", str(laptop.status()["sync"]["url"]), "--token-stdin", stdin=token)
    alone = desktop.start_daemon()
    desktop.capture("PostToolUse", tool_use(3, SESSION))
    laptop.ok("session", "edit", SESSION, "--set", "description=base", "--add-tag", "a", "--add-tag", "b")
    _sync(laptop)
    _sync(desktop)
    _sync(laptop)

    # The laptop's daemon takes the cloud away with it: both are alone now.
    assert stop(cloud) == 0
    laptop.ok("session", "edit", SESSION[:6], "--set", "description=laptop", "--remove-tag", "a", "--set", "score=40")
    laptop.ok("session", "edit", "gone-session", "--delete")
    desktop.ok("session", "edit", SESSION, "--set", "description=desktop", "--add-tag", "c", "--set", "score=30")
    desktop.ok("session", "edit", "gone-session", "--set", "session_type=review")
    assert _json(desktop, "session", "show", SESSION)["dirty"] is True
    assert desktop.run("sync", "--now").returncode == 1
    # Its daemon would retry by itself, perhaps before the laptop has pushed: who decides must not depend on that.
    assert stop(alone) == 0

    laptop.start_daemon("--with-cloud")
    # The embedded cloud may come back under another port; the desktop's login names the old one.
    url = str(laptop.status()["sync"]["url"])
    credentials = json.loads(desktop.paths.credentials.read_text())
    if credentials["url"] != url:
        desktop.paths.credentials.write_text(json.dumps(credentials | {"url": url}))
    _sync(laptop)
    report = _sync(desktop)
    assert report["conflicts"] == {"resolved": 2, "open": 0, "by_strategy": {"merge_fields": 1, "delete_wins": 1}}
    desktop.start_daemon()
    _sync(laptop)

    shown = _json(laptop, "session", "show", SESSION)
    assert shown == _json(desktop, "session", "show", SESSION)
    assert (shown["description"], sorted(shown["tags"]), shown["score"]) == ("desktop", ["b", "c"], 40)
    assert (shown["tool_calls"], shown["dirty"], shown["deleted"]) == (2, False, False)
    for home in (laptop, desktop):
        assert [one["id"] for one in _json(home, "session", "list")] == [SESSION]
        assert _json(home, "session", "show", "gone-session")["deleted"] is True
        assert _json(home, "conflicts", "list") == []
        assert home.status()["store"]["sessions"] == 1

    assert _json(laptop, "conflicts", "list", "--all") == []
    logged = {one["record_id"]: one for one in _json(desktop, "conflicts", "list", "--all")}
    entry = logged[f"claude-code/{SESSION}"]
    said = [entry[side]["fields"]["description"] for side in ("base", "local", "remote", "result")]
    assert said == ["base", "desktop", "laptop", "desktop"]
    assert entry["state"] == "resolved" and entry["rule"] and len(entry["policy"]) == 64

    desktop.ok("conflicts", "restore", str(logged["claude-code/gone-session"]["id"]))
    _sync(desktop)
    _sync(laptop)
    until(lambda: not _json(laptop, "session", "show", "gone-session")["deleted"])
    assert _json(laptop, "session", "show", "gone-session")["session_type"] == "review"
