"""What records are made of: the closed list of entities and their fields, each with its kind and bounds.

Everything that takes a field's value from outside (a hand edit, a policy's rule, a plug-in's answer) checks it here,
so that a value is right on every device or on none. A record may still carry fields that only a newer version knows:
they sync and merge by the policy's default, and nothing here must ever drop them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from metricsd.errors import UsageError

Value = str | int | float | bool | None | list[str]

NUMBER_MAX = 2**63 - 1
LIST_ITEMS_MAX = 128
"""With the longest items this still fits into one field on the wire (16 KiB)."""
LIST_ITEM_CHARS_MAX = 100
TEXT_CHARS_MAX = 1000
CATEGORY_CHARS_MAX = 50
NAME_CHARS_MAX = 200


class FieldKind(StrEnum):
    """What a field's value is; it decides which clash rules make sense."""

    TEXT = "text"
    LIST = "list"
    """Texts without order and without repetition."""
    COUNT = "count"
    """A whole number from 0 that adds up."""
    NUMBER = "number"
    TIME = "time"
    """Microseconds since 1970 UTC."""
    FLAG = "flag"


class Field(NamedTuple):
    """One field of a record. `chars_max` bounds a text or an item of a list; `low` and `high` are inclusive.

    `by_hand` says that `metricsd session edit` may set it.
    """

    kind: FieldKind
    meaning: str
    by_hand: bool = False
    chars_max: int = TEXT_CHARS_MAX
    low: float = 0
    high: float = NUMBER_MAX

    def expected(self) -> str:
        """Return what a value must be, for a message."""
        match self.kind:
            case FieldKind.TEXT:
                return f"text of at most {self.chars_max} characters"
            case FieldKind.LIST:
                return f"a list of at most {LIST_ITEMS_MAX} texts of 1 to {self.chars_max} characters"
            case FieldKind.COUNT:
                return "a whole number from 0"
            case FieldKind.NUMBER:
                return f"a number from {self.low:g} to {self.high:g}"
            case FieldKind.TIME:
                return "a time in microseconds since 1970 UTC"
            case FieldKind.FLAG:
                return "true or false"


def _list(meaning: str, *, by_hand: bool = False) -> Field:
    return Field(FieldKind.LIST, meaning, by_hand, LIST_ITEM_CHARS_MAX)


def _name(meaning: str) -> Field:
    return Field(FieldKind.TEXT, meaning, chars_max=NAME_CHARS_MAX)


def _count(meaning: str) -> Field:
    return Field(FieldKind.COUNT, meaning)


_SESSION = {
    "description": Field(FieldKind.TEXT, "what the session was about", True),
    "tags": _list("labels given by hand", by_hand=True),
    "session_type": Field(FieldKind.TEXT, "a category such as development", True, CATEGORY_CHARS_MAX),
    "score": Field(FieldKind.NUMBER, "productivity score set by hand", True, low=0, high=100),
    "project": _name("project, where no event tells it"),
    "branch": _name("branch, where no event tells it"),
    "started_at": Field(FieldKind.TIME, "start, where no event tells it"),
    "ended_at": Field(FieldKind.TIME, "end, where no event tells it"),
    "end_reason": Field(FieldKind.TEXT, "why it ended, where no event tells it", chars_max=CATEGORY_CHARS_MAX),
    "total_duration_ms": _count("length, where no event tells it"),
    "tools_used": _list("tools, where no event tells them"),
    "interruptions_count": _count("interruptions noted by an older tool"),
    "focus_time_ms": _count("focused time noted by an older tool"),
    "user_id": _name("who it was, as an opaque id, where an older tool named somebody"),
}
_TOOL_METRIC = {
    "app": _name("AI tool that made the calls"),
    "session": _name("session of the calls"),
    "tool": _name("tool that was called"),
    "tool_category": Field(FieldKind.TEXT, "kind of tool", chars_max=CATEGORY_CHARS_MAX),
    "started_at": Field(FieldKind.TIME, "first call"),
    "ended_at": Field(FieldKind.TIME, "last call"),
    "execution_count": _count("calls"),
    "error_count": _count("failed calls"),
    "success_rate": Field(FieldKind.NUMBER, "share of good calls, as an older tool gave it", low=0, high=1),
    "total_duration_ms": _count("time of all calls together"),
    "cpu_time_ms": _count("processor time of all calls together"),
    "memory_usage_mb": Field(FieldKind.NUMBER, "most memory seen, in MiB"),
    "output_size_bytes": _count("output of all calls together"),
    "batch": _name("import that brought it"),
}
_IMPORT_BATCH = {
    "active": Field(FieldKind.FLAG, "whether its events count"),
    "label": Field(FieldKind.TEXT, "what was imported, in a few words"),
    "source": _name("kind of source"),
    "imported_at": Field(FieldKind.TIME, "when it was imported"),
    "events": _count("events it brought"),
    "records": _count("records it brought"),
    "only": Field(FieldKind.TEXT, "the events that it is about, where it is not all of the batch", chars_max=16 * 1024),
}

