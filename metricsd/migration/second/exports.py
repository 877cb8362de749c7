"""Lines of `metricsd export`, read a second time: events with their own ids, and fields of records.

Every value passes the gates that a decoder's would, because an export may have been edited.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from metricsd.migration.digest import Row
from metricsd.migration.rows import flat
from metricsd.migration.second import words
from metricsd.migration.second.lines import read_json
from metricsd.migration.second.shapes import Bad, text_of
from metricsd.migration.second.times import parse_us

EXTRA_MAX = 16
_HEX = frozenset("0123456789abcdefABCDEF")
_ID_DIGITS = 32
_RECORDS, _DERIVED = ("session", "tool_metric"), ("session_counters", "import_batch")


class Event(NamedTuple):
    """An event of an export, and the import that had brought it."""

    identity: int
    row: Row
    at: int
    tool: str | None
    failed: bool
    duration_ms: int | None
    batch: str | None


class Record(NamedTuple):
    """A record's type, id and fields as they stand."""

    kind: str
    id: str
    values: Mapping[str, Any]


class Batch(NamedTuple):
    """An import that had been taken back."""

    id: str


def read_exported(data: bytes) -> Event | Record | Batch | Bad | None:
    """Return what a line says; None for what the importing store derives itself."""
    line = read_json(data)
    if not isinstance(line, dict):
        return line if isinstance(line, Bad) else Bad("no_object")
    kind = line.get("type")
    if kind == "event":
        return _event(line)
    if kind in _DERIVED:
        fields = line.get("fields")
        gone = line.get("deleted") or (isinstance(fields, dict) and fields.get("active") is False)
        return Batch(str(line.get("id"))) if kind == "import_batch" and gone else None
    if kind not in _RECORDS:
        return Bad("unknown_kind")
    if line.get("deleted"):
        return None
    record_id, values = text_of(line, "id"), line.get("fields")
    if record_id is None or not isinstance(values, dict):
        return Bad("no_record")
    return Record(str(kind), record_id, values)


def _event(line: Mapping[str, Any]) -> Event | Bad:
    own, kind, app = line.get("id"), text_of(line, "kind"), text_of(line, "app")
    digits = "".join(own.split()) if isinstance(own, str) else ""
    if len(digits) != _ID_DIGITS or not _HEX.issuperset(digits):
        return Bad("no_id")
    if kind is None or app is None:
        return Bad("no_kind")
    at = parse_us(line.get("at"))
    if at is None:
        return Bad("bad_time")
    name, session, call = text_of(line, "name"), text_of(line, "session"), text_of(line, "call")
    project, branch, model = text_of(line, "project"), text_of(line, "branch"), text_of(line, "model")
    tool, outcome = _name(line, "tool"), _name(line, "outcome")
    duration = words.number(line.get("duration_ms"))
    row = (
        words.tool_name(kind), words.tool_name(app), words.tool_name(name) if name else "", at,
        words.session_id(session) if session else None, tool, outcome, duration,
        words.session_id(call) if call else None, words.clean(project) if project else None,
        words.clean(branch) if branch else None, words.model(model), _name(line, "agent"), _name(line, "subject"),
        _name(line, "reason"), *(words.number(line.get(one)) for one in ("input_bytes", "output_bytes", "lines_added",
                                                                         "lines_removed")),
        _extra(line.get("extra")),
    )  # fmt: skip
    identity = int(digits[_ID_DIGITS // 2 :], 16)
    return Event(identity, row, at, tool, outcome not in (None, "ok"), duration, text_of(line, "batch"))


def _name(line: Mapping[str, Any], name: str) -> str | None:
    text = text_of(line, name)
    return None if text is None else words.tool_name(text)


def _extra(value: object) -> Row | None:
    if not isinstance(value, dict):
        return None
    kept: dict[str, object] = {}
    for key, one in list(value.items())[:EXTRA_MAX]:
        is_count = isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= words.NUMBER_MAX
        is_name = isinstance(one, str) and bool(one) and words.tool_name(one) == one
        if key and words.tool_name(key) == key and (is_count or is_name):
            kept[key] = one
    return flat(kept)
