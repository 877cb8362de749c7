"""Rules on a single call, all in one pass over the line: plain comparisons of local names, so that millions are quick.

A row in which nothing is wrong costs about two microseconds. What is found is appended to a list; what a rule means
stands in the catalogue (rules.py), and a test sees every rule of it fire.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from metricsd.decode.older_hooks import ToolCall
from metricsd.migration.bounds import AHEAD_US, FIRST_US
from metricsd.migration.model import Finding, Place, Planned, Severity
from metricsd.migration.rules import BY_ID
from metricsd.migration.value_class import ABSENT, class_of

DAY_MS = 24 * 3600 * 1000
SLACK_US = 5 * 60 * 1_000_000
FILE_BYTES_MAX = 10 * 1024**3
LINES_MAX = 1_000_000
EQUAL_MAX = 20
LOOKED_UP_MAX = 512
"""Sessions that are remembered: calls of one follow each other."""
SECRETS = frozenset(("auth_token", "token", "refreshToken", "api_key", "password"))
KNOWN = frozenset(
    """
    event_type timestamp tool_name success execution_time_ms execution_time user session_id user_id user_name
    organization_id auth_token enhanced_activity error error_message file_path file_size_bytes lines_requested
    lines_added lines_removed net_lines replace_all content_length lines_written file_type command command_type
    background timeout subagent_type task_description delegation generic_tool input_keys
    id sessionId toolName toolCategory executionCount totalDurationMs averageDurationMs successRate errorCount
    memoryUsageMb cpuTimeMs outputSizeBytes parameters commandLine workingDirectory createdAt
    """.split()  # noqa: SIM905
)
_SIZES = (
    ("file_size_bytes", FILE_BYTES_MAX),
    ("content_length", FILE_BYTES_MAX),
    ("lines_added", LINES_MAX),
    ("lines_removed", LINES_MAX),
    ("lines_written", LINES_MAX),
)
_NONE = object()
_is_own_id = re.compile(r"activity_\d{10,16}_[a-z0-9]{1,16}").fullmatch

Span = tuple[int | None, int | None]
FindSession = Callable[[str], Span | None]
"""Start and end of a session of the source, by its id as events have it; None for one that the source never tells of."""


class CallRules:
    """The rules on calls. `find_session` is asked about each session that turns up; without one, nothing is."""

    def __init__(self, now_us: int, find_session: FindSession | None = None) -> None:
        self._latest_us = now_us + AHEAD_US
        self._find_session = find_session
        self._spans: dict[str, Span | None] = {}
        self._last: tuple[str | None, int] = (None, 0)

    def check(self, planned: Planned, call: ToolCall, found: list[Finding]) -> None:
        """Append what the rules say of a call."""
        row = planned.row
        raw, place, event = row.raw, row.place, planned.items[0].event
        at = event.at
        if at < FIRST_US:
            add(found, "time_too_early", place, "timestamp", "before 2020")
        elif at > self._latest_us:
            add(found, "time_in_future", place, "timestamp", "after the run")
        if not raw.keys() <= KNOWN:
            add(found, "unknown_field", place, "", f"{len(raw.keys() - KNOWN)} fields")
        if row.occurrence >= EQUAL_MAX:
            add(found, "fact_is_single", place, "", f"equal to {EQUAL_MAX} or more before it")
        if call.user is None and "toolName" not in raw:
            add(found, "user_is_named", place, "user", class_of(raw["user"]) if "user" in raw else ABSENT)
        self._session(event.session, at, place, found)
        if "toolName" in raw:
            _stored(raw, place, event.tool, found)
            return
        success, duration = raw.get("success"), raw.get("execution_time_ms", _NONE)
        if success is not True and success is not False:
            add(found, "outcome_is_flag", place, "success", class_of(success) if "success" in raw else ABSENT)
        if type(duration) is not int or not 0 <= duration <= DAY_MS:
            _duration(raw, place, found)
        failed, is_failure = raw.get("error"), success is False
        if (failed is True) is not is_failure or (not is_failure and "error_message" in raw):
            add(found, "failure_is_consistent", place, "error", class_of(failed) if "error" in raw else ABSENT)
        if str(raw.get("timestamp"))[-1:] != "Z":
            _zone(raw, place, found)
        if event.tool != raw.get("tool_name"):
            add(found, "tool_is_name", place, "tool_name", class_of(raw.get("tool_name")))
        written = raw.get("session_id")
        if written != event.session and call.event.session != written and written is not None:
            add(found, "session_is_id", place, "session_id", class_of(written))
        if event.subject is not None or event.lines_added is not None or event.extra is not None:
            _sizes(raw, place, found)
        if event.tool == "Task" or event.agent is not None:
            _agent(raw, event.agent, place, found)
        if "enhanced_activity" in raw:
            _activity(raw, place, found)
        if not SECRETS.isdisjoint(raw):
            add(found, "no_secret_in_call", place, next(name for name in sorted(raw) if name in SECRETS), "secret")

    def _session(self, session: str | None, at: int, place: Place, found: list[Finding]) -> None:
        last, last_at = self._last
        if session == last and session is not None and at < last_at - SLACK_US:
            add(found, "calls_in_order", place, "timestamp", "earlier by more than 5 min")
        self._last = (session, at)
        if self._find_session is None:
            return
        span = None if session is None else self._span(session, self._find_session)
        if span is None:
            add(found, "call_has_session", place, "session_id", ABSENT if session is None else "unknown id")
            return
        start, end = span
        if (start is not None and at < start - SLACK_US) or (end is not None and at > end + SLACK_US):
            add(found, "call_in_session_span", place, "timestamp", "outside by more than 5 min")

    def _span(self, session: str, find: FindSession) -> Span | None:
        if session not in self._spans:
            if len(self._spans) >= LOOKED_UP_MAX:
                self._spans.clear()
            self._spans[session] = find(session)
        return self._spans[session]

    @property
    def last(self) -> tuple[str | None, int]:
        """Session and time of the last call: what the next one is compared with."""
        return self._last

    @last.setter
    def last(self, value: tuple[str | None, int]) -> None:
        self._last = value


def add(found: list[Finding], rule: str, place: Place | None, field: str, value_class: str) -> None:
    """Append a finding of a rule of the catalogue."""
    found.append(Finding(rule, _SEVERITIES[rule], place, field, value_class))


_SEVERITIES: Mapping[str, Severity] = {rule.id: rule.severity for rule in BY_ID.values()}


def _duration(raw: Mapping[str, Any], place: Place, found: list[Finding]) -> None:
    name = "execution_time_ms" if "execution_time_ms" in raw else "execution_time"
    value = raw.get(name, _NONE)
    kind = ABSENT if value is _NONE else class_of(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        add(found, "duration_is_number", place, name, kind)
    elif value < 0:
        add(found, "duration_not_negative", place, name, kind)
    elif value > DAY_MS:
        add(found, "duration_within_day", place, name, kind)
    elif isinstance(value, float) and not value.is_integer():
        add(found, "duration_is_whole", place, name, kind)


def _zone(raw: Mapping[str, Any], place: Place, found: list[Finding]) -> None:
    text = raw.get("timestamp")
    # A date has two hyphens of its own.
    if isinstance(text, str) and "+" not in text and text.count("-") < 3:
        add(found, "time_without_zone", place, "timestamp", class_of(text))


def _sizes(raw: Mapping[str, Any], place: Place, found: list[Finding]) -> None:
    for name, most in _SIZES:
        value = raw.get(name, 0)
        if type(value) is not int or value < 0:
            add(found, "size_is_number", place, name, class_of(value))
        elif value > most:
            add(found, "size_within_cap", place, name, class_of(value))
    net = raw.get("net_lines", _NONE)
    if net is not _NONE:
        added, removed = raw.get("lines_added"), raw.get("lines_removed")
        if not (type(added) is int and type(removed) is int and net == added - removed):
            add(found, "lines_add_up", place, "net_lines", class_of(net))


def _agent(raw: Mapping[str, Any], agent: str | None, place: Place, found: list[Finding]) -> None:
    named = raw.get("subagent_type")
    if agent is None or agent == "unknown":
        add(found, "agent_is_named", place, "subagent_type", class_of(named) if "subagent_type" in raw else ABSENT)
    elif agent != named:
        add(found, "agent_is_name", place, "subagent_type", class_of(named))


def _activity(raw: Mapping[str, Any], place: Place, found: list[Finding]) -> None:
    activity = raw["enhanced_activity"]
    if not isinstance(activity, dict):
        add(found, "own_id_is_made", place, "enhanced_activity", class_of(activity))
        return
    own = activity.get("id")
    if not isinstance(own, str) or _is_own_id(own) is None:
        add(found, "own_id_is_made", place, "enhanced_activity.id", class_of(own) if "id" in activity else ABSENT)
    status, duration = activity.get("status"), activity.get("duration_ms", _NONE)
    if status is not None and (status == "success") is (raw.get("success") is False):
        add(found, "activity_agrees", place, "enhanced_activity.status", class_of(status))
    if duration is not _NONE and duration != raw.get("execution_time_ms"):
        add(found, "activity_agrees", place, "enhanced_activity.duration_ms", class_of(duration))


def _stored(raw: Mapping[str, Any], place: Place, tool: str | None, found: list[Finding]) -> None:
    """Look at a call that the older API stored."""
    if tool != raw["toolName"]:
        add(found, "tool_is_name", place, "toolName", class_of(raw["toolName"]))
    output = raw.get("outputSizeBytes", 0)
    if output is not None and (type(output) is not int or output < 0):
        add(found, "size_is_number", place, "outputSizeBytes", class_of(output))
