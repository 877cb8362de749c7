"""Recognises the same fact captured twice, for example when a hook is registered in the settings and in a plug-in.

Such events have different ids but one natural key (app, session, call id, event name). The window holds the newest
own calls in memory and is rebuilt from the table after a start or a rollback; a later twin is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from metricsd.ids import EventId
from metricsd.store import events
from metricsd.store.connection import Store
from metricsd.store.events import Identified

WINDOW_CALLS = 4096
CallKey = tuple[str, str | None, str, str]


class RecentCalls:
    """The window of one open store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[CallKey, EventId] = {}
        self._expected: dict[CallKey, EventId] = {}
        self._stale = True

    def expect(self, calls: Mapping[CallKey, EventId]) -> None:
        """Take calls that the cloud was given before the store had them: of two captures of one, theirs is kept."""
        self._expected = dict(calls)
        self._stale = True

    def forget(self) -> None:
        """Drop the window after a rollback; it is read again when it is next needed."""
        self._stale = True

    def _rebuild(self) -> None:
        self._stale = False
        self._seen = dict(self._expected)
        for _, event_id, event in reversed(events.read_newest(self._store, WINDOW_CALLS)):
            if event.call is not None:
                self._seen[(event.app, event.session, event.call, event.name)] = event_id

    def keep_first(self, items: list[Identified]) -> list[Identified]:
        """Return the items without twins of other events. The same event again is not a twin: its id decides."""
        if self._stale:
            self._rebuild()
        kept: list[Identified] = []
        seen = self._seen
        for item in items:
            event_id, e = item
            if e.call is not None:
                key = (e.app, e.session, e.call, e.name)
                first = seen.get(key)
                if first is None:
                    seen[key] = event_id
                elif first != event_id:
                    continue
            kept.append(item)
        excess = len(seen) - WINDOW_CALLS - len(self._expected)
        if excess > 0:
            # The oldest go, all at once: one after the other costs as much as looking them up.
            self._seen = dict(islice(seen.items(), excess, None))
        return kept
