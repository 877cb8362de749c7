"""The device's stream to the cloud: where it begins, how far it is acknowledged, what comes next.

The event table is its own outbox: seq = position - base. Nothing is ever taken out; acknowledging moves a mark, in
a transaction that is on disk before anyone relies on it. Whose an event is follows the cloud's answers, so that the
same fact on two devices counts once. Every function that writes runs a transaction of its own and survives being
run again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from metricsd.errors import StoreReplaced
from metricsd.ids import DeviceId, EventId
from metricsd.model import Event
from metricsd.store import events, place, quarantine, records, state
from metricsd.store.connection import Store
from metricsd.store.counters import CounterRow
from metricsd.store.quarantine import Reject

CURSOR = "sync_cursor"
FIRST_EPOCH = 1
IN_DOUBT = 0
"""Epoch of a stream that may lack what it once had; see `doubt`."""
COUNT_MAX = 10_000
"""Pending events are counted one by one up to here; beyond, the distance of the positions is close enough."""

_DEVICE = "stream_device"
_CLOUD = "stream_cloud"
_EPOCH = "stream_epoch"
_BASE = "stream_base"
_ACKED = "stream_acked"
_ACKED_ID = "stream_acked_id"
_SETTLED = "stream_settled"

_COUNT = f"SELECT count(*) FROM (SELECT 1 FROM event WHERE pos > ? LIMIT {COUNT_MAX})"
_ID_AT = "SELECT id FROM event WHERE pos = ?"
_OWNERS = "SELECT pos, device FROM event WHERE pos BETWEEN ? AND ?"
_UNACKED = "SELECT pos FROM event WHERE pos > ? AND device = ?"
_REOFFER_COUNTERS = "UPDATE session_counters SET rev = NULL, dirty = dirty + 1 WHERE device = ?"

_DROP_COUNTERS = "UPDATE session_counters SET dirty = 0 WHERE session = ? AND device = ? AND dirty = ?"


class Stream(NamedTuple):
    """The state of the stream.

    acked_seq, acked_id  what the cloud has acknowledged, and the hex id of the event there ("" at 0)
    settled_seq          at least acked_seq; what lies between was refused by the cloud and is in quarantine
    """

    device_id: DeviceId
    cloud: str
    epoch: int
    base: int
    acked_seq: int
    acked_id: str
    settled_seq: int


class Item(NamedTuple):
    """An event at its place in the stream."""

    seq: int
    id: EventId
    event: Event


class Settled(NamedTuple):
    """What the cloud said about a batch.

    mine       seqs of events that are this device's
    elsewhere  other device id -> seqs of events that the cloud has from that device
    """

    acked_seq: int
    acked_id: str
    mine: Sequence[int] = ()
    elsewhere: Mapping[str, Sequence[int]] = {}
    rejects: Sequence[Reject] = ()


def find(store: Store) -> Stream | None:
    """Return the stream's state; None before the first enrolment."""
    device_id = state.get_text(store, _DEVICE)
    if not device_id:
        return None
    return Stream(
        DeviceId(device_id),
        state.get_text(store, _CLOUD),
        state.get_int(store, _EPOCH, FIRST_EPOCH),
        state.get_int(store, _BASE),
        state.get_int(store, _ACKED),
        state.get_text(store, _ACKED_ID),
        state.get_int(store, _SETTLED),
    )


def pending_events(store: Store) -> int:
    """Return how many own events wait to be sent: exact up to COUNT_MAX, and zero exactly when none waits."""
    stream = find(store)
    after = stream.base + stream.settled_seq if stream else 0
    newest = events.last_pos(store)
    if newest <= after:
        return 0
    counted = int(store.db.execute(_COUNT, (after,)).fetchone()[0])
    return counted if counted < COUNT_MAX else newest - after


def next_items(store: Store, stream: Stream, limit: int) -> list[Item]:
    """Return the next events to send, in order; positions that retention has emptied are left out."""
    rows = events.read_own(store, stream.base + stream.settled_seq, limit)
    return [Item(pos - stream.base, event_id, event) for pos, event_id, event in rows]


