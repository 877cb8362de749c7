"""What the older hooks wrote, of both generations: lines of tool calls and sessions, and documents of one session.

One reading for the live tail, the older API and the migration of history, so that one fact has one id wherever it is
met. Commands, paths, messages, names of people and tokens are read past: only what `Event` can hold leaves here, and
who and where for the one caller that keeps that on this machine. Raises LineRejected for what is no such line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeGuard

import msgspec

from metricsd.clock import US_PER_MS
from metricsd.decode.envelope import AT_US_MAX, OWN_ID_CHARS_MAX
from metricsd.decode.names import INTEGER_MAX, clean_text, opaque_id, plain_name, repeated_id, whole_number
from metricsd.decode.subjects import command_subject, file_subject
from metricsd.errors import LineRejected
from metricsd.fields import CATEGORY_CHARS_MAX, LIST_ITEM_CHARS_MAX, LIST_ITEMS_MAX, TEXT_CHARS_MAX
from metricsd.ids import EventId, line_fact, line_id
from metricsd.model import Event, Kind, Outcome

APP = "legacy"
"""The app of every event and session that came from the older hooks or through the older API."""
FORM = "older-hooks"
"""Part of the ids, so that a fact of another format is never taken for one of these."""
TOOL_LINE = "tool_execution"
AGENT_LINE = "agent_invocation"
NO_SESSION = frozenset(("default-session", "default"))
"""What the hooks wrote for a session they did not find."""
SCORE_SCALE = 10
"""Those hooks scored from 0 to 10, metricsd scores from 0 to 100."""
_SCORE_MAX = 100
_UNKNOWN = "unknown"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_TIME_CHARS_MAX = 64
# `fromisoformat` takes more, and other garbage in each version of Python: an id must not depend on the version.
_is_time = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ](?:[01]\d|2[0-3]):\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?[0-5]\d)?)?", re.ASCII
).fullmatch
_NAMES = {Kind.SESSION_STARTED: "session_start", Kind.SESSION_ENDED: "session_end"}
_HOMES = frozenset(("home", "Users"))
_KEPT = {
    "productivity_metrics": "productivity_metrics",
    "quality_metrics": "quality_metrics",
    "workflow_metrics": "workflow_metrics",
    "metrics": "final_metrics",
    "final_metrics": "final_metrics",
    "performance": "performance",
}
_CAMEL_KEPT = {
    "productivityMetrics": "productivity_metrics",
    "qualityMetrics": "quality_metrics",
    "workflowMetrics": "workflow_metrics",
}
_FOCUS_BLOCK_MS = 25 * 60 * 1000
"""What the hooks' `focus_blocks` count."""
_USUAL_TYPE = "development"
_MADE_DESCRIPTIONS = ("Branch: ", "Tools: ", "Focus blocks: ")
"""How descriptions begin that the older bridge made of a branch and of counts: they tell nothing of their own."""
_CAMEL_STARTS = ("startTime", "created_at", "timestamp")
_CAMEL_SIGNS = frozenset(("startTime", "endTime", "created_at", "tools", "toolsUsed", "productivityScore", "focusTime"))
"""One of these makes an object with `sessionId` or `id` a session: a line of something else may have an id and a time."""

Json = Mapping[str, Any]

_decode = msgspec.json.Decoder().decode


