"""Discover, survey, parse and transform: what a source says, once, in the same parts, with the daemon's ids."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from metricsd.config import Tail as Settings
from metricsd.decode.older_hooks import SessionNote
from metricsd.errors import SourceChanged, UsageError
from metricsd.ids import user_uuid
from metricsd.migration.model import FileKind, NoteKind, Planned, Subject
from metricsd.migration.parse import START, check_unchanged
from metricsd.store import events
from metricsd.store.suggestions import Suggestion
from tests.fakes import FakeClock
from tests.migration.sources import bring, call, read, surveyed, write_lines
from tests.tail.conftest import Rig

SIX_HOURS = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


def ids_of(planned: list[Planned]) -> list[bytes]:
    return [bytes(item.id) for one in planned for item in one.items]


def sessions_of(planned: list[Planned]) -> dict[str, SessionNote]:
    notes = [one.row.found for one in planned if one.row.subject is Subject.SESSION]
    return {note.session: note for note in notes if isinstance(note, SessionNote)}


def test_six_sessions_are_merged_from_all_their_files(tmp_path: Path) -> None:
    """True starts and ends, users, branches, folders and scores, whatever file tells of them."""
    planned, rejected, _ = read(surveyed(tmp_path / "run", bring("six", tmp_path)))
    sessions = sessions_of(planned)
    assert (len(sessions), rejected) == (6, [])
    hours = [
        round((note.end_us - note.start_us) / 3.6e9, 1) for note in sessions.values() if note.end_us and note.start_us
    ]
    assert sorted(hours) == SIX_HOURS
    assert {(note.user, note.directory, note.branch) for note in sessions.values()} == {
        ("dev1", "/home/dev1/proj", "main")
    }
    assert all(note.score for note in sessions.values())
    assert all(
        {"productivity_metrics", "quality_metrics", "final_metrics"} <= note.kept.keys() for note in sessions.values()
    )
    assert {len(one.row.others) for one in planned if one.row.subject is Subject.SESSION} == {4}
    assert sum(one.row.subject is Subject.TOOL_EVENT for one in planned) == 54


@pytest.mark.parametrize("name", ["first", "second", "six"])
def test_ids_and_sessions_are_those_of_the_daemon(tmp_path: Path, name: str) -> None:
    """The daemon that follows the same folder has the same events under the same ids, with the same sessions."""
    source = bring(name, tmp_path)
    planned, _, _ = read(surveyed(tmp_path / "run", source))
    roots = [str(path) for path in sorted(source.glob("*/metrics"))]
    rig = Rig(tmp_path / "home", FakeClock(), Settings(older_hooks=tuple(roots)))
    while rig.tick().more:
        continue
    live = {bytes(one): event for _, one, event in events.read_own(rig.store, 0, 10_000)}
    rig.close()
    assert sorted(live) == sorted(ids_of(planned))
    assert {bytes(item.id): item.event.session for one in planned for item in one.items} == {
        one: event.session for one, event in live.items()
    }


def test_calls_without_a_session_are_given_the_one_that_ran(tmp_path: Path) -> None:
    """Every call of the second generation says `default-session`; each one given a session is a guess that is noted."""
    planned, _, _ = read(surveyed(tmp_path / "run", bring("second", tmp_path)))
    calls = [one for one in planned if one.row.subject is Subject.TOOL_EVENT]
    assert len(calls) == 15
    assert {one.items[0].event.session for one in calls} == set(sessions_of(planned))
    assert all(
        any(note.code == "session_by_time" and note.kind is NoteKind.GUESS for note in one.notes) for one in calls
    )
    assert sum(bool(one.row.others) for one in calls) == 2


def test_parts_are_the_same_wherever_a_run_was_cut_off(tmp_path: Path) -> None:
    """What lies behind any part's end, read anew, is what an undisturbed run read there."""
    source = tmp_path / "metrics"
    equal = [call(f"2026-01-05T08:00:{second // 3:02}Z", execution_time_ms=1) for second in range(60)]
    write_lines(source / "tool-metrics.jsonl", [*equal, "torn {", *equal])
    write_lines(
        source / "tool-metrics-2.jsonl.gz", [call("2026-01-05T09:00:00Z", tool=f"T{n}") for n in range(25)], packed=True
    )
    for name in ("a", "b", "c"):
        document = {"session_id": name, "start_time": f"2026-01-05T0{ord(name) - 96}:00:00Z"}
        write_lines(source / "sessions" / f"{name}.json", [document])
    write_lines(source / "tool_metrics" / "bad.json", ["{"])
    work = surveyed(tmp_path / "run", source)
    whole, rejected, ends = read(work, part_rows=7)
    assert len(whole) == 3 + 120 + 25 and len(set(ids_of(whole))) == 3 + 120 + 25
    assert [(one.place.file, one.place.line, one.reason) for one in rejected] == [
        ("tool_metrics/bad.json", 1, "bad_json"), ("tool-metrics.jsonl", 61, "bad_json"),
    ]  # fmt: skip
    assert len(ends) > 18
    done = 0
    for number, end in enumerate(ends):
        rest, _, others = read(work, end, part_rows=7)
        assert others == ends[number + 1 :]
        assert ids_of(rest) == ids_of(whole)[len(whole) - len(rest) :]
        done += len(rest) == len(whole)
    assert done == 0 and read(work, START, part_rows=7)[2] == ends


