"""Sessions of the older formats: the local hooks' record (snake_case) and the cloud's (camelCase), both ways.

What the recordings of the older converter show is kept exactly. Corrections (docs/api-legacy.md): missing and null
numbers count as 0 in the score instead of making it NaN, times that are none are refused instead of being passed on,
and dates that were read back from a file are understood.
"""

from __future__ import annotations

import math
from typing import Any

from metricsd.analytics.activity_score import activity_score
from metricsd.analytics.numbers import number_of, plain
from metricsd.legacy.values import Json, find_ms, iso, list_of, object_of, parse_ms, record_of, text_of, user_uuid

FOCUS_BLOCK_MS = 25 * 60 * 1000
SESSION_TYPE = "development"
UNKNOWN_BRANCH = "unknown"
DEFAULT_BRANCH = "main"
PRODUCTIVITY = (
    "commands_executed", "tools_invoked", "files_read", "files_modified", "lines_changed", "agents_used",
    "focus_blocks", "interruptions",
)  # fmt: skip
QUALITY = ("tests_run", "tests_passed", "builds_attempted", "builds_successful", "reviews_requested")
WORKFLOW = ("git_commits", "prs_created", "context_switches")

_KEPT = (
    ("working_directory", "workingDirectory"),
    ("git_branch", "gitBranch"),
    ("productivity_metrics", "productivityMetrics"),
    ("quality_metrics", "qualityMetrics"),
    ("workflow_metrics", "workflowMetrics"),
)
"""Fields that the cloud record carries in its metadata as they were sent."""


def to_cloud(value: object) -> Json:
    """Return the cloud's record of a local session; raise LineRejected for what cannot be one."""
    local = record_of(value, "session")
    user = text_of(local, "user")
    start = parse_ms("start_time", local.get("start_time"))
    productivity = object_of(local, "productivity_metrics")
    numbers = productivity or {}
    branch = text_of(local, "git_branch", default="")
    found: Json = {"id": text_of(local, "session_id"), "userId": user_uuid(user), "sessionStart": iso(start)}
    if local.get("end_time"):
        end = parse_ms("end_time", local["end_time"])
        found |= {"sessionEnd": iso(end), "totalDurationMs": end - start}
    found["toolsUsed"] = list_of(numbers, "agents_used")
    score = activity_score(productivity, object_of(local, "quality_metrics"), object_of(local, "workflow_metrics"))
    if score is not None:
        found["productivityScore"] = plain(score)
    found["sessionType"] = SESSION_TYPE
    project = text_of(local, "working_directory", default="").rpartition("/")[2]
    if project:
        found["projectId"] = project
    found["tags"] = [branch] if _is_known(branch) else []
    found["interruptionsCount"] = plain(number_of(numbers.get("interruptions")))
    found["focusTimeMs"] = plain(number_of(numbers.get("focus_blocks")) * FOCUS_BLOCK_MS)
    description = _description(branch, numbers)
    if description:
        found["description"] = description
    found["metadata"] = {"originalUser": user} | {theirs: local[ours] for ours, theirs in _KEPT if ours in local}
    return found


def to_local(value: object) -> Json:
    """Return the local hooks' record of a cloud session; raise LineRejected for what cannot be one."""
    cloud = record_of(value, "session")
    kept = object_of(cloud, "metadata") or {}
    tags = [tag for tag in list_of(cloud, "tags") if isinstance(tag, str)]
    found: Json = {
        "session_id": text_of(cloud, "id"),
        "start_time": iso(parse_ms("sessionStart", cloud.get("sessionStart"))),
    }
    if cloud.get("sessionEnd"):
        found["end_time"] = iso(parse_ms("sessionEnd", cloud["sessionEnd"]))
    found["user"] = user_of(cloud)
    found["working_directory"] = text_of(kept, "workingDirectory", default="")
    found["git_branch"] = text_of(kept, "gitBranch", default="") or (tags[0] if tags and tags[0] else DEFAULT_BRANCH)
    productivity = object_of(kept, "productivityMetrics")
    found["productivity_metrics"] = _productivity(cloud) if productivity is None else productivity
    for name, key, zeros in (
        ("quality_metrics", "qualityMetrics", QUALITY),
        ("workflow_metrics", "workflowMetrics", WORKFLOW),
    ):
        group = object_of(kept, key)
        found[name] = dict.fromkeys(zeros, 0) if group is None else group
    return found


def user_of(cloud: Json) -> str:
    """Return the user's name in a cloud session; one made of the id when it does not say."""
    kept = object_of(cloud, "metadata") or {}
    return text_of(kept, "originalUser", default="") or f"user_{text_of(cloud, 'userId', default='')[:8]}"


def problems(value: object) -> list[str]:
    """Return what is wrong with a local session by the older converter's stricter check; empty when nothing is."""
    local = record_of(value, "session")
    found = [f"Missing {name}" for name in ("session_id", "start_time", "user") if not local.get(name)]
    start, end = (_checked_time(local, name, found) for name in ("start_time", "end_time"))
    if start is not None and end is not None and end <= start:
        found.append("end_time must be after start_time")
    return found


def _checked_time(local: Json, name: str, found: list[str]) -> int | None:
    if not local.get(name):
        return None
    at = find_ms(local[name])
    if at is None:
        found.append(f"Invalid {name} format")
    return at


def _is_known(branch: str) -> bool:
    return branch not in ("", UNKNOWN_BRANCH)


def _description(branch: str, numbers: Json) -> str:
    parts = [f"Branch: {branch}"] if _is_known(branch) else []
    for label, name in (("Tools", "tools_invoked"), ("Focus blocks", "focus_blocks")):
        count = number_of(numbers.get(name))
        if count:
            parts.append(f"{label}: {plain(count)}")
    return ", ".join(parts)


def _productivity(cloud: Json) -> Json:
    """Return counters for a cloud session that brought none: all that can be known of it."""
    tools: list[Any] = list_of(cloud, "toolsUsed")
    known: Json = dict.fromkeys(PRODUCTIVITY, 0)
    blocks = number_of(cloud.get("focusTimeMs")) / FOCUS_BLOCK_MS
    return known | {
        "commands_executed": len(tools),
        "tools_invoked": len(tools),
        "agents_used": tools,
        "focus_blocks": math.floor(blocks + 0.5),
        "interruptions": plain(number_of(cloud.get("interruptionsCount"))),
    }
