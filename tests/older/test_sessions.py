"""Which session of the older hooks a call belongs to."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from metricsd.decode.older_hooks import SessionNote
from metricsd.older import sessions
from metricsd.older.sessions import OPEN_US_MAX, OlderSessions


def known(*notes: SessionNote) -> OlderSessions:
    found = OlderSessions()
    for note in notes:
        found.note(note)
    return found


def test_what_is_noted_later_is_added_to_what_was_known() -> None:
    """Whichever session it is of, and in whatever order their files are read."""
    found = known(SessionNote("one", 100, user="ann"), SessionNote("two", 200), SessionNote("one", end_us=150))
    assert [found.owner("ann", at) for at in (120, 160)] == ["one", None]


def test_the_first_start_and_the_last_end_count() -> None:
    """The line that tells of a start may have been written later; a session may be ended twice."""
    found = known(SessionNote("one", 200, 300), SessionNote("one", 100), SessionNote("one", end_us=400))
    assert [found.owner(None, at) for at in (99, 100, 400, 401)] == [None, "one", "one", None]


def test_the_stand_in_for_a_session_is_none() -> None:
    """Its documents tell when hooks that did not find their session ended."""
    found = known(SessionNote("one", 100), SessionNote("default-session", 150), SessionNote("default", 160))
    assert found.owner(None, 170) == "one"


def test_people_are_told_apart_and_nobody_is_nobody() -> None:
    """An account and an e-mail address of one name are one person; `unknown` is what hooks wrote for none."""
    found = known(SessionNote("one", 100, user="ann"), SessionNote("two", 150, user="Bob"))
    assert [found.owner(user, 160) for user in ("ann@x.test", "bob", "eve", None)] == ["one", "two", None, None]
    found = known(SessionNote("one", 100, user="ann"), SessionNote("two", 150, user="unknown"))
    assert found.owner("j.doe@x.test", 160) == "two"


def test_an_open_session_ends_by_itself() -> None:
    """One whose end was never written does not take every later call."""
    found = known(SessionNote("one", 100))
    assert [found.owner(None, 100 + more) for more in (OPEN_US_MAX, OPEN_US_MAX + 1)] == ["one", None]


def test_sessions_are_bounded() -> None:
    """The ones that began first are forgotten, with their people."""
    found = OlderSessions()
    for number in range(sessions.SESSIONS_MAX + 1):
        found.note(SessionNote(f"s{number}", number, number, user="ann" if number == 0 else "bob"))
    assert found.owner(None, 0) is None
    assert found.owner(None, 5) == "s5"


notes = st.builds(
    SessionNote,
    session=st.sampled_from(["a", "b", "c", "d"]),
    start_us=st.none() | st.integers(0, 50),
    end_us=st.none() | st.integers(0, 50),
    user=st.sampled_from([None, "ann", "bob"]),
    project=st.none(),
    fields=st.just({}),
    changes=st.just(()),
    directory=st.none(),
    branch=st.none(),
    score=st.none(),
    kept=st.just({}),
)


@given(st.lists(notes, max_size=20))
def test_any_order_of_notes_keeps_the_spans_sorted_and_whole(some: list[SessionNote]) -> None:
    """Looking up by time is a search in a sorted list, so that order is the law."""
    found = known(*some)
    spans = found._spans
    assert all(one[:2] < other[:2] for one, other in pairwise(spans))
    assert {span.session: span for span in spans} == found._by_session
    for span in spans:
        starts = [note.start_us for note in some if note.session == span.session and note.start_us is not None]
        assert span.start_us == min(starts)
