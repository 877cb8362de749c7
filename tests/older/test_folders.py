"""The folders that real older hooks left, and the same folders while those hooks write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metricsd.config import find_paths, load_config
from metricsd.errors import ConfigError
from metricsd.store import legacy_extra, records
from tests.older.support import NAMES, TOKEN, Older, call, start

SIX_STARTS = ["16:04:51", "16:34:33", "17:04:16", "17:34:02", "18:03:48", "18:33:40"]


def test_a_recorded_folder_is_one_session_with_every_call_once(older: Older) -> None:
    """Four files tell of the session; agents' announcements are no calls; reading again adds nothing."""
    older.bring("first")
    done = older.tick()
    calls = older.of("tool_used")
    assert (len(calls), done.rejected) == (15, 0)
    assert {event.session for event in older.events} == {NAMES["first"]}
    assert [len(older.of(kind)) for kind in ("session_started", "session_ended")] == [1, 1]
    assert sum(event.outcome == "failed" for event in calls) == 5
    assert min(event.duration_ms or 0 for event in calls) > 0
    score = records.get(older.store, "session", f"legacy/{NAMES['first']}")
    assert score is not None and score.version.fields == {"score": 80}
    before = len(older.events)
    older.restart()
    older.later()
    assert (len(older.events), older.tick().added) == (before, 0)


def test_six_sessions_have_their_true_starts_and_ends(older: Older) -> None:
    """The start is that of the session's own record, whatever the line says that was written later."""
    older.bring("six")
    older.tick()
    starts = sorted(event.at for event in older.of("session_started"))
    ends = {event.session: event.at for event in older.of("session_ended")}
    assert len(ends) == 6
    assert [
        f"{at // 3_600_000_000 % 24:02}:{at // 60_000_000 % 60:02}:{at // 1_000_000 % 60:02}" for at in starts
    ] == SIX_STARTS
    hours = sorted(round((ends[e.session] - e.at) / 3_600_000_000, 1) for e in older.of("session_started"))
    assert hours == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert len(older.of("tool_used")) == 54


def test_both_folders_of_the_second_generation_are_one_session(older: Older) -> None:
    """Its calls were all written for `default-session`, in the other folder."""
    older.bring("second")
    done = older.tick()
    assert (len(older.of("tool_used")), done.rejected) == (15, 0)
    assert {event.session for event in older.events} == {NAMES["second"]}


def test_calls_without_their_session_are_given_the_one_that_ran(older: Older) -> None:
    """By person and time; a call outside every session, or of somebody else, stays as it was written."""
    older.write(older.agent / "sessions" / "one.json", start("one", "2026-01-05T08:00:00Z"))
    older.write(
        older.agent / "sessions" / "one_summary.json",
        {"session_id": "one", "start_time": "2026-01-05T08:00:00Z", "end_time": "2026-01-05T09:00:00Z"},
    )
    older.write(older.agent / "sessions" / "two.json", start("two", "2026-01-05T08:30:00Z", user="eve"))
    at = ["2026-01-05T08:10:00Z", "2026-01-05T08:40:00Z", "2026-01-05T10:00:00Z"]
    older.write(older.mesh / "tool-metrics.jsonl", *(call("default-session", one) for one in at))
    older.tick()
    assert [event.session for event in older.of("tool_used")] == ["one", "one", "default-session"]


def test_files_that_grow_are_followed(older: Older) -> None:
    """The daemon runs before the hooks ever did: folders, documents and lines appear one after the other."""
    older.tick()
    older.write(
        older.agent / "sessions" / "one.jsonl",
        {"event": "session_start", "timestamp": "2026-01-05T08:00:00Z", "session_id": "one"},
    )
    older.later()
    older.write(older.mesh / "tool-metrics.jsonl", call("default-session", "2026-01-05T08:01:00Z"))
    older.later()
    older.write(
        older.agent / "sessions" / "one.jsonl",
        {"event": "session_end", "timestamp": "2026-01-05T08:02:00Z", "session_id": "one", "productivity_score": 4.5},
    )
    older.later()
    assert [event.kind for event in older.events] == ["session_started", "tool_used", "session_ended"]
    assert {event.session for event in older.events} == {"one"}


