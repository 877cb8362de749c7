"""Which session of the older hooks ran when, and whose it was.

The second generation of those hooks could not find its session and wrote `default-session` on every call; a call
belongs to the session of the same person that ran at its time. Names of people are compared here and kept nowhere.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from typing import NamedTuple

from metricsd.clock import US_PER_S
from metricsd.decode.older_hooks import SessionNote

SESSIONS_MAX = 20_000
"""Sessions remembered, about 6 MB; beyond, the ones that began first are forgotten."""
OPEN_US_MAX = 24 * 3600 * US_PER_S
"""How long a session without an end is taken to run, unless another one of its user begins."""
OVERLAPPING_MAX = 64
"""Sessions before a moment that are looked at: that many do not run side by side."""


class Span(NamedTuple):
    """When a session ran, and whose it was."""

    start_us: int
    session: str
    end_us: int | None
    user: str | None


class OlderSessions:
    """The sessions of all folders of one home."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._by_session: dict[str, Span] = {}

    def note(self, note: SessionNote) -> None:
        """Remember what a line or a document says of a session; what was known of it stays, what is new is added."""
        old = self._by_session.get(note.session)
        # The first start that was read is the one that counts, as for its event.
        start = note.start_us if old is None else old.start_us
        if start is None:
            return
        end = note.end_us if old is None or old.end_us is None else old.end_us
        user = note.user if old is None or old.user is None else old.user
        new = Span(start, note.session, end, user)
        if new == old:
            return
        if old is not None:
            del self._spans[self._spans.index(old, bisect_right(self._spans, (start,)) - 1 if start else 0)]
        insort(self._spans, new, key=lambda span: span[:2])
        self._by_session[note.session] = new
        if len(self._spans) > SESSIONS_MAX:
            del self._by_session[self._spans.pop(0).session]

    def owner(self, user: str | None, at_us: int) -> str | None:
        """Return the session in which this person made a call at this time; None if there is none, or no telling.

        Of several the one that began last counts. Accounts and e-mail addresses are compared by what stands before
        the @; where only one person's sessions are known, everything is that person's.
        """
        behind = bisect_right(self._spans, at_us, key=lambda span: span.start_us)
        before = self._spans[max(behind - OVERLAPPING_MAX, 0) : behind]
        is_one_person = len({span.user for span in self._by_session.values()}) == 1
        return owner_among(before, user, at_us, is_one_person=is_one_person)


def owner_among(before: Sequence[Span], user: str | None, at_us: int, *, is_one_person: bool) -> str | None:
    """Return whose call at this time it was, of sessions that began before it, the latest last. Pure."""
    running = [
        span for span in before if at_us <= (span.start_us + OPEN_US_MAX if span.end_us is None else span.end_us)
    ]
    own = [span for span in running if _is_same(span.user, user)]
    if not own and is_one_person:
        own = running
    return own[-1].session if own else None


def _is_same(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return False
    return one == other or one.partition("@")[0].casefold() == other.partition("@")[0].casefold()
