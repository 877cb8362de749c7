"""The device's hybrid clock: its high-water mark, kept in the store so that a restart never goes back.

Every stamp that is made or seen raises the mark. Only `lower` takes it back, when the cloud's time shows that this
machine's clock was ahead: a wrong year must neither win for ever nor poison others. All functions run inside the
caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable

from metricsd.clock import US_PER_MS
from metricsd.hlc import Stamp, next_stamp, observe, parse_stamp
from metricsd.store import state
from metricsd.store.connection import Store
from metricsd.store.devices import device_id_of, own_device

MARK = "hlc_mark"
UNENROLLED = "local"
"""Stands for the device before its first enrolment; `records.name_device` puts the real id in its place."""


def device_of(store: Store) -> str:
    """Return the device id that new stamps carry."""
    return device_id_of(store, own_device(store)) or UNENROLLED


def read(store: Store) -> Stamp:
    """Return the mark; the zero stamp before the first."""
    try:
        return parse_stamp(state.get_text(store, MARK))
    except ValueError:
        return Stamp(0, 0, UNENROLLED)


def make(store: Store, seen: Iterable[str] = ()) -> Stamp:
    """Return a new stamp that is greater than the mark and than every stamp in `seen`, and keep it as the mark."""
    mark = _highest(read(store), seen)
    stamp = next_stamp(mark, store.clock.now_us() // US_PER_MS, device_of(store))
    state.put(store, MARK, stamp.text())
    return stamp


def witness(store: Store, seen: Iterable[str]) -> None:
    """Raise the mark to the highest of the stamps seen."""
    old = read(store)
    mark = _highest(old, seen)
    if mark != old:
        state.put(store, MARK, mark.text())


def lower(store: Store, mark: Stamp) -> None:
    """Take the mark back to `mark`."""
    state.put(store, MARK, mark.text())


def _highest(mark: Stamp, seen: Iterable[str]) -> Stamp:
    for text in seen:
        mark = observe(mark, parse_stamp(text))
    return mark
