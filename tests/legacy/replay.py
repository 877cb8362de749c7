"""Replays the recordings of the older API against a server, in order, and tells where an answer differs.

Rules: tests/golden/README.md. Where the original answered with a fault and no better answer was recorded, TRUTHS has
what is right by its contract. OPEN_MAPS are objects by tool, whose keys are data.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tests.legacy.golden import recordings

RECORDINGS = recordings("legacy_api.jsonl")
OPEN_MAPS = frozenset(("tool_usage_patterns", "tool_efficiency", "error_rates"))
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_HOOK = {"success": True, "executionTime": "<number>", "memoryUsage": "<number>"}

Json = dict[str, Any]


class Truth(NamedTuple):
    """What is right where the recording is a fault: status, and data or error."""

    status: int
    body: Any


def _analytics(session: str) -> Json:
    return {
        "session_id": session, "productivity_score": 50, "duration_minutes": 0, "tools_used": [],
        "efficiency_rating": 1, "focus_periods": 0, "interruptions": 0,
    }  # fmt: skip


TRUTHS: Mapping[str, Truth] = {
    "session-end without sessionId": Truth(400, "Session ID required for session end"),
    "session-end unknown session": Truth(404, "Session not found"),
    "session-end snake_case body": Truth(400, "Session ID required for session end"),
    "session-start numeric user": Truth(400, "user must be a string"),
    "id with slash": Truth(
        201,
        {
            "session_id": "team/ho", "start_time": "2025-03-10T06:00:00.000Z", "user": "dora", "working_directory": "",
            "git_branch": "main",
            "productivity_metrics": {
                "commands_executed": 0, "tools_invoked": 0, "files_read": 0, "files_modified": 0, "lines_changed": 0,
                "agents_used": [], "focus_blocks": 0, "interruptions": 0,
            },
            "quality_metrics": {
                "tests_run": 0, "tests_passed": 0, "builds_attempted": 0, "builds_successful": 0, "reviews_requested": 0,
            },
            "workflow_metrics": {"git_commits": 0, "prs_created": 0, "context_switches": 0},
            "message": "Session created successfully",
        },
    ),
    "team: sessions of amy limit xyz": Truth(200, []),
    "team: sessions with repeated user": Truth(200, []),
    "analytics empty productivity_metrics": Truth(200, _analytics("ho-3")),
    "analytics empty workflow_metrics": Truth(200, _analytics("ho-5")),
    "metric success \"false\" string": Truth(
        201,
        {
            "event": "tool_usage", "timestamp": "2025-03-10T06:01:00.000Z", "session_id": "ho-m", "tool_name": "Write",
            "execution_time": 7, "success": False, "error_message": "Tool execution failed",
            "message": "Tool metric recorded successfully",
        },
    ),
    "indicators from the real hook file": Truth(
        200,
        {
            "session_id": "abc", "start_time": "2025-01-07T09:00:00Z", "baseline": {"average_commands_per_hour": 15},
            "current_metrics": {"commands_executed": 2}, "last_update": "2025-01-07T09:05:00Z",
            "productivity_score": 3.5, "trend": "starting",
        },
    ),
    "baseline from the real hook file": Truth(
        200,
        {
            "average_commands_per_hour": 18, "average_lines_per_hour": 90, "average_success_rate": 0.95,
            "average_focus_time_minutes": 50, "average_context_switches": 2,
        },
    ),
}  # fmt: skip
"""Right answers to recordings of kind `bug` that have no `intended`, by the contract's INTENT."""


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    body: Any
    content_type: str


Ask = Callable[[str, str, Mapping[str, str], bytes | None], Reply]


class Exchange(NamedTuple):
    """One recording, ready to be sent: captured names are filled in."""

    recording: Json
    path: str
    headers: Mapping[str, str]
    body: bytes | None

    @property
    def name(self) -> str:
        return str(self.recording["name"]).removeprefix("shared/")


