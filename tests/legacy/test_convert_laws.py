"""Laws of the converter: what goes there and back is what it was, and no value whatever makes it stumble."""

from __future__ import annotations

import json
import math
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.errors import LineRejected
from metricsd.legacy.convert import DIRECTIONS, Converter
from metricsd.legacy.sessions import QUALITY, WORKFLOW
from metricsd.legacy.values import iso

plain = Converter(1_700_000_000_000).convert
lossless = Converter(1_700_000_000_000, lossless=True).convert

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
counts = st.integers(0, 10_000)
times = st.integers(0, 4_000_000_000_000).map(iso)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
productivity = st.fixed_dictionaries(
    {
        **dict.fromkeys(("commands_executed", "tools_invoked", "files_read", "files_modified"), counts),
        **dict.fromkeys(("lines_changed", "focus_blocks", "interruptions"), counts),
        "agents_used": st.lists(names, max_size=3),
    }
)
full_session = st.fixed_dictionaries(
    {
        "session_id": names,
        "start_time": times,
        "user": names,
        "working_directory": texts,
        "git_branch": names,
        "productivity_metrics": productivity,
        "quality_metrics": st.fixed_dictionaries(dict.fromkeys(QUALITY, counts)),
        "workflow_metrics": st.fixed_dictionaries(dict.fromkeys(WORKFLOW, counts)),
    },
    optional={"end_time": times},
)
partial_metrics = st.dictionaries(
    st.sampled_from(["commands_executed", "tests_run", "tests_passed", "git_commits", "agents_used", "focus_blocks"]),
    st.none() | counts | st.lists(names, max_size=2) | texts,
)
any_session = st.fixed_dictionaries(
    {"session_id": names, "start_time": times | st.just("2025-01-07T10:00:00+01:00"), "user": names},
    optional={
        "end_time": times,
        "working_directory": st.none() | texts,
        "git_branch": st.none() | texts,
        "productivity_metrics": partial_metrics,
        "quality_metrics": partial_metrics,
        "workflow_metrics": st.none() | partial_metrics,
        "surprise": json_values,
    },
)
cloud_session = st.fixed_dictionaries(
    {"id": names, "userId": names, "sessionStart": times},
    optional={
        "sessionEnd": times,
        "toolsUsed": st.lists(names, max_size=4),
        "productivityScore": st.floats(0, 100),
        "sessionType": names,
        "projectId": names,
        "tags": st.lists(texts, max_size=3),
        "interruptionsCount": counts,
        "focusTimeMs": st.integers(0, 10**8),
        "description": texts,
        "metadata": st.dictionaries(names, json_values, max_size=3),
    },
)
call = st.fixed_dictionaries(
    {
        "event": st.just("tool_usage"),
        "timestamp": times,
        "session_id": texts,
        "tool_name": names,
        "execution_time": counts | st.floats(0, 1e9),
        "success": st.just(True),
    },
    optional={
        "memory_usage": st.integers(1, 2**40),
        "parameters": json_values,
        "output_size": counts,
        "command_line": texts,
        "working_directory": texts,
    },
)
any_call = st.fixed_dictionaries(
    {"timestamp": times},
    optional={
        "event": texts,
        "event_type": texts,
        "session_id": st.none() | texts,
        "tool_name": st.none() | texts,
        "execution_time": st.none() | counts,
        "execution_time_ms": st.none() | counts,
        "memory_usage": st.none() | counts,
        "success": st.none() | st.booleans(),
        "error_message": texts,
        "parameters": json_values,
        "output_size": st.none() | counts,
    },
)
cloud_metric = st.fixed_dictionaries(
    {"id": names, "sessionId": texts, "toolName": names, "createdAt": times},
    optional={
        "executionCount": counts,
        "totalDurationMs": counts,
        "averageDurationMs": counts | st.floats(0, 1e6),
        "successRate": st.none() | st.floats(0, 1),
        "errorCount": st.none() | counts,
        "memoryUsageMb": st.floats(0, 1e5),
        "cpuTimeMs": counts,
        "parameters": json_values,
    },
)


def text(value: object) -> str:
    """Return JSON text, in which 1 and true differ."""
    return json.dumps(value, sort_keys=True)


@given(full_session)
def test_complete_sessions_come_back_as_they_were(session: dict[str, Any]) -> None:
    """A session with all its fields passes through the cloud's form without any help."""
    assert text(plain("session:local->cloud->local", session)) == text(session)


@given(call)
def test_complete_calls_come_back_as_they_were(line: dict[str, Any]) -> None:
    """So does a line of a good call."""
    found = plain("tool:local->cloud->local", line)
    assert found == line


