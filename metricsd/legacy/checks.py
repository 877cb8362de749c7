"""What the older API refuses in a body, and in which words: its clients show these texts.

Fields are looked at in the order of the schema, unknown keys last, and only the first fault is told. A number may come
as text, and so may true and false; what was sent is echoed as it was sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from metricsd.legacy.asked import ApiError
from metricsd.legacy.moments import is_iso

BATCH_MAX = 100
SAFE_MAX = 2**53 - 1
NUMBER_CHARS_MAX = 64
_WORDS = frozenset(("true", "false"))

Check = Callable[[object], str | None]


class Rule(NamedTuple):
    """One field of a body."""

    name: str
    check: Check
    required: bool = False


def _text(value: object) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    return None if value else "is not allowed to be empty"


def _time(value: object) -> str | None:
    wrong = _text(value)
    if wrong is None and isinstance(value, str) and not is_iso(value):
        return "must be in iso format"
    return wrong


def _object(value: object) -> str | None:
    return None if isinstance(value, dict) else "must be of type object"


def _number(value: object) -> str | None:
    number = number_in(value)
    if number is None:
        return "must be a number"
    return None if abs(number) <= SAFE_MAX else "must be a safe number"


def _flag(value: object) -> str | None:
    return None if flag_in(value) is not None else "must be a boolean"


def _anything(_: object) -> str | None:
    return None


SESSION: Sequence[Rule] = (
    Rule("session_id", _text, required=True),
    Rule("start_time", _time, required=True),
    Rule("end_time", _time),
    Rule("user", _text, required=True),
    Rule("working_directory", _text),
    Rule("git_branch", _text),
    Rule("productivity_metrics", _object),
    Rule("quality_metrics", _object),
    Rule("workflow_metrics", _object),
)
TOOL_METRIC: Sequence[Rule] = (
    Rule("event", _text, required=True),
    Rule("timestamp", _time, required=True),
    Rule("session_id", _text),
    Rule("tool_name", _text),
    Rule("execution_time", _number),
    Rule("memory_usage", _number),
    Rule("success", _flag),
    Rule("error_message", _text),
    Rule("parameters", _anything),
    Rule("output_size", _number),
)


def check(body: object, rules: Sequence[Rule]) -> Mapping[str, object]:
    """Return a body that keeps all rules; raise ApiError 400 that names the first one it breaks."""
    if not isinstance(body, dict):
        raise _invalid("value", "must be of type object")
    for rule in rules:
        if rule.name not in body:
            if rule.required:
                raise _invalid(rule.name, "is required")
            continue
        wrong = rule.check(body[rule.name])
        if wrong is not None:
            raise _invalid(rule.name, wrong)
    known = {rule.name for rule in rules}
    unknown = next((name for name in body if name not in known), None)
    if unknown is not None:
        raise _invalid(unknown, "is not allowed")
    return body


def check_batch(body: object) -> list[object]:
    """Return the items of a batch: the body itself, or its `metrics`; raise ApiError 400."""
    items = body
    if isinstance(body, dict):
        items = body.get("metrics")
    if not isinstance(items, list):
        raise ApiError(400, "Expected array of tool metrics")
    if len(items) > BATCH_MAX:
        raise ApiError(400, f"Batch size cannot exceed {BATCH_MAX} metrics")
    return items


def number_in(value: object) -> int | float | None:
    """Return the number that a value is or spells; None for another thing, and for one that no float can hold."""
    if isinstance(value, str) and 0 < len(value.strip()) <= NUMBER_CHARS_MAX and "_" not in value:
        try:
            value = float(value)
        except ValueError:
            return None
        value = int(value) if value.is_integer() else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # A comparison is safe for whole numbers that are too large for a float.
    return value if isinstance(value, int) or math.isfinite(value) else None


def flag_in(value: object) -> bool | None:
    """Return what a flag is or spells; None for another thing."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _WORDS:
        return value.lower() == "true"
    return None


def _invalid(name: str, wrong: str) -> ApiError:
    return ApiError(400, f'Validation error: "{name[:100]}" {wrong}')