class Replay:
    """The state of one replay: what was captured, and how placeholders are read. `facts` are the server's own."""

    def __init__(self, facts: Mapping[str, str]) -> None:
        self._facts = facts
        self._captured: dict[str, str] = {}

    def prepare(self, recording: Json) -> Exchange:
        """Return what to send."""
        path = self._filled(recording["path"])
        headers = dict(recording["headers"])
        if "raw_body" in recording:
            body = recording["raw_body"].encode()
        elif recording["body"] is None:
            body = None
        else:
            body = self._filled(json.dumps(recording["body"])).encode()
        return Exchange(recording, path, headers, body)

    def compare(self, exchange: Exchange, reply: Reply, *, shape_only: bool = False) -> str | None:
        """Return what is wrong with an answer, None when it is the recorded one."""
        recording = exchange.recording
        for name, place in recording.get("capture", {}).items():
            found = reply.body
            for part in place.split("."):
                found = found.get(part, {}) if isinstance(found, dict) else {}
            self._captured[name] = str(found)
        status, expected = recording["status"], recording["response"]
        if "intended" in recording:
            status, expected = recording["intended"]["status"], recording["intended"]["response"]
        elif exchange.name in TRUTHS:
            status, body = TRUTHS[exchange.name]
            ending = {"timestamp": "<timestamp>", "version": "1.0.0"}
            expected = {"success": status < 400, "data" if status < 400 else "error": body, **ending}
        elif recording["compat"] == "bug":
            return f"{exchange.name}: a fault without a right answer"
        if reply.status != status:
            return f"{exchange.name}: status {reply.status}, not {status}: {reply.body}"
        if recording["compat"] == "app":
            return None
        if not reply.content_type.startswith("application/json"):
            return f"{exchange.name}: {reply.content_type}"
        wrong = self._differs(expected, reply.body, "", shape=shape_only or recording["compat"] == "shape")
        return None if wrong is None else f"{exchange.name}: {wrong}"

    def _differs(self, expected: Any, found: Any, where: str, *, shape: bool) -> str | None:
        if isinstance(expected, str) and "<" in expected:
            return None if self._is_like(expected, found) else f"{where}: {found!r} is no {expected}"
        if isinstance(expected, dict) and isinstance(found, dict):
            if where.rpartition(".")[2] in OPEN_MAPS and shape:
                bad = [
                    value for value in found.values() if isinstance(value, bool) or not isinstance(value, int | float)
                ]
                return f"{where}: {bad}" if bad else None
            if expected.keys() != found.keys():
                return f"{where}: keys {sorted(found)}, not {sorted(expected)}"
            wrongs = (
                self._differs(value, found[name], f"{where}.{name}", shape=shape) for name, value in expected.items()
            )
            return next((wrong for wrong in wrongs if wrong), None)
        if isinstance(expected, list) and isinstance(found, list):
            return self._lists_differ(expected, found, where, shape=shape)
        if shape:
            return None if _has_type_of(expected, found) else f"{where}: {found!r} has not the type of {expected!r}"
        same = expected == found and isinstance(expected, bool) == isinstance(found, bool)
        return None if same else f"{where}: {found!r}, not {expected!r}"

    def _lists_differ(self, expected: list[Any], found: list[Any], where: str, *, shape: bool) -> str | None:
        if shape:
            # Of unequal length they are figures, whose items are all of one kind.
            models = expected if len(expected) == len(found) else expected[:1] * len(found)
            kinds = [self._differs(*each, f"{where}[]", shape=True) for each in zip(models, found, strict=False)]
            return next((wrong for wrong in kinds if wrong), None)
        if len(expected) != len(found):
            return f"{where}: {len(found)} items, not {len(expected)}: {found}"
        left = list(found)
        for one in expected:
            # The order of a list's items does not matter.
            place = next(
                (n for n, other in enumerate(left) if self._differs(one, other, "", shape=False) is None), None
            )
            if place is None:
                return f"{where}: {one!r} is not among {left!r}"
            del left[place]
        return None

    def _is_like(self, expected: str, found: Any) -> bool:
        match expected:
            case "<number>":
                return isinstance(found, int | float) and not isinstance(found, bool)
            case "<uuid>":
                return isinstance(found, str) and str(uuid.UUID(found)) == found
            case "<timestamp>":
                return isinstance(found, str) and _TIME.fullmatch(found) is not None
            case _:
                wanted = expected
                for name, value in self._facts.items():
                    wanted = wanted.replace(name, value)
                return bool(found == wanted)

    def _filled(self, text: str) -> str:
        for name, value in self._captured.items():
            text = text.replace("{{" + name + "}}", value)
        return text


def _has_type_of(expected: Any, found: Any) -> bool:
    if expected is None or found is None:
        # `current_session` is an object or null, and was always null.
        return expected is None and (found is None or isinstance(found, dict))
    if isinstance(expected, bool) or isinstance(found, bool):
        return isinstance(expected, bool) and isinstance(found, bool)
    if isinstance(expected, int | float):
        return isinstance(found, int | float)
    return isinstance(found, type(expected))
