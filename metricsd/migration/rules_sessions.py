"""Rules on a session as all of its files tell it, on figures that arrived added up, and on events of other sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from metricsd.decode.older_hooks import APP, AddedUp, SessionNote
from metricsd.migration.bounds import AHEAD_US, FIRST_US, RECORD_ID_BYTES_MAX
from metricsd.migration.model import Finding, NoteKind, Planned
from metricsd.migration.rules_calls import add
from metricsd.migration.value_class import class_of
from metricsd.model import Event

DAY_US = 24 * 3600 * 1_000_000
SECOND_US = 1_000_000
INTERRUPTIONS_MAX = 100
PERCENT_MAX = 100
HOURS_MIN = 0.1
"""The hooks divided by at least so many hours (contract of the hooks: rates per hour)."""
RATE_SLACK = 0.15
"""Rates are written with one digit, hours were whole seconds."""
AVERAGE_SLACK = 0.1
NUMBER_MAX = 2**63 - 1
_US_PER_HOUR = 3600 * 1_000_000
_COUNTERS = ("productivity_metrics", "quality_metrics", "workflow_metrics", "final_metrics")
_PARTS = (("tests_passed", "tests_run"), ("builds_successful", "builds_attempted"))


def check_session(planned: Planned, note: SessionNote, now_us: int, found: list[Finding]) -> None:
    """Append what the rules say of a merged session."""
    place, start, end = planned.row.place, note.start_us, note.end_us
    for name, at in (("start_time", start), ("end_time", end)):
        if at is not None and at < FIRST_US:
            add(found, "time_too_early", place, name, "before 2020")
        elif at is not None and at > now_us + AHEAD_US:
            add(found, "time_in_future", place, name, "after the run")
    if start is not None and end is not None:
        if end < start:
            add(found, "end_before_start", place, "end_time", "before the start")
        elif end - start > DAY_US:
            add(found, "session_within_day", place, "end_time", "longer than 24 h")
        elif end - start < SECOND_US:
            add(found, "session_longer_than_second", place, "end_time", "shorter than 1 s")
    elif end is None:
        add(found, "session_has_end", place, "end_time", "absent")
    if len(f"{APP}/{note.session}".encode("utf-8", "surrogatepass")) > RECORD_ID_BYTES_MAX:
        add(found, "session_id_too_long", place, "session_id", class_of(note.session))
    if note.user is None:
        add(found, "session_user_is_named", place, "user", "absent")
    if note.directory is None:
        add(found, "session_has_folder", place, "working_directory", "absent")
    if not planned.row.others:
        add(found, "session_files_complete", place, "", "one entry")
    if any(change.kind is NoteKind.CLAMP and "score" in change.field for change in planned.notes):
        add(found, "score_in_range", place, "productivity_score", "out of range")
    interruptions = note.fields.get("interruptions_count", 0)
    if isinstance(interruptions, int) and interruptions > INTERRUPTIONS_MAX:
        add(found, "few_interruptions", place, "interruptions", class_of(interruptions))
    _kept(planned, note, found)


def check_metric(planned: Planned, metric: AddedUp, found: list[Finding]) -> None:
    """Append what the rules say of calls that arrived added up."""
    raw, place, values = planned.row.raw, planned.row.place, metric.values
    for name in ("executionCount", "errorCount", "totalDurationMs", "averageDurationMs"):
        value = raw.get(name, 0)
        if not (_is_count(value) or (isinstance(value, str) and value.isascii() and value.isdigit())):
            add(found, "metric_counts_calls", place, name, class_of(value))
    calls, errors, total = (_number(values.get(key)) for key in ("execution_count", "error_count", "total_duration_ms"))
    written = _number(raw.get("errorCount"))
    if written > calls:
        add(found, "errors_within_calls", place, "errorCount", class_of(raw.get("errorCount")))
    rate = raw.get("successRate")
    if isinstance(rate, int | float) and calls and abs((calls - errors) / calls - rate) > 0.5 / calls:
        add(found, "success_rate_agrees", place, "successRate", class_of(rate))
    average = _number(raw.get("averageDurationMs"))
    if calls and abs(total - average * calls) > max(AVERAGE_SLACK * total, calls):
        add(found, "average_agrees", place, "averageDurationMs", class_of(raw.get("averageDurationMs")))


def check_event(planned: Planned, event: Event, now_us: int, found: list[Finding]) -> None:
    """Append what the rules say of an event of a transcript or an export."""
    place = planned.row.place
    if event.at < FIRST_US:
        add(found, "time_too_early", place, "at", "before 2020")
    elif event.at > now_us + AHEAD_US:
        add(found, "time_in_future", place, "at", "after the run")
    for name in ("duration_ms", "input_bytes", "output_bytes", "lines_added", "lines_removed"):
        value = getattr(event, name)
        if value is not None and not 0 <= value <= NUMBER_MAX:
            add(found, "event_numbers_in_range", place, name, class_of(value))
    extra = event.extra or {}
    total = extra.get("total_tokens")
    if isinstance(total, int):
        for name in ("input_tokens", "output_tokens"):
            one = extra.get(name)
            if isinstance(one, int) and one > total:
                add(found, "tokens_add_up", place, name, class_of(one))


def _kept(planned: Planned, note: SessionNote, found: list[Finding]) -> None:
    """Look at the counters that the hooks wrote of a session."""
    place = planned.row.place
    for group in _COUNTERS:
        counters = note.kept.get(group)
        if not isinstance(counters, Mapping):
            continue
        for name, value in counters.items():
            if value is None:
                add(found, "counter_is_number", place, f"{group}.{_known(name)}", "null")
            elif isinstance(value, int | float) and value < 0:
                add(found, "counter_not_negative", place, f"{group}.{_known(name)}", "negative")
        for part, whole in _PARTS:
            if _number(counters.get(part)) > _number(counters.get(whole)) and whole in counters:
                add(found, "parts_within_whole", place, f"{group}.{part}", class_of(counters.get(part)))
        rate = counters.get("success_rate")
        if isinstance(rate, int | float) and not 0 <= rate <= PERCENT_MAX:
            add(found, "success_rate_in_range", place, f"{group}.success_rate", class_of(rate))
    for name, written, true in _rates(note):
        if abs(written - true) > RATE_SLACK + 0.01 * abs(true):
            add(found, "rates_agree", place, f"performance.{name}", class_of(written))


def _rates(note: SessionNote) -> Iterator[tuple[str, float, float]]:
    """Yield the rates that a summary gives, each with what its counters make of it."""
    final, rates = note.kept.get("final_metrics"), note.kept.get("performance")
    if note.start_us is None or note.end_us is None or not isinstance(final, Mapping) or not isinstance(rates, Mapping):
        return
    hours = max((note.end_us - note.start_us) / _US_PER_HOUR, HOURS_MIN)
    for name, counter in (("commands_per_hour", "commands_executed"), ("lines_per_hour", "lines_changed")):
        written, count = rates.get(name), final.get(counter)
        if isinstance(written, int | float) and isinstance(count, int | float):
            yield name, written, count / hours


def _known(name: str) -> str:
    """Return a counter's name if it looks like one of the hooks': anything else could be content."""
    return name if name.replace("_", "").isalpha() and name.isascii() and len(name) <= 40 else "(other)"


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _number(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value if type(value) is int else 0
