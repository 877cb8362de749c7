"""How much of a tenant's history one answer may hold or look at, whichever database it lies in.

A page is bounded in items, in bytes and in rows looked at: the cursor also moves past the device's own items, and
`more` says that a page ended before the history did, even when it is empty.
"""

from __future__ import annotations

from typing import NamedTuple

PAGE_BYTES_MAX = 8 * 1024 * 1024
"""Texts in one page: a thousand records of the largest size must not be built in memory."""
ROWS_LOOKED_AT_MAX = 20_000
"""A device with a million events of its own passes over them in pages of this many rows (some 10 ms each)."""
NOBODY = -1
"""The number of a user or device that has none."""


class Window(NamedTuple):
    """The change numbers that one page looks at: (after, upto]; `whole` when nothing lies behind."""

    after: int
    upto: int
    whole: bool


def window_of(after: int, head: int, ends: list[tuple[int | None, int]]) -> Window:
    """Return the window behind `after`. Each of `ends` is (newest change, rows) of one table's next rows. Pure."""
    cut = [end for end, rows in ends if rows == ROWS_LOOKED_AT_MAX and end is not None]
    upto = min([head, *cut])
    return Window(after, upto, upto == head)
