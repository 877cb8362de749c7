"""The rules of an event as types, so that the decoder checks while it decodes: ten times as fast as rule by rule.

`CheckedEvent` accepts what `rules.event_fault` finds no fault with; a test holds the two to each other. A field that
this version does not know is not accepted either, so nothing is in such a batch but what its types say. It
never says what is wrong: whoever finds that a batch does not decode asks the rules, item by item.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from metricsd.cloud.rules import AT_US_MAX, EXTRA_KEYS_MAX, NUMBER_MAX, NUMBER_MIN
from metricsd.model import NAME_CHARS_MAX
from metricsd.protocol import WireEvent

ID_CHARS: Final = 32

_Id = Annotated[str, Meta(min_length=ID_CHARS, max_length=ID_CHARS)]
_At = Annotated[int, Meta(ge=0, lt=AT_US_MAX)]
_Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
_Text = Annotated[str, Meta(max_length=NAME_CHARS_MAX)]
_Number = Annotated[int, Meta(ge=NUMBER_MIN, le=NUMBER_MAX)]
_Extra = Annotated[dict[_Text, _Number | _Text], Meta(max_length=EXTRA_KEYS_MAX)]


class CheckedEvent(WireEvent, kw_only=True, forbid_unknown_fields=True):
    """A `WireEvent` within its bounds. That the id is hexadecimal remains to be seen: no type can say it as cheaply."""

    id: _Id
    at: _At
    kind: _Name
    name: _Name
    app: _Name
    session: _Text | None = None
    tool: _Text | None = None
    outcome: _Text | None = None
    duration_ms: _Number | None = None
    call: _Text | None = None
    project: _Text | None = None
    branch: _Text | None = None
    model: _Text | None = None
    agent: _Text | None = None
    subject: _Text | None = None
    reason: _Text | None = None
    input_bytes: _Number | None = None
    output_bytes: _Number | None = None
    lines_added: _Number | None = None
    lines_removed: _Number | None = None
    extra: _Extra | None = None
    batch: _Text | None = None


class CheckedBatch(msgspec.Struct, forbid_unknown_fields=True):
    """A `PushEvents` whose events are all within their bounds, which says how deep it is and what it can hold."""

    device_id: str
    epoch: int
    base_seq: int
    events: list[CheckedEvent]
