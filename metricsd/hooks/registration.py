"""What is registered in a tool's settings: finds our handlers in the text, adds and removes them. Pure.

Everything that is not ours keeps its bytes; a container that our handlers alone filled goes with them. An edit that
would change another setting is refused rather than written, and so is a file of a shape that the tool itself would
skip as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metricsd.errors import HooksError
from metricsd.hooks import json_text
from metricsd.hooks.handler_schema import handler_problems

TOOL = "claude-code"
# Each edit settles one handler; a file that needs more than this is not one that people wrote.
EDITS_MAX = 1000

Handler = dict[str, Any]


class Place(NamedTuple):
    """Where a handler of ours stands: the nodes around it and its numbers in them."""

    event: str
    hooks: json_text.Node
    groups: json_text.Node
    group: int
    handlers: json_text.Node
    number: int
    handler: json_text.Node


def installed_text(text: str, settings: Path, wanted: Mapping[str, Handler]) -> str:
    """Return the settings with exactly our handlers registered, each once."""
    _check_shape(wanted, settings)
    before = _without_ours(parse_settings(text, settings).value)
    for _ in range(EDITS_MAX):
        root = parse_settings(text, settings)
        edited = _one_edit(text, root, wanted)
        if edited is None:
            _check_kept(before, root.value, settings)
            return text
        text = edited
    raise HooksError(f"{settings}: more than {EDITS_MAX} entries of ours: clear its hooks by hand, then try again")


def removed_text(text: str, settings: Path) -> str:
    """Return the settings without our handlers and without the containers that they alone filled."""
    before = _without_ours(parse_settings(text, settings).value)
    for _ in range(EDITS_MAX):
        root = parse_settings(text, settings)
        place = next(_ours(root), None)
        if place is None:
            _check_kept(before, root.value, settings)
            return text
        text = _remove_handler(text, root, place)
    raise HooksError(f"{settings}: more than {EDITS_MAX} entries of ours: clear its hooks by hand")


def find_ours(text: str, settings: Path) -> dict[str, list[Handler]]:
    """Return our handlers by event, in the order of the text; raise HooksError for a file of another shape."""
    found: dict[str, list[Handler]] = {}
    for place in _ours(parse_settings(text, settings)):
        found.setdefault(place.event, []).append(place.handler.value)
    return found


def parse_settings(text: str, settings: Path) -> json_text.Node:
    """Return the settings' tree; raise HooksError that names the place when the shape is not the tool's."""
    try:
        root = json_text.parse(text)
    except json.JSONDecodeError as error:
        raise HooksError(
            f"{settings}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}; correct it, then try again"
        ) from error
    if not isinstance(root.value, dict):
        raise HooksError(f"{settings}: must hold a JSON object {{...}}; correct it, then try again")
    hooks = root.value.get("hooks", {})
    if not isinstance(hooks, dict):
        raise HooksError(f"{settings}: `hooks` must be an object of event names; correct it, then try again")
    for event, groups in hooks.items():
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            raise HooksError(f"{settings}: `hooks.{event}` must be a list of objects; correct it, then try again")
        if not all(isinstance(group.get("hooks", []), list) for group in groups):
            raise HooksError(f"{settings}: `hooks.{event}[].hooks` must be a list; correct it, then try again")
    return root


def _check_shape(wanted: Mapping[str, Handler], settings: Path) -> None:
    """Refuse to register what the tool would skip a whole file for. Only a broken fragment can get here."""
    for event, handler in wanted.items():
        for problem in handler_problems(handler):
            raise HooksError(f"{settings}: our entry for {event}: {problem}; nothing was written. Please report this")


def _one_edit(text: str, root: json_text.Node, wanted: Mapping[str, Handler]) -> str | None:
    """Return the text after the first edit that is still needed, or None when all is as wanted."""
    seen: set[str] = set()
    for place in _ours(root):
        if place.event not in wanted or place.event in seen:
            return _remove_handler(text, root, place)
        if place.handler.value != wanted[place.event]:
            return json_text.replace(text, place.handler, wanted[place.event])
        seen.add(place.event)
    missing = next((event for event in wanted if event not in seen), None)
    if missing is None:
        return None
    group = {"hooks": [wanted[missing]]}
    hooks = root.member("hooks")
    if hooks is None:
        return json_text.insert_member(text, root, "hooks", {missing: [group]})
    groups = hooks.member(missing)
    if groups is None:
        return json_text.insert_member(text, hooks, missing, [group])
    return json_text.insert_item(text, groups, group)


def _ours(root: json_text.Node) -> Iterator[Place]:
    """Yield every handler that is ours, in the order of the text."""
    hooks = root.member("hooks")
    for event, _, groups in hooks.members if hooks else ():
        if hooks is None or groups is not hooks.member(event):
            continue  # written twice: the tool reads the last one
        for number, group in enumerate(groups.items):
            handlers = group.member("hooks")
            for index, handler in enumerate(handlers.items if handlers else ()):
                if handlers and _is_ours(handler.value):
                    yield Place(event, hooks, groups, number, handlers, index, handler)


def _is_ours(handler: Any) -> bool:
    """Return whether a handler runs our capture for this tool, from whatever home it was installed."""
    if not isinstance(handler, dict):
        return False
    command, args = handler.get("command"), handler.get("args")
    return (
        isinstance(command, str)
        and isinstance(args, list)
        and Path(command).parts[-2:] == ("hooks", "capture")
        and args[:1] == [TOOL]
    )


def _remove_handler(text: str, root: json_text.Node, place: Place) -> str:
    """Return the text without one handler; a group, event or `hooks` that it alone filled goes with it."""
    if len(place.handlers.items) > 1:
        return json_text.remove(text, place.handlers, place.number)
    if len(place.groups.items) > 1:
        return json_text.remove(text, place.groups, place.group)
    owner, key = (place.hooks, place.event) if len(place.hooks.members) > 1 else (root, "hooks")
    names = [name for name, _, _ in owner.members]
    return json_text.remove(text, owner, len(names) - 1 - names[::-1].index(key))


def _without_ours(root: dict[str, Any]) -> dict[str, Any]:
    """Return the settings' value without our handlers and without empty containers under `hooks`."""
    kept: dict[str, list[Any]] = {}
    for event, groups in root.get("hooks", {}).items():
        rest = []
        for group in groups:
            handlers = [handler for handler in group.get("hooks", []) if not _is_ours(handler)]
            if handlers or "hooks" not in group:
                rest.append({**group, **({"hooks": handlers} if handlers else {})})
        if rest:
            kept[event] = rest
    others = {key: value for key, value in root.items() if key != "hooks"}
    return {**others, "hooks": kept} if kept else others


def _check_kept(before: dict[str, Any], after: dict[str, Any], settings: Path) -> None:
    """Refuse to write anything that would change what is not ours. Only a bug can get here."""
    if _without_ours(after) != before:
        raise HooksError(f"{settings}: the edit would change other settings; nothing was written. Please report this")