def test_a_half_written_document_is_read_when_it_is_whole(older: Older) -> None:
    """It is neither blamed nor lost; one that stays broken goes to quarantine, once."""
    path = older.agent / "sessions" / "one.json"
    path.parent.mkdir(parents=True)
    whole = json.dumps(start("one", "2026-01-05T08:00:00Z"))
    path.write_text(whole[:40])
    older.later()
    assert (older.events, older.reasons) == ([], [])
    path.write_text(whole)
    older.later()
    assert [event.kind for event in older.events] == ["session_started"]
    (path.parent / "bad.json").write_text("{")
    older.later()
    older.clock.advance(older.settings.incomplete_after_s + 1)
    for _ in range(3):
        older.later()
    assert older.reasons == ["bad_json"]


def test_secrets_and_content_never_reach_the_store(older: Older) -> None:
    """Tokens, commands and messages are read past; bad lines are kept without known secrets."""
    older.write(
        older.mesh / "tool-metrics.jsonl",
        call("s", "2026-01-05T08:01:00Z", error_message="sk-secret"),
        {"event_type": "x", "auth_token": TOKEN},
    )
    older.tick()
    older.store.checkpoint()
    held = b"".join(
        path.read_bytes() for path in older.folder.rglob("*") if path.is_file() and "mesh" not in path.parts
    )
    assert TOKEN[:12].encode() not in held and b"sk-secret" not in held
    assert [event.subject for event in older.events] == ["git"]
    assert older.reasons == ["bad_fields"]


def test_a_persons_score_stands_over_the_files(older: Older) -> None:
    """However often the file is read."""
    older.bring("first")
    older.tick()
    with older.store.transaction():
        records.edit(older.store, "session", f"legacy/{NAMES['first']}", {"score": 12})
    older.restart()
    older.later()
    found = records.get(older.store, "session", f"legacy/{NAMES['first']}")
    assert found is not None and found.version.fields["score"] == 12


def test_who_and_where_stay_on_this_machine(older: Older) -> None:
    """Kept for older clients alone, in a table that nothing sends."""
    older.bring("first")
    older.tick()
    kept = legacy_extra.find(older.store, "session", NAMES["first"])
    assert kept is not None and (kept["user"], kept["git_branch"]) == ("dev1", "feature/demo")
    assert {event.project for event in older.of("session_started")} == {"proj"}
    assert legacy_extra.sweep(older.store, bytes_max=0) == 2, "who and where, and what the files told of the score"
    assert legacy_extra.find(older.store, "session", NAMES["first"]) is None


def test_the_setting_says_where_and_whether(tmp_path: Path) -> None:
    """Both default folders without a word; others, or none, by the file or the environment."""
    paths = find_paths({"METRICSD_HOME": str(tmp_path)})

    def folders(**environ: str) -> tuple[str, ...]:
        return load_config(paths, environ).tail.older_hooks

    assert folders() == ("~/.agent-os/metrics", "~/.ai-mesh/metrics")
    assert folders(METRICSD_TAIL_OLDER_HOOKS="") == ()
    assert folders(METRICSD_TAIL_OLDER_HOOKS="/a, ~/b") == ("/a", "~/b")
    with pytest.raises(ConfigError, match="absolute paths"):
        folders(METRICSD_TAIL_OLDER_HOOKS="metrics")


def test_switched_off_nothing_is_read(older: Older) -> None:
    """Whatever lies there; and switched on again nothing of it was lost."""
    older.bring("first")
    on = older.settings
    older.settings = on._replace(older_hooks=())
    older.restart()
    older.later()
    assert older.events == []
    older.settings = on
    older.restart()
    older.later()
    assert len(older.events) == 17
