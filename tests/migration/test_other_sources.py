"""Transcripts of Claude Code, and metricsd's own export: each fact once, without content, beside what hooks captured."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metricsd.decode.transcript import PENDING_MAX, Transcript
from metricsd.errors import LineRejected
from metricsd.ids import EventId
from metricsd.migration.model import FileKind
from metricsd.model import Event
from metricsd.store import dump, events, records
from metricsd.store.connection import Store
from metricsd.store.events import Identified
from tests.fakes import FakeClock
from tests.migration.sources import read, surveyed, write_lines
from tests.migration.test_load import load, rows

SECRET = "5ec2e7-never-kept"
USAGE = {"input_tokens": 3, "output_tokens": 40, "cache_creation_input_tokens": 500, "cache_read_input_tokens": 6000}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "home" / "store.db", clock=FakeClock())
    yield store
    store.close()


def line(second: int, kind: str, session: str = "sess-1", **more: Any) -> dict[str, Any]:
    return {
        "type": kind, "uuid": f"u{second}-{kind}", "sessionId": session, "timestamp": f"2026-01-05T08:00:{second:02}.250Z",
        "cwd": "/home/dev1/shop", "gitBranch": "main", "version": "2.1.240", "isSidechain": False,
    } | more  # fmt: skip


def answer(second: int, message: str, *blocks: dict[str, Any], session: str = "sess-1", **more: Any) -> dict[str, Any]:
    body = {
        "id": message,
        "model": "claude-sonnet-4-5-20250929",
        "role": "assistant",
        "content": list(blocks),
        "usage": USAGE,
    }
    return line(second, "assistant", session, message=body, requestId=f"req_{message}", uuid=f"a{second}") | more


def use(call: str, name: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call, "name": name, "input": given}


def result(
    second: int, call: str, *, error: bool = False, answer: object = None, session: str = "sess-1"
) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": call, "content": f"Exit code 1 {SECRET}", "is_error": error}
    return line(second, "user", session, message={"role": "user", "content": [block]}, toolUseResult=answer)


def conversation(session: str = "sess-1") -> list[dict[str, Any]]:
    """Return a prompt, one request written as three lines, two calls, a failure, and the end of the turn."""
    return [
        {"type": "file-history-snapshot", "messageId": "m", "snapshot": {"x": SECRET}},
        line(1, "user", session, message={"role": "user", "content": f"please {SECRET}"}),
        answer(2, "msg_1", {"type": "text", "text": SECRET}, session=session),
        answer(3, "msg_1", use("toolu_1", "Bash", command=f"git push {SECRET}"), session=session),
        answer(4, "msg_1", use("toolu_2", "Edit", file_path=f"/home/dev1/{SECRET}.py"), session=session),
        result(5, "toolu_1", error=True, session=session),
        result(6, "toolu_2", answer={"structuredPatch": [{"lines": ["+a", "+b", "-c"]}]}, session=session),
        answer(7, "msg_2", {"type": "text", "text": SECRET}, session=session),
        line(8, "system", session, subtype="turn_duration", durationMs=4200),
        line(9, "user", session, isMeta=True, message={"role": "user", "content": "caveat"}),
        line(10, "system", session, subtype="compact_boundary", compactMetadata={"trigger": "auto", "preTokens": 1}),
        {"type": "a-type-of-tomorrow", "sessionId": session, "timestamp": "2026-01-05T08:00:11Z", "message": 5},
    ]


def facts(lines: list[dict[str, Any]]) -> list[Event]:
    reader = Transcript(FakeClock())
    return [event for one in lines for _, event in reader.read(json.dumps(one).encode())]


def test_a_conversation_is_counted_once_and_keeps_no_content() -> None:
    """One request is one count of tokens however many lines it has; a call has its outcome, subject and lines."""
    found = facts(conversation())
    kinds = [event.kind for event in found]
    assert (
        kinds.count("tokens_used") == 2 and kinds.count("prompt_submitted") == 1 and kinds.count("session_started") == 1
    )
    assert kinds.count("turn_ended") == 1 and kinds.count("context_compacted") == 1
    bash, edit = (event for event in found if event.kind == "tool_used")
    assert (bash.tool, bash.outcome, bash.subject, bash.call, bash.extra) == (
        "Bash",
        "failed",
        "git",
        "toolu_1",
        {"exit_code": 1},
    )
    assert (edit.tool, edit.outcome, edit.subject, edit.lines_added, edit.lines_removed) == ("Edit", "ok", ".py", 2, 1)
    assert (bash.project, bash.branch, bash.session) == ("shop", "main", "sess-1")
    tokens = next(event for event in found if event.kind == "tokens_used")
    assert tokens.extra == {
        "input_tokens": 3,
        "output_tokens": 40,
        "cache_creation_tokens": 500,
        "cache_read_tokens": 6000,
    }
    assert tokens.model == "claude-sonnet-4-5-20250929"
    assert SECRET not in repr(found)


def test_reading_goes_on_in_the_middle_of_a_call() -> None:
    """What is packed between a call and its result is enough to go on, and holds no content."""
    lines = [json.dumps(one).encode() for one in conversation()]
    whole = Transcript(FakeClock())
    wanted = [fact for one in lines for fact in whole.read(one)]
    for cut in range(len(lines)):
        first = Transcript(FakeClock())
        found = [fact for one in lines[:cut] for fact in first.read(one)]
        state = first.pack()
        assert SECRET.encode() not in state
        second = Transcript(FakeClock(), state)
        assert found + [fact for one in lines[cut:] for fact in second.read(one)] == wanted


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b'{"type":"user","sessionId":"s","timestamp":5e99}', b"\0", b'"x"', b'{"sessionId":7}', b"[" * 5000],
)
def test_a_line_that_is_none_is_rejected(data: bytes) -> None:
    """Torn, of another kind, with a time that is none: a reason each, and the reader goes on."""
    reader = Transcript(FakeClock())
    with pytest.raises(LineRejected):
        reader.read(data)
    assert reader.read(json.dumps(conversation()[1]).encode())


def test_calls_that_never_end_take_bounded_memory() -> None:
    """The oldest are given up."""
    reader = Transcript(FakeClock())
    for number in range(PENDING_MAX + 50):
        reader.read(json.dumps(answer(1, f"m{number}", use(f"t{number}", "Read"))).encode())
    assert not reader.read(json.dumps(result(2, "t0")).encode())
    assert reader.read(json.dumps(result(2, f"t{PENDING_MAX}")).encode())


def test_a_tree_of_transcripts_is_loaded_once(tmp_path: Path, store: Store) -> None:
    """A resumed session repeats lines of another file: nothing is doubled, and a second run brings nothing."""
    tree = tmp_path / ".claude" / "projects" / "-home-dev1-shop"
    write_lines(tree / "sess-1.jsonl", conversation())
    write_lines(tree / "sess-2.jsonl", [*conversation(), answer(20, "msg_9", session="sess-2")])
    agent = [one | {"isSidechain": True} for one in conversation("sess-1")[3:7]]
    write_lines(tree / "sess-1" / "subagents" / "agent-1.jsonl", agent)
    work = surveyed(tmp_path / "run", tmp_path / ".claude")
    assert {file.kind for file in work.files()} == {FileKind.TRANSCRIPT}
    counts = load(work, store)
    assert (counts.sessions.loaded, counts.tool_events.loaded) == (1, 2)
    assert counts.total.merged > 0 and counts.total.rejected == 0
    assert rows(
        store, "SELECT count(*) FROM event AS e JOIN event_type AS t ON t.id = e.type WHERE t.kind = 'tokens_used'"
    ) == [(3,)]
    assert load(work, store, run="m2").total.loaded == 0


def test_calls_that_hooks_captured_are_skipped_and_counted(tmp_path: Path, store: Store) -> None:
    """Hooks told of the session: of its transcript only the tokens are new."""
    hooked = Event(
        at=1_767_600_000_000_000, kind="tool_used", name="PostToolUse", app="claude-code", session="sess-1", tool="Bash"
    )
    with store.transaction():
        events.insert(store, [Identified(EventId(b"\1" * 16), hooked)], device=events.own_device(store))
    write_lines(tmp_path / "t" / "sess-1.jsonl", conversation())
    write_lines(tmp_path / "t" / "sess-2.jsonl", [one | {"uuid": f"other-{n}"} for n, one in enumerate(_renamed())])
    counts = load(surveyed(tmp_path / "run", tmp_path / "t"), store)
    assert (counts.tool_events.loaded, counts.tool_events.skipped) == (2, 2)
    assert (counts.sessions.loaded, counts.sessions.skipped) == (1, 1)
    assert rows(store, "SELECT sum(tool_calls) FROM session_counters") == [(3,)]


def _renamed() -> list[dict[str, Any]]:
    text = json.dumps(conversation("sess-2")).replace("toolu_", "toolu_x").replace("msg_", "msg_x")
    return list(json.loads(text))


def exported(store: Store, path: Path) -> Path:
    with sqlite3.connect(store.path) as db:
        documents = list(dump.documents(db))
    db.close()
    return write_lines(path, documents)


def test_an_export_comes_back_whole_in_another_home(tmp_path: Path, store: Store) -> None:
    """Events with their ids, and what people wrote; in the home that it came from, nothing is new."""
    write_lines(tmp_path / "t" / "sess-1.jsonl", conversation())
    load(surveyed(tmp_path / "run", tmp_path / "t"), store)
    with store.transaction():
        records.edit(store, "session", "claude-code/sess-1", {"description": "the shop", "tags": ["deep"]})
    path = exported(store, tmp_path / "export" / "all.jsonl")
    work = surveyed(tmp_path / "run-2", path)
    assert [file.kind for file in work.files()] == [FileKind.EXPORT]
    again = load(work, store, run="m2")
    assert again.total.loaded == 0 and again.total.rejected == 0
    other = Store.open(tmp_path / "other" / "store.db", clock=FakeClock())
    counts = load(work, other, run="m3")
    assert counts.total.skipped == 0 and counts.tool_events.loaded == 2
    for columns in ("id, at, duration_ms, lines_added, lines_removed, input_bytes, output_bytes",):
        sql = f"SELECT {columns} FROM event ORDER BY id"
        assert rows(other, sql) == rows(store, sql)
    record = records.get(other, "session", "claude-code/sess-1")
    assert record is not None and record.version.fields == {"description": "the shop", "tags": ["deep"]}
    other.close()


def test_what_was_taken_back_does_not_come_again_by_an_export(tmp_path: Path, store: Store) -> None:
    """Events of an import that is inactive, and deleted records, are entries of nothing."""
    write_lines(tmp_path / "t" / "sess-1.jsonl", conversation())
    load(surveyed(tmp_path / "run", tmp_path / "t"), store)
    with store.transaction():
        records.edit(store, "import_batch", "m1.1", {"active": False})
    work = surveyed(tmp_path / "run-2", exported(store, tmp_path / "export.jsonl"))
    other = Store.open(tmp_path / "other" / "store.db", clock=FakeClock())
    counts = load(work, other, run="m2")
    assert counts.total.loaded == 0 and counts.total.skipped == counts.total.source
    other.close()


def test_an_exports_hostile_values_pass_the_gates(tmp_path: Path) -> None:
    """A sentence where a name belongs, a negative number, an id that is none: nothing of it reaches the store."""
    good = {"type": "event", "id": "0" * 32, "at": "2026-01-05T08:00:00Z", "app": "a", "kind": "tool_used", "name": "n"}
    bad = [good | {"id": "zz"}, good | {"at": "yesterday"}, {"type": "odd", "id": "1"}, good | {"kind": ""}]
    odd = good | {"tool": f"rm {SECRET}", "duration_ms": -5, "extra": {"x y": 1, "ok": SECRET[:6], "t": f"a {SECRET}"}}
    planned, rejected, _ = read(surveyed(tmp_path / "run", write_lines(tmp_path / "e.jsonl", [odd, *bad])))
    (event,) = [item.event for one in planned for item in one.items]
    assert (event.tool, event.duration_ms, event.extra) == ("other", None, {"ok": SECRET[:6]})
    assert [one.place.line for one in rejected] == [2, 3, 4, 5]