@pytest.mark.parametrize(
    ("there", "back", "records"),
    [
        ("session:local->cloud", "session:cloud->local", any_session),
        ("session:cloud->local", "session:local->cloud", cloud_session),
        ("tool:local->cloud", "tool:cloud->local", any_call),
        ("tool:cloud->local", "tool:local->cloud", cloud_metric),
    ],
)
def test_lossless_conversions_lose_nothing(there: str, back: str, records: st.SearchStrategy[dict[str, Any]]) -> None:
    """Whatever the other form has no place for comes back: byte for byte, unknown keys, nulls and absences too."""

    @given(records)
    def law(record: dict[str, Any]) -> None:
        try:
            found = lossless(there, record)
        except LineRejected:
            return
        assert text(lossless(back, json.loads(text(found)))) == text(record)

    law()


@pytest.mark.parametrize(
    "change", [{"memory_usage": 1024.0}, {"success": 1}, {"timestamp": "2025-01-08T08:00:00.000Z"}]
)
def test_what_python_calls_equal_is_still_another_text(change: dict[str, Any]) -> None:
    """1, 1.0 and true are equal here and different to whoever reads the line."""
    line: dict[str, Any] = {
        "event": "tool_usage", "timestamp": "2025-01-08T08:00:00.000Z", "session_id": "s", "tool_name": "Read",
        "execution_time": 1, "memory_usage": 1024, "success": True,
    } | change  # fmt: skip
    assert text(lossless("tool:cloud->local", lossless("tool:local->cloud", line))) == text(line)


def test_what_was_changed_in_between_stays_changed() -> None:
    """The original that is carried along never overwrites an edit."""
    session = {"session_id": "s", "start_time": "2025-01-08T08:00:00Z", "user": "bob", "extra": [1]}
    cloud: Any = lossless("session:local->cloud", session)
    cloud |= {"sessionEnd": "2025-01-08T09:00:00.000Z", "totalDurationMs": 3_600_000}
    assert lossless("session:cloud->local", cloud) == session | {"end_time": "2025-01-08T09:00:00.000Z"}
    metric: Any = lossless(
        "tool:local->cloud", {"timestamp": "2025-01-08T08:00:00Z", "error_message": "no", "success": False}
    )
    metric["successRate"] = 1
    line: Any = lossless("tool:cloud->local", metric)
    assert (line["success"], line["timestamp"]) == (True, "2025-01-08T08:00:00Z")


@given(any_session, any_call)
def test_ids_are_uuids_and_follow_from_the_content(session: dict[str, Any], line: dict[str, Any]) -> None:
    """The same record converted again has the same ids, so that it cannot become a second one."""
    found: Any = plain("session:local->cloud", session)
    assert str(uuid.UUID(found["userId"])) == found["userId"]
    one: Any = plain("tool:local->cloud", line)
    assert uuid.UUID(one["id"]).variant == uuid.RFC_4122
    assert one == plain("tool:local->cloud", line)


@given(any_session)
def test_partial_and_null_metrics_never_give_nan(session: dict[str, Any]) -> None:
    """Every number of every answer is finite, and a score lies between 0 and 100."""
    found: Any = plain("session:local->cloud", session)
    json.dumps(found, allow_nan=False)
    score = found.get("productivityScore")
    assert score is None or (math.isfinite(score) and 0 <= score <= 100)


@given(st.sampled_from(DIRECTIONS), json_values | any_session | any_call | cloud_session | cloud_metric)
def test_any_value_is_converted_or_refused(direction: str, value: object) -> None:
    """Lists for objects, texts for numbers: never another error than the one that names the field."""
    for convert in (plain, lossless):
        try:
            found = convert(direction, value)
        except LineRejected as error:
            assert error.detail
        else:
            json.dumps(found, allow_nan=False)


def test_deep_and_huge_values_are_refused() -> None:
    """A stack or a number that Python cannot take is the line's fault, not ours."""
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    line = {"timestamp": "2025-01-08T08:00:00Z", "parameters": deep}
    with pytest.raises(LineRejected, match="nested too deeply"):
        plain("tool:local->cloud", line)
    with pytest.raises(LineRejected, match="execution_time"):
        plain("tool:local->cloud", {"timestamp": "2025-01-08T08:00:00Z", "execution_time": [1]})
    with pytest.raises(LineRejected):
        plain("tool:local->cloud", {"timestamp": "2025-01-08T08:00:00Z", "execution_time": 10**400})


def test_grouping_keeps_a_session_apart_from_a_tool_that_completes_its_name() -> None:
    """Session "a-b" with tool "c" is not session "a" with tool "b-c"."""
    lines = [
        {"timestamp": "2025-01-08T08:00:00Z", "session_id": session, "tool_name": tool, "execution_time": "7"}
        for session, tool in (("a-b", "c"), ("a", "b-c"), ("a", "b-c"))
    ]
    found: Any = plain("tools:aggregate local->cloud", lines)
    assert [(one["executionCount"], one["totalDurationMs"]) for one in found] == [(1, 7), (2, 14)]
