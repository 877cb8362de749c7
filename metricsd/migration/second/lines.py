"""What one entry of the older hooks' files says, read a second time: a call, a note on a session, or nothing usable.

JSON by the standard library, strictly: no NaN, no lone surrogate, no infinity. An entry is an object of the file, on a
line of its own or a document. Whether an entry is good is decided here anew, so that a good one that the first reader
rejected shows up as missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from metricsd.migration.digest import Row
from metricsd.migration.rows import SESSION_ENDED, SESSION_STARTED, TOOL_USED
from metricsd.migration.second import words
from metricsd.migration.second.sessions import Note, read_camel, read_edge, read_session, read_stored
from metricsd.migration.second.shapes import Bad, Json, count_of, text_of
from metricsd.migration.second.times import parse_us

APP, FORM, CALL_NAME = "legacy", "older-hooks", "tool_execution"
OWN_ID_CHARS_MAX = 512
_ID_BYTES = 10
_HASH_62 = (1 << 62) - 1
_VARIANT = 0b10 << 62
_CAMEL = ("startTime", "endTime", "created_at", "tools", "toolsUsed", "productivityScore", "focusTime", "sessionId")


class Announced(NamedTuple):
    """The line in front of an agent's call; it is no call of its own. `whose` is that call's time and agent, as written."""

    whose: tuple[Any, Any]


class Call(NamedTuple):
    """One call. `fact` is what its id is made of; `session` is as written; `user` an account or an address."""

    fact: str
    at: int
    session: str | None
    tool: str
    outcome: str
    duration_ms: int | None
    user: str | None
    agent: str | None = None
    subject: str | None = None
    output_bytes: int | None = None
    lines_added: int | None = None
    lines_removed: int | None = None
    extra: Row | None = None
    whose: tuple[Any, Any] | None = None
    """Time and agent as written, for the announcement in front of it."""


class Figure(NamedTuple):
    """Calls that arrived added up: the older system's id, and the fields that a tool metric has."""

    key: str
    values: Mapping[str, Any]


Entry = Call | Note | Figure | Announced | Bad


def _refuse(text: str) -> float:
    raise ValueError(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


_decode = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite).decode


def read_json(data: bytes) -> object:
    """Return the JSON value in `data`, a `Bad` if there is none."""
    if b"\0" in data:
        return Bad("nul")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return Bad("bad_utf8")
    try:
        value: object = _decode(text)
    except RecursionError:
        return Bad("too_deep")
    except ValueError:
        return Bad("bad_json")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return Bad("bad_json")
    return value


def read_line(data: bytes) -> Entry:
    """Return what a line of `*.jsonl` says."""
    line = read_json(data)
    if not isinstance(line, dict):
        return line if isinstance(line, Bad) else Bad("no_object")
    kind = line.get("event_type")
    if kind == CALL_NAME:
        return _call(line)
    if kind == "agent_invocation":
        return Announced((line.get("timestamp"), line.get("agent_name")))
    if kind is not None:
        return Bad("unknown_kind")
    event = line.get("event")
    if event in ("session_start", "session_end"):
        return read_edge(line, starts=event == "session_start")
    return _call(line) if text_of(line, "tool_name") is not None else read_document(line)


def read_document(value: object) -> Entry:
    """Return what a document, or an item of one, says."""
    if not isinstance(value, dict):
        return value if isinstance(value, Bad) else Bad("no_object")
    if "toolName" in value:
        return _stored_metric(value)
    if "sessionStart" in value:
        return read_stored(value)
    if text_of(value, "session_id") is None and any(name in value for name in _CAMEL):
        return read_camel(value)
    return read_session(value)


def call_identity(fact: str, number: int) -> int:
    """Return the low 64 bits of a call's event id: the `number`-th of equal facts of its file, from 0."""
    data = fact.encode("utf-8", "surrogatepass") + number.to_bytes(4, "big")
    return (int.from_bytes(blake2b(data, digest_size=_ID_BYTES).digest(), "big") & _HASH_62) | _VARIANT


