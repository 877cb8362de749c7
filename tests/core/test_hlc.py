"""Hybrid stamps: monotone, causal, textual."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.hlc import COUNTER_MAX, MILLIS_MAX, Stamp, next_stamp, observe, parse_stamp

millis = st.integers(0, MILLIS_MAX - 10)
stamps = st.builds(Stamp, millis, st.integers(0, COUNTER_MAX), st.sampled_from(["a", "b"]))


@given(stamps, st.lists(millis, max_size=30))
def test_stamps_of_one_device_only_grow(mark: Stamp, clock: list[int]) -> None:
    """However the wall clock jumps, the next stamp is greater than the one before."""
    for now in clock:
        after = next_stamp(mark, now, mark.device)
        assert after > mark
        mark = after


@given(stamps, stamps, millis)
def test_a_stamp_made_after_seeing_another_is_greater(mark: Stamp, seen: Stamp, now: int) -> None:
    """Causality: an edit made after seeing X never loses to X."""
    assert next_stamp(observe(mark, seen), now, mark.device)[:2] > seen[:2]


@given(stamps)
def test_the_text_form_comes_back_and_sorts_like_the_stamp(stamp: Stamp) -> None:
    """decode(encode(x)) == x, and text order is stamp order."""
    assert parse_stamp(stamp.text()) == stamp
    later = next_stamp(stamp, 0, stamp.device)
    assert later.text() > stamp.text()


def test_a_full_counter_carries_into_the_milliseconds() -> None:
    """65,536 edits within a clock that stands still keep their order."""
    assert next_stamp(Stamp(7, COUNTER_MAX, "a"), 7, "a") == Stamp(8, 0, "a")


@given(st.text(max_size=40))
def test_what_is_no_stamp_is_refused(text: str) -> None:
    """Hostile stamps from the wire raise ValueError and nothing else."""
    try:
        assert parse_stamp(text).text() == text
    except ValueError as error:
        assert "not a stamp" in str(error)


def test_the_end_of_time_is_an_error() -> None:
    """The clock never wraps round to small stamps."""
    with pytest.raises(OverflowError):
        next_stamp(Stamp(MILLIS_MAX, COUNTER_MAX, "a"), 0, "a")
