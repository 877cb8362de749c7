"""Every rule of the catalogue fires on what it is about, stays silent on good data, and says nothing of content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metricsd.migration import rules
from metricsd.migration.model import Counts, Finding, Place, Planned, Row, Subject, Tally
from metricsd.migration.rules import BY_ID, RULES, Kind, Scope
from metricsd.migration.validate import Gate, Validator, gate_of, quality_score, recommend
from metricsd.migration.value_class import class_of
from metricsd.model import Event
from metricsd.reasons import Reason
from metricsd.store.events import Identified
from tests.migration.rows_of import NOW_US, SESSION, call, first, planned, summary, write

START, END = 1_795_373_945_000_000, 1_795_377_545_000_000
SECRET = "5ec2e7-not-to-be-seen"


def span_of(session: str) -> tuple[int | None, int | None] | None:
    """Return when the one known session ran."""
    return (START, END) if session == SESSION else None


def findings(tmp_path: Path, calls: list[Any], documents: list[dict[str, Any]]) -> list[Finding]:
    """Return what the rules say of a small source."""
    validator = Validator(NOW_US, find_session=span_of)
    rows = planned(write(tmp_path / "source", calls, documents), tmp_path / "run")
    return validator.check(rows)


GOOD = call()
CALLS: Mapping[str, list[dict[str, Any]]] = {
    "time_too_early": [call("2019-12-31T23:59:59Z")],
    "time_in_future": [call("2027-01-05T08:00:00Z")],
    "time_without_zone": [call("2026-11-22T18:59:05")],
    "unknown_field": [call(surprise=SECRET)],
    "outcome_is_flag": [call(success="yes")],
    "duration_is_number": [call(execution_time_ms="12")],
    "duration_is_whole": [call(execution_time_ms=12.5)],
    "duration_not_negative": [call(execution_time_ms=-5)],
    "duration_within_day": [call(execution_time_ms=86_400_001)],
    "tool_is_name": [call(tool_name=f"run {SECRET}")],
    "agent_is_name": [call(tool_name="Task", subagent_type=f"do {SECRET}")],
    "session_is_id": [call(session_id="a b")],
    "own_id_is_made": [call(enhanced_activity={"id": SECRET})],
    "size_is_number": [call(lines_added="three", net_lines=...)],
    "size_within_cap": [call(lines_added=1_000_001, lines_removed=0, net_lines=1_000_001)],
    "no_secret_in_call": [call(auth_token=SECRET)],
    "user_is_named": [call(user=...)],
    "call_has_session": [call(session_id="another")],
    "fact_is_single": [GOOD] * 21,
    "failure_is_consistent": [call(success=True, error=True)],
    "lines_add_up": [call(net_lines=7)],
    "activity_agrees": [call(enhanced_activity={"id": "activity_1795373986332_41xkxo8z8", "status": "error"})],
    "agent_is_named": [call(tool_name="Task")],
    "announcement_has_call": [
        {"event_type": "agent_invocation", "timestamp": "2026-11-22T18:59:05Z", "agent_name": "a"}
    ],
    "call_in_session_span": [call("2026-11-22T20:30:00Z")],
    "calls_in_order": [call("2026-11-22T19:30:00Z"), call("2026-11-22T19:20:00Z")],
}
SESSIONS: Mapping[str, list[dict[str, Any]]] = {
    "end_before_start": [first(), summary(end="2026-11-22T18:00:00Z", start_time=None)],
    "session_id_too_long": [first("s" * 600)],
    "score_in_range": [first(), summary(productivity_score=70)],
    "counter_not_negative": [first(quality_metrics={"tests_run": -1})],
    "counter_is_number": [first(workflow_metrics={"git_commits": None})],
    "success_rate_in_range": [first(), summary(metrics={"success_rate": 101})],
    "session_user_is_named": [first(user=...)],
    "session_has_folder": [first(working_directory=...)],
    "session_within_day": [first(), summary(end="2026-11-24T18:59:05Z")],
    "session_longer_than_second": [first(), summary(end="2026-11-22T18:59:05Z")],
    "session_has_end": [first()],
    "session_files_complete": [first()],
    "rates_agree": [first(), summary(performance={"commands_per_hour": 140})],
    "parts_within_whole": [first(quality_metrics={"tests_run": 1, "tests_passed": 2})],
    "few_interruptions": [first(productivity_metrics={"interruptions": 101})],
}
METRIC = {
    "id": "m-1", "sessionId": SESSION, "toolName": "Bash", "executionCount": 4, "totalDurationMs": "400",
    "averageDurationMs": "100", "successRate": 0.75, "errorCount": 1, "createdAt": "2026-11-22T18:59:05Z",
}  # fmt: skip
METRICS: Mapping[str, dict[str, Any]] = {
    "metric_counts_calls": METRIC | {"errorCount": "one"},
    "errors_within_calls": METRIC | {"errorCount": 5},
    "success_rate_agrees": METRIC | {"successRate": 0.1},
    "average_agrees": METRIC | {"averageDurationMs": 900},
}


def test_the_catalogue_is_as_large_as_promised() -> None:
    """At least 30 rules on data and 15 on business, each with an id of its own and all of its words."""
    kinds = [rule.kind for rule in RULES]
    assert kinds.count(Kind.DATA) >= 30
    assert kinds.count(Kind.BUSINESS) >= 15
    assert len(BY_ID) == len(RULES)
    assert all(rule.what and rule.why and rule.fix for rule in RULES)


def test_every_reason_of_the_parse_has_its_rule() -> None:
    """A rejected entry is explained by the catalogue too."""
    parse = {Reason.BAD_UTF8, Reason.BAD_JSON, Reason.TOO_DEEP, Reason.TOO_LONG, Reason.NUL, Reason.INCOMPLETE,
             Reason.BAD_FIELDS, Reason.BAD_TIME, Reason.UNREADABLE}  # fmt: skip
    assert set(rules.BY_REASON) == {reason.value for reason in parse}
    assert {rule.scope for rule in rules.BY_REASON.values()} == {Scope.ENTRY}


def test_every_rule_of_a_row_has_an_example_here() -> None:
    """So that no rule is in the catalogue alone."""
    rows = {rule.id for rule in RULES if rule.scope in (Scope.CALL, Scope.SESSION, Scope.METRIC)}
    assert rows == CALLS.keys() | SESSIONS.keys() | METRICS.keys()


@pytest.mark.parametrize("rule", CALLS)
def test_a_rule_on_calls_fires(rule: str, tmp_path: Path) -> None:
    """On its example, at the place of the line, with the severity of the catalogue and no word of content."""
    calls = CALLS[rule]
    found = [one for one in findings(tmp_path, calls, []) if one.rule == rule]
    assert [one.place for one in found] == [Place("tool-metrics.jsonl", len(calls), found[0].place.offset)]  # type: ignore[union-attr]
    assert found[0].severity is BY_ID[rule].severity
    assert SECRET not in repr(found)


@pytest.mark.parametrize("rule", SESSIONS)
def test_a_rule_on_sessions_fires(rule: str, tmp_path: Path) -> None:
    """On its example alone."""
    found = [one for one in findings(tmp_path, [], SESSIONS[rule]) if one.rule == rule]
    assert [(one.severity, one.place is None) for one in found] == [(BY_ID[rule].severity, False)]


@pytest.mark.parametrize("rule", METRICS)
def test_a_rule_on_added_up_calls_fires(rule: str, tmp_path: Path) -> None:
    """And on nothing else of that figure."""
    (tmp_path / "source" / "tool_metrics").mkdir(parents=True)
    (tmp_path / "source" / "tool_metrics" / "m.json").write_text(json.dumps(METRICS[rule]))
    assert rule in {one.rule for one in findings(tmp_path, [], [])}


def test_good_data_is_silent(tmp_path: Path) -> None:
    """A call, a failed call, an agent's call and a whole session: no rule has anything to say."""
    failed = call(success=False, error=True, error_message="Error")
    announced = {"event_type": "agent_invocation", "timestamp": "2026-11-22T18:59:12Z", "agent_name": "reviewer"}
    agent = {"tool_name": "Task", "subagent_type": "reviewer", "delegation": True, "lines_added": ..., "net_lines": ...}
    calls = [GOOD, failed, announced, call("2026-11-22T18:59:12Z", **agent, lines_removed=..., file_path=...)]
    (tmp_path / "source" / "tool_metrics").mkdir(parents=True)
    (tmp_path / "source" / "tool_metrics" / "m.json").write_text(json.dumps(METRIC))
    assert findings(tmp_path, calls, [first(), summary()]) == []


