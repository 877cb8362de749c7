"""Edits JSON as text: adds and removes members and items, and leaves every other byte as it was.

Other people's settings files keep their order, indentation, escapes, line ends, comments and trailing commas this
way, which parsing and printing again would not. All functions are pure, and every result parses to exactly the
edited value. What is read is JSON with comments: strict JSON, `//` and `/* */` where white space may stand, and one
comma after the last member; anything else is refused with its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

INDENT_DEFAULT = "  "
DEPTH_MAX = 100  # of containers in each other; a settings file that people wrote has ten
_GAP = re.compile(r"(?:[ \t\r\n]|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)
_BLANK = re.compile(r"[ \t\r\n]*")
_COMMENT = re.compile(r"//[^\r\n]*|/\*.*?\*/", re.DOTALL)
_LINE_END = re.compile(r"[ \t]*(?:\r?\n|$)")


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

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Return where each member or item begins and ends, a member from its key on."""
        return [(start, node.end) for _, start, node in self.members] or [(node.start, node.end) for node in self.items]


def parse(text: str) -> Node:
    """Return the tree of a text; raise JSONDecodeError, with line and column, when it is not JSON with comments."""
    node = _node(text, _skip(text, 0), 0)
    end = _skip(text, node.end)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return node


def find_extension(text: str) -> int | None:
    """Return the number of the first line where a strict reader of JSON stops, or None when it reads all."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.lineno
    return None


def insert_member(text: str, owner: Node, key: str, value: Any) -> str:
    """Return the text with `key: value` as the last member of the object `owner`."""
    return _insert(text, owner, f"{json.dumps(key, ensure_ascii=False)}: ", value)


def insert_item(text: str, owner: Node, value: Any) -> str:
    """Return the text with `value` as the last item of the array `owner`."""
    return _insert(text, owner, "", value)


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
    """Return the text without the member or item number `index` of `owner`, and without its comma.

    Comments stay, also those beside what is removed: they are not ours to judge.
    """
    spans = owner.spans
    start, end = spans[index]
    comma = _comma(text, end)
    opening = owner.start + 1
    before = opening if index == 0 else _comma_after(text, spans[index - 1][1])
    if len(spans) == 1:
        after = end if comma is None else comma + 1
        if not (_COMMENT.search(text[opening:start]) or _COMMENT.search(text[after : owner.end - 1])):
            return text[:opening] + text[owner.end - 1 :]
    elif index == 0 and comma is not None and not _COMMENT.search(text[end:comma]):
        return text[:start] + text[_blank_end(text, comma + 1) :]
    cuts = [(_cut_from(text, before, start, end if comma is None else comma + 1), end)]
    if comma is not None:
        cuts.append((comma, comma + 1))
    elif index > 0:
        # The comma of the one before separates it from nothing now.
        cuts.insert(0, (before - 1, before))
    return _without(text, cuts)


def _insert(text: str, owner: Node, prefix: str, value: Any) -> str:
    if not owner.spans:
        return _insert_first(text, owner, prefix, value)
    start, end = owner.spans[-1]
    comma = _comma(text, end)
    # A comment behind the last member stays behind it, on its line: what is added comes after.
    at, line_comment = _last_comment_end(text, end if comma is None else comma + 1, owner.end - 1)
    if "\n" not in text[owner.start : start] and not line_comment:
        added = f" {prefix}{json.dumps(value, ensure_ascii=False)}"
    else:
        indent = _line_indent(text, start)
        added = f"{_newline(text)}{indent}{prefix}{_render(text, value, indent)}"
    if comma is None:
        return f"{text[:end]},{text[end:at]}{added}{text[at:]}"
    return f"{text[:at]}{added},{text[at:]}"


def _insert_first(text: str, owner: Node, prefix: str, value: Any) -> str:
    outer = _line_indent(text, owner.start)
    inner, line = outer + _indent_unit(text), _newline(text)
    close = owner.end - 1
    at, _ = _last_comment_end(text, owner.start + 1, close)
    rest = text[at:close]
    if at == owner.start + 1 or "\n" not in rest:
        rest = line + outer
    return f"{text[:at]}{line}{inner}{prefix}{_render(text, value, inner)}{rest}{text[close:]}"


def _render(text: str, value: Any, indent: str) -> str:
    lines = json.dumps(value, ensure_ascii=False, indent=_indent_unit(text)).split("\n")
    return f"{_newline(text)}{indent}".join(lines)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _indent_unit(text: str) -> str:
    """Return what the first indented line is indented by, lines of comments left out."""
    match = re.search(r"\n([ \t]+)[^ \t\r\n/*]", text)
    return match.group(1) if match else INDENT_DEFAULT


def _line_indent(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _comma(text: str, end: int) -> int | None:
    """Return where the comma behind a value stands, or None when there is none."""
    at = _skip(text, end)
    return at if text[at] == "," else None


def _comma_after(text: str, end: int) -> int:
    comma = _comma(text, end)
    return end if comma is None else comma + 1


def _last_comment_end(text: str, start: int, end: int) -> tuple[int, bool]:
    """Return where the last comment of a gap ends (`start` without one), and whether it runs to the line's end."""
    comments = list(_COMMENT.finditer(text, start, end))
    return (comments[-1].end(), comments[-1].group().startswith("//")) if comments else (start, False)