class ToolCall(NamedTuple):
    """One call: its event, what identifies it, and who made it (an account name or an e-mail address)."""

    event: Event
    fact: bytes
    user: str | None

    def id(self, occurrence: int) -> EventId:
        """Return the event's id; `occurrence` counts equal facts before it in the same file."""
        return line_id(self.fact, self.event.at // US_PER_MS, occurrence)


class SessionNote(NamedTuple):
    """What one line or document says of a session. Times are microseconds UTC; `score` is 0 to 100.

    `kept` holds the metric objects as they were written; `directory` is an absolute path. `project` is a name that
    was written without a directory. `fields` are fields of the session's record. `changes` say what was done to a value,
    as `<how>.<field>`.
    """

    session: str
    start_us: int | None = None
    end_us: int | None = None
    user: str | None = None
    directory: str | None = None
    branch: str | None = None
    score: float | None = None
    kept: Mapping[str, Any] = {}
    project: str | None = None
    fields: Mapping[str, str | int | float | list[str]] = {}
    changes: tuple[str, ...] = ()


class AddedUp(NamedTuple):
    """Calls of one tool that arrive as one figure: the older system's own id of it, and a tool metric's fields."""

    key: str
    values: dict[str, str | int | float]
    user: str | None = None


Found = ToolCall | SessionNote | AddedUp


def read_line(data: bytes) -> Found | None:
    """Return what a line of `*.jsonl` says; None for one that only announces the next (an agent before its call)."""
    return read_object(object_of(data))


def read_object(line: Json) -> Found | None:
    """Return what the object of such a line says."""
    kind = line.get("event_type")
    if kind == AGENT_LINE:
        return None
    if kind == TOOL_LINE:
        return read_tool(line)
    if kind is not None:
        raise LineRejected("bad_fields", "`event_type` must be tool_execution or agent_invocation")
    match line.get("event"):
        case "session_start":
            return _session_line(line, start=True)
        case "session_end":
            return _session_line(line, start=False)
        case _ if _text(line, "tool_name") is not None:
            return read_tool(line)
        case _:
            return read_stored(line)


def read_document(data: bytes) -> Found:
    """Return what a `*.json` document says: a session of the hooks, or a session or tool metric of the older API."""
    return read_stored(object_of(data))


def read_stored(document: Json) -> Found:
    """Return what the object of such a document says."""
    if "toolName" in document:
        return read_stored_metric(document)
    if "sessionStart" in document:
        return read_stored_session(document)
    return read_session(document)


def read_tool(line: Json) -> ToolCall:
    """Return a call as the hooks write it."""
    at = time_us("timestamp", line.get("timestamp"))
    tool = _text(line, "tool_name")
    if tool is None:
        raise LineRejected("bad_fields", "`tool_name` is missing")
    failed = line.get("success") is False or line.get("error") is True
    duration = whole_number(line.get("execution_time_ms", line.get("execution_time")))
    session = _text(line, "session_id")
    activity = line.get("enhanced_activity")
    own_id = _text(activity, "id") if isinstance(activity, dict) else None
    if own_id is not None and len(own_id) > OWN_ID_CHARS_MAX:
        raise LineRejected("bad_fields", f"`enhanced_activity.id` must have at most {OWN_ID_CHARS_MAX} characters")
    outcome = (Outcome.FAILED if failed else Outcome.OK).value
    event = Event(
        at=at,
        kind=Kind.TOOL_USED.value,
        name=TOOL_LINE,
        app=APP,
        session=repeated_id(session),
        tool=plain_name(tool),
        outcome=outcome,
        duration_ms=duration,
        agent=plain_name(_text(line, "subagent_type")),
        subject=_subject(line),
        lines_added=whole_number(line.get("lines_added", line.get("lines_written"))),
        lines_removed=whole_number(line.get("lines_removed")),
        extra=_sizes(line),
    )
    fact = line_fact(FORM, str(at), own_id, session, event.kind, tool, outcome, duration)
    return ToolCall(event, fact, _text(line, "user"))


def read_session(document: Json) -> SessionNote:
    """Return a session as the hooks write it: the first record, the summary, or a line of the history.

    Other tools of that system wrote the same with names in camelCase, which are understood as well.
    """
    if _text(document, "session_id") is None and (document.keys() & _CAMEL_SIGNS or "sessionId" in document):
        return _read_camel(document)
    metrics = document.get("productivity_metrics")
    start, end = document.get("start_time"), document.get("end_time")
    note = SessionNote(
        session=_session_of(document, "session_id"),
        start_us=None if start is None else time_us("start_time", start),
        end_us=None if end is None else time_us("end_time", end),
        user=_text(document, "user"),
        directory=_text(document, "working_directory"),
        branch=_branch(_text(document, "git_branch")),
        score=_score(document.get("productivity_score")),
        kept={new: document[old] for old, new in _KEPT.items() if isinstance(document.get(old), dict)},
        fields=_counted(metrics) if isinstance(metrics, dict) else {},
        changes=_changes(document, "productivity_score", SCORE_SCALE, ("start_time", "end_time")),
    )
    if note.start_us is None and note.end_us is None and not isinstance(metrics, dict):
        raise LineRejected("bad_fields", "neither a tool call nor a session: no `event_type`, `event` or `start_time`")
    return note


def read_stored_session(document: Json) -> SessionNote:
    """Return a session as the older API stored it."""
    more = document.get("metadata")
    metadata: Json = more if isinstance(more, dict) else {}
    end = document.get("sessionEnd")
    score = document.get("productivityScore")
    return SessionNote(
        session=_session_of(document, "id"),
        start_us=time_us("sessionStart", document.get("sessionStart")),
        end_us=None if end is None else time_us("sessionEnd", end),
        user=_text(metadata, "originalUser"),
        directory=_text(metadata, "workingDirectory"),
        branch=_branch(_text(metadata, "gitBranch")),
        score=_bounded(score),
        kept={new: metadata[old] for old, new in _CAMEL_KEPT.items() if isinstance(metadata.get(old), dict)}
        | _tools(document.get("toolsUsed")),
        project=clean_text(_text(document, "projectId") or "") or None,
        fields=_made_by_hand(document, _branch(_text(metadata, "gitBranch")))
        | _numbers(document.get("interruptionsCount"), _count(document.get("focusTimeMs"), 0)),
        changes=_changes(document, "productivityScore", 1, ("sessionStart", "sessionEnd")),
    )


def _read_camel(document: Json) -> SessionNote:
    start = next((document[name] for name in _CAMEL_STARTS if document.get(name)), None)
    end = document.get("endTime")
    score = document.get("productivityScore", document.get("score"))
    note = SessionNote(
        session=_session_of(document, "sessionId" if _text(document, "sessionId") else "id"),
        start_us=None if start is None else time_us("startTime", start),
        end_us=None if end is None else time_us("endTime", end),
        user=_text(document, "user"),
        directory=_text(document, "workingDirectory"),
        branch=_branch(_text(document, "gitBranch")),
        score=_bounded(score),
        kept=_tools(document.get("tools", document.get("toolsUsed"))),
        project=clean_text(_text(document, "projectId") or "") or None,
        fields=_made_by_hand(document, None)
        | _numbers(document.get("interruptions"), _count(document.get("focusTime"), 0)),
        changes=_changes(document, "productivityScore", 1, (*_CAMEL_STARTS, "endTime")),
    )
    if note.start_us is None and note.end_us is None:
        raise LineRejected("bad_fields", "a session without `startTime`, `created_at`, `timestamp` or `endTime`")
    return note


def _counted(metrics: Json) -> dict[str, str | int | float | list[str]]:
    return _numbers(
        metrics.get("interruptions"), _FOCUS_BLOCK_MS * min(_count(metrics.get("focus_blocks"), 0), 1 << 31)
    )


def _numbers(interruptions: object, focus_ms: int) -> dict[str, str | int | float | list[str]]:
    """Return the counts of a session that say more than nothing."""
    found = {"interruptions_count": _count(interruptions, 0), "focus_time_ms": focus_ms}
    return {name: number for name, number in found.items() if number}


def _made_by_hand(document: Json, branch: str | None) -> dict[str, str | int | float | list[str]]:
    """Return what somebody wrote about a session; what the older bridge made of its branch and counts is no such thing."""
    found: dict[str, str | int | float | list[str]] = {}
    description, kind, tags = _text(document, "description"), _text(document, "sessionType"), document.get("tags")
    if description is not None and not description.startswith(_MADE_DESCRIPTIONS):
        found["description"] = description[:TEXT_CHARS_MAX]
    if kind is not None and kind != _USUAL_TYPE:
        found["session_type"] = kind[:CATEGORY_CHARS_MAX]
    if isinstance(tags, list):
        own = [tag[:LIST_ITEM_CHARS_MAX] for tag in tags if isinstance(tag, str) and tag and tag != branch]
        if own:
            found["tags"] = list(dict.fromkeys(own))[:LIST_ITEMS_MAX]
    return found


def _tools(value: object) -> dict[str, Any]:
    names = [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
    return {"tools_used": names[:LIST_ITEMS_MAX]} if names else {}


def read_stored_metric(document: Json) -> ToolCall | AddedUp:
    """Return calls as the older API stored them: one call, or several as one figure."""
    key = _text(document, "id")
    tool = _text(document, "toolName")
    if key is None or tool is None:
        raise LineRejected("bad_fields", "`id` or `toolName` is missing")
    at = time_us("createdAt", document.get("createdAt"))
    count = _count(document.get("executionCount"), 1)
    errors = min(_count(document.get("errorCount"), 0), count)
    total_ms = _count(document.get("totalDurationMs"), 0)
    session = repeated_id(_text(document, "sessionId"))
    if count > 1:
        return AddedUp(key, _added_up(document, at, count, errors, total_ms))
    outcome = (Outcome.FAILED if errors else Outcome.OK).value
    event = Event(
        at=at, kind=Kind.TOOL_USED.value, name=TOOL_LINE, app=APP, session=session, tool=plain_name(tool),
        outcome=outcome, duration_ms=total_ms, output_bytes=whole_number(document.get("outputSizeBytes")),
    )  # fmt: skip
    fact = line_fact(FORM, str(at), key, session, event.kind, tool, outcome, total_ms)
    return ToolCall(event, fact, None)


def session_events(note: SessionNote) -> list[tuple[EventId, Event]]:
    """Return the start and the end that a note tells of.

    The id of either is the session's alone: several files tell of the same start, some with the time at which they
    were written, so the first one that is read decides.
    """
    project = project_of(note.directory) or note.project
    found: list[tuple[EventId, Event]] = []
    for kind, at in ((Kind.SESSION_STARTED, note.start_us), (Kind.SESSION_ENDED, note.end_us)):
        if at is None:
            continue
        fact = line_fact(FORM, "", None, note.session, kind.value, None, None, None)
        event = Event(
            at=at, kind=kind.value, name=_NAMES[kind], app=APP, session=repeated_id(note.session), project=project,
            branch=note.branch,
        )  # fmt: skip
        found.append((line_id(fact, 0, 0), event))
    return found


def time_us(name: str, value: object) -> int:
    """Return a time of those files as microseconds since 1970 UTC; one without an offset is UTC, a number milliseconds.

    Raises LineRejected with reason `bad_time`.
    """
    if type(value) is int and 0 <= value * US_PER_MS < AT_US_MAX:
        return value * US_PER_MS
    if isinstance(value, str) and len(value) <= _TIME_CHARS_MAX and _is_time(value) is not None:
        try:
            at = datetime.fromisoformat(value)
            us = ((at if at.tzinfo is not None else at.replace(tzinfo=UTC)) - _EPOCH) // _US
        except (ValueError, OverflowError):
            us = -1
        if 0 <= us < AT_US_MAX:
            return us
    raise LineRejected("bad_time", f"`{name}` must be a time such as 2026-01-05T08:00:00Z, from 1970 to 2286")


def project_of(directory: str | None) -> str | None:
    """Return the name of a working folder; None for a home folder, whose name is the user's."""
    parts = [part for part in (directory or "").replace("\\", "/").split("/") if part]
    if not parts or (len(parts) <= 2 and (parts[0] in _HOMES or parts[0].endswith(":"))) or parts == ["root"]:
        return None
    return clean_text(parts[-1]) or None


def object_of(data: bytes) -> Json:
    """Return the JSON object that these bytes are; raise LineRejected for anything else."""
    if 0 in data:
        raise LineRejected("nul", f"a NUL byte at {data.index(0)}: the file was truncated or copied while written")
    try:
        found = _decode(data)
    except msgspec.DecodeError as error:
        raise LineRejected("bad_json", str(error)) from None
    except RecursionError:
        raise LineRejected("too_deep", "arrays or objects nested too deep") from None
    except UnicodeDecodeError as error:
        raise LineRejected("bad_utf8", error.reason) from None
    if not isinstance(found, dict):
        raise LineRejected("bad_fields", "not an object")
    return found


def _session_line(line: Json, *, start: bool) -> SessionNote:
    at = time_us("timestamp", line.get("timestamp"))
    return SessionNote(
        session=_session_of(line, "session_id"),
        start_us=at if start else None,
        end_us=None if start else at,
        user=_text(line, "user"),
        directory=_text(line, "working_directory"),
        branch=_branch(_text(line, "git_branch")),
        score=_score(line.get("productivity_score")),
        kept={new: line[old] for old, new in _KEPT.items() if isinstance(line.get(old), dict)},
        changes=_changes(line, "productivity_score", SCORE_SCALE, ("timestamp",)),
    )


def _changes(document: Json, score: str, scale: int, times: tuple[str, ...]) -> tuple[str, ...]:
    """Return what reading a session did to its values beyond giving them other names."""
    found = []
    value = document.get(score)
    if _is_number(value) and not 0 <= value * scale <= _SCORE_MAX:
        found.append("clamp.score")
    if len(_text(document, "description") or "") > TEXT_CHARS_MAX:
        found.append("truncation.description")
    if any(has_no_offset(document.get(name)) for name in times):
        found.append("guess.time_zone")
    return tuple(found)


def has_no_offset(time: object) -> bool:
    """Return whether a time of those files does not say its offset from UTC."""
    return isinstance(time, str) and not time.endswith("Z") and "+" not in time and "-" not in time[11:]


def _session_of(line: Json, name: str) -> str:
    session = _text(line, name)
    if session is None or opaque_id(session) is None:
        raise LineRejected("bad_fields", f"`{name}` is missing")
    return session


def _text(line: Json, name: str) -> str | None:
    value = line.get(name)
    return value if isinstance(value, str) and value else None


def _branch(name: str | None) -> str | None:
    return None if name is None or name == _UNKNOWN else clean_text(name) or None


def _subject(line: Json) -> str | None:
    command, path = _text(line, "command") or _text(line, "command_type"), _text(line, "file_path")
    if command is not None:
        return command_subject(command)
    return None if path is None else file_subject(path)


def _sizes(line: Json) -> dict[str, int | str] | None:
    """Return the sizes that hooks noted: of a file that was read, of a text that was written (in characters)."""
    names = (("file_bytes", "file_size_bytes"), ("written_chars", "content_length"), ("lines_asked", "lines_requested"))
    sizes = {new: size for new, old in names if (size := whole_number(line.get(old))) is not None}
    return dict(sizes) or None


def _score(value: object) -> float | None:
    return None if not _is_number(value) else _bounded(round(value * SCORE_SCALE, 1))


def _bounded(value: object) -> float | None:
    if not _is_number(value):
        return None
    score = min(max(value, 0), _SCORE_MAX)
    return int(score) if float(score).is_integer() else score


def _is_number(value: object) -> TypeGuard[int | float]:
    # A whole number of hundreds of digits is finite, and no float.
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _count(value: object, default: int) -> int:
    """Return a whole number that the older API wrote, some of them as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    found = whole_number(value)
    return default if found is None else found


def _added_up(document: Json, at: int, count: int, errors: int, total_ms: int) -> dict[str, str | int | float]:
    values: dict[str, str | int | float] = {
        "app": APP,
        "tool": plain_name(_text(document, "toolName")) or "other",
        "started_at": at,
        "ended_at": at,
        "execution_count": count,
        "error_count": errors,
        "total_duration_ms": total_ms,
    }
    session = repeated_id(_text(document, "sessionId"))
    output = whole_number(document.get("outputSizeBytes"))
    memory = document.get("memoryUsageMb")
    if session is not None:
        values["session"] = session
    if output is not None:
        values["output_size_bytes"] = output
    if isinstance(memory, int | float) and not isinstance(memory, bool) and 0 <= memory <= INTEGER_MAX:
        values["memory_usage_mb"] = memory
    return values