def event(**more: Any) -> Planned:
    """Return an event of a transcript."""
    values: dict[str, Any] = {"at": START, "kind": "tokens_used", "name": "usage", "app": "claude-code"}
    row = Row(Place("t.jsonl", 1, 0), Subject.OTHER_EVENT, b"", {}, None)
    item = Identified(b"\0" * 16, Event(**(values | more)))  # type: ignore[arg-type]
    return Planned(Row(row.place, row.subject, b"", {}, item), (item,))


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        ("time_too_early", {"at": 1}),
        ("time_in_future", {"at": NOW_US + 86_400_000_001}),
        ("event_numbers_in_range", {"input_bytes": -1}),
        ("tokens_add_up", {"extra": {"total_tokens": 3, "input_tokens": 4}}),
    ],
)
def test_a_rule_on_other_events_fires(rule: str, more: dict[str, Any]) -> None:
    """Each on its example."""
    assert [one.rule for one in Validator(NOW_US).check([event(**more)])] == [rule]


def tally(source: int, rejected: int) -> Counts:
    return Counts(tool_events=Tally(source=source, loaded=source - rejected, rejected=rejected))


def fill(validator: Validator, *, calls: int, **more: int) -> None:
    validator.running.calls = calls
    for name, value in more.items():
        setattr(validator.running, name, value)


