"""Payloads of every other tool: the same allow-list of fields, the same event names, whatever their first letter.

Codex CLI sends Claude Code's names, Cursor sends them in camel case, and `metricsd record` is free to use either.
What is not recognised is kept by name alone. A tool with a shape of its own deserves a decoder of its own.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from metricsd.decode.claude_code import EVENTS, UNKNOWN, EventRule, decode_event
from metricsd.decode.names import OTHER, clean_text
from metricsd.decode.payload import Payload, read_part
from metricsd.decode.repository import Repositories
from metricsd.model import Event

CURSOR = "cursor"

_roots = msgspec.json.Decoder(list[str]).decode


def decode_generic(payload: Payload, app: str, event: str, at_us: int, repositories: Repositories) -> Event:
    """Return the event in a payload of `app`, a tool without a decoder of its own."""
    if payload.cwd is None:
        roots = read_part(_roots, payload.workspace_roots)
        payload.cwd = roots[0] if roots else None
    return decode_event(payload, app_name(app), clean_name(event), rule_of(event), at_us, repositories)


@lru_cache(maxsize=1024)
def rule_of(event: str) -> EventRule:
    """Return the rule for an event name, with its first letter in either case."""
    return EVENTS.get(event[:1].upper() + event[1:], UNKNOWN)


@lru_cache(maxsize=1024)
def app_name(text: str) -> str:
    """Return the name of an app as it is kept: a session is known as `app/id`, so the app has no slash."""
    return clean_name(text).replace("/", "-")


@lru_cache(maxsize=1024)
def clean_name(text: str) -> str:
    """Return the name of an app or an event as it is kept: no control characters, never empty."""
    return clean_text(text) or OTHER