def edge_identity(session: str, *, starts: bool) -> int:
    """Return the low 64 bits of the id of a session's start or end."""
    kind = SESSION_STARTED if starts else SESSION_ENDED
    return call_identity("\x1f".join((FORM, "", session, kind, "None", "None", "None")), 0)


def metric_id(key: str) -> str:
    """Return the id of a tool metric's record."""
    return f"{FORM}/{blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"


def _call(line: Json) -> Call | Bad:
    at = parse_us(line.get("timestamp"))
    if at is None:
        return Bad("bad_time")
    tool = text_of(line, "tool_name")
    if tool is None:
        return Bad("no_tool")
    outcome = "failed" if line.get("success") is False or line.get("error") is True else "ok"
    duration = words.number(line["execution_time_ms"] if "execution_time_ms" in line else line.get("execution_time"))
    session = text_of(line, "session_id")
    activity = line.get("enhanced_activity")
    own = text_of(activity, "id") if isinstance(activity, dict) else None
    if own is not None and len(own) > OWN_ID_CHARS_MAX:
        return Bad("long_id")
    if own is None:
        fact = f"{FORM}\x1f{at}\x1f{session}\x1f{TOOL_USED}\x1f{tool}\x1f{outcome}\x1f{duration}"
    else:
        fact = f"{FORM}\x1f{at}\x1fid\x1f{own}"
    agent = text_of(line, "subagent_type")
    return Call(
        fact=fact,
        at=at,
        session=session,
        tool=words.tool_name(tool),
        outcome=outcome,
        duration_ms=duration,
        user=text_of(line, "user"),
        agent=None if agent is None else words.tool_name(agent),
        subject=words.subject_of(line),
        lines_added=words.number(line["lines_added"] if "lines_added" in line else line.get("lines_written")),
        lines_removed=words.number(line.get("lines_removed")),
        extra=_sizes(line),
        whose=(line.get("timestamp"), line.get("subagent_type")),
    )


def _sizes(line: Json) -> Row | None:
    found: list[object] = []
    for name, key in (
        ("file_bytes", "file_size_bytes"),
        ("lines_asked", "lines_requested"),
        ("written_chars", "content_length"),
    ):
        size = words.number(line.get(key))
        if size is not None:
            found += (name, size)
    return tuple(found) or None


def _stored_metric(document: Json) -> Call | Figure | Bad:
    key, tool, at = text_of(document, "id"), text_of(document, "toolName"), parse_us(document.get("createdAt"))
    if key is None or tool is None:
        return Bad("no_tool")
    if at is None:
        return Bad("bad_time")
    count = count_of(document.get("executionCount"), 1)
    errors = min(count_of(document.get("errorCount"), 0), count)
    total = count_of(document.get("totalDurationMs"), 0)
    session, output = text_of(document, "sessionId"), words.number(document.get("outputSizeBytes"))
    if count <= 1:
        return Call(
            fact=f"{FORM}\x1f{at}\x1fid\x1f{key}", at=at, session=session, tool=words.tool_name(tool),
            outcome="failed" if errors else "ok", duration_ms=total, user=None, output_bytes=output,
        )  # fmt: skip
    memory = document.get("memoryUsageMb")
    is_number = isinstance(memory, int | float) and not isinstance(memory, bool) and 0 <= memory <= words.NUMBER_MAX
    values = {
        "app": APP, "tool": words.tool_name(tool), "started_at": at, "ended_at": at, "execution_count": count,
        "error_count": errors, "total_duration_ms": total, "output_size_bytes": output,
        "session": None if session is None else words.session_id(session),
        "memory_usage_mb": memory if is_number else None,
    }  # fmt: skip
    return Figure(key, {name: value for name, value in values.items() if value is not None})