@pytest.mark.parametrize(
    ("rule", "state", "counts"),
    [
        ("counts_reconcile", {}, Counts(sessions=Tally(source=2, loaded=1))),
        ("rejects_within_pause", {}, tally(1000, 11)),
        ("rejects_within_stop", {}, tally(1000, 51)),
        ("durations_are_there", {"without_duration": 3}, tally(100, 0)),
        ("failures_are_few", {"failed": 51}, tally(100, 0)),
        ("scores_are_spread", {"scored": 2, "score": 10}, tally(100, 0)),
        ("calls_have_sessions", {"without_session": 11}, tally(100, 0)),
        ("tools_are_known", {"other_tools": 6}, tally(100, 0)),
        ("years_are_few", {"first_us": 1, "last_us": 400_000_000_000_000}, tally(100, 0)),
    ],
)
def test_a_rule_on_the_whole_set_fires(rule: str, state: dict[str, int], counts: Counts) -> None:
    """Just beyond its limit."""
    validator = Validator(NOW_US)
    fill(validator, calls=100, **state)
    found = validator.finish(counts)
    assert [(one.rule, one.place, one.severity) for one in found] == [(rule, None, BY_ID[rule].severity)]


def test_a_set_within_all_limits_is_silent() -> None:
    """At each limit nothing is said yet."""
    validator = Validator(NOW_US)
    fill(validator, calls=100, without_duration=2, failed=50, without_session=10, other_tools=5, scored=1, score=90)
    assert validator.finish(tally(1000, 10)) == []


