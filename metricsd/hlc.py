"""Hybrid logical clock: one order of edits across devices whose wall clocks disagree.

A stamp is (48-bit milliseconds, 16-bit counter, device id), compared in that order (Kulkarni et al., "Logical
Physical Clocks", 2014). A stamp made after seeing another is always greater, whatever the wall clock says, and its
physical part is bounded by the caller so that a device in the wrong year cannot win for ever.
"""

from __future__ import annotations

import re
from typing import NamedTuple

COUNTER_MAX = 0xFFFF
MILLIS_MAX = 0xFFFF_FFFF_FFFF
_TEXT = re.compile(r"([0-9a-f]{12})-([0-9a-f]{4})-([0-9A-Za-z._-]{1,64})")


class Stamp(NamedTuple):
    """One point in the hybrid order. `ms` milliseconds since 1970 UTC, `counter` 0..65535, `device` an opaque id."""

    ms: int
    counter: int
    device: str

    def text(self) -> str:
        """Return the wire form, whose text order is the stamp's order for equal device lengths."""
        return f"{self.ms:012x}-{self.counter:04x}-{self.device}"


def parse_stamp(text: str) -> Stamp:
    """Return the stamp that `Stamp.text()` wrote; raise ValueError for anything else."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError(f"not a stamp: {text[:80]!r}")
    return Stamp(int(found[1], 16), int(found[2], 16), found[3])


def next_stamp(mark: Stamp, now_ms: int, device: str) -> Stamp:
    """Return a stamp greater than `mark` and at least `now_ms`, on `device`. Pure.

    A full counter carries into the milliseconds, so that the order holds even for a clock that stands still.
    """
    if now_ms > mark.ms:
        return Stamp(min(now_ms, MILLIS_MAX), 0, device)
    if mark.counter < COUNTER_MAX:
        return Stamp(mark.ms, mark.counter + 1, device)
    if mark.ms == MILLIS_MAX:
        raise OverflowError("the hybrid clock is at its end")
    return Stamp(mark.ms + 1, 0, device)


def observe(mark: Stamp, seen: Stamp) -> Stamp:
    """Return the high-water mark after seeing a remote stamp: the greater of the two. Pure."""
    return mark if mark[:2] >= seen[:2] else Stamp(seen.ms, seen.counter, mark.device)
