"""The fields of a payload that decoders may look at, read from raw JSON in one pass.

The struct is the allow-list: what is not a field here is skipped by the parser and never becomes a Python value.
A payload with a wrong type somewhere is read again field by field, and the wrong field alone is lost. Content
(input, response, prompt, error) stays raw bytes until a decoder takes a number or a listed word from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from metricsd.errors import LineRejected

T = TypeVar("T")

_NOTHING = Raw(b"")


class Payload(Struct, gc=False):
    """What hooks of Claude Code and of tools like it send. `Raw` fields are empty when absent."""

    session_id: str | None = None
    cwd: str | None = None
    permission_mode: str | None = None
    tool_name: str | None = None
    tool_use_id: str | None = None
    duration_ms: int | float | None = None
    tool_input: Raw = _NOTHING
    tool_response: Raw = _NOTHING
    error: Raw = _NOTHING
    is_interrupt: bool | None = None
    effort: Raw = _NOTHING
    agent_id: str | None = None
    agent_type: str | None = None
    model: str | None = None
    prompt: Raw = _NOTHING
    source: str | None = None
    reason: str | None = None
    trigger: str | None = None
    notification_type: str | None = None
    expansion_type: str | None = None
    load_reason: str | None = None
    event: str | None = None
    mode: str | None = None
    action: str | None = None
    conversation_id: str | None = None
    cursor_version: Raw = _NOTHING
    workspace_roots: Raw = _NOTHING


_FIELDS = msgspec.structs.fields(Payload)
_Loose = msgspec.defstruct("_Loose", [(field.name, Raw, _NOTHING) for field in _FIELDS])
_decode = msgspec.json.Decoder(Payload).decode
_decode_loose = msgspec.json.Decoder(_Loose).decode
_FIELD_DECODERS: tuple[tuple[str, Callable[[Raw], object]], ...] = tuple(
    (field.name, msgspec.json.Decoder(field.type).decode) for field in _FIELDS
)


def read_payload(raw: Raw) -> Payload:
    """Return the fields of a payload; one of a wrong type is as if absent.

    Raise LineRejected with reason `bad_fields` when the payload is not an object, `too_deep` or `bad_json` when it
    cannot be read at all.
    """
    try:
        return _decode(raw)
    except msgspec.MsgspecError:
        return _read_loosely(raw)
    except RecursionError:
        raise LineRejected("too_deep", "`payload` is nested too deep") from None


def read_part(decode: Callable[[Raw], T], raw: Raw) -> T | None:
    """Return what `decode` makes of a part of a payload, None when it is absent or of another shape."""
    if not len(raw):
        return None
    try:
        return decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _read_loosely(raw: Raw) -> Payload:
    try:
        loose = _decode_loose(raw)
    except msgspec.ValidationError:
        raise LineRejected("bad_fields", "`payload` is not an object") from None
    except msgspec.DecodeError as error:
        raise LineRejected("bad_json", str(error)) from None
    except RecursionError:
        raise LineRejected("too_deep", "`payload` is nested too deep") from None
    payload = Payload()
    for name, decode in _FIELD_DECODERS:
        value = read_part(decode, getattr(loose, name))
        if value is not None:
            setattr(payload, name, value)
    return payload