@pytest.mark.parametrize(
    ("rejected", "source", "accepted", "going_on", "gate"),
    [
        (0, 0, False, False, Gate.OPEN),
        (10, 1000, False, False, Gate.OPEN),
        (11, 1000, False, False, Gate.PAUSE),
        (11, 1000, True, False, Gate.OPEN),
        (50, 1000, True, False, Gate.OPEN),
        (51, 1000, True, False, Gate.STOP),
        (51, 1000, False, False, Gate.STOP),
        (500, 999, False, True, Gate.OPEN),
        (51, 1000, False, True, Gate.STOP),
        (1, 10, False, False, Gate.STOP),
    ],
)
def test_the_gates(rejected: int, source: int, accepted: bool, going_on: bool, gate: Gate) -> None:
    """Over 1 % somebody is asked, over 5 % nobody is; while a run goes on nothing is decided on few entries."""
    assert gate_of(rejected, source, accepted=accepted, going_on=going_on) is gate


def test_the_quality_score_is_its_formula() -> None:
    """100 x (1 - (rejected + flagged / 2) / source), cut, never above 100 nor below 0."""
    assert quality_score(1000, 10, 5) == 98.75
    assert quality_score(3, 1, 0) == 66.66
    assert quality_score(0, 0, 0) == 100.0
    assert quality_score(10, 10, 10) == 0.0
    assert quality_score(1_000_000, 1, 0) == 99.99


def test_rows_are_flagged_once_and_hard_ones_apart(tmp_path: Path) -> None:
    """A row with two soft findings costs half a row; one that will be rejected is not flagged as well."""
    validator = Validator(NOW_US, find_session=span_of)
    lines = [call(success=1, net_lines=9), call("2019-01-01T00:00:00Z", net_lines=9), call(surprise=1), GOOD]
    validator.check(planned(write(tmp_path / "source", lines), tmp_path / "run"))
    assert (validator.running.rows, validator.running.flagged, validator.running.hard) == (4, 1, 1)


def test_a_resumed_run_finds_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    """All that is remembered between two parts rides in the snapshot, and it is small."""
    # Each call is six minutes before the last one, so what a part begins with depends on what the last one ended with.
    lines = [call(f"2026-11-22T19:{59 - minute:02d}:00Z", execution_time_ms=...) for minute in range(0, 59, 6)]
    rows = planned(write(tmp_path / "source", lines, [first(), summary()]), tmp_path / "run")
    whole, cut = Validator(NOW_US, find_session=span_of), Validator(NOW_US, find_session=span_of)
    expected = [*whole.check(rows), *whole.finish(tally(10, 0))]
    found = cut.check(rows[:5])
    snapshot = cut.snapshot()
    resumed = Validator(NOW_US, find_session=span_of)
    resumed.restore(snapshot)
    assert [*found, *resumed.check(rows[5:]), *resumed.finish(tally(10, 0))] == expected
    assert resumed.running == whole.running
    assert any(one.rule == "durations_are_there" for one in expected)
    assert len(snapshot) < 4096


def test_recommendations_are_sorted_by_what_they_cost() -> None:
    """Hard rules first, then the more frequent; what only informs is left out."""
    found = recommend(
        {"lines_add_up": 3, "unknown_field": 900, "user_is_named": 5, "time_too_early": 1, "session_is_id": 7},
        {"nul": 2},
    )
    assert [(one.rule, one.count) for one in found] == [
        ("entry_has_no_nul", 2), ("time_too_early", 1), ("session_is_id", 7), ("lines_add_up", 3),
    ]  # fmt: skip
    assert all(one.fix for one in found)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "null"), (True, "flag"), (-1, "negative"), (0.5, "fraction"), (2.0, "number"), (7, "number"),
        (10**9, "number above 10^9"), (float("nan"), "not a number"), ("", "empty text"), ("x" * 10, "text 1-10"),
        ("x" * 11, "text 11-50"), ([], "empty list"), ([1], "list"), ({}, "object"),
    ],
)  # fmt: skip
def test_a_class_says_what_a_value_is_and_not_which(value: object, name: str) -> None:
    """Findings may be shown to anybody."""
    assert class_of(value) == name
