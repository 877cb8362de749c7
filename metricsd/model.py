"""The facts that metricsd keeps: one immutable `Event`, and the closed sets it is made of.

An event holds numbers, categories, names and opaque ids, never content: the decoders are allow-lists and this
struct is their whole vocabulary.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

NAME_CHARS_MAX = 200
"""Longest name, id or category that is kept, in characters; longer ones are cut by the decoder."""


class Kind(StrEnum):
    """What happened. Stored and sent as text, so that an older reader keeps a newer kind as it is."""

    SESSION_STARTED = "session_started"
    SESSION_ENDED = "session_ended"
    PROMPT_SUBMITTED = "prompt_submitted"
    TURN_ENDED = "turn_ended"
    TURN_FAILED = "turn_failed"
    TOOL_STARTED = "tool_started"
    TOOL_USED = "tool_used"
    TOOL_DENIED = "tool_denied"
    PERMISSION_ASKED = "permission_asked"
    SUBAGENT_STARTED = "subagent_started"
    SUBAGENT_ENDED = "subagent_ended"
    CONTEXT_COMPACTED = "context_compacted"
    USER_NOTIFIED = "user_notified"
    TOKENS_USED = "tokens_used"
    NOTED = "noted"
    """A known event that is only counted by name."""
    UNKNOWN = "unknown"
    """An event name that this version does not know; kept by name."""


class Outcome(StrEnum):
    """How a tool call ended."""

    OK = "ok"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    DENIED = "denied"


class Event(Struct, frozen=True, gc=False):
    """One fact, without its id (the id comes from where it was read; see ids.py).

    at            microseconds since 1970 UTC
    name          the source's own event name, for example `PostToolUse`
    app           the tool that ran the hook, for example `claude-code`
    session, call the tool's own opaque ids (`session_id`, `tool_use_id`)
    project       name of the repository's root folder; branch its checked-out branch
    subject       first word of a command, or a file extension with its dot, from closed lists
    reason        a category: source of a start, reason of an end, trigger, error class
    duration_ms, input_bytes, output_bytes, lines_added, lines_removed   what the names say
    extra         further numbers and categories (`total_tokens`, `agent_id`, ...), at most 16 keys
    batch         the import that brought it; None for live events

    The order of the fields matters to `decode_event` alone: a call by position costs an eighth of one by name.
    """

    at: int
    kind: str
    name: str
    app: str
    session: str | None = None
    tool: str | None = None
    outcome: str | None = None
    duration_ms: int | None = None
    call: str | None = None
    project: str | None = None
    branch: str | None = None
    model: str | None = None
    agent: str | None = None
    subject: str | None = None
    reason: str | None = None
    input_bytes: int | None = None
    output_bytes: int | None = None
    lines_added: int | None = None
    lines_removed: int | None = None
    extra: dict[str, int | str] | None = None
    batch: str | None = None
