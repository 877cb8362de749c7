"""The closed list of fields: what may stand in one, and how a person writes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.errors import UsageError
from metricsd.fields import ENTITIES, LIST_ITEMS_MAX, NUMBER_MAX, Value, parse_value, problem
from metricsd.store import records


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("description", ["", "x" * 1000], ["x" * 1001, 5, ["x"], "nul\0", "half \ud800"]),
        (
            "tags",
            [[], ["a", "b"]],
            ["a", [""], ["a", "a"], ["x" * 101], [str(n) for n in range(LIST_ITEMS_MAX + 1)], [1]],
        ),
        ("session_type", ["review"], ["x" * 51]),
        ("score", [0, 100, 7.5], [-1, 100.1, True, "7", float("nan"), float("inf"), 10**400]),
        ("focus_time_ms", [0, NUMBER_MAX], [-1, 1.5, True, NUMBER_MAX + 1]),
        ("started_at", [0, 1_795_000_000_000_000], [-1, "now"]),
    ],
)
def test_values(name: str, good: list[Value], bad: list[Value]) -> None:
    """Each kind takes what fits and says what it expects of the rest; None clears any field."""
    assert [problem("session", name, value) for value in [None, *good]] == [None] * (len(good) + 1)
    for value in bad:
        assert (problem("session", name, value) or "").startswith("expected ")


def test_unknown_names_are_no_values() -> None:
    """A misspelt field or entity is named, with those that there are."""
    assert "tags" in (problem("session", "tgas", "x") or "")
    assert "session" in (problem("sesion", "tags", []) or "")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("description", "two words", "two words"),
        ("description", "", None),
        ("tags", "review, slow,review", ["review", "slow"]),
        ("score", "80", 80),
        ("score", "7.5", 7.5),
        ("focus_time_ms", "0", 0),
    ],
)
def test_parse_value(name: str, text: str, value: Value) -> None:
    """What a person writes becomes the value; empty text clears."""
    found = parse_value("session", name, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"), [("score", "high"), ("score", "101"), ("focus_time_ms", "-1"), ("tgas", "x")]
)
def test_parse_value_refuses(name: str, text: str) -> None:
    """A wrong value is a usage error that names the field."""
    with pytest.raises(UsageError, match=name):
        parse_value("session", name, text)


@given(
    st.sampled_from([(entity, name) for entity, fields in ENTITIES.items() for name in fields]), st.text(max_size=300)
)
def test_a_parsed_value_can_be_kept_and_sent(field: tuple[str, str], text: str) -> None:
    """Whatever parse_value lets through, a record can hold."""
    try:
        value = parse_value(*field, text)
    except UsageError:
        return
    assert problem(*field, value) is None
    records.check(field[0], "x", {field[1]: value})


def test_the_largest_values_fit_on_the_wire() -> None:
    """The longest list and text of this module are not too large for a record."""
    records.check(
        "session", "x", {"tags": ["x" * 97 + f"{n:03}" for n in range(LIST_ITEMS_MAX)], "description": "x" * 1000}
    )