def id_at(store: Store, stream: Stream, seq: int) -> EventId | None:
    """Return the id of the event at `seq`; None when none lies there (any more)."""
    row = store.db.execute(_ID_AT, (stream.base + seq,)).fetchone() if seq > 0 else None
    return EventId(row[0]) if row else None


def last_seq(store: Store, stream: Stream) -> int:
    """Return the newest seq of the stream."""
    return max(events.last_pos(store) - stream.base, 0)


def enrol(store: Store, device_id: DeviceId, cloud: str) -> Stream:
    """Make the store a device of `cloud` (any text that names the tenant), keeping everything that it already holds.

    All own events are offered: what the cloud has from an earlier id of ours it answers with that id. At the first
    enrolment, and in another cloud, the own device row takes the new name; in the same cloud the earlier id keeps
    its acknowledged events.
    """
    old = find(store)
    if old is not None and old.device_id == device_id:
        return old
    with store.transaction(full=True):
        stream = Stream(device_id, cloud, FIRST_EPOCH, 0, 0, "", 0)
        if old is not None and old.cloud == cloud:
            _switch(store, old, device_id)
            _put(store, stream)
            _reoffer_counters(store)
            _verify(store)
        else:
            _rename(store, device_id)
            _put(store, stream)
            records.name_device(store)
            _reoffer(store)
    return stream


def fork(store: Store, device_id: DeviceId) -> Stream:
    """Go on under a new device id: unacknowledged events move to it, acknowledged ones keep the old id.

    The cursor goes back to the start, so that what the old id has in the cloud and is missing here is pulled.
    """
    old = find(store)
    if old is None or old.device_id == device_id:
        raise AssertionError("a fork needs a stream and another device id")
    with store.transaction(full=True):
        _switch(store, old, device_id)
        stream = Stream(device_id, old.cloud, FIRST_EPOCH, old.base + old.acked_seq, 0, "", 0)
        _put(store, stream)
        _reoffer_counters(store)
        _verify(store)
    return stream


def resume(store: Store, device_id: str, cloud: str) -> None:
    """Name the device that a store without a past goes on for, inside the caller's transaction; nothing is settled."""
    _rename(store, DeviceId(device_id))
    _put(store, Stream(DeviceId(device_id), cloud, IN_DOUBT, 0, 0, "", 0))


def doubt(store: Store) -> None:
    """Note that the stream may lack what the cloud has of it: this store was made of a backup or of a damaged one.

    No epoch is this one, so the next hello ends in a fork: events go on under a new device id, what the cloud has of
    this one is pulled, and nothing is sent in the place of what is missing.
    """
    stream = find(store)
    if stream is None:
        return
    with store.transaction(full=True):
        _put(store, stream._replace(epoch=IN_DOUBT))


def acknowledge(store: Store, stream: Stream, settled: Settled) -> Stream:
    """Move the mark to what the cloud has settled, once that is on disk; give each event to the device that has it."""
    with _on_same(store, stream):
        own = events.own_device(store)
        targets = dict.fromkeys(settled.mine, own)
        for device_id, seqs in settled.elsewhere.items():
            targets.update(dict.fromkeys(seqs, events.device_row(store, device_id)))
        _give(store, stream.base, targets)
        quarantine.add_all(store, settled.rejects)
        seq = max(settled.acked_seq, stream.acked_seq)
        event_id = settled.acked_id if settled.acked_seq > stream.acked_seq else stream.acked_id
        new = stream._replace(acked_seq=seq, acked_id=event_id, settled_seq=max(seq, stream.settled_seq))
        _put(store, new)
    return new


def skip(store: Store, stream: Stream, seq: int, reject: Reject) -> Stream:
    """Pass over one event that the cloud refuses to even look at; it lies in quarantine and stays in the store."""
    with _on_same(store, stream):
        quarantine.add_all(store, [reject])
        new = stream._replace(settled_seq=max(seq, stream.settled_seq))
        _put(store, new)
    return new


def resend(store: Store, stream: Stream) -> Stream:
    """Go back to the acknowledged mark, to be told again what an answer said that was lost on its way."""
    with _on_same(store, stream):
        new = stream._replace(settled_seq=stream.acked_seq)
        _put(store, new)
    return new


