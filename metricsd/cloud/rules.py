"""What a single event or change of a record must satisfy to be stored. Pure.

A broken rule is a short stable reason, as `reason: field`, that the device shows in its quarantine; it never repeats
the value. Bounds are those of the model and of 64-bit columns.
"""

from __future__ import annotations

from metricsd.cloud.wiretext import is_event_id
from metricsd.hlc import parse_stamp
from metricsd.model import NAME_CHARS_MAX
from metricsd.protocol import COUNTERS, RECORD_ID_BYTES_MAX, FieldValue, RecordChange, WireEvent

RECORD_TYPES = frozenset({"session", "tool_metric", "import_batch", COUNTERS})
AT_US_MAX = 253_402_300_800_000_000
"""The first microsecond of the year 10000. Clocks years ahead are taken: the event is a fact all the same."""
EXTRA_KEYS_MAX = 16
FIELDS_MAX = 64
NUMBER_MAX = (1 << 63) - 1
NUMBER_MIN = -(1 << 63)
_EVENT_TEXTS = (
    "session",
    "tool",
    "outcome",
    "call",
    "project",
    "branch",
    "model",
    "agent",
    "subject",
    "reason",
    "batch",
)
_EVENT_NUMBERS = ("duration_ms", "input_bytes", "output_bytes", "lines_added", "lines_removed")


def event_fault(event: WireEvent) -> str | None:
    """Return why an event cannot be stored, as `reason: field`; None when it can. Pure."""
    if not is_event_id(event.id):
        return "bad_id"
    if not 0 <= event.at < AT_US_MAX:
        return "out_of_range: at"
    for name in ("kind", "name", "app"):
        text: str = getattr(event, name)
        if not 0 < len(text) <= NAME_CHARS_MAX:
            return f"too_long: {name}" if text else f"empty: {name}"
    for name in _EVENT_TEXTS:
        optional: str | None = getattr(event, name)
        if optional is not None and len(optional) > NAME_CHARS_MAX:
            return f"too_long: {name}"
    for name in _EVENT_NUMBERS:
        number: int | None = getattr(event, name)
        if number is not None and not NUMBER_MIN <= number <= NUMBER_MAX:
            return f"out_of_range: {name}"
    return None if event.extra is None else _extra_fault(event.extra)


def change_fault(change: RecordChange) -> str | None:
    """Return why a change of a record cannot be applied, as `reason: field`; None when it can. Pure."""
    if change.type not in RECORD_TYPES:
        return "unknown_type"
    if not 0 < len(change.id.encode()) <= RECORD_ID_BYTES_MAX:
        return "bad_id"
    if len(change.fields) > FIELDS_MAX or not change.stamps.keys() <= change.fields.keys():
        return "bad_fields"
    if not all(0 < len(name) <= NAME_CHARS_MAX and _is_storable(value) for name, value in change.fields.items()):
        return "bad_fields"
    stamps = [*change.stamps.values(), *([] if change.stamp is None else [change.stamp])]
    return None if all(_is_stamp(stamp) for stamp in stamps) else "bad_stamp"


def _extra_fault(extra: dict[str, int | str]) -> str | None:
    if len(extra) > EXTRA_KEYS_MAX:
        return "too_many: extra"
    for key, value in extra.items():
        if len(key) > NAME_CHARS_MAX or (isinstance(value, str) and len(value) > NAME_CHARS_MAX):
            return "too_long: extra"
        if isinstance(value, int) and not NUMBER_MIN <= value <= NUMBER_MAX:
            return "out_of_range: extra"
    return None


def _is_storable(value: FieldValue) -> bool:
    return not isinstance(value, int) or NUMBER_MIN <= value <= NUMBER_MAX


def _is_stamp(text: str) -> bool:
    try:
        parse_stamp(text)
    except ValueError:
        return False
    return True
