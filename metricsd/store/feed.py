"""Takes pages of the cloud's feed into the store: what a page brought and the cursor behind it in one transaction.

A page applied twice changes nothing more. Whatever the cloud sends is checked here as if a stranger had written it:
a value that cannot be goes to quarantine, and the stream goes on behind it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from metricsd.errors import LineRejected
from metricsd.ids import EVENT_ID_BYTES, EventId
from metricsd.model import NAME_CHARS_MAX, Event
from metricsd.protocol import COUNTERS, Change, RecordState, WireEvent
from metricsd.store import batches, counters, events, quarantine, records, state
from metricsd.store.connection import Store
from metricsd.store.events import Identified
from metricsd.store.outbox import CURSOR
from metricsd.store.quarantine import Reject
from metricsd.store.records import Met

FOLD_BEFORE = "fold_before_us"
EXTRA_KEYS_MAX = 16
_AT_MAX = 253_402_300_799_999_999
"""The last microsecond of the year 9999: later times cannot be shown."""
_NUMBER_MAX = 2**63 - 1
_REASON = "bad_change"
_RECORDS_ONLY = "sync_records_only"

_is_cursor = re.compile(r"[0-9A-Za-z._:-]{0,200}").fullmatch
_is_device = re.compile(r"[0-9A-Za-z._-]{1,64}").fullmatch
_decode = msgspec.json.Decoder(Change).decode
_TEXTS = ("session", "tool", "outcome", "call", "project", "branch", "model", "agent", "subject", "reason", "batch")
_NUMBERS = ("duration_ms", "input_bytes", "output_bytes", "lines_added", "lines_removed")
_EVENTS_OF = """
SELECT c.events FROM session_counters AS c JOIN session AS s ON s.id = c.session
WHERE c.device = ? AND s.app = ? AND s.session_id = ?
"""


class Applied(NamedTuple):
    """What a page changed: new events, records that said something new, conflicts opened, items refused."""

    events: int = 0
    records: int = 0
    conflicts: int = 0
    rejected: int = 0


class _Page(NamedTuple):
    events: dict[str, list[Identified]]
    records: list[tuple[msgspec.Raw, RecordState]]
    rejects: list[Reject]


def begin(store: Store, *, only_records: bool) -> str:
    """Return the cursor to pull from. Events that earlier pulls left out need the feed from its start."""
    if state.get_int(store, _RECORDS_ONLY) and not only_records:
        with store.transaction():
            state.delete(store, CURSOR)
            state.delete(store, _RECORDS_ONLY)
    elif only_records and not state.get_int(store, _RECORDS_ONLY):
        with store.transaction():
            state.put(store, _RECORDS_ONLY, 1)
    return state.get_text(store, CURSOR)


def apply(store: Store, items: Sequence[msgspec.Raw], cursor: str, *, origin: str, only_records: bool) -> Applied:
    """Apply one page and keep `cursor`, or do nothing of it. `origin` names the cloud in the quarantine."""
    if not _is_cursor(cursor):
        raise LineRejected("bad_cursor", "the cloud's cursor cannot be one: check the address")
    page = _parse(items, origin)
    with store.transaction():
        own = events.device_id_of(store, events.own_device(store))
        added = 0
        if not only_records:
            for device_id, some in page.events.items():
                if device_id != own:
                    added += _take_events(store, device_id, some)
        met = [_take_record(store, raw, record, own, origin) for raw, record in page.records]
        rejects = [*page.rejects, *(one for one in met if isinstance(one, Reject))]
        quarantine.add_all(store, rejects)
        state.put(store, CURSOR, cursor)
    taken = [one for one in met if isinstance(one, Met)]
    # Own records come back too: what says the same is no news.
    return Applied(added, len(taken) - taken.count(Met.SAME), taken.count(Met.CONFLICT), len(rejects))


def is_device_id(text: str) -> bool:
    """Return whether this can be a device id."""
    return _is_device(text) is not None


def event_of(wire: WireEvent) -> Identified:
    """Return the event of a wire form; raise LineRejected for one that cannot be."""
    try:
        event_id = bytes.fromhex(wire.id)
    except ValueError as error:
        raise LineRejected(_REASON, "id is not hexadecimal") from error
    if len(event_id) != EVENT_ID_BYTES:
        raise LineRejected(_REASON, f"id has {len(event_id)} bytes, not {EVENT_ID_BYTES}")
    if not 0 <= wire.at <= _AT_MAX:
        raise LineRejected(_REASON, "at is not a time between 1970 and 9999")
    for name in ("kind", "name", "app"):
        if not _text(name, getattr(wire, name)):
            raise LineRejected(_REASON, f"{name} is empty")
    for name in _TEXTS:
        _text(name, getattr(wire, name))
    for name in _NUMBERS:
        _number(name, getattr(wire, name))
    _check_extra(wire.extra)
    event = Event(**{name: getattr(wire, name) for name in Event.__struct_fields__})
    return Identified(EventId(event_id), event)


def _parse(items: Sequence[msgspec.Raw], origin: str) -> _Page:
    page = _Page({}, [], [])
    for raw in items:
        try:
            change = _decode(raw)
            if change.record is not None:
                page.records.append((raw, change.record))
            if change.event is not None:
                page.events.setdefault(_device(change.device), []).append(event_of(change.event))
        except LineRejected as error:
            page.rejects.append(Reject(origin, 0, bytes(raw), error.reason, error.detail))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            page.rejects.append(Reject(origin, 0, bytes(raw), _REASON, str(error)))
    return page


def _take_events(store: Store, device_id: str, items: list[Identified]) -> int:
    """Insert another device's events; one that is here as our own was theirs first and moves to them.

    If an import brought it here too, the batch of theirs holds: so all devices agree on what takes it back.
    """
    horizon = state.get_int(store, FOLD_BEFORE)
    items = [item for item in items if item.event.at >= horizon] if horizon else items
    row = events.device_row(store, device_id)
    here = events.locate(store, (item.id for item in items))
    moved = [pos for pos, device in here.values() if pos > 0 and device != row]
    events.move(store, moved, row)
    theirs = {item.id: item.event.batch for item in items if item.id in here and _is_of(here[item.id], row)}
    batches.adopt(store, theirs)
    fresh = [item for item in items if item.id not in here]
    return events.insert(store, fresh, device=row).added


def _is_of(place: tuple[int, int], row: int) -> bool:
    """Return whether an event at (position, device row) is that device's, or becomes it now."""
    pos, device = place
    return pos > 0 or device == row


