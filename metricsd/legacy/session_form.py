"""Sessions as the older API is told of them and tells them.

What a client said is kept as a document, so that it gets back what it sent; what the rest of metricsd can use of it
(times, score, interruptions) is the session's record, which syncs and can conflict. A session that no client of this
API wrote is told by what its events add up to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from metricsd.analytics.activity_score import activity_score
from metricsd.analytics.baseline import DEFAULT, Baseline
from metricsd.analytics.focus import focus_blocks, focus_minutes
from metricsd.analytics.numbers import number_of, plain, ratio, rounded
from metricsd.analytics.score import percent_score
from metricsd.clock import US_PER_MS
from metricsd.decode.names import repeated_id
from metricsd.decode.older_hooks import APP, SessionNote, session_events
from metricsd.legacy import sessions
from metricsd.legacy.asked import ApiError
from metricsd.legacy.calls import BAD_TIME
from metricsd.legacy.kept import DOCUMENT_BYTES_MAX, SESSION, Edit, Kept, Session, SessionId, Writes, is_own
from metricsd.legacy.moments import find_us
from metricsd.legacy.values import Json, iso, list_of, object_of
from metricsd.protocol import FieldValue

US_PER_MINUTE = 60_000_000
_GROUPS = ("productivity_metrics", "quality_metrics", "workflow_metrics")
_WHO_AND_WHERE = ("user", "working_directory", "git_branch")
_COUNT_MAX = 1 << 40

_encode = msgspec.json.Encoder(order="sorted").encode


def key_of(session: str, app: str = APP) -> SessionId:
    """Return the key of a session that a client calls by this id; what does not look like an id becomes its hash."""
    return SessionId(app, repeated_id(session) or "")


def writes(body: Mapping[str, Any], name: str, *, app: str = APP) -> Writes:
    """Return what a whole session in a body writes: everything that was known of it is replaced.

    `name` is the id by which the client calls it. Raises ApiError for times that are none, and for a session that is
    too large to be kept.
    """
    key = key_of(name, app)
    start = _time(body["start_time"])
    end = _time(body["end_time"]) if "end_time" in body else None
    said: Json = {field: body[field] for field in (*_WHO_AND_WHERE, *_GROUPS) if field in body}
    said["start_us"] = start
    if end is not None:
        said["end_us"] = end
    if name != key.id:
        said["session_id"] = name
    if len(_encode(said)) > DOCUMENT_BYTES_MAX:
        raise ApiError(413, f"A session may have at most {DOCUMENT_BYTES_MAX} bytes")
    note = SessionNote(name, start, None, None, _text(said, "working_directory"), _branch(said))
    return Writes(
        # The start of another tool's session is its own hook's to tell.
        events=session_events(note) if is_own(key) else [],
        edits=[Edit(key, _fields(said))],
        documents=[Kept(SESSION, key.id, said)],
    )


def shown(session: Session, user: str) -> Json:
    """Return a session as that API shows it; `user` is whose it is where nobody said."""
    said = session.document
    start, end = start_of(session), end_of(session)
    cloud: Json = {
        "id": said.get("session_id", session.key.id),
        "sessionStart": start // US_PER_MS,
        "metadata": {
            "originalUser": _text(said, "user") or user,
            "workingDirectory": _text(said, "working_directory"),
            "gitBranch": _text(said, "git_branch") or _branch_of(session),
            "productivityMetrics": said[_GROUPS[0]] if _GROUPS[0] in said else _counted(session),
            "qualityMetrics": said.get(_GROUPS[1]),
            "workflowMetrics": said.get(_GROUPS[2]),
        },
    }
    if end is not None:
        cloud["sessionEnd"] = end // US_PER_MS
    return sessions.to_local(cloud)


def analytics(session: Session, usual: Baseline = DEFAULT) -> Json:
    """Return the data of `GET analytics/sessions/:id`."""
    said, total = session.document, session.total
    productivity = object_of(said, _GROUPS[0]) or {}
    start, end = start_of(session), end_of(session)
    found: Json = {"session_id": said.get("session_id", session.key.id)}
    score = score_of(session, usual)
    if score is not None:
        found["productivity_score"] = plain(score)
    noted = session.fields.get("focus_time_ms")
    if _GROUPS[0] in said:
        periods = math.floor(number_of(productivity.get("focus_blocks")) + 0.5)
        interruptions = plain(number_of(productivity.get("interruptions")))
    else:
        periods = focus_blocks(noted / 60_000 if isinstance(noted, int) else _focus(session))
        interruptions = plain(number_of(session.fields.get("interruptions_count")))
    calls, failures = (0, 0) if total is None else (total.tool_calls, total.tool_failures)
    return found | {
        "duration_minutes": 0 if end is None else plain((end - start) / US_PER_MINUTE),
        "tools_used": list_of(productivity, "agents_used"),
        "efficiency_rating": plain(rounded(1 - ratio(failures, calls), 2)),
        "focus_periods": periods,
        "interruptions": interruptions,
    }


def score_of(session: Session, usual: Baseline = DEFAULT) -> float | None:
    """Return a session's score of 100: its record's, which a person may have set, else of what its client sent, else of
    its events."""
    noted = session.fields.get("score")
    if isinstance(noted, int | float) and not isinstance(noted, bool):
        return float(noted)
    score = activity_score(*(object_of(session.document, name) for name in _GROUPS))
    if score is not None:
        return score
    if is_own(session.key) or session.total is None:
        return None
    return rounded(percent_score(session.total, usual))


def start_of(session: Session) -> int:
    """Return when a session began, microseconds UTC: as its client said, else as its events tell, else as noted."""
    said = session.document.get("start_us")
    if isinstance(said, int):
        return said
    if session.total is not None:
        return session.total.started_at
    noted = session.fields.get("started_at")
    return noted if isinstance(noted, int) else 0


def end_of(session: Session) -> int | None:
    """Return when it ended; None while it is open. An end that was only inferred is none."""
    document = session.document
    if "start_us" in document:
        said = document.get("end_us")
        return said if isinstance(said, int) else None
    if session.total is not None and session.total.end_reason != "inferred":
        return session.total.ended_at
    noted = session.fields.get("ended_at")
    return noted if isinstance(noted, int) else None


def deletion(session: Session) -> Writes:
    """Return what deleting a session writes; its calls stay."""
    return Writes(edits=[Edit(session.key, {}, delete=True)], documents=[Kept(SESSION, session.key.id, None)])


def begun(name: str, at: int, user: str, directory: str, branch: str) -> Writes:
    """Return what a session that begins now writes, with all counters at zero."""
    body: Json = {
        "start_time": iso(at // US_PER_MS),
        "user": user,
        "working_directory": directory,
        "git_branch": branch,
        "productivity_metrics": dict.fromkeys(sessions.PRODUCTIVITY, 0) | {"agents_used": []},
    }
    return writes(body, name)


def ended(session: Session, at: int) -> Writes:
    """Return what the end of a session writes: the fact, and the end in its record and document."""
    note = SessionNote(session.document.get("session_id", session.key.id), None, at)
    events = session_events(note) if is_own(session.key) else []
    if "start_us" not in session.document:
        return Writes(events=events, edits=[Edit(session.key, {"ended_at": at})])
    said = {**session.document, "end_us": at}
    edit = Edit(session.key, {"ended_at": at, "total_duration_ms": _duration_ms(start_of(session), at)})
    return Writes(events=events, edits=[edit], documents=[Kept(SESSION, session.key.id, said)])


def noted(note: SessionNote) -> Writes:
    """Return what a record of the current hooks writes, which is what their files are read as."""
    key = key_of(note.session)
    said = {"user": note.user, "working_directory": note.directory, "git_branch": note.branch, **note.kept}
    said = {name: value for name, value in said.items() if value}
    if note.session != key.id:
        said["session_id"] = note.session
    fields: dict[str, FieldValue] = {} if note.score is None else {"score": note.score}
    return Writes(
        events=session_events(note),
        edits=[Edit(key, fields, unless_set=True)] if fields else (),
        documents=[Kept(SESSION, key.id, said, add=True)] if said and len(_encode(said)) <= DOCUMENT_BYTES_MAX else (),
    )


def _fields(said: Mapping[str, Any]) -> dict[str, FieldValue]:
    """Return the record's fields of a session; what was not said is cleared. Names of any kind are not among them."""
    start, end = said["start_us"], said.get("end_us")
    numbers = object_of(said, _GROUPS[0])
    score = activity_score(*(object_of(said, name) for name in _GROUPS))
    return {
        "started_at": start,
        "ended_at": end,
        "total_duration_ms": None if end is None else _duration_ms(start, end),
        "score": None if score is None or _is_untouched(said) else plain(score),
        "interruptions_count": None if numbers is None else _whole(numbers.get("interruptions")),
        "focus_time_ms": None if numbers is None else _whole(numbers.get("focus_blocks"), sessions.FOCUS_BLOCK_MS),
    }


