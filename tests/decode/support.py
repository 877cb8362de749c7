"""What the tests of the decoders share: the representative payloads, and a line around each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from metricsd.decode import decode_line, parse_line
from metricsd.decode.repository import Repositories
from metricsd.model import Event
from tests.fakes import FakeClock
from tests.secrets import Json

AT_US = 1_790_000_123_456_789
_FIXTURE = Path(__file__).with_name("payloads.jsonl")
_OF_SIX_TOOLS = Path(__file__).with_name("hook_payloads.jsonl")


class Case(NamedTuple):
    """One line of the fixture: a payload as a tool sends it, and the event that it must become."""

    name: str
    app: str
    event: str
    payload: dict[str, Json]
    expected: dict[str, Json]


def cases() -> list[Case]:
    """Return the fixture; fields that all lines of one tool share are written once, in `common`."""
    common: dict[str, dict[str, dict[str, Json]]] = {}
    found = []
    for text in _FIXTURE.read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        if "common" in row:
            common = row["common"]
            continue
        shared = common[row.get("like", "claude-code")]
        found.append(
            Case(
                row["name"],
                row.get("app", "claude-code"),
                row["event"],
                {**shared["payload"], **row["payload"]},
                {**shared["expected"], "name": row["event"], **row["expected"]},
            )
        )
    return found


def payloads_of_tools() -> dict[str, list[tuple[str, dict[str, Json]]]]:
    """Return by tool what six of them send: the event's name, and the payload with every field of its schema."""
    found: dict[str, list[tuple[str, dict[str, Json]]]] = {}
    for text in _OF_SIX_TOOLS.read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        found.setdefault(row["tool"], []).append((row["event"], row["stdin"]))
    return found


def line_bytes(payload: Json, event: str = "PostToolUse", app: str = "claude-code") -> bytes:
    """Return a capture's line around `payload`."""
    return json.dumps({"v": 1, "s": 1_790_000_000, "app": app, "event": event, "payload": payload}).encode()


def decode(payload: Json, event: str = "PostToolUse", app: str = "claude-code") -> Event:
    """Return the event that a capture with `payload` becomes, in a home where no folder is a repository."""
    return decode_line(parse_line(line_bytes(payload, event, app)), AT_US, Repositories(FakeClock()))