def rewind(store: Store, stream: Stream, seq: int, event_id: str) -> Stream:
    """Go back to what the cloud still has, and offer again everything that it lost."""
    with _on_same(store, stream):
        new = stream._replace(acked_seq=seq, acked_id=event_id, settled_seq=seq)
        _put(store, new)
        _reoffer(store)
    return new


def relist(store: Store) -> None:
    """Start the feed over and offer records and counters again: the cloud does not know our cursor any more."""
    with store.transaction(full=True):
        _reoffer(store)


def verify(store: Store) -> None:
    """Start the feed over and ask for each record whether it still stands: deletions may be forgotten by now.

    Unlike `relist` this keeps the revisions, because the cloud's history is the one that we know.
    """
    with store.transaction(full=True):
        _verify(store)


def drop_counters(store: Store, row: CounterRow) -> None:
    """Stop pushing a version of session counters that the cloud will never take; the next event tries again."""
    store.db.execute(_DROP_COUNTERS, (row.session, row.device, row.dirty))


@contextlib.contextmanager
def _on_same(store: Store, stream: Stream) -> Iterator[None]:
    """Run a block as a durable transaction, if the store still has the stream that its caller knows.

    A store that was put back or repaired while the cloud was asked has other events at these positions: what the cloud
    settled is not settled there. Raises StoreReplaced then.
    """
    with store.transaction(full=True):
        now = find(store)
        if now is None or (now.device_id, now.epoch, now.base) != (stream.device_id, stream.epoch, stream.base):
            raise StoreReplaced
        yield


def _put(store: Store, stream: Stream) -> None:
    state.put(store, _DEVICE, stream.device_id)
    state.put(store, _CLOUD, stream.cloud)
    state.put(store, _EPOCH, stream.epoch)
    state.put(store, _BASE, stream.base)
    state.put(store, _ACKED, stream.acked_seq)
    state.put(store, _ACKED_ID, stream.acked_id)
    state.put(store, _SETTLED, stream.settled_seq)


def _verify(store: Store) -> None:
    """Start the feed over in the history that we know, which the next hello shows our place in, to be told if it is."""
    place.note(store, state.get_text(store, CURSOR))
    state.delete(store, CURSOR)
    records.verify(store)


def _reoffer(store: Store) -> None:
    state.delete(store, CURSOR)
    place.forget(store)
    _reoffer_counters(store)
    records.reoffer(store)


def _reoffer_counters(store: Store) -> None:
    store.db.execute(_REOFFER_COUNTERS, (events.own_device(store),))


def _rename(store: Store, device_id: DeviceId) -> None:
    """Give the own device row its (new) name."""
    row = events.own_device(store)
    taken = store.db.execute("SELECT id FROM device WHERE device_id = ?", (device_id,)).fetchone()
    if taken is not None and taken[0] != row:
        # The id is known already: this store was restored from a time after that enrolment.
        _become(store, row, int(taken[0]), after=0)
        return
    store.db.execute("UPDATE device SET device_id = ? WHERE id = ?", (device_id, row))
    store.terms.forget()


def _switch(store: Store, old: Stream, device_id: DeviceId) -> None:
    """Make a new row the own device, and move what the cloud has not acknowledged under the old one."""
    row = events.own_device(store)
    _become(store, row, events.device_row(store, device_id, own=True), after=old.base + old.acked_seq)


def _become(store: Store, old_row: int, new_row: int, *, after: int) -> None:
    if old_row == new_row:
        return
    state.put(store, "own_device", new_row)
    store.db.execute("UPDATE device SET own = 1 WHERE id = ?", (new_row,))
    positions = [pos for (pos,) in store.db.execute(_UNACKED, (after, old_row))]
    events.move(store, positions, new_row)


def _give(store: Store, base: int, targets: Mapping[int, int]) -> None:
    """Move the events at these seqs to the device rows that the cloud named, where they differ."""
    if not targets:
        return
    wrong: dict[int, list[int]] = {}
    for pos, device in store.db.execute(_OWNERS, (base + min(targets), base + max(targets))):
        target = targets.get(pos - base)
        if target is not None and target != device:
            wrong.setdefault(target, []).append(pos)
    for target, positions in wrong.items():
        events.move(store, positions, target)
