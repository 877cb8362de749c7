"""Two readers that share no code agree on every line that either of them can be given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.decode.names import clean_text, opaque_id, plain_name, whole_number
from metricsd.decode.older_hooks import (
    AddedUp,
    SessionNote,
    ToolCall,
    object_of,
    project_of,
    read_object,
    read_stored,
    session_events,
    time_us,
)
from metricsd.decode.subjects import command_subject, file_subject
from metricsd.errors import LineRejected
from metricsd.ids import Occurrences
from metricsd.migration.rows import flat
from metricsd.migration.second import lines, words
from metricsd.migration.second.lines import Announced, Call, Figure
from metricsd.migration.second.numbers import Numbers
from metricsd.migration.second.sessions import Note, project_name
from metricsd.migration.second.shapes import Bad
from metricsd.migration.second.times import parse_us
from metricsd.store.tool_metrics import record_id

texts = st.one_of(
    st.sampled_from(["Bash", "Read", "mcp__a__b", "unknown", "default-session", "", "é", "a b", "x" * 201, "main"]),
    st.text(max_size=20),
)
times = st.one_of(
    st.sampled_from(
        ["2026-11-22T18:59:05Z", "2026-11-22T18:59:05.123+02:00", "2026-11-22 18:59", "2026-11-22", "2026-02-29T00:00:00Z",
         "2026-11-22T24:00:00Z", "2026-11-22T18:59:60Z", "1969-12-31T23:59:59Z", "2300-01-01T00:00:00Z", "now",
         "2026-11-22T18:59:05-00:60", "2026-11-22T18:59:05+0530", "20261122T185905Z", "2026-11-22T18:59:05.1234567Z"]
    ),
    st.integers(-1, 1 << 60),
    st.none(),
)  # fmt: skip
numbers = st.one_of(
    st.integers(-3, 100),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.sampled_from(["12", "x", 2**63, 10**400]),
)
values = st.one_of(
    texts, numbers, st.lists(st.integers(), max_size=2), st.dictionaries(st.sampled_from("ab"), numbers, max_size=2)
)
TEXTS = ("tool_name", "session_id", "sessionId", "id", "user", "subagent_type", "file_path", "command", "command_type",
         "working_directory", "workingDirectory", "git_branch", "gitBranch", "toolName", "description", "sessionType",
         "projectId")  # fmt: skip
TIMES = (
    "timestamp",
    "start_time",
    "end_time",
    "startTime",
    "endTime",
    "sessionStart",
    "sessionEnd",
    "createdAt",
    "created_at",
)
NUMBERS = ("execution_time_ms", "execution_time", "lines_added", "lines_removed", "lines_written", "file_size_bytes",
           "content_length", "lines_requested", "productivity_score", "productivityScore", "score", "executionCount",
           "errorCount", "totalDurationMs", "outputSizeBytes", "memoryUsageMb", "interruptions", "interruptionsCount",
           "focusTime", "focusTimeMs", "success", "error")  # fmt: skip
OBJECTS = ("productivity_metrics", "quality_metrics", "workflow_metrics", "metrics", "final_metrics", "performance",
           "metadata", "enhanced_activity")  # fmt: skip
objects = st.dictionaries(
    st.sampled_from(
        ["interruptions", "focus_blocks", "originalUser", "gitBranch", "workingDirectory", "id", "qualityMetrics", "n"]
    ),
    values,
    max_size=4,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "event_type": st.sampled_from(["tool_execution", "agent_invocation", "other", None]),
        "event": st.sampled_from(["session_start", "session_end", "x"]),
        "tags": st.one_of(st.lists(texts, max_size=4), values),
        "tools": st.one_of(st.lists(texts, max_size=3), values),
        "toolsUsed": st.one_of(st.lists(texts, max_size=3), values),
        **{name: st.one_of(texts, values) for name in TEXTS},
        **{name: st.one_of(times, values) for name in TIMES},
        **dict.fromkeys(NUMBERS, numbers),
        **{name: st.one_of(objects, values) for name in OBJECTS},
    },
)  # fmt: skip
likely = st.one_of(
    st.just(
        {"event_type": "tool_execution", "timestamp": "2026-11-22T18:59:05Z", "tool_name": "Bash", "session_id": "s"}
    ),
    st.just({"session_id": "s", "start_time": "2026-11-22T18:59:05Z", "end_time": "2026-11-22T19:59:05Z"}),
    st.just({"id": "s", "sessionStart": "2026-11-22T18:59:05Z"}),
    st.just({"sessionId": "s", "startTime": "2026-11-22T18:59:05Z"}),
    st.just({"id": "m", "toolName": "Bash", "createdAt": "2026-11-22T18:59:05Z", "executionCount": 3}),
    st.just({}),
)


def first(data: bytes, *, is_document: bool) -> object:
    """Return what the first reader makes of an entry, in the form of the second."""
    try:
        found = (read_stored if is_document else read_object)(object_of(data))
    except LineRejected:
        return "bad"
    match found:
        case None:
            return "announced"
        case ToolCall():
            event = msgspec.structs.asdict(found.event)
            kept = ("at", "session", "tool", "outcome", "duration_ms", "agent", "subject", "output_bytes", "lines_added",
                    "lines_removed")  # fmt: skip
            identity = int.from_bytes(found.id(3)[8:], "big")
            return ("call", *(event[name] for name in kept), flat(event["extra"]), found.user, identity)
        case SessionNote() as note:
            edges = {
                event.kind: (event.at, int.from_bytes(event_id[8:], "big"), event.project, event.branch, event.session)
                for event_id, event in session_events(note)
            }
            who = (note.session, note.start_us, note.end_us, note.user, note.directory, note.branch, note.score)
            return ("note", *who, flat(note.kept), flat(note.fields), edges)
        case AddedUp():
            return ("figure", record_id("older-hooks", found.key), flat(found.values))


def second(data: bytes, *, is_document: bool) -> object:
    """Return what the second reader makes of it."""
    found = lines.read_document(lines.read_json(data)) if is_document else lines.read_line(data)
    match found:
        case Bad():
            return "bad"
        case Announced():
            return "announced"
        case Call() as c:
            session = None if c.session is None else words.session_id(c.session)
            values = (c.at, session, c.tool, c.outcome, c.duration_ms, c.agent, c.subject, c.output_bytes, c.lines_added,
                      c.lines_removed)  # fmt: skip
            return ("call", *values, c.extra, c.user, lines.call_identity(c.fact, 3))
        case Note() as note:
            edges = {
                kind: (at, lines.edge_identity(note.session, starts=starts), project_name(note), note.branch,
                       words.session_id(note.session))
                for kind, at, starts in (("session_started", note.start, True), ("session_ended", note.end, False))
                if at is not None
            }  # fmt: skip
            who = (note.session, note.start, note.end, note.user, note.directory, note.branch, note.score)
            return ("note", *who, flat(note.kept), flat(note.fields), edges)
        case Figure() as figure:
            return ("figure", lines.metric_id(figure.key), flat(figure.values))


@given(base=likely, more=entries, is_document=st.booleans())
def test_both_readers_make_the_same_of_an_entry(
    base: Mapping[str, Any], more: Mapping[str, Any], is_document: bool
) -> None:
    """Of calls, sessions and figures with any field missing, of a wrong type, or hostile."""
    data = json.dumps({**base, **more}).encode("utf-8", "surrogatepass")
    assert second(data, is_document=is_document) == first(data, is_document=is_document)


BASE = b'{"event_type":"tool_execution","timestamp":"2026-11-22T18:59:05Z","tool_name":"Bash","session_id":"s","n":[1.5,-2e3]}'


@given(at=st.integers(0, len(BASE)), gone=st.integers(0, 4), put=st.binary(max_size=3))
def test_both_readers_refuse_the_same_bytes(at: int, gone: int, put: bytes) -> None:
    """A line with bytes lost or put in is good for both or for neither."""
    data = BASE[:at] + put + BASE[at + gone :]
    assert second(data, is_document=False) == first(data, is_document=False)


@pytest.mark.parametrize(
    "data",
    [b'{"a":NaN}', b'{"a":1e400}', b'{"a":"\\ud800"}', b'\xef\xbb\xbf{"a":1}', b'{"a":"\xed\xa0\x80"}', b"[1]", b"1", b"", b"{",
     b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"a":"\x01"}', b'{"a":01}'],
)  # fmt: skip
def test_neither_takes_what_is_no_object(data: bytes) -> None:
    """The standard library would take some of these."""
    assert (second(data, is_document=False), first(data, is_document=False)) == ("bad", "bad")


@given(text=st.text(max_size=60))
def test_both_read_names_alike(text: str) -> None:
    """Ids, names of tools, cleaned texts, folders and programs."""
    assert words.session_id(text) == (opaque_id(text) or "")
    assert words.tool_name(text) == (plain_name(text) or "")
    assert words.clean(text) == (clean_text(text) or None)
    assert words.project_of(text) == project_of(text)
    if text:
        assert words.subject_of({"file_path": text}) == file_subject(text)


TOKENS = st.sampled_from(
    ["sudo", "env", "A=1", "B='x y'", "C=\"q", "nice", "-n", "5", "git", "/usr/bin/python3", "(", "{", "pytest;", "time", "-f",
     "exec", "-a", "npm.exe", '"C:\\bin\\node.exe"', "FOO=", "=", "-u root", "command", "ls|", "--"]
)  # fmt: skip


@given(st.lists(st.tuples(TOKENS, st.sampled_from([" ", "", "  ", "\t"])), max_size=9))
def test_both_find_the_same_program(parts: list[tuple[str, str]]) -> None:
    """Behind assignments, wrappers and their options."""
    command = "".join(word + blank for word, blank in parts)
    if command:
        assert words.program_of(command) == command_subject(command)


@given(numbers)
def test_both_take_the_same_numbers(value: object) -> None:
    """Whole numbers of 63 bits; fractions are rounded."""
    if not isinstance(value, str):
        assert words.number(value) == whole_number(value)


@given(
    st.one_of(
        times,
        st.from_regex(
            r"20[0-9]{2}-[01][0-9]-[0-3][0-9]([T ][0-2][0-9]:[0-5][0-9])?(Z|\+0[0-9]:?[0-6]0)?", fullmatch=True
        ),
    )
)
def test_both_read_times_alike(value: object) -> None:
    """By a calendar each."""
    try:
        expected: int | None = time_us("t", value)
    except LineRejected:
        expected = None
    assert parse_us(value) == expected


@given(st.lists(st.integers(0, 1200), max_size=60), st.integers(900, 1300))
def test_both_number_equal_facts_alike(picks: list[int], flood: int) -> None:
    """Also beyond the facts that are remembered."""
    one, other = Occurrences(), Numbers()
    for pick in [*picks, *range(flood), *picks]:
        assert one.next(f"fact {pick}".encode()) == other.next(f"fact {pick}")


@pytest.mark.parametrize(("between", "number"), [(1023, 1), (1024, 0)])
def test_both_forget_a_fact_after_1024_others(between: int, number: int) -> None:
    """The last 1,024 different facts are remembered, the one itself among them."""
    one, other = Occurrences(), Numbers()
    for fact in ["a", *map(str, range(between))]:
        assert one.next(fact.encode()) == other.next(fact) == 0
    assert one.next(b"a") == other.next("a") == number


def test_the_second_reader_imports_nothing_of_the_first() -> None:
    """Its modules name none of the first one's; `make check` looks at what those import in turn."""
    folder = Path(lines.__file__).parent
    text = "\n".join(path.read_text() for path in folder.glob("*.py"))
    named = {line.split()[1] for line in text.splitlines() if line.startswith("from metricsd")}
    assert named <= {
        "metricsd.decode.subjects", "metricsd.sync.outgoing",  # closed lists
        "metricsd.migration.leash",
        "metricsd.migration.bounds", "metricsd.migration.digest", "metricsd.migration.figures",
        "metricsd.migration.memory", "metricsd.migration.rows", "metricsd.migration.side", "metricsd.migration.second",
    } | {name for name in named if name.startswith("metricsd.migration.second.")}  # fmt: skip
