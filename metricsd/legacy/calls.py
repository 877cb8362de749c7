"""Calls of tools as the older API is told of them and tells them: one body, one event, and what else it said.

A call has the id that the same fact has in a file of the older hooks, so that neither a repeated request nor a file
that tells it again makes a second one. What a file of those hooks could not have said (parameters, memory) is part of
what identifies a call; a call without a time of its own is never taken for another one.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from metricsd.analytics.numbers import number_of, plain
from metricsd.clock import US_PER_MS
from metricsd.decode.names import plain_name, repeated_id, whole_number
from metricsd.decode.older_hooks import APP, FORM, TOOL_LINE, ToolCall, read_tool
from metricsd.errors import LineRejected
from metricsd.ids import EventId, Occurrences, line_fact
from metricsd.legacy.asked import ApiError, Invalid
from metricsd.legacy.checks import flag_in, number_in
from metricsd.legacy.kept import CALL, DOCUMENT_BYTES_MAX, Call, Kept
from metricsd.legacy.moments import find_us
from metricsd.legacy.tool_metrics import BYTES_PER_MIB, ERROR_TEXT, EVENT, UNKNOWN_TOOL
from metricsd.legacy.values import Json, iso
from metricsd.model import Event, Kind, Outcome

BAD_TIME = "Invalid time value"
"""What that API says of a time that is none, or outside of 1970 to 2286."""
_ID_BYTES = 16
_SAID = ("memory_usage", "parameters", "output_size", "command_line", "working_directory")
"""Fields that identify a call beside what a file of the hooks would say, and are echoed."""
_CAMEL = {
    "sessionId": "session_id", "toolName": "tool_name", "executionTime": "execution_time", "success": "success",
    "memoryUsage": "memory_usage", "parameters": "parameters", "commandLine": "command_line",
    "workingDirectory": "working_directory",
}  # fmt: skip

_encode = msgspec.json.Encoder(order="sorted").encode


class Told(NamedTuple):
    """A call that a request tells of: its event with its id, and the document to keep of it."""

    id: EventId
    event: Event
    document: Json

    @property
    def kept(self) -> Kept | None:
        """Return what is to be kept beside the event; None for nothing."""
        if not self.document:
            return None
        values = self.document
        if len(_encode(values)) > DOCUMENT_BYTES_MAX:
            # The call counts all the same; what was said about it at such length is not kept.
            values = {name: value for name, value in values.items() if len(_encode(value)) <= DOCUMENT_BYTES_MAX // 8}
        return Kept(CALL, self.id.hex(), values)


def read(body: Mapping[str, Any], occurrences: Occurrences) -> Told:
    """Return the call that a body of `tool-metrics` tells of; raise ApiError for one that is none.

    `occurrences` counts equal calls of one batch: two of them are two, and the same batch again is the same two.
    """
    at = find_us(body.get("timestamp"))
    if at is None:
        raise ApiError(400, BAD_TIME)
    call = _told(body, at, own_id=None)
    return Told(call.id(occurrences.next(call.fact)), call.event, _document(body, call.event))


def read_now(body: Mapping[str, Any], now_us: int) -> Told:
    """Return the call of a body in camelCase, which says no time: it is made now, and never merged with another."""
    found = {ours: body[theirs] for theirs, ours in _CAMEL.items() if body.get(theirs) is not None}
    if not found.get("tool_name"):
        found["tool_name"] = UNKNOWN_TOOL
    call = _told(found, now_us, own_id=secrets.token_hex(_ID_BYTES))
    return Told(call.id(0), call.event, _document(found, call.event))


def read_line(body: Mapping[str, Any], now_us: int) -> Told:
    """Return the call in the record that the current hooks post, which is what they write to their files otherwise."""
    line = dict(body)
    if find_us(line.get("timestamp")) is None:
        if line.get("timestamp") is not None:
            raise Invalid(400, "timestamp must be a time such as 2026-01-05T08:00:00Z")
        line["timestamp"] = iso(now_us // US_PER_MS)
        line["enhanced_activity"] = {"id": _own_id(line) or secrets.token_hex(_ID_BYTES)}
    try:
        call = read_tool(line)
    except LineRejected as rejected:
        raise Invalid(400, rejected.detail.replace("`", "")) from None
    return Told(call.id(0), call.event, {})


def shown(call: Call) -> Json:
    """Return a call as that API shows it: every event is `tool_usage`, and an error's text is never told."""
    event, said = call.event, call.document
    duration = said.get("execution_time", event.duration_ms or 0)
    found: Json = {
        "event": EVENT,
        "timestamp": iso(event.at // US_PER_MS),
        "session_id": said.get("session_id", event.session or ""),
        "tool_name": said.get("tool_name", event.tool or UNKNOWN_TOOL),
        "execution_time": duration,
    }
    memory = number_of(said.get("memory_usage"))
    if memory:
        found["memory_usage"] = plain(memory / BYTES_PER_MIB * BYTES_PER_MIB)
    good = event.outcome in (None, Outcome.OK) if call.times == 1 else call.failures * 2 < call.times
    found["success"] = good
    if not good:
        found["error_message"] = ERROR_TEXT
    if "output_size" not in said and event.output_bytes is not None:
        found["output_size"] = event.output_bytes
    return found | {name: said[name] for name in _SAID[1:] if name in said}


def _told(body: Mapping[str, Any], at: int, *, own_id: str | None) -> ToolCall:
    tool = _text(body, "tool_name") or _text(body, "event") or UNKNOWN_TOOL
    session = _text(body, "session_id")
    outcome = (Outcome.FAILED if flag_in(body.get("success")) is False else Outcome.OK).value
    duration = whole_number(number_in(body.get("execution_time")))
    event = Event(
        at=at, kind=Kind.TOOL_USED.value, name=TOOL_LINE, app=APP, session=repeated_id(session), tool=plain_name(tool),
        outcome=outcome, duration_ms=duration, output_bytes=whole_number(number_in(body.get("output_size"))),
    )  # fmt: skip
    fact = line_fact(FORM, str(at), own_id or _own_id(body), session, event.kind, tool, outcome, duration)
    more = {name: body[name] for name in _SAID if name in body}
    if more and own_id is None:
        fact += b"\x1f" + blake2b(_encode(more), digest_size=_ID_BYTES).digest()
    return ToolCall(event, fact, None)


def _document(body: Mapping[str, Any], event: Event) -> Json:
    """Return what is echoed to clients and does not stand in the event."""
    found: Json = {name: body[name] for name in _SAID if name in body}
    tool = _text(body, "tool_name") or _text(body, "event") or UNKNOWN_TOOL
    for name, value, known in (
        ("session_id", _text(body, "session_id"), event.session),
        ("tool_name", tool, event.tool),
        ("execution_time", body.get("execution_time"), event.duration_ms),
    ):
        if value is not None and (value != known or type(value) is not type(known)):
            found[name] = value
    if found.get("output_size") == event.output_bytes and type(found.get("output_size")) is int:
        del found["output_size"]
    return found


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ApiError(400, f'"{name}" must be a string')
    return value


def _own_id(body: Mapping[str, Any]) -> str | None:
    activity = body.get("enhanced_activity")
    found = activity.get("id") if isinstance(activity, dict) else None
    return found if isinstance(found, str) and found else None