def test_packed_and_plain_files_say_the_same(tmp_path: Path) -> None:
    """Offsets, lines and ids are those of the content."""
    lines = [call(f"2026-01-05T08:00:{n:02}Z") for n in range(30)]
    plain = read(surveyed(tmp_path / "1", write_lines(tmp_path / "p" / "tool-metrics.jsonl", [*lines, "x"])))
    packed = read(
        surveyed(tmp_path / "2", write_lines(tmp_path / "q" / "tool-metrics.jsonl.gz", [*lines, "x"], packed=True))
    )
    assert ids_of(plain[0]) == ids_of(packed[0])
    assert [(one.place.line, one.place.offset) for one in plain[1]] == [
        (one.place.line, one.place.offset) for one in packed[1]
    ]


def test_a_torn_packed_file_says_so_and_gives_what_it_holds(tmp_path: Path) -> None:
    """Half of a gzip file is read as far as it goes, and the tear is one rejected entry."""
    path = write_lines(
        tmp_path / "tool-metrics.jsonl.gz",
        [call(f"2026-01-05T08:{n // 60:02}:{n % 60:02}Z", tool=f"T{n * 7919 % 2003}") for n in range(2000)],
        packed=True,
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    planned, rejected, _ = read(surveyed(tmp_path / "run", path))
    assert 0 < len(planned) < 2000
    assert "unreadable" in {one.reason for one in rejected}


def test_both_key_styles_and_arrays_are_sessions(tmp_path: Path) -> None:
    """snake_case, camelCase with either id, what the older API stored, one object or an array of them."""
    source = tmp_path / "metrics"
    camel = {
        "id": "b",
        "startTime": "2026-01-05T08:00:00Z",
        "endTime": "2026-01-05T09:00:00Z",
        "score": 70,
        "tools": ["Read"],
        "interruptions": 3,
        "focusTime": 60000,
    }
    stored = {
        "id": "c",
        "userId": "u",
        "sessionStart": "2026-01-05T08:00:00.5Z",
        "productivityScore": 50,
        "projectId": "shop",
        "tags": ["main", "deep"],
        "description": "Branch: main",
        "metadata": {"originalUser": "carol", "gitBranch": "main"},
    }
    snake = {
        "session_id": "a",
        "start_time": "2026-01-05T08:00:00",
        "productivity_score": 12,
        "productivity_metrics": {"focus_blocks": 2, "interruptions": 1},
    }
    write_lines(
        source / "sessions.json", [json.dumps([snake, camel, stored, {"sessionId": "d", "created_at": 1767600000000}])]
    )
    write_lines(
        source / "more-sessions.jsonl",
        [
            {"sessionId": "e", "timestamp": "2026-01-05T08:00:00Z", "toolsUsed": []},
            {"id": "x", "timestamp": "2026-01-05T08:00:00Z"},
        ],
    )
    planned, rejected, _ = read(surveyed(tmp_path / "run", source))
    found = sessions_of(planned)
    assert sorted(found) == ["a", "b", "c", "d", "e"]
    assert [(one.place.file, one.place.line) for one in rejected] == [("more-sessions.jsonl", 2)]
    assert found["a"].fields == {"interruptions_count": 1, "focus_time_ms": 3_000_000} and found["a"].score == 100
    assert set(found["a"].changes) == {"clamp.score", "guess.time_zone"}
    assert (found["b"].score, found["b"].fields) == (70, {"interruptions_count": 3, "focus_time_ms": 60000})
    assert found["b"].kept == {"tools_used": ["Read"]}
    assert (found["c"].score, found["c"].user, found["c"].project) == (50, "carol", "shop")
    assert found["c"].fields == {"tags": ["deep"]}, "a branch among the tags would leave the machine in clear"
    assert found["d"].start_us == 1767600000000000


def test_the_older_apis_calls_are_events_or_added_up(tmp_path: Path) -> None:
    """One call is an event; several as one figure are a tool metric."""
    one = {
        "id": "m1",
        "sessionId": "s",
        "toolName": "Read",
        "executionCount": 1,
        "totalDurationMs": "12",
        "createdAt": "2026-01-05T08:00:00Z",
    }
    many = one | {"id": "m2", "executionCount": 4, "errorCount": 1}
    write_lines(tmp_path / "tool_metrics" / "1.json", [one])
    write_lines(tmp_path / "tool_metrics" / "2.json", [many])
    planned, _, _ = read(surveyed(tmp_path / "run", tmp_path))
    (event,), (metric,) = planned[0].items, planned[1].beside
    assert event.event.duration_ms == 12
    assert isinstance(metric, Suggestion) and metric.values["execution_count"] == 4 and metric.values["batch"] == "m1.1"


def test_a_users_id_is_that_of_the_older_api(tmp_path: Path) -> None:
    """`create` gives the id that the older API gave to the name, on the session's record; the name goes nowhere else."""
    planned, _, _ = read(surveyed(tmp_path / "run", bring("first", tmp_path)))
    records = [one for row in planned for one in row.beside if isinstance(one, Suggestion)]
    assert [one.values["user_id"] for one in records if "user_id" in one.values] == [user_uuid("dev1")]


def test_an_announcement_alone_is_no_call(tmp_path: Path) -> None:
    """An agent's announcement belongs to the call behind it, and without one it is kept apart."""
    told = {"event_type": "agent_invocation", "timestamp": "2026-01-05T08:00:00Z", "agent_name": "explore"}
    its = call("2026-01-05T08:00:00Z", tool="Task", subagent_type="explore")
    path = write_lines(tmp_path / "tool-metrics.jsonl", [told, its, told, call("2026-01-05T08:00:01Z"), told])
    planned, _, _ = read(surveyed(tmp_path / "run", path))
    assert [(one.row.place.line, len(one.items), len(one.row.others)) for one in planned] == [
        (2, 1, 1), (3, 0, 0), (4, 1, 0), (5, 0, 0),
    ]  # fmt: skip


def test_a_line_that_is_too_long_is_walked_over(tmp_path: Path) -> None:
    """Its place and size are kept, and the lines around it are read."""
    path = write_lines(
        tmp_path / "tool-metrics.jsonl",
        [call("2026-01-05T08:00:00Z"), "x" * (17 * 1024 * 1024), call("2026-01-05T08:00:01Z")],
    )
    planned, rejected, _ = read(surveyed(tmp_path / "run", path))
    assert [one.row.place.line for one in planned] == [1, 3]
    assert [(one.place.line, one.reason, one.data) for one in rejected] == [(2, "too_long", None)]
    assert rejected[0].size > 17 * 1024 * 1024


def test_a_source_that_changed_is_refused_and_one_that_grew_is_not(tmp_path: Path) -> None:
    """What was surveyed must still be there; what was appended later is the next run's."""
    path = write_lines(tmp_path / "tool-metrics.jsonl", [call(f"2026-01-05T08:00:{n:02}Z") for n in range(20)])
    work = surveyed(tmp_path / "run", path)
    ends = read(work, part_rows=5)[2]
    with path.open("a") as file:
        file.write(json.dumps(call("2026-01-05T08:01:00Z")) + "\n")
    check_unchanged(work)
    assert len(read(work, ends[0])[0]) == 20 - 5
    path.write_bytes(path.read_bytes().replace(b"08:00:03Z", b"08:00:04Z"))
    with pytest.raises(SourceChanged):
        check_unchanged(work)
    with pytest.raises(SourceChanged):
        read(work, ends[3])
    path.write_bytes(b"")
    with pytest.raises(SourceChanged):
        read(work)


def test_a_name_that_is_no_utf8_is_read_and_told(tmp_path: Path) -> None:
    """File systems hold any bytes; what is told of such a file can be printed."""
    path = Path(os.fsdecode(os.fsencode(tmp_path / "src") + b"/tool-\xff-metrics.jsonl"))
    write_lines(path, [call("2026-01-05T08:00:00Z"), "torn"])
    planned, rejected, _ = read(surveyed(tmp_path / "run", tmp_path / "src"))
    assert len(planned) == 1
    assert [one.place.file for one in rejected] == ["tool-\\xff-metrics.jsonl"]


def test_links_and_odd_files_are_left_alone(tmp_path: Path) -> None:
    """A link that leads in a circle, a pipe, a folder with a file's name: none of them is followed, opened or read."""
    source = tmp_path / "src"
    write_lines(source / "tool-metrics.jsonl", [call("2026-01-05T08:00:00Z")])
    (source / "round").symlink_to(source)
    (source / "again.jsonl").symlink_to(source / "tool-metrics.jsonl")
    os.mkfifo(source / "pipe.jsonl")
    (source / "folder.jsonl").mkdir()
    work = surveyed(tmp_path / "run", source)
    assert [file.name for file in work.files()] == ["tool-metrics.jsonl"]
    assert len(read(work)[0]) == 1


def test_every_file_is_explained(tmp_path: Path) -> None:
    """What is no source of data is listed with what it is; a folder that is not there is a usage error."""
    work = surveyed(tmp_path / "run", bring("first", tmp_path))
    kinds = {file.name: (file.kind, file.why) for file in work.files()}
    assert kinds["agent/metrics/productivity-indicators.json"][0] is FileKind.IGNORED
    assert all(why for kind, why in kinds.values() if kind is FileKind.IGNORED)
    assert not any(why for kind, why in kinds.values() if kind is not FileKind.IGNORED)
    with pytest.raises(UsageError, match="nowhere"):
        surveyed(tmp_path / "other", tmp_path / "nowhere")
