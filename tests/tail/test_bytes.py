"""Lines are bytes: what text-mode reading or `splitlines` would make of them must not happen."""

from __future__ import annotations

import pytest

from tests.tail.conftest import Rig

ODD_LINES = {
    "CRLF": b"\r\n",
    "invalid UTF-8": b'{"v":1,"x":"\xff\xfe"}\n',
    "half a character": b'{"v":1,"x":"\xe2\x82"}\n',
    "a byte order mark alone": b"\xef\xbb\xbf\n",
    "other line ends": '{"v":1,"x":"\u2028\u2029\u0085\x0b\x0c\x1c"}\n'.encode(),
    "a carriage return alone": b"\r\n\r\r\n",
}
"""Lines that are no events, or empty, and longer or shorter once they went through a text decoder."""


@pytest.mark.parametrize("odd", ODD_LINES.values(), ids=ODD_LINES.keys())
def test_an_offset_counts_bytes_whatever_the_lines_hold(rig: Rig, odd: bytes) -> None:
    """Between two looks lie forty odd lines; an offset that is a byte off for each would eat what follows."""
    rig.shared(rig.line(0) + odd * 40 + rig.line(1))
    rig.tick()
    rig.shared(rig.line(2) + odd * 40 + rig.line(3).replace(b"\n", b"\r\n"))
    rig.tick()
    rig.restart()
    rig.shared(rig.line(4))
    rig.tick()
    assert rig.durations == [0, 1, 2, 3, 4]
    rig.store.db.execute("DELETE FROM source")
    rig.restart()
    assert rig.tick().added == 0


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_only_a_newline_ends_a_line(rig: Rig, separator: str) -> None:
    """Line and paragraph separators inside a string are text."""
    line = rig.line(7, payload={"session_id": "s", "tool_name": "Read", "duration_ms": 7, "x": "-"})
    rig.shared(line.replace(b'"-"', f'"{separator}"'.encode()) + rig.line(8))
    assert rig.tick() == (2, 0, 0, False)
    assert rig.durations == [7, 8]


def test_other_lines_behind_an_unchanged_beginning_are_read(rig: Rig) -> None:
    """The first kilobyte is what it was and the file is longer than before: the bytes before the offset tell."""
    path = rig.shared(b"".join(rig.line(n) for n in range(30)))
    rig.tick()
    with path.open("r+b") as file:
        file.truncate(sum(len(rig.line(n)) for n in range(20)))
    rig.shared(b"".join(rig.line(n) for n in range(100, 130)))
    assert rig.tick().added == 30
