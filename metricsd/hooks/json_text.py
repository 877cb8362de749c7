"""Edits JSON as text: adds and removes members and items, and leaves every other byte as it was.

Other people's settings files keep their order, indentation, escapes and line ends this way, which parsing and
printing again would not. All functions are pure, and every result parses to exactly the edited value. Comments are
not JSON and are refused with their place.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

INDENT_DEFAULT = "  "
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class Node(NamedTuple):
    """A value and where it stands. `members` of an object and `items` of an array are in the order of the text."""

    start: int
    end: int
    value: Any
    members: tuple[tuple[str, int, Node], ...] = ()
    items: tuple[Node, ...] = ()

    def member(self, key: str) -> Node | None:
        """Return the member that counts under this key, which is the last one, or None."""
        return next((node for name, _, node in reversed(self.members) if name == key), None)


def parse(text: str) -> Node:
    """Return the tree of a JSON text; raise ValueError (JSONDecodeError with line and column) when it is none."""
    try:
        json.loads(text, parse_constant=_refuse_constant)
        return _node(text, _skip(text, 0))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def insert_member(text: str, owner: Node, key: str, value: Any) -> str:
    """Return the text with `key: value` as the last member of the object `owner`."""
    last = owner.members[-1] if owner.members else None
    place = (last[1], last[2].end) if last else None
    return _insert(text, owner, place, f"{json.dumps(key, ensure_ascii=False)}: ", value)


def insert_item(text: str, owner: Node, value: Any) -> str:
    """Return the text with `value` as the last item of the array `owner`."""
    last = owner.items[-1] if owner.items else None
    return _insert(text, owner, (last.start, last.end) if last else None, "", value)


def replace(text: str, node: Node, value: Any) -> str:
    """Return the text with another value in this node's place, on one line if the old one was."""
    old = text[node.start : node.end]
    new = (
        json.dumps(value, ensure_ascii=False)
        if "\n" not in old
        else _render(text, value, _line_indent(text, node.start))
    )
    return text[: node.start] + new + text[node.end :]


def remove(text: str, owner: Node, index: int) -> str:
    """Return the text without the member or item number `index` of `owner`, and without its comma."""
    spans = [(start, node.end) for _, start, node in owner.members] or [(node.start, node.end) for node in owner.items]
    if len(spans) == 1:
        return text[: owner.start + 1] + text[owner.end - 1 :]
    if index == 0:
        return text[: spans[0][0]] + text[spans[1][0] :]
    return text[: spans[index - 1][1]] + text[spans[index][1] :]


def _insert(text: str, owner: Node, last: tuple[int, int] | None, prefix: str, value: Any) -> str:
    if last is None:
        outer = _line_indent(text, owner.start)
        inner = outer + _indent_unit(text)
        line = _newline(text)
        body = f"{line}{inner}{prefix}{_render(text, value, inner)}{line}{outer}"
        return text[: owner.start + 1] + body + text[owner.end - 1 :]
    start, end = last
    if "\n" not in text[owner.start : start]:
        return f"{text[:end]}, {prefix}{json.dumps(value, ensure_ascii=False)}{text[end:]}"
    indent = _line_indent(text, start)
    return f"{text[:end]},{_newline(text)}{indent}{prefix}{_render(text, value, indent)}{text[end:]}"


def _render(text: str, value: Any, indent: str) -> str:
    lines = json.dumps(value, ensure_ascii=False, indent=_indent_unit(text)).split("\n")
    return f"{_newline(text)}{indent}".join(lines)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _indent_unit(text: str) -> str:
    """Return what the first indented line is indented by."""
    match = re.search(r"\n([ \t]+)[^ \t\r\n]", text)
    return match.group(1) if match else INDENT_DEFAULT


def _line_indent(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _node(text: str, at: int) -> Node:
    """Return the node at `at`. The text is known to be JSON, so that nothing is checked again."""
    match text[at]:
        case "{":
            return _object(text, at)
        case "[":
            return _array(text, at)
        case _:
            value, end = _DECODER.raw_decode(text, at)
            return Node(at, end, value)


def _object(text: str, start: int) -> Node:
    members: list[tuple[str, int, Node]] = []
    at = _skip(text, start + 1)
    while text[at] != "}":
        key, end = _DECODER.raw_decode(text, at)
        node = _node(text, _skip(text, _skip(text, end) + 1))
        members.append((key, at, node))
        at = _after(text, node.end)
    return Node(start, at + 1, {key: node.value for key, _, node in members}, members=tuple(members))


def _array(text: str, start: int) -> Node:
    items: list[Node] = []
    at = _skip(text, start + 1)
    while text[at] != "]":
        items.append(_node(text, at))
        at = _after(text, items[-1].end)
    return Node(start, at + 1, [node.value for node in items], items=tuple(items))


def _after(text: str, end: int) -> int:
    """Return where the next member begins, or the closing bracket stands."""
    at = _skip(text, end)
    return _skip(text, at + 1) if text[at] == "," else at


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