def _take_record(store: Store, raw: msgspec.Raw, record: RecordState, own: str, origin: str) -> Met | Reject | None:
    try:
        if record.type != COUNTERS:
            return records.pulled(store, record)
        return Met.ADOPTED if _take_counters(store, record, own) else None
    except LineRejected as error:
        return Reject(origin, 0, bytes(raw), error.reason, error.detail)


def _take_counters(store: Store, record: RecordState, own: str) -> bool:
    """Store another device's counters; return False for our own, which only ingest may write."""
    device_id, _, rest = record.id.partition("/")
    app, _, session_id = rest.partition("/")
    if device_id != record.device or not _text("app", app) or not _text("session", session_id):
        raise LineRejected(_REASON, "a session counter's id is <device>/<app>/<session>, written by that device")
    if not 0 < len(record.rev) <= records.REV_CHARS_MAX:
        raise LineRejected(_REASON, "the revision is missing or too long")
    if _device(device_id) == own:
        return False
    for name in counters.TEXTS:
        value = record.fields.get(name)
        if isinstance(value, str):
            _text(name, value)
    if _is_older(store, device_id, app, session_id, record):
        return False
    counters.put_remote(store, device_id, app, session_id, dict(record.fields), record.rev)
    return True


def _is_older(store: Store, device_id: str, app: str, session_id: str, record: RecordState) -> bool:
    """Return whether the cloud knows less of a session under an earlier id of ours than this store does.

    Nobody pushes that row any more; if the last push before a fork was lost, this store has the truth.
    """
    earlier = store.db.execute("SELECT id FROM device WHERE device_id = ? AND own = 1", (device_id,)).fetchone()
    if earlier is None:
        return False
    row = store.db.execute(_EVENTS_OF, (earlier[0], app, session_id)).fetchone()
    told = record.fields.get("events", 0)
    return row is not None and (not isinstance(told, int) or told < row[0])


def _device(text: str) -> str:
    if not _is_device(text):
        raise LineRejected(_REASON, "the device id is malformed")
    return text


def _text(name: str, value: str | None) -> str | None:
    # Unprintable characters could steer the terminal that shows them.
    if value is not None and (len(value) > NAME_CHARS_MAX or not value.isprintable()):
        raise LineRejected(_REASON, f"{name} is too long or not printable")
    return value


def _number(name: str, value: int | None) -> int | None:
    if value is not None and not 0 <= value <= _NUMBER_MAX:
        raise LineRejected(_REASON, f"{name} is not between 0 and 2^63 - 1")
    return value


def _check_extra(extra: dict[str, int | str] | None) -> None:
    if extra is None:
        return
    if len(extra) > EXTRA_KEYS_MAX:
        raise LineRejected(_REASON, f"extra has {len(extra)} keys, more than {EXTRA_KEYS_MAX}")
    for key, value in extra.items():
        _text("extra", key)
        if isinstance(value, str):
            _text(key[:40], value)
        else:
            _number(key[:40], value)
