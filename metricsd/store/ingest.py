"""Takes what was read into the store: rows, checkpoint and quarantine entries of one unit in one transaction.

This is the promise of exactly once: events and the offset that covers them commit together or not at all. With
`full` the commit is on disk before the call returns, which is what deleting a capture needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from metricsd.crash import crash_point
from metricsd.errors import MetricsdError
from metricsd.ids import EventId
from metricsd.model import Event, Kind, Outcome
from metricsd.store import events, quarantine, sources, state
from metricsd.store.connection import Store
from metricsd.store.events import Identified
from metricsd.store.quarantine import Reject
from metricsd.store.recent import CallKey, RecentCalls
from metricsd.store.sources import Checkpoint

SWEEPS_PER_CAP = 8
"""In a flood of bad lines the quarantine is swept each time that it grew by this part of its cap."""
FOLD_BEFORE = "fold_before_us"
"""State key: events before this time have been folded into the totals and can no longer be recognised."""

_CRITICAL_KINDS = frozenset({Kind.SESSION_ENDED.value, Kind.TURN_FAILED.value})
_FAILED = Outcome.FAILED.value


def is_critical(event: Event) -> bool:
    """Return whether an event is worth sending within a second: a session that ended, something that failed."""
    return event.outcome == _FAILED or event.kind in _CRITICAL_KINDS


class Beside(Protocol):
    """Something that a line tells beside its event, stored in the same unit."""

    def put(self, store: Store) -> None:
        """Write it inside the caller's transaction; a second time changes nothing."""
        ...


class Taken(NamedTuple):
    """added: new events; known: seen before; twins: the same fact captured twice; rejected: gone to quarantine.

    critical: something that other devices should hear of at once was among the new ones.
    """

    added: int
    known: int
    twins: int
    rejected: int
    critical: bool = False


class Ingest:
    """The writing end of one store. Not thread-safe: it belongs to the thread that writes the store."""

    def __init__(self, store: Store, *, quarantine_bytes_max: int | None = None) -> None:
        self._store = store
        self._quarantine_bytes_max = quarantine_bytes_max
        self._unswept_bytes = 0
        self._recent = RecentCalls(store)

    def expect(self, calls: Mapping[CallKey, EventId]) -> None:
        """Take calls that the cloud has already: of two captures of one fact the other one is dropped."""
        self._recent.expect(calls)

    def take(
        self,
        items: list[Identified],
        *,
        rejects: Sequence[Reject] = (),
        beside: Sequence[Beside] = (),
        checkpoint: Checkpoint | None = None,
        forget: Sequence[str] = (),
        full: bool = False,
    ) -> Taken:
        """Commit one unit. Raises StoreUnavailable or StoreCorrupt, and then nothing of it is stored."""
        store = self._store
        try:
            with store.transaction(full=full):
                device = events.own_device(store)
                items, old = self._split_old(items)
                kept = self._recent.keep_first(items)
                inserted = events.insert(store, kept, device=device)
                crash_point("after_insert")
                if rejects or old:
                    self._unswept_bytes += quarantine.add_all(store, [*rejects, *old])
                if len(kept) != len(items):
                    state.add(store, "twins_dropped", len(items) - len(kept))
                for one in beside:
                    one.put(store)
                if checkpoint is not None:
                    sources.put(store, checkpoint)
                if forget:
                    sources.drop(store, forget)
                crash_point("before_commit")
        except BaseException:
            self._recent.forget()
            raise
        crash_point("after_commit")
        self._keep_cap()
        critical = inserted.added > 0 and any(is_critical(item.event) for item in kept)
        return Taken(inserted.added, inserted.known, len(items) - len(kept), len(rejects) + len(old), critical)

    def _keep_cap(self) -> None:
        """Summarise the oldest quarantined bytes now, if a flood would pass the cap before the hourly sweep."""
        cap = self._quarantine_bytes_max
        if cap is None or self._unswept_bytes <= max(cap // SWEEPS_PER_CAP, quarantine.BYTES_KEPT_MAX):
            return
        self._unswept_bytes = 0
        # What was taken is committed: a sweep that fails is the next one's matter.
        with contextlib.suppress(MetricsdError):
            quarantine.sweep(self._store, older_than_us=self._store.clock.now_us(), bytes_max=cap)

    def _split_old(self, items: list[Identified]) -> tuple[list[Identified], list[Reject]]:
        """Refuse what is older than the newest fold: whether it was counted can no longer be told."""
        before = state.get_int(self._store, FOLD_BEFORE)
        if not before or all(item.event.at >= before for item in items):
            return items, []
        old = [
            Reject(f"event:{item.id.hex()}", 0, None, "too_old", item.event.name)
            for item in items
            if item.event.at < before
        ]
        return [item for item in items if item.event.at >= before], old
