"""What an entry says of a session, read a second time, and how the entries of one session become one.

A session is told of by up to five entries: the first record, the summary, two lines, and a line of the history. The
first record has the true start (the lines have the time at which they were written); what it does not say comes from
the summary, what that does not say from the lines, in the order in which they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from metricsd.migration.second.shapes import Bad, Json, branch_of, count_of, score_of, text_of
from metricsd.migration.second.times import parse_us
from metricsd.migration.second.words import clean, project_of

FIRST, SUMMARY, LINE = 0, 1, 2
"""Which entry has the word: the lower one."""
_FOCUS_BLOCK_MS = 25 * 60 * 1000
_BLOCKS_MAX = 1 << 31
_TEXT_MAX, _CATEGORY_MAX, _ITEM_MAX, _ITEMS_MAX = 1000, 50, 100, 128
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
_MADE_UP = ("Branch: ", "Tools: ", "Focus blocks: ")
"""How descriptions begin that the older bridge made by itself."""


class Note(NamedTuple):
    """What one entry says of a session. Times are microseconds UTC; `score` is 0 to 100."""

    session: str
    start: int | None = None
    end: int | None = None
    user: str | None = None
    directory: str | None = None
    branch: str | None = None
    score: int | float | None = None
    project: str | None = None
    kept: Mapping[str, Any] = {}
    fields: Mapping[str, Any] = {}


def merge(notes: Iterable[Note]) -> Note:
    """Return what the entries of one session say together, the one that has the word first."""
    values: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for note in notes:
        for name, value in zip(Note._fields, note, strict=True):
            if value is not None and name not in values:
                values[name] = value
        for known, more in ((kept, note.kept), (fields, note.fields)):
            for name, value in more.items():
                known.setdefault(name, value)
    return Note(**{**values, "kept": kept, "fields": fields})


def project_name(note: Note) -> str | None:
    """Return the project of a session: of its folder, else the one that was named."""
    return project_of(note.directory) or note.project


def read_edge(line: Json, *, starts: bool) -> Note | Bad:
    """Return what a line at a session's start or end says."""
    at, session = parse_us(line.get("timestamp")), text_of(line, "session_id")
    if at is None:
        return Bad("bad_time")
    if session is None:
        return Bad("no_session")
    return Note(
        session=session,
        start=at if starts else None,
        end=None if starts else at,
        user=text_of(line, "user"),
        directory=text_of(line, "working_directory"),
        branch=branch_of(line.get("git_branch")),
        score=score_of(line.get("productivity_score"), 10),
        kept=_objects(line, _KEPT),
    )


def read_session(document: Json) -> Note | Bad:
    """Return a session as the hooks wrote it: first record, summary, or line of the history."""
    start, end = _time(document, "start_time"), _time(document, "end_time")
    session, metrics = text_of(document, "session_id"), document.get("productivity_metrics")
    if isinstance(start, Bad) or isinstance(end, Bad):
        return Bad("bad_time")
    if session is None:
        return Bad("no_session")
    if start is None and end is None and not isinstance(metrics, dict):
        return Bad("nothing_known")
    counted: dict[str, Any] = {}
    if isinstance(metrics, dict):
        blocks = min(count_of(metrics.get("focus_blocks"), 0), _BLOCKS_MAX)
        counted = _numbers(metrics.get("interruptions"), blocks * _FOCUS_BLOCK_MS)
    return Note(
        session=session,
        start=start,
        end=end,
        user=text_of(document, "user"),
        directory=text_of(document, "working_directory"),
        branch=branch_of(document.get("git_branch")),
        score=score_of(document.get("productivity_score"), 10),
        kept=_objects(document, _KEPT),
        fields=counted,
    )


def read_stored(document: Json) -> Note | Bad:
    """Return a session as the older API stored it."""
    session, start, end = text_of(document, "id"), parse_us(document.get("sessionStart")), _time(document, "sessionEnd")
    if start is None or isinstance(end, Bad):
        return Bad("bad_time")
    if session is None:
        return Bad("no_session")
    more = document.get("metadata")
    metadata: Json = more if isinstance(more, dict) else {}
    branch = branch_of(metadata.get("gitBranch"))
    return Note(
        session=session,
        start=start,
        end=end,
        user=text_of(metadata, "originalUser"),
        directory=text_of(metadata, "workingDirectory"),
        branch=branch,
        score=score_of(document.get("productivityScore"), 1),
        project=clean(document["projectId"]) if text_of(document, "projectId") else None,
        kept={**_objects(metadata, _CAMEL_KEPT), **_tools(document.get("toolsUsed"))},
        fields={
            **_written(document, branch),
            **_numbers(document.get("interruptionsCount"), count_of(document.get("focusTimeMs"), 0)),
        },
    )


def read_camel(document: Json) -> Note | Bad:
    """Return a session as other tools of that system wrote it."""
    named = next((name for name in ("startTime", "created_at", "timestamp") if document.get(name)), None)
    start = None if named is None else _time(document, named)
    end = _time(document, "endTime")
    session = text_of(document, "sessionId") or text_of(document, "id")
    if isinstance(start, Bad) or isinstance(end, Bad):
        return Bad("bad_time")
    if session is None:
        return Bad("no_session")
    if start is None and end is None:
        return Bad("nothing_known")
    score = document["productivityScore"] if "productivityScore" in document else document.get("score")
    return Note(
        session=session,
        start=start,
        end=end,
        user=text_of(document, "user"),
        directory=text_of(document, "workingDirectory"),
        branch=branch_of(document.get("gitBranch")),
        score=score_of(score, 1),
        project=clean(document["projectId"]) if text_of(document, "projectId") else None,
        kept=_tools(document["tools"] if "tools" in document else document.get("toolsUsed")),
        fields={
            **_written(document, None),
            **_numbers(document.get("interruptions"), count_of(document.get("focusTime"), 0)),
        },
    )


def _time(document: Json, name: str) -> int | Bad | None:
    value = document.get(name)
    if value is None:
        return None
    us = parse_us(value)
    return Bad("bad_time") if us is None else us


def _objects(document: Json, names: Mapping[str, str]) -> dict[str, Any]:
    return {new: document[old] for old, new in names.items() if isinstance(document.get(old), dict)}


def _tools(value: object) -> dict[str, Any]:
    names = [name for name in value if isinstance(name, str)][:_ITEMS_MAX] if isinstance(value, list) else []
    return {"tools_used": names} if names else {}


def _numbers(interruptions: object, focus_ms: int) -> dict[str, Any]:
    count = count_of(interruptions, 0)
    found = {"interruptions_count": count} if count else {}
    return {**found, "focus_time_ms": focus_ms} if focus_ms else found


def _written(document: Json, branch: str | None) -> dict[str, Any]:
    """Return what a person wrote about a session."""
    found: dict[str, Any] = {}
    description, kind, tags = text_of(document, "description"), text_of(document, "sessionType"), document.get("tags")
    if description is not None and not any(description.startswith(start) for start in _MADE_UP):
        found["description"] = description[:_TEXT_MAX]
    if kind not in (None, "development"):
        found["session_type"] = str(kind)[:_CATEGORY_MAX]
    own: list[str] = []
    for tag in tags if isinstance(tags, list) else ():
        if isinstance(tag, str) and tag and tag != branch and tag[:_ITEM_MAX] not in own:
            own.append(tag[:_ITEM_MAX])
    if own:
        found["tags"] = own[:_ITEMS_MAX]
    return found
