"""The shape that Claude Code demands of the `hooks` in its settings, and what in a file has another. Pure.

Older versions of the tool skip a whole settings file for one malformed entry, newer ones that entry; so what we write
is held to this shape before it is written, and malformed entries of others are reported, never touched. Fields and
event names that are not listed pass: newer versions have more of both.
Source: the tool's hooks reference (fields by handler type), as of August 2026.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

PROBLEMS_MAX = 20  # named to the user; a file with more is broken in one place that repeats


class Field(NamedTuple):
    """What a field of a handler must be, in words and as a check."""

    kind: str
    fits: Callable[[Any], bool]
    required: bool = False


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


_COMMON = {
    "if": Field("a text", _is_text),
    "timeout": Field("a number of seconds above 0", _is_seconds),
    "statusMessage": Field("a text", _is_text),
    "once": Field("true or false", _is_flag),
}
_PROMPT = {"prompt": Field("a text", _is_text, required=True), "model": Field("a text", _is_text)}
_BY_TYPE: dict[str, dict[str, Field]] = {
    "command": {
        "command": Field("a text", _is_text, required=True),
        "args": Field("a list of texts", _is_texts),
        "async": Field("true or false", _is_flag),
        "asyncRewake": Field("true or false", _is_flag),
        "shell": Field("bash or powershell", lambda value: value in ("bash", "powershell")),
    },
    "http": {
        "url": Field("a text", _is_text, required=True),
        "headers": Field("an object of texts", _is_text_map),
        "allowedEnvVars": Field("a list of texts", _is_texts),
    },
    "mcp_tool": {
        "server": Field("a text", _is_text, required=True),
        "tool": Field("a text", _is_text, required=True),
        "input": Field("an object", _is_object),
    },
    "prompt": _PROMPT,
    "agent": _PROMPT,
}


def handler_problems(handler: Any) -> list[str]:
    """Return what is wrong with one handler, a sentence each; none for a well-formed one."""
    if not isinstance(handler, dict):
        return ["must be an object"]
    kind = handler.get("type")
    fields = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    if fields is None:
        return [f"`type` must be one of {', '.join(_BY_TYPE)}"]
    problems = []
    for name, field in {**_COMMON, **fields}.items():
        if name not in handler:
            if field.required:
                problems.append(f"`{name}` is missing")
        elif not field.fits(handler[name]):
            problems.append(f"`{name}` must be {field.kind}")
    return problems


def hooks_problems(settings: Any) -> list[str]:
    """Return what is malformed under `hooks` of the settings' value, each with its place, at most PROBLEMS_MAX."""
    found = []
    for problem in _walk(settings):
        found.append(problem)
        if len(found) == PROBLEMS_MAX:
            break
    return found


def _walk(settings: Any) -> Iterator[str]:
    hooks = settings.get("hooks", {}) if isinstance(settings, dict) else None
    if not isinstance(hooks, dict):
        yield "`hooks` must be an object of event names"
        return
    for event, groups in hooks.items():
        if not isinstance(groups, list):
            yield f"hooks.{event}: must be a list"
            continue
        for number, group in enumerate(groups):
            yield from _group_problems(f"hooks.{event}[{number}]", group)


def _group_problems(place: str, group: Any) -> Iterator[str]:
    if not isinstance(group, dict):
        yield f"{place}: must be an object"
        return
    if not isinstance(group.get("matcher", ""), str):
        yield f"{place}: `matcher` must be a text"
    handlers = group.get("hooks")
    if not isinstance(handlers, list):
        yield f"{place}: `hooks` must be a list"
        return
    for number, handler in enumerate(handlers):
        for problem in handler_problems(handler):
            yield f"{place}.hooks[{number}]: {problem}"
