"""Event ids: equal for the same fact read again, different for different facts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.ids import (
    OCCURRENCE_KEYS_MAX,
    Occurrences,
    capture_id,
    line_fact,
    line_id,
    new_installation_key,
)

KEY = b"k" * 32
texts = st.text(max_size=20)


def ids_of(facts: list[bytes], occurrences: Occurrences | None = None) -> list[bytes]:
    count = occurrences or Occurrences()
    return [line_id(fact, 5, count.next(fact)) for fact in facts]


@given(st.integers(0, 2**40), texts, st.binary(max_size=100))
def test_a_capture_keeps_its_id_when_it_is_copied_or_read_again(second: int, name: str, line: bytes) -> None:
    """Only second, name, bytes and installation decide; nothing of the file system does."""
    assert capture_id(second, name, line, KEY) == capture_id(second, name, line, KEY)


def test_captures_of_two_installations_differ() -> None:
    """Two laptops that run the same command in the same second are two facts."""
    one, two = new_installation_key(), new_installation_key()
    assert capture_id(1, "a.jsonl", b"{}\n", one) != capture_id(1, "a.jsonl", b"{}\n", two)


def test_captures_with_equal_bytes_and_other_names_differ() -> None:
    """The name holds pid and counter: two equal payloads are two captures."""
    assert capture_id(1, "a.jsonl", b"{}\n", KEY) != capture_id(1, "b.jsonl", b"{}\n", KEY)


def test_ids_have_uuid_layout_and_sort_by_time() -> None:
    """Version 8, variant 10, and a time prefix that keeps inserts at the index's edge."""
    early, late = capture_id(1, "a", b"", KEY), capture_id(2, "a", b"", KEY)
    assert early < late
    assert len(early) == 16
    assert early[6] >> 4 == 8
    assert early[8] >> 6 == 0b10


@given(st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=30))
def test_equal_lines_are_different_events_and_a_second_reading_gives_the_same_ids(facts: list[bytes]) -> None:
    """Occurrence numbers tell equal lines apart, the same way on every reading."""
    first = ids_of(facts)
    assert len(set(first)) == len(facts)
    assert ids_of(facts) == first


@given(st.lists(st.binary(min_size=1, max_size=3), max_size=60), st.integers(0, 60))
def test_a_reading_that_stops_and_goes_on_gives_the_same_ids(facts: list[bytes], cut: int) -> None:
    """The packed map carries everything from one commit to the next."""
    count = Occurrences()
    head = ids_of(facts[:cut], count)
    assert head + ids_of(facts[cut:], Occurrences(count.pack())) == ids_of(facts)


def test_the_occurrence_map_is_bounded_and_forgets_the_least_recent_key() -> None:
    """A file of a million different lines takes no more memory than one of a thousand."""
    count = Occurrences()
    count.next(b"kept")
    for n in range(OCCURRENCE_KEYS_MAX - 1):
        count.next(b"%d" % n)
    assert count.next(b"kept") == 1
    for n in range(OCCURRENCE_KEYS_MAX * 2):
        count.next(b"later %d" % n)
    assert len(count.pack()) == 8 * OCCURRENCE_KEYS_MAX
    assert count.next(b"kept") == 0


def test_a_torn_occurrence_map_is_refused() -> None:
    """Half an entry is not silently dropped."""
    with pytest.raises(ValueError, match="torn"):
        Occurrences(b"123")


@given(st.tuples(texts, texts, texts, texts), st.tuples(texts, texts, texts, texts))
def test_lines_with_other_facts_have_other_ids(one: tuple[str, ...], two: tuple[str, ...]) -> None:
    """Session, kind, tool and time are all part of the fact, and None is not the empty text."""

    def identify(parts: tuple[str, ...]) -> bytes:
        session, kind, tool, stamp = (part.replace("\x1f", "") for part in parts)
        return line_id(line_fact("shared", stamp, None, session, kind, tool, "ok", 1), 0, 0)

    same = tuple(part.replace("\x1f", "") for part in one) == tuple(part.replace("\x1f", "") for part in two)
    assert (identify(one) == identify(two)) == same
    assert line_fact("f", "", None, None, "k", None, None, None) != line_fact("f", "", None, "", "k", None, None, None)


def test_an_own_id_decides_alone() -> None:
    """A line that brings its id is the same event whatever else it says."""
    one = line_fact("shared", "5", "x", "s", "k", "t", "ok", 1)
    assert one == line_fact("shared", "5", "x", "other", "k", "t", "failed", 2)
