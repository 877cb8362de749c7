"""The endpoints that hooks call: those of the older API in camelCase, and those of the current hooks in snake_case.

The current hooks post what they write to their files otherwise, so their bodies are read as those files are. Their
tokens (`auth_token`) are neither checked nor kept: who may write is decided before.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from metricsd.clock import US_PER_MS
from metricsd.decode.older_hooks import SessionNote, read_session
from metricsd.errors import LineRejected
from metricsd.legacy import session_form
from metricsd.legacy.asked import Answer, ApiError, Invalid
from metricsd.legacy.calls import Told
from metricsd.legacy.kept import Person, Session, Shelf
from metricsd.legacy.moments import find_us
from metricsd.legacy.sessions import DEFAULT_BRANCH
from metricsd.legacy.values import Json, iso

SERVICE = "claude-hooks-integration"
ENDPOINTS = {
    "tool_metrics": "/api/v1/hooks/tool-metrics",
    "session_start": "/api/v1/hooks/session-start",
    "session_end": "/api/v1/hooks/session-end",
    "productivity_data": "/api/v1/hooks/productivity-data",
}


async def start(shelf: Shelf, person: Person, body: Mapping[str, Any], now_us: int) -> Json:
    """Begin a session now; what is missing or empty has a default. Return the hook's metrics."""
    name = _text(body, "sessionId") or str(uuid.uuid4())
    user = _text(body, "user") or person.user
    branch = _text(body, "gitBranch") or DEFAULT_BRANCH
    directory = _text(body, "workingDirectory") or person.directory
    await shelf.write(session_form.begun(name, now_us, user, directory, branch))
    return {"sessionId": name, "gitBranch": branch, "user": user}


async def end(shelf: Shelf, session: Session, name: str, now_us: int) -> Json:
    """End a session now. Return the hook's metrics; the duration is in milliseconds."""
    await shelf.write(session_form.ended(session, now_us))
    score = session_form.score_of(session)
    duration_ms = max(now_us - session_form.start_of(session), 0) // US_PER_MS
    return {"sessionId": name, "productivityScore": score or 0, "duration": duration_ms}


def session_named(body: Mapping[str, Any]) -> str:
    """Return the session that a body in camelCase names; raise ApiError 400 without one."""
    name = _text(body, "sessionId")
    if name is None:
        raise ApiError(400, "Session ID required for session end")
    return name


async def session_start(shelf: Shelf, body: Mapping[str, Any], now_ms: int) -> Answer:
    """5.1: a session began."""
    note = _note(need(body, "session_id", "start_time"))
    await shelf.write(session_form.noted(note))
    data = {"id": f"session_{now_ms}", "session_id": note.session, "start_time": body["start_time"]}
    return _received("Session start recorded", data, now_ms)


async def session_end(shelf: Shelf, body: Mapping[str, Any], now_ms: int) -> Answer:
    """5.1: a session ended."""
    note = _note(need(body, "session_id", "end_time"))
    await shelf.write(session_form.noted(note))
    data = {"id": f"session_end_{now_ms}", "session_id": note.session, "end_time": body["end_time"]}
    return _received("Session end recorded", data | _score(body), now_ms)


async def productivity(shelf: Shelf, body: Mapping[str, Any], now_ms: int) -> Answer:
    """5.1: a session's score, which counts unless a person has set one."""
    found = need(body, "session_id")
    note = _note({"session_id": found["session_id"], "productivity_score": body.get("productivity_score")}, bare=True)
    await shelf.write(session_form.noted(note))
    data = {"id": f"productivity_{now_ms}", "session_id": note.session}
    return _received("Productivity data recorded", data | _score(body), now_ms)


def recorded(told: Told, body: Mapping[str, Any], now_ms: int) -> Answer:
    """5.1: a call was recorded; the same call again has the same id."""
    data = {
        "id": str(uuid.UUID(bytes=bytes(told.id))),
        "tool_name": body["tool_name"],
        "session_id": body["session_id"],
        "activity_created": True,
    }
    return _received("Tool metrics recorded", data, now_ms)


def health(trouble: str | None, now_ms: int) -> Answer:
    """5.1: whether the hooks' endpoints can store anything."""
    status = "healthy" if trouble is None else "unhealthy"
    data = {"status": status, "service": SERVICE, "timestamp": iso(now_ms), "endpoints": ENDPOINTS}
    return _envelope(200 if trouble is None else 503, f"Hooks integration is {status}", data, now_ms)


def refusal(wrong: Invalid, now_ms: int) -> Answer:
    """Return the application's answer to a body that it refuses."""
    return Answer(
        wrong.status,
        {"error": "VALIDATION_ERROR", "message": wrong.text, "statusCode": wrong.status, "timestamp": iso(now_ms)},
    )


def need(body: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return a body that has these texts; raise Invalid that names the first one it lacks."""
    for name in names:
        value = body.get(name)
        if not isinstance(value, str) or not value:
            raise Invalid(400, f"{name} is required" if not value else f"{name} must be a string")
        if name.endswith("_time") and find_us(value) is None:
            raise Invalid(400, f"{name} must be a time such as 2026-01-05T08:00:00Z")
    return body


def _note(body: Mapping[str, Any], *, bare: bool = False) -> SessionNote:
    # With an empty group a session that tells neither start nor end is one all the same.
    document = {**body, "productivity_metrics": {}} if bare else dict(body)
    document.pop("metrics", None)
    try:
        note = read_session(document)
    except LineRejected as rejected:
        raise Invalid(400, rejected.detail.replace("`", "")) from None
    return note._replace(kept={name: value for name, value in note.kept.items() if value})


def _received(message: str, data: Mapping[str, Any], now_ms: int) -> Answer:
    return _envelope(201, message, {**data, "received_at": iso(now_ms), "processed": True}, now_ms)


def _envelope(status: int, message: str, data: Mapping[str, Any], now_ms: int) -> Answer:
    return Answer(status, {"success": status < 400, "message": message, "data": data, "timestamp": iso(now_ms)})


def _score(body: Mapping[str, Any]) -> Json:
    return {"productivity_score": body["productivity_score"]} if "productivity_score" in body else {}


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if not value:
        return None
    if not isinstance(value, str):
        raise ApiError(400, f"{name} must be a string")
    return value
