"""JSON edited as text: the value changes as asked, every other byte stays."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.hooks import json_text

_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
_INDENTS = st.sampled_from([None, 0, 1, 2, 4, "\t"])


def _print(value: Any, indent: int | str | None, line: str, ascii_only: bool) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ascii_only).replace("\n", line) + line


@given(value=_VALUES, indent=_INDENTS, ascii_only=st.booleans())
def test_parse_agrees_with_json(value: Any, indent: int | str | None, ascii_only: bool) -> None:
    """The tree's value is the text's value, and each node's span is the text of its value."""
    text = _print(value, indent, "\r\n", ascii_only)
    nodes = [json_text.parse(text)]
    assert nodes[0].value == value
    while nodes:
        node = nodes.pop()
        assert json.loads(text[node.start : node.end]) == node.value
        nodes += [*node.items, *(member for _, _, member in node.members)]


@given(
    value=st.dictionaries(st.text(max_size=3), _VALUES, max_size=4),
    added=_VALUES,
    indent=_INDENTS,
    ascii_only=st.booleans(),
)
def test_an_added_member_comes_out_again(
    value: dict[str, Any], added: Any, indent: int | str | None, ascii_only: bool
) -> None:
    """Adding gives the value with the member; removing it gives back the bytes, as the container was not empty."""
    text = _print(value, indent, "\n", ascii_only)
    longer = json_text.insert_member(text, json_text.parse(text), "long key", added)
    assert json.loads(longer) == {**value, "long key": added}
    root = json_text.parse(longer)
    assert json_text.remove(longer, root, len(root.members) - 1) == text
    for number, name in enumerate(value):
        assert json.loads(json_text.remove(longer, root, number)) == {
            **{key: each for key, each in value.items() if key != name},
            "long key": added,
        }


