"""Counts: every entry of a source has exactly one fate, and sums keep that."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metricsd.migration.model import Counts, Tally, batch_name

NUMBERS = st.integers(min_value=0, max_value=10**9)


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    loaded, merged, rejected, skipped = (draw(NUMBERS) for _ in range(4))
    return Tally(loaded + merged + rejected + skipped, loaded, merged, rejected, skipped)


@given(tallies(), tallies(), tallies())
def test_what_reconciles_still_does_when_it_is_added_up(sessions: Tally, calls: Tally, others: Tally) -> None:
    """The sum of parts is the run, kind by kind and in all."""
    one, two = Counts(sessions, calls, others), Counts(others, sessions, calls)
    assert one.reconciles and (one + two).reconciles and (one + two).total.reconciles
    assert (one + two).total == one.total + two.total
    assert (one + two).sessions.loaded == sessions.loaded + others.loaded


@given(tallies(), st.sampled_from(("source", "loaded", "merged", "rejected", "skipped")))
def test_one_entry_too_many_does_not_reconcile(tally: Tally, name: str) -> None:
    """Nothing may be counted twice, or get lost, in any column or kind."""
    wrong = Tally(**{key: getattr(tally, key) + (key == name) for key in tally.__struct_fields__})
    assert not wrong.reconciles
    assert not Counts(wrong).reconciles and not Counts(other_events=wrong).reconciles


def test_a_batch_is_named_after_its_run_and_part() -> None:
    """The name is what a rollback and the wire know it by."""
    assert batch_name("m20261129-1a2b", 7) == "m20261129-1a2b.7"