ENTITIES: Mapping[str, Mapping[str, Field]] = MappingProxyType(
    {
        "session": MappingProxyType(_SESSION),
        "tool_metric": MappingProxyType(_TOOL_METRIC),
        "import_batch": MappingProxyType(_IMPORT_BATCH),
    }
)
"""Every record type that can conflict, and its fields."""

COMPUTED: Mapping[str, str] = MappingProxyType(
    {"average_duration_ms": "it is total_duration_ms / execution_count, computed when it is read"}
)
"""Names that a reader shows and no record holds, so they never conflict: why that is so."""


def find_field(entity: str, name: str) -> Field | None:
    """Return the field of that name; None for one that this version does not know."""
    return ENTITIES.get(entity, {}).get(name)


def problem(entity: str, name: str, value: Value) -> str | None:
    """Return why a field cannot have this value, as `expected ...`; None when it can. None clears any field."""
    field = find_field(entity, name)
    if field is None:
        known = ", ".join(ENTITIES.get(entity, ENTITIES))
        return f"unknown; known are {known}"
    return None if value is None or _fits(field, value) else f"expected {field.expected()}"


def parse_value(entity: str, name: str, text: str) -> Value:
    """Return the value that a person wrote for a field; empty text clears it. Raises UsageError.

    A list is written with commas: `tags=review,slow`.
    """
    field = find_field(entity, name)
    if field is None:
        raise UsageError(f"{entity} has no field {name!r}; known are {', '.join(ENTITIES.get(entity, ()))}")
    value = _read(field, text) if text else None
    wrong = problem(entity, name, value)
    if wrong is not None:
        raise UsageError(f"{entity} {name}: {wrong}, not {text[:80]!r}")
    return value


def _read(field: Field, text: str) -> Value:
    match field.kind:
        case FieldKind.TEXT:
            return text
        case FieldKind.LIST:
            return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        case FieldKind.FLAG:
            return {"true": True, "false": False}.get(text.lower(), text)
        case FieldKind.COUNT | FieldKind.TIME:
            return int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(NUMBER_MAX)) else text
        case FieldKind.NUMBER:
            try:
                number = float(text)
            except ValueError:
                return text
            return int(number) if number.is_integer() else number


def _fits(field: Field, value: Value) -> bool:
    match field.kind:
        case FieldKind.TEXT:
            return isinstance(value, str) and len(value) <= field.chars_max and _is_storable(value)
        case FieldKind.LIST:
            return isinstance(value, list) and len(value) <= LIST_ITEMS_MAX and _are_items(value, field.chars_max)
        case FieldKind.FLAG:
            return isinstance(value, bool)
        case FieldKind.COUNT | FieldKind.TIME:
            return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= NUMBER_MAX
        case FieldKind.NUMBER:
            # A comparison refuses NaN and infinity by itself.
            return isinstance(value, int | float) and not isinstance(value, bool) and field.low <= value <= field.high


def _are_items(values: list[str], chars_max: int) -> bool:
    return all(isinstance(v, str) and 0 < len(v) <= chars_max and _is_storable(v) for v in values) and len(
        set(values)
    ) == len(values)


def _is_storable(text: str) -> bool:
    # PostgreSQL's text cannot hold NUL, and half a surrogate pair has no UTF-8.
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)
