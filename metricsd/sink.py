"""What the reading parts of the tail share: where lines go, and how the work of a round is counted.

The store's Ingest is the only sink today. One call is one unit: it commits as a whole or raises and stores nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from metricsd.store.events import Identified
from metricsd.store.ingest import Beside, Taken
from metricsd.store.quarantine import Reject
from metricsd.store.sources import Checkpoint

REFUSALS = (sqlite3.Error, OverflowError, UnicodeError, TypeError, ValueError)
"""What SQLite's binding raises for one value that it cannot store; a StoreError (disk, lock) is none of these."""


class Sink(Protocol):
    """Where lines go: the store's Ingest."""

    def take(
        self,
        items: list[Identified],
        *,
        rejects: Sequence[Reject] = ...,
        beside: Sequence[Beside] = ...,
        checkpoint: Checkpoint | None = ...,
        forget: Sequence[str] = ...,
        full: bool = ...,
    ) -> Taken:
        """Commit one unit, or raise and store nothing of it."""
        ...


class Ticked(NamedTuple):
    """What one tick did. `more`: work is left and the next tick should come at once; `critical`: see Taken."""

    added: int
    known: int
    rejected: int
    more: bool
    critical: bool = False


NOTHING = Ticked(0, 0, 0, more=False)


def ticked(taken: Taken, *, more: bool = False) -> Ticked:
    """Return a unit's outcome in the words of a tick."""
    return Ticked(taken.added, taken.known + taken.twins, taken.rejected, more, taken.critical)


def both(a: Ticked, b: Ticked) -> Ticked:
    """Return two pieces of work as one."""
    critical = a.critical or b.critical
    return Ticked(a.added + b.added, a.known + b.known, a.rejected + b.rejected, a.more or b.more, critical)


def plus(a: Taken, b: Taken) -> Taken:
    """Return two units as one."""
    critical = a.critical or b.critical
    return Taken(a.added + b.added, a.known + b.known, a.twins + b.twins, a.rejected + b.rejected, critical)


def take_each(
    sink: Sink,
    items: Sequence[Identified],
    rejects: Sequence[Reject],
    beside: Sequence[Beside],
    checkpoint: Checkpoint | None = None,
    *,
    name: str,
) -> Taken:
    """Store one by one what the database refused as a whole, and the checkpoint when every one is settled.

    What is refused again goes to quarantine by what it was, and for what is no event by the file's name and a number:
    the bytes are still in the file that others own.
    """
    total = Taken(0, 0, 0, 0)
    for item in items:
        try:
            taken = sink.take([item])
        except REFUSALS as error:
            refused = Reject(f"event:{item.id.hex()}", 0, None, "store_refused", type(error).__name__)
            taken = sink.take([], rejects=[refused])
        total = plus(total, taken)
    for number, one in enumerate(beside):
        try:
            taken = sink.take([], beside=[one])
        except REFUSALS as error:
            detail = f"{type(one).__name__}: {type(error).__name__}"
            refused = Reject(f"{name}:{type(one).__name__}", number, None, "store_refused", detail)
            taken = sink.take([], rejects=[refused])
        total = plus(total, taken)
    return plus(total, sink.take([], rejects=rejects, checkpoint=checkpoint))