@given(value=st.lists(_VALUES, max_size=4), added=_VALUES, indent=_INDENTS)
def test_an_added_item_comes_out_again(value: list[Any], added: Any, indent: int | str | None) -> None:
    """The same for arrays, and replacing an item changes that item alone."""
    text = _print(value, indent, "\n", True)
    longer = json_text.insert_item(text, json_text.parse(text), added)
    assert json.loads(longer) == [*value, added]
    root = json_text.parse(longer)
    assert json_text.remove(longer, root, len(root.items) - 1) == text
    for number, node in enumerate(root.items):
        expected = [*value, added]
        expected[number] = "new"
        assert json.loads(json_text.replace(longer, node, "new")) == expected


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "1:1"),
        ("{", "1:2"),
        ('{"a":1} x', "1:9"),
        ("{'a':1}", "1:2"),
        ('{"a":NaN}', "1:6"),
        ('{"a":-Infinity}', "1:6"),
        ('{"a":\n01}', "2:2"),
        ("{,}", "1:2"),
        ("[1,,]", "1:4"),
        ("[,]", "1:2"),
        ('{"a" 1}', "1:6"),
        ('{"a":1 "b":2}', "1:8"),
        ("{} /* open", "1:4"),
        ("{} / {}", "1:4"),
        ("# c\n{}", "1:1"),
        ("[" * 100_000, "1:102"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(text: str, place: str) -> None:
    """Line and column of the first thing wrong, also for NaN, depth and a comment without end."""
    with pytest.raises(json.JSONDecodeError) as caught:
        json_text.parse(text)
    assert f"{caught.value.lineno}:{caught.value.colno}" == place


_GAPS = st.sampled_from(
    [
        "",
        " ",
        "\n  ",
        "\r\n\t",
        ' // it\'s "#!?!#", {\n  ',
        "/* , #!?!# } */",
        "\n/* #!?!#\n b */ // ] #!?!#\n",
        "/*#!?!#*/",
    ]
)


@st.composite
def _with_comments(draw: Any, values: st.SearchStrategy[Any] = _VALUES) -> tuple[Any, str]:
    """A value and its text with comments, odd white space and trailing commas wherever they may stand."""

    numbers = itertools.count()

    def gap() -> str:
        gap_text: str = draw(_GAPS)
        return re.sub(r"\?", lambda _: str(next(numbers)), gap_text)

    def write(value: Any) -> str:
        if isinstance(value, dict):
            entries = [f"{json.dumps(key)}{gap()}:{gap()}{write(each)}" for key, each in value.items()]
        elif isinstance(value, list):
            entries = [write(each) for each in value]
        else:
            return json.dumps(value)
        body = ",".join(f"{gap()}{entry}{gap()}" for entry in entries)
        if entries and draw(st.booleans()):
            body += "," + gap()
        return ("{%s}" if isinstance(value, dict) else "[%s]") % (body or gap())

    value = draw(values)
    return value, gap() + write(value) + gap()


def _comments(text: str) -> list[str]:
    """Return the marks of the comments in a text; no value is long enough to hold one."""
    return re.findall(r"#!\d+!#", text)


@given(drawn=_with_comments())
def test_comments_and_trailing_commas_are_read_over(drawn: tuple[Any, str]) -> None:
    """The value is the one that was written between them, and each node's span is its own text."""
    value, text = drawn
    nodes = [json_text.parse(text)]
    assert nodes[0].value == value
    while nodes:
        node = nodes.pop()
        assert json_text.parse(text[node.start : node.end]).value == node.value
        nodes += [*node.items, *(member for _, _, member in node.members)]


@given(drawn=_with_comments(st.dictionaries(st.text(max_size=3), _VALUES, max_size=4)), added=_VALUES)
def test_every_comment_outlives_every_edit(drawn: tuple[dict[str, Any], str], added: Any) -> None:
    """Adding then removing gives back the bytes if the object was not empty; removing any member keeps all comments."""
    value, text = drawn
    longer = json_text.insert_member(text, json_text.parse(text), "long key", added)
    root = json_text.parse(longer)
    assert root.value == {**value, "long key": added}
    assert _comments(longer) == _comments(text)
    back = json_text.remove(longer, root, len(root.members) - 1)
    if value:
        assert back == text
    assert json_text.parse(back).value == value
    assert _comments(back) == _comments(text)
    for number, name in enumerate(value):
        fewer = json_text.remove(longer, root, number)
        assert json_text.parse(fewer).value == {
            **{key: each for key, each in value.items() if key != name},
            "long key": added,
        }
        gone = longer[root.members[number][1] : root.members[number][2].end]
        assert _comments(fewer) == [mark for mark in _comments(longer) if mark not in _comments(gone)]


def test_a_comment_stays_on_the_line_of_its_member() -> None:
    """What is added comes after the comment of the last member, and takes over its trailing comma."""
    text = '{\n  "a": 1 // why\n}\n'
    longer = json_text.insert_member(text, json_text.parse(text), "b", 2)
    assert longer == '{\n  "a": 1, // why\n  "b": 2\n}\n'
    assert json_text.remove(longer, json_text.parse(longer), 1) == text
    text = '{\n  "a": 1,\n  // "z": 0,\n}\n'
    longer = json_text.insert_member(text, json_text.parse(text), "b", 2)
    assert longer == '{\n  "a": 1,\n  // "z": 0,\n  "b": 2,\n}\n'
    assert json_text.remove(longer, json_text.parse(longer), 1) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('{"a":1, // c\n "b":2, "d":3}', '{"a":1, // c\n  "d":3}'),
        ('{"a":1, // c\n "b":2}', '{"a":1 // c\n }'),
        ('{"a":1, // c\n "b":2,}', '{"a":1, // c\n }'),
        ('{"a":1, // c\n "b":2\n}', '{"a":1 // c\n}'),
    ],
)
def test_a_comment_never_swallows_what_stood_behind_the_removed(text: str, left: str) -> None:
    """A line comment before what is removed keeps its line end where something follows on that line."""
    assert json_text.remove(text, json_text.parse(text), 1) == left


@pytest.mark.parametrize(
    ("text", "line"), [('{"a": 1}\n', None), ('{\n"a": 1,\n}', 3), ('{\n// c\n"a": 1}', 2), ("{}/**/", 1)]
)
def test_what_a_strict_reader_stops_at_is_found(text: str, line: int | None) -> None:
    """The line of the first comment or trailing comma."""
    assert json_text.find_extension(text) == line


def test_indentation_and_line_ends_are_the_files_own() -> None:
    """Four spaces and CRLF go on as four spaces and CRLF; one line stays one line."""
    text = '{\r\n    "a": [\r\n        1\r\n    ]\r\n}\r\n'
    root = json_text.parse(text)
    assert json_text.insert_member(text, root, "b", {"c": 1}) == (
        '{\r\n    "a": [\r\n        1\r\n    ],\r\n    "b": {\r\n        "c": 1\r\n    }\r\n}\r\n'
    )
    text = '{"a":1}'
    assert json_text.insert_member(text, json_text.parse(text), "b", [2]) == '{"a":1, "b": [2]}'
