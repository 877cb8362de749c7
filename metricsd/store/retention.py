"""Folds old events into the daily totals that already count them, and drops their rows.

Off by default. Only what the cloud has, or what no cloud is there for, is dropped. The fold's horizon is stored
before the first row goes: from then on an older line is refused as `too_old`, because whether it was counted can
no longer be told. The horizon lies behind the newest row that goes and not where the clock says: a clock that is
years ahead would otherwise have everything refused until those years are over.
"""

from __future__ import annotations

from metricsd.clock import US_PER_S
from metricsd.store import batches, rollups, state
from metricsd.store.connection import Store
from metricsd.store.ingest import FOLD_BEFORE

DAY_US = 86400 * US_PER_S
ROWS_PER_TRANSACTION = 5000
LEAP_US = 7 * DAY_US
"""From one hourly look to the next: a clock that went on by more was set, or slept through it."""
LOOKED_AT = "retention_looked_us"
ROOM_KEPT_US = DAY_US
"""However short room is, the last day stays: lines of it may still be on their way."""
_NTH_OLDEST = "SELECT max(at) FROM (SELECT at FROM event WHERE pos <= ? ORDER BY at LIMIT ?)"
_OLD = "SELECT pos FROM event WHERE at < ? AND pos <= ? ORDER BY pos LIMIT ?"
_NEWEST_OLD = "SELECT max(at) FROM event WHERE at < ? AND pos <= ?"
_DROP = f"DELETE FROM event WHERE pos IN ({_OLD})"


def goes_on(store: Store) -> bool:
    """Return whether the wall clock went on since the last look as clocks do, and remember this look.

    After a leap everything would look old, and what is dropped then does not come back when the clock is set right:
    what goes by age waits for one more look.
    """
    now, seen = store.clock.now_us(), state.get_int(store, LOOKED_AT)
    with store.transaction():
        state.put(store, LOOKED_AT, now)
    return 0 < now - seen <= LEAP_US


def fold(store: Store, *, days: int, synced_through: int | None) -> int:
    """Drop events older than `days`; return how many rows went.

    `synced_through` is the newest own position that the cloud has; None when there is no cloud.
    """
    if days <= 0:
        return 0
    folded = state.get_int(store, FOLD_BEFORE)
    horizon = max(store.clock.now_us() - days * DAY_US, folded)
    newest = state.get_int(store, "last_pos") if synced_through is None else synced_through
    latest = store.db.execute(_NEWEST_OLD, (horizon, newest)).fetchone()[0]
    if latest is None:
        return 0
    with store.transaction(full=True):
        state.put(store, FOLD_BEFORE, max(latest + 1, folded))
    return _drop(store, horizon, newest)


def _drop(store: Store, horizon: int, newest: int) -> int:
    dropped = 0
    while True:
        with store.transaction():
            old = (horizon, newest, ROWS_PER_TRANSACTION)
            rollups.before_drop(store, _OLD, old)
            batches.before_drop(store, _OLD, old)
            rows = store.db.execute(_DROP, old).rowcount
            state.add(store, "live_events", -rows)
        dropped += rows
        if rows < ROWS_PER_TRANSACTION:
            return dropped


def make_room(store: Store, rows: int, *, synced_through: int | None, before_us: int | None = None) -> int:
    """Drop about `rows` of the oldest events that the cloud has, by the rule of `fold`; return how many went.

    Nothing of the last day goes, nothing from `before_us` on, and nothing at all where there is no cloud. The space is
    used again inside the file.
    """
    if synced_through is None:
        return 0
    found = store.db.execute(_NTH_OLDEST, (synced_through, rows)).fetchone()
    if found is None or found[0] is None:
        return 0
    latest = (
        store.clock.now_us() - ROOM_KEPT_US
        if before_us is None
        else min(before_us, store.clock.now_us() - ROOM_KEPT_US)
    )
    horizon = max(min(found[0] + 1, latest), state.get_int(store, FOLD_BEFORE))
    with store.transaction(full=True):
        state.put(store, FOLD_BEFORE, horizon)
    return _drop(store, horizon, synced_through)
