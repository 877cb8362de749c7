"""Tool metrics of the older formats: the local hooks' line (snake_case) and the cloud's record (camelCase), both ways.

A local line is one call, a cloud record may be many. Corrections (docs/api-legacy.md): the hooks' own names
`execution_time_ms` and `event_type` are understood, where every duration used to become 0; a record's id follows from
its content, so that converting again makes no second one; a record that does not say its success rate is judged by
its error count instead of being a failure.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from metricsd.analytics.numbers import number_of, plain, ratio
from metricsd.legacy.values import Json, find_ms, iso, numeric, parse_ms, record_of, text_of

EVENT = "tool_usage"
UNKNOWN_TOOL = "unknown"
ERROR_TEXT = "Tool execution failed"
"""Stands for every error's text, which could hold content."""
BYTES_PER_MIB = 1024 * 1024
GOOD_RATE_ABOVE = 0.5
CATEGORIES = (
    ("file", ("Read", "Write", "Edit")),
    ("search", ("Grep", "Glob", "Task")),
    ("execution", ("Bash",)),
    ("agent", ("general-purpose", "code-reviewer", "tech-lead-orchestrator")),
)
"""The first category wins whose word is a part of the tool's name."""
OTHER_CATEGORY = "other"

_SAME = (
    ("parameters", "parameters"),
    ("output_size", "outputSizeBytes"),
    ("command_line", "commandLine"),
    ("working_directory", "workingDirectory"),
)
_NAMESPACE = uuid.UUID("7b1d3c52-6b0e-5b43-9a54-0d7d2f3a8c11")
_encode = msgspec.json.Encoder(order="sorted").encode


def category_of(tool: str) -> str:
    """Return the older system's category of a tool."""
    return next((name for name, words in CATEGORIES if any(word in tool for word in words)), OTHER_CATEGORY)


def to_cloud(value: object) -> Json:
    """Return the cloud's record of one local line; raise LineRejected for what cannot be one."""
    local = record_of(value, "tool metric")
    tool = text_of(local, "tool_name", default="") or text_of(local, "event", default=UNKNOWN_TOOL)
    failed = local.get("success") is False
    duration = numeric(local, "execution_time")
    if duration is None:
        duration = numeric(local, "execution_time_ms") or 0
    created = iso(parse_ms("timestamp", local.get("timestamp")))
    found: Json = {
        "id": str(uuid.uuid5(_NAMESPACE, _encode(local).hex())),
        "sessionId": text_of(local, "session_id", default=""),
        "toolName": tool,
        "toolCategory": category_of(tool),
        "executionCount": 1,
        "totalDurationMs": duration,
        "averageDurationMs": duration,
        "successRate": 0 if failed else 1,
        "errorCount": 1 if failed else 0,
    }
    memory = number_of(numeric(local, "memory_usage"))
    if memory:
        found["memoryUsageMb"] = plain(memory / BYTES_PER_MIB)
    numeric(local, "output_size")
    found |= {theirs: local[ours] for ours, theirs in _SAME if ours in local}
    return found | {"createdAt": created}


def to_local(value: object, *, now_ms: int) -> Json:
    """Return the local line of a cloud record: its mean call. `now_ms` is the time of a record that has none."""
    cloud = record_of(value, "tool metric")
    created = cloud.get("createdAt")
    good = _rate(cloud) > GOOD_RATE_ABOVE
    found: Json = {
        "event": EVENT,
        "timestamp": iso(now_ms if created is None else parse_ms("createdAt", created)),
        "session_id": text_of(cloud, "sessionId", default=""),
        "tool_name": text_of(cloud, "toolName", default=UNKNOWN_TOOL),
        "execution_time": numeric(cloud, "averageDurationMs") or 0,
    }
    memory = number_of(numeric(cloud, "memoryUsageMb"))
    if memory:
        found["memory_usage"] = plain(memory * BYTES_PER_MIB)
    found["success"] = good
    if not good:
        found["error_message"] = ERROR_TEXT
    return found | {ours: cloud[theirs] for ours, theirs in _SAME if theirs in cloud}


def aggregate(values: Sequence[object]) -> list[Json]:
    """Return one cloud record for each (session, tool) of local lines, in the order of their first lines.

    Memory is the running mean of pairs that the older converter made, so the latest calls weigh most.
    """
    groups: dict[tuple[str, str], Json] = {}
    for value in values:
        one = to_cloud(value)
        for name in ("totalDurationMs", "averageDurationMs"):
            one[name] = plain(number_of(one[name]))
        key = (one["sessionId"], one["toolName"])
        groups[key] = _added(groups[key], one) if key in groups else one
    return list(groups.values())


def problems(value: object) -> list[str]:
    """Return what is wrong with a local line by the older converter's stricter check; empty when nothing is."""
    local = record_of(value, "tool metric")
    found = [f"Missing {name}" for name in ("event", "timestamp") if not local.get(name)]
    if local.get("timestamp") and find_ms(local["timestamp"]) is None:
        found.append("Invalid timestamp format")
    found.extend(
        f"{name} must be a non-negative number"
        for name in ("execution_time", "memory_usage", "output_size")
        if name in local and not _is_count(local[name])
    )
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _rate(cloud: Json) -> float:
    rate = numeric(cloud, "successRate")
    if rate is not None:
        return number_of(rate)
    count = number_of(numeric(cloud, "executionCount"), 1.0)
    return 1.0 - ratio(number_of(numeric(cloud, "errorCount")), count)


def _added(first: Json, one: Json) -> Json:
    count = first["executionCount"] + 1
    errors = first["errorCount"] + one["errorCount"]
    total = plain(first["totalDurationMs"] + one["totalDurationMs"])
    found = first | {
        "executionCount": count,
        "totalDurationMs": total,
        "averageDurationMs": plain(total / count),
        "errorCount": errors,
        "successRate": plain((count - errors) / count),
    }
    if "memoryUsageMb" in one:
        memory = one["memoryUsageMb"]
        found["memoryUsageMb"] = plain((first.get("memoryUsageMb", memory) + memory) / 2)
    if one.get("outputSizeBytes") is not None:
        found["outputSizeBytes"] = plain(number_of(first.get("outputSizeBytes")) + number_of(one["outputSizeBytes"]))
    return found