def _cut_from(text: str, gap: int, start: int, end: int) -> int:
    """Return where to cut so that the white space before `start` goes with it, and no comment swallows the rest."""
    at, line_comment = _last_comment_end(text, gap, start)
    return start if line_comment and not _LINE_END.match(text, end) else at


def _without(text: str, cuts: list[tuple[int, int]]) -> str:
    for start, end in reversed(cuts):
        text = text[:start] + text[end:]
    return text


def _skip(text: str, at: int) -> int:
    """Return where the white space and the comments at `at` end."""
    match = _GAP.match(text, at)
    return match.end() if match else at


def _blank_end(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _node(text: str, at: int, depth: int) -> Node:
    if depth > DEPTH_MAX:
        raise json.JSONDecodeError(f"nested too deeply (more than {DEPTH_MAX})", text, at)
    match text[at : at + 1]:
        case "{":
            return _object(text, at, depth)
        case "[":
            return _array(text, at, depth)
        case _:
            return _scalar(text, at)


def _scalar(text: str, at: int) -> Node:
    try:
        value, end = _DECODER.raw_decode(text, at)
    except _NotJson as error:
        raise json.JSONDecodeError(f"{error} is not JSON", text, at) from error
    return Node(at, end, value)


def _object(text: str, start: int, depth: int) -> Node:
    members: list[tuple[str, int, Node]] = []

    def member(at: int) -> int:
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        key = _scalar(text, at)
        colon = _skip(text, key.end)
        if text[colon : colon + 1] != ":":
            raise json.JSONDecodeError("Expecting ':' delimiter", text, colon)
        members.append((key.value, at, _node(text, _skip(text, colon + 1), depth + 1)))
        return members[-1][2].end

    end = _walk(text, start, "}", member)
    return Node(start, end, {key: node.value for key, _, node in members}, members=tuple(members))


def _array(text: str, start: int, depth: int) -> Node:
    items: list[Node] = []

    def item(at: int) -> int:
        items.append(_node(text, at, depth + 1))
        return items[-1].end

    end = _walk(text, start, "]", item)
    return Node(start, end, [node.value for node in items], items=tuple(items))


def _walk(text: str, start: int, closing: str, entry: Callable[[int], int]) -> int:
    """Read a container's entries, separated by commas, and return where it ends."""
    at = _skip(text, start + 1)
    while text[at : at + 1] != closing:
        at = _skip(text, entry(at))
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != closing:
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    return at + 1


class _NotJson(Exception):
    """NaN or Infinity, which Python reads and JSON does not have."""


def _refuse_constant(name: str) -> None:
    raise _NotJson(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
