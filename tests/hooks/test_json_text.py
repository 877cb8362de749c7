"""JSON edited as text: the value changes as asked, every other byte stays."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("text", ["", "{", '{"a":1} x', "// c\n{}", "{'a':1}", '{"a":NaN}', "[" * 100_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    """By a ValueError, also for comments, NaN and depth."""
    with pytest.raises(ValueError, match=r"JSON|Expecting|Extra|deeply"):
        json_text.parse(text)


def test_indentation_and_line_ends_are_the_files_own() -> None:
    """Four spaces and CRLF go on as four spaces and CRLF; one line stays one line."""
    text = '{\r\n    "a": [\r\n        1\r\n    ]\r\n}\r\n'
    root = json_text.parse(text)
    assert json_text.insert_member(text, root, "b", {"c": 1}) == (
        '{\r\n    "a": [\r\n        1\r\n    ],\r\n    "b": {\r\n        "c": 1\r\n    }\r\n}\r\n'
    )
    text = '{"a":1}'
    assert json_text.insert_member(text, json_text.parse(text), "b", [2]) == '{"a":1, "b": [2]}'
