"""The lines of `metricsd export` back to events and records' fields.

An export is ours, but what reads it must not trust it: every value passes the gates that a decoder's values pass, and
a field that is none of ours is left out. What an export derives (session counters) or what says who brought it (device,
import batch) is not read: the importing store makes its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from metricsd import fields
from metricsd.decode.names import (
    INTEGER_MAX,
    clean_text,
    model_name,
    opaque_id,
    plain_name,
    repeated_id,
    whole_number,
)
from metricsd.decode.older_hooks import time_us
from metricsd.errors import LineRejected
from metricsd.ids import EVENT_ID_BYTES, EventId
from metricsd.model import Event

EXTRA_KEYS_MAX = 16


class ExportedEvent(NamedTuple):
    """An event with its own id, and the import that had brought it, if one had."""

    id: EventId
    event: Event
    batch: str | None


class ExportedRecord(NamedTuple):
    """A record's type, id and fields."""

    type: str
    id: str
    values: dict[str, Any]


def read_exported(line: Mapping[str, Any]) -> ExportedEvent | ExportedRecord | None:
    """Return what a line of an export says; None for what the importing store derives or makes itself."""
    match line.get("type"):
        case "event":
            return _event(line)
        case "session" | "tool_metric":
            return None if line.get("deleted") else _record(line)
        case "session_counters" | "import_batch":
            return None
        case _:
            raise LineRejected("bad_fields", "`type` is none that an export has")


def _event(line: Mapping[str, Any]) -> ExportedEvent:
    event_id = _id(line.get("id"))
    kind, app = _text(line, "kind"), _text(line, "app")
    if kind is None or app is None:
        raise LineRejected("bad_fields", "`kind` or `app` is missing")
    event = Event(
        at=time_us("at", line.get("at")),
        kind=plain_name(kind) or "",
        name=plain_name(_text(line, "name")) or "",
        app=plain_name(app) or "",
        session=repeated_id(_text(line, "session")),
        tool=plain_name(_text(line, "tool")),
        call=opaque_id(_text(line, "call")),
        project=clean_text(_text(line, "project") or "") or None,
        branch=clean_text(_text(line, "branch") or "") or None,
        model=model_name(_text(line, "model")),
        agent=plain_name(_text(line, "agent")),
        extra=_extra(line.get("extra")),
        outcome=plain_name(_text(line, "outcome")),
        reason=plain_name(_text(line, "reason")),
        subject=plain_name(_text(line, "subject")),
        duration_ms=whole_number(line.get("duration_ms")),
        input_bytes=whole_number(line.get("input_bytes")),
        output_bytes=whole_number(line.get("output_bytes")),
        lines_added=whole_number(line.get("lines_added")),
        lines_removed=whole_number(line.get("lines_removed")),
    )
    return ExportedEvent(event_id, event, _text(line, "batch"))


def _record(line: Mapping[str, Any]) -> ExportedRecord:
    kind, record_id, values = str(line["type"]), _text(line, "id"), line.get("fields")
    if record_id is None or not isinstance(values, dict):
        raise LineRejected("bad_fields", "`id` or `fields` is missing")
    kept = {name: value for name, value in values.items() if fields.problem(kind, name, value) is None}
    kept.pop("batch", None)
    return ExportedRecord(kind, record_id, kept)


def _id(value: object) -> EventId:
    try:
        found = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        found = b""
    if len(found) != EVENT_ID_BYTES:
        raise LineRejected("bad_fields", "`id` must be 32 hexadecimal digits")
    return EventId(found)


def _text(line: Mapping[str, Any], name: str) -> str | None:
    value = line.get(name)
    return value if isinstance(value, str) and value else None


def _extra(value: object) -> dict[str, int | str] | None:
    if not isinstance(value, dict):
        return None
    found: dict[str, int | str] = {}
    for key, one in list(value.items())[:EXTRA_KEYS_MAX]:
        if plain_name(key) != key:
            continue
        if (type(one) is int and 0 <= one <= INTEGER_MAX) or (isinstance(one, str) and plain_name(one) == one):
            found[key] = one
    return found or None
