"""Lines of the older hooks that are nearly right: refused with a reason, the same way on every machine."""

from __future__ import annotations

import json

import pytest

from metricsd.decode.older_hooks import SessionNote, read_line, time_us
from metricsd.errors import LineRejected


@pytest.mark.parametrize("digits", [1, 19, 400])
def test_a_score_of_any_length_is_read(digits: int) -> None:
    """A whole number too large for a float is as far out of range as any other, and stops nobody's tail."""
    line = {"session_id": "a", "start_time": "2026-01-05T08:00:00Z", "productivity_score": int("9" * digits)}
    found = read_line(json.dumps(line).encode())
    assert isinstance(found, SessionNote)
    assert found.score == (90 if digits == 1 else 100)


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("2026-01-05T08:00:00Z", 1_767_600_000_000_000),
        ("2026-01-05 08:00:00.1234567", 1_767_600_000_123_456),
        ("2026-01-05T10:00:00+02:00", 1_767_600_000_000_000),
        ("2026-01-05T10:00+0200", 1_767_600_000_000_000),
        ("2026-01-05", 1_767_571_200_000_000),
    ],
)
def test_a_time_of_the_hooks_is_read(text: str, us: int) -> None:
    """With and without fraction and offset; without an offset it is UTC."""
    assert time_us("timestamp", text) == us


@pytest.mark.parametrize(
    "text",
    [
        "20260105T08000Z",
        "2026-01-05T08:00:008Z",
        "2026-01-05T08:00:00-00:60",
        "2026-01-05T24:00",
        "2026-01-05T08:00:60Z",
    ],
)
def test_a_torn_time_is_none_in_any_version_of_python(text: str) -> None:
    """Some versions of `fromisoformat` take these; an event's id is made of its time and must be one everywhere."""
    with pytest.raises(LineRejected, match="bad_time"):
        time_us("timestamp", text)
