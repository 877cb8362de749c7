"""Which session of the older hooks ran when, and whose it was.

The second generation of those hooks could not find its session and wrote `default-session` on every call; a call
belongs to the session of the same person that ran at its time. Names of people are compared here and kept nowhere.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from metricsd.clock import US_PER_S
from metricsd.decode.names import repeated_id
from metricsd.decode.older_hooks import NO_SESSION, SessionNote

SESSIONS_MAX = 20_000
"""Sessions remembered, about 6 MB; beyond, the ones that began first are forgotten."""
OPEN_US_MAX = 24 * 3600 * US_PER_S
"""How long a session without an end is taken to run, unless another one of its user begins."""
OVERLAPPING_MAX = 64
"""Sessions before a moment that are looked at: that many do not run side by side."""
NOBODY = frozenset(("", "unknown"))
"""What hooks wrote for a person that they did not find."""


class Span(NamedTuple):
    """When a session ran (microseconds UTC), and whose it was."""

    start_us: int
    session: str
    end_us: int | None
    user: str | None

    @property
    def until_us(self) -> int:
        """The last moment at which a call can belong to it."""
        return self.start_us + OPEN_US_MAX if self.end_us is None else self.end_us


class OlderSessions:
    """The sessions of all folders of one home."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._by_session: dict[str, Span] = {}
        self._first_ends: dict[str, int] = {}
        self._people: Counter[str] = Counter()
        self._fresh: dict[str, Span] = {}

    def note(self, note: SessionNote) -> None:
        """Remember what a line or a document says of a session.

        Of several starts the first counts, of several ends the last: a session may be ended twice. The stand-in for
        a session that was not found is none.
        """
        session = repeated_id(note.session) or note.session
        old = self._by_session.get(session)
        starts = [at for at in (note.start_us, None if old is None else old.start_us) if at is not None]
        ends = [at for at in (note.end_us, None if old is None else old.end_us) if at is not None]
        if not starts or session in NO_SESSION:
            return
        if note.end_us is not None:
            self._first_ends[session] = min(note.end_us, self._first_ends.get(session, note.end_us))
        user = note.user if old is None or old.user is None else old.user
        new = Span(min(starts), session, max(ends, default=None), user)
        if new == old:
            return
        if old is not None:
            self._remove(self._place(old))
        self._spans.insert(self._place(new), new)
        self._by_session[new.session] = new
        if (person := person_of(user)) is not None:
            self._people[person] += 1
        self._fresh[session] = new
        if len(self._spans) > SESSIONS_MAX:
            self._first_ends.pop(self._remove(0).session, None)

    def fresh(self, limit: int) -> list[Span]:
        """Return sessions of which something new was noted: calls that came before may be theirs."""
        return list(islice(self._fresh.values(), limit))

    def settle(self, spans: Sequence[Span]) -> None:
        """Note that calls were looked for; a session that changed meanwhile stays fresh."""
        for span in spans:
            if self._fresh.get(span.session) == span:
                del self._fresh[span.session]

    def owner(self, user: str | None, at_us: int) -> str | None:
        """Return the session in which this person made a call at this time; None if there is none, or no telling.

        Of several the one that began last counts. Accounts and e-mail addresses are compared by what stands before
        the @; where only one person's sessions are known, everything is that person's.
        """
        return owner_among(self._before(at_us), user, at_us, is_one_person=len(self._people) <= 1)

    def ended_at(self, at_us: int) -> str | None:
        """Return the session that ended at just this time; None if there is none, or no telling."""
        found = [span for span in self._before(at_us) if span.end_us == at_us]
        return found[0].session if len(found) == 1 else None

    def ended_before(self, session: str, at_us: int) -> bool:
        """Return whether a session is known to have been ended before this time."""
        return self._first_ends.get(session, at_us) < at_us

    def _before(self, at_us: int) -> list[Span]:
        behind = bisect_right(self._spans, at_us, key=lambda span: span.start_us)
        return self._spans[max(behind - OVERLAPPING_MAX, 0) : behind]

    def _place(self, span: Span) -> int:
        return bisect_left(self._spans, span[:2], key=lambda one: one[:2])

    def _remove(self, place: int) -> Span:
        gone = self._spans.pop(place)
        del self._by_session[gone.session]
        self._fresh.pop(gone.session, None)
        person = person_of(gone.user)
        if person is not None:
            self._people[person] -= 1
            if not self._people[person]:
                del self._people[person]
        return gone


def owner_among(before: Sequence[Span], user: str | None, at_us: int, *, is_one_person: bool) -> str | None:
    """Return whose call at this time it was, of sessions that began before it, the latest last. Pure."""
    running = [span for span in before if at_us <= span.until_us]
    person = person_of(user)
    own = [span for span in running if person is not None and person_of(span.user) == person]
    if not own and is_one_person:
        own = running
    return own[-1].session if own else None


def person_of(user: str | None) -> str | None:
    """Return what is compared of an account's name or an e-mail address; None for nobody."""
    name = (user or "").partition("@")[0].casefold()
    return None if name in NOBODY else name