def _is_untouched(said: Mapping[str, Any]) -> bool:
    """Return whether all that was said are counters at zero, as a session begins: they say nothing of how it goes."""
    groups = [object_of(said, name) or {} for name in _GROUPS]
    return not any(value for group in groups for value in group.values())


def _counted(session: Session) -> Json | None:
    """Return counters for a session that brought none: those of its events, if no client of this API wrote it."""
    total = session.total
    if total is None or "start_us" in session.document:
        return None
    return {
        "commands_executed": total.tool_calls,
        "tools_invoked": total.tool_calls,
        "files_read": 0,
        "files_modified": 0,
        "lines_changed": total.lines_added + total.lines_removed,
        "agents_used": [],
        "focus_blocks": focus_blocks(focus_minutes([total])),
        "interruptions": total.interruptions or 0,
    }


def _branch_of(session: Session) -> str | None:
    """Return the branch of a session that no client of this API wrote."""
    return None if session.total is None or "start_us" in session.document else session.total.branch


def _focus(session: Session) -> float:
    return 0.0 if session.total is None or is_own(session.key) else focus_minutes([session.total])


def _time(value: object) -> int:
    at = find_us(value)
    if at is None:
        raise ApiError(400, BAD_TIME)
    return at


def _text(said: Mapping[str, Any], name: str) -> str | None:
    value = said.get(name)
    return value if isinstance(value, str) and value else None


def _branch(said: Mapping[str, Any]) -> str | None:
    branch = _text(said, "git_branch")
    return None if branch in (None, sessions.UNKNOWN_BRANCH) else branch


def _duration_ms(start: int, end: int) -> int | None:
    return (end - start) // US_PER_MS if end >= start else None


def _whole(value: object, times: int = 1) -> int:
    return min(max(math.floor(number_of(value)), 0) * times, _COUNT_MAX)
