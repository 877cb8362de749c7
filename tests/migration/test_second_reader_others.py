"""Two readers agree on transcripts and exports too, and a run of either proves itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from metricsd.decode.exported import ExportedEvent, ExportedRecord, read_exported
from metricsd.decode.older_hooks import object_of
from metricsd.decode.transcript import Transcript
from metricsd.errors import LineRejected
from metricsd.ids import EventId
from metricsd.migration.rows import EVENT_COLUMNS, flat
from metricsd.migration.second import exports, transcripts
from metricsd.migration.second.shapes import Bad
from metricsd.model import Event
from metricsd.store import dump, events
from metricsd.store.connection import Store
from metricsd.store.events import Identified
from tests.fakes import FakeClock
from tests.migration.proven import prove
from tests.migration.sources import bring, write_lines
from tests.migration.test_other_sources import answer, conversation, line, result, use

UNCOMPARED = {"project", "input_bytes", "output_bytes"}
texts = st.sampled_from(["", "a", "a b", "Bash", "Edit", "Task", "x" * 201, "é", "openai/gpt-5", "<synthetic>", "auto"])
scalars = st.one_of(texts, st.integers(-3, 2**63), st.floats(), st.booleans(), st.none())
values = st.one_of(scalars, st.lists(scalars, max_size=2), st.dictionaries(texts, scalars, max_size=2))


def row_of(event: Event, *, without: set[str] = frozenset()) -> tuple[object, ...]:  # type: ignore[assignment]
    """Return an event in the canonical form."""
    found = msgspec.structs.asdict(event)
    found["extra"] = flat(found["extra"])
    return tuple(None if name in without else found[name] for name in EVENT_COLUMNS)


def both(lines: list[bytes]) -> tuple[list[object], list[object]]:
    """Return what each reader makes of a transcript."""
    one, other = Transcript(FakeClock()), transcripts.Transcript()
    first: list[object] = []
    second: list[object] = []
    for raw in lines:
        try:
            first += [
                (int.from_bytes(found_id[8:], "big"), row_of(event, without=UNCOMPARED))
                for found_id, event in one.read(raw)
            ]
        except LineRejected:
            first.append("bad")
        found = other.read(raw)
        second += ["bad"] if isinstance(found, Bad) else [(fact.identity, fact.row) for fact in found]
    return first, second


def talk() -> list[dict[str, Any]]:
    """Return a conversation with every kind of call and answer."""
    return [
        *conversation(),
        answer(
            20,
            "msg_3",
            use("t3", "Task", subagent_type="reviewer", prompt="x"),
            use("t4", "Write", file_path="/a/b.md"),
        ),
        result(
            21,
            "t3",
            answer={"agentId": "a1", "resolvedModel": "openai/gpt-5[1m]", "totalTokens": 9.5, "totalToolUseCount": 2},
        ),
        result(22, "t4", answer={"type": "create", "content": "a\nb\nc"}),
        answer(
            23,
            "msg_4",
            use("t5", "Bash", command="FOO=1 sudo -u x git pull"),
            use("t6", "NotebookEdit", notebook_path="/n.ipynb"),
        ),
        result(24, "t5", answer={"interrupted": True, "stdout": "x"}),
        result(25, "t6", answer="Error: no"),
        result(26, "unknown"),
        line(27, "user", message={"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image"}]}),
        line(28, "assistant", message={"id": "m", "model": "<synthetic>", "content": [], "usage": {"input_tokens": 1}}),
        line(29, "system", subtype="compact_boundary", compactMetadata={"trigger": "odd"}),
    ]


def test_a_conversation_is_the_same_for_both() -> None:
    """All that a call, its answer, a request and a turn can tell."""
    first, second = both([json.dumps(one).encode() for one in talk()])
    assert second == first
    assert len(first) == 16


@given(st.data())
def test_a_conversation_with_anything_in_it_is_the_same_for_both(data: st.DataObject) -> None:
    """One to three values anywhere replaced, removed or of another type."""
    # A copy: parts of the conversation are shared with other tests.
    lines = copy.deepcopy(talk())
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = data.draw(st.sampled_from(lines))
        while True:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                place = place[key]
                continue
            if data.draw(st.booleans()):
                place[key] = data.draw(values)
            else:
                del place[key]
            break
    first, second = both([json.dumps(one).encode() for one in lines])
    assert second == first


EXPORTED = {
    "type": "event", "id": "0190f3c2a7b48000800000000000abcd", "at": "2026-01-05T08:00:00.123456Z", "app": "claude-code",
    "kind": "tool_used", "name": "PostToolUse", "session": "s", "tool": "Bash", "outcome": "ok", "duration_ms": 3, "call": "toolu_1",
    "project": "shop", "branch": "main", "model": "m", "subject": "git", "extra": {"exit_code": 1, "mode": "plan"}, "own": True,
}  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from([*EXPORTED, "agent", "reason", "fields", "deleted", "batch", "input_bytes"]),
        st.one_of(values, st.sampled_from(["event", "session", "tool_metric", "import_batch", "session_counters"])),
        max_size=4,
    )
)
def test_a_line_of_an_export_is_the_same_for_both(more: dict[str, Any]) -> None:
    """Also one that somebody edited."""
    data = json.dumps(EXPORTED | more).encode()
    expected: object
    try:
        found = read_exported(object_of(data))
    except LineRejected:
        expected = "bad"
    else:
        match found:
            case ExportedEvent():
                expected = (int.from_bytes(found.id[8:], "big"), row_of(found.event), found.batch)
            case ExportedRecord():
                expected = (found.type, found.id)
            case None:
                expected = None
    told = exports.read_exported(data)
    match told:
        case Bad():
            assert expected == "bad"
        case exports.Event():
            assert (told.identity, told.row, told.batch) == expected
        case exports.Record():
            assert (told.kind, told.id) == expected
        case _:
            assert expected is None


def test_a_tree_of_transcripts_proves_itself(tmp_path: Path) -> None:
    """A session that a resumed one repeats is merged; every event is compared."""
    root = tmp_path / "projects"
    write_lines(root / "a" / "s1.jsonl", talk())
    write_lines(root / "b" / "s2.jsonl", conversation())
    report = prove(tmp_path / "home", root).report
    assert report.counts.total.loaded == report.rows.equal == 16
    assert report.rows.merged == report.counts.total.merged == 8
    assert report.rows.unfaithful == 0
    assert report.confidence.reconciled


def test_what_hooks_captured_is_not_missed(tmp_path: Path) -> None:
    """A session that hooks tell of is left out by the load, and that is no fault; its tokens come in."""
    path = tmp_path / "home" / "state" / "store.db"
    path.parent.mkdir(parents=True)
    store = Store.open(path)
    hooked = Event(
        at=1_767_600_003_000_000, kind="tool_used", name="PostToolUse", app="claude-code", session="sess-1", tool="Bash"
    )
    with store.transaction():
        events.insert(store, [Identified(EventId(b"\1" * 16), hooked)], device=events.own_device(store))
    store.close()
    write_lines(tmp_path / "projects" / "s1.jsonl", conversation())
    report = prove(tmp_path / "home", tmp_path / "projects").report
    assert (report.rows.equal, report.rows.otherwise, report.rows.unfaithful) == (2, 6, 0)
    assert report.confidence.reconciled


def test_an_export_proves_itself_in_another_home(tmp_path: Path) -> None:
    """Events with their ids and records field by field."""
    first = prove(tmp_path / "one", bring("six", tmp_path))
    with dump.opened(first.store) as db:
        assert db is not None
        write_lines(tmp_path / "export.jsonl", dump.documents(db))
    report = prove(tmp_path / "other", tmp_path / "export.jsonl").report
    assert (report.rows.equal, report.rows.unfaithful) == (66, 0)
    assert (report.records.equal, report.records.unfaithful) == (6, 0)
    assert report.confidence.reconciled
