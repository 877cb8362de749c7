"""Events that were stored before anybody knew to which session they belong, and what becomes of them when it is known.

An older hook wrote its calls without their session, and the file that tells of the session may be copied here later
than the one with the calls. Such an event is moved to its session as long as the cloud has not acknowledged it: what
the cloud has is the same everywhere and stays. What an import brought stays too: it has found its sessions by itself,
and is compared with its source later. Functions that write run inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from metricsd.clock import US_PER_MS, US_PER_S
from metricsd.store import legacy_extra, outbox
from metricsd.store.connection import Store
from metricsd.store.counters import Tally, add_tallies, subtract_tallies
from metricsd.store.devices import own_device
from metricsd.store.events import SELECT, from_row

CALLERS = "callers"
"""Kind of the item in `legacy_extra` that says who made calls without a session: on this machine alone."""
CALLERS_MAX = 16
WINDOW_US_MAX = 7 * 24 * 3600 * US_PER_S
"""A session that is said to have run for longer adopts calls of its first days only: a search must have an end."""
PAGE = 500

_KEY = ""
_ROWS = "SELECT id FROM session WHERE app = ? AND session_id IN ({0})"
# The plus keeps SQLite from reading all calls without a session for each stretch of time.
_PAGE = f"""{SELECT} WHERE event.id > ? AND event.id < ? AND +event.session IN ({{0}}) AND pos > ? AND event.device = ?
AND event.batch IS NULL ORDER BY event.id LIMIT {PAGE}"""

Owner = Callable[[str | None, int], str | None]
"""(who made a call, when) -> its session."""


class Caller(NamedTuple):
    """Somebody who made a call without a session."""

    user: str

    def put(self, store: Store) -> None:
        """Remember who it was."""
        known = callers(store)
        if self.user not in known and len(known) < CALLERS_MAX:
            legacy_extra.put(store, CALLERS, _KEY, {"users": [*known, self.user]})


class Adoption(NamedTuple):
    """A session became known that ran at this time (microseconds UTC); `names` stand for no session."""

    app: str
    names: Iterable[str]
    start_us: int
    until_us: int
    owner: Owner

    def put(self, store: Store) -> None:
        """Move the calls of that time that have no session to the ones they belong to."""
        names = sorted(self.names)
        rows = store.db.execute(_ROWS.format(", ".join("?" * len(names))), (self.app, *names))
        orphaned = [row[0] for row in rows]
        if not orphaned:
            return
        people: list[str] = callers(store)
        for page in _pages(store, orphaned, self.start_us, min(self.until_us, self.start_us + WINDOW_US_MAX)):
            owned = [(row, _owner_of(row[2], people, self.owner)) for row in page]
            _move(store, [(row, session) for row, session in owned if session is not None], self.app)


def callers(store: Store) -> list[str]:
    """Return who made calls without a session."""
    found = legacy_extra.find(store, CALLERS, _KEY)
    return [] if found is None else list(found.get("users", ()))


def _owner_of(at_us: int, people: list[str], owner: Owner) -> str | None:
    """Return the session of a call of which only its time is kept: one that all who could have made it agree on."""
    found = {owner(user, at_us) for user in people} or {owner(None, at_us)}
    return found.pop() if len(found) == 1 else None


def _pages(store: Store, orphaned: list[int], start_us: int, until_us: int) -> Iterator[list[Any]]:
    """Yield the events of that time which may still move; an id begins with its time."""
    stream = outbox.find(store)
    after = 0 if stream is None else stream.base + stream.settled_seq
    sql = _PAGE.format(", ".join("?" * len(orphaned)))
    last, end = _id_from(start_us), _id_from(until_us + US_PER_S)
    while page := store.db.execute(sql, (last, end, *orphaned, after, own_device(store))).fetchall():
        last = page[-1][1]
        yield page


def _move(store: Store, found: list[tuple[Any, str]], app: str) -> None:
    own = own_device(store)
    lost: dict[int, Tally] = {}
    won: dict[int, Tally] = {}
    moves = []
    for row, session in found:
        pos, _, event = from_row(store.terms.name, row)
        target = store.terms.session(app, session)
        lost.setdefault(row[5], Tally()).count(event)
        won.setdefault(target, Tally()).count(event)
        moves.append((target, pos))
    store.db.executemany("UPDATE event SET session = ? WHERE pos = ?", moves)
    subtract_tallies(store, own, lost)
    add_tallies(store, own, won)


def _id_from(at_us: int) -> bytes:
    return max(at_us // US_PER_MS, 0).to_bytes(6, "big")
