"""How a pushed change of a record meets the version that the cloud holds: pure, so that every backend decides alike.

The cloud detects a conflict and never decides one. What is asked of the database (the current version, the horizon of
forgotten deletions) comes in as values, and what is to be written goes out as values.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from metricsd import import_batch
from metricsd.clock import US_PER_MS, US_PER_S
from metricsd.cloud.wiretext import revision_text
from metricsd.hlc import MILLIS_MAX, Stamp, parse_stamp
from metricsd.protocol import COUNTERS, FieldValue, RecordChange, RecordResult, RecordState

STAMP_AHEAD_MS_MAX = 5 * 60 * 1000
"""How far a stamp may run ahead of the server: a wrong clock must not win for ever (DESIGN section 7)."""
TOMBSTONE_DAYS = 400
"""How long a deletion is kept for devices that are away (DESIGN section 1): a year, and a long holiday."""
EXPIRED_MAX = 1000
"""Tombstones that one push clears away: it is done on the way, so it must be short."""
DAY_US = 86_400 * US_PER_S

decode_fields = msgspec.json.Decoder(dict[str, FieldValue]).decode
decode_stamps = msgspec.json.Decoder(dict[str, str]).decode


class Content(NamedTuple):
    """What a record says, apart from who wrote it when."""

    fields: dict[str, FieldValue]
    stamps: dict[str, str]
    deleted: bool
    stamp: str | None


class Horizon(NamedTuple):
    """The highest change number whose tombstone was cleared away, and its transaction's nonce; 0 when none was."""

    change: int
    nonce: int


def highest_stamp(now: int, device: str) -> Stamp:
    """Return the highest stamp that is taken at `now` (microseconds UTC)."""
    return Stamp(now // US_PER_MS + STAMP_AHEAD_MS_MAX, 0, device)


def is_ahead(change: RecordChange, highest: Stamp) -> bool:
    """Return whether a change has a stamp above the highest that is taken."""
    stamps = list(change.stamps.values()) + ([] if change.stamp is None else [change.stamp])
    return any(parse_stamp(stamp)[:2] > highest[:2] for stamp in stamps)


def merged(current: RecordState | None, change: RecordChange) -> Content:
    """Return the content after a change: its fields over the current ones. A tombstone keeps the fields."""
    fields = {} if current is None else current.fields
    stamps = {} if current is None else current.stamps
    return Content(
        fields | change.fields, stamps | change.stamps, change.deleted, change.stamp if change.deleted else None
    )


def is_replay(current: RecordState, change: RecordChange, content: Content, device: str) -> bool:
    """Return whether this change is already in force, so that saying so hides nothing from the device.

    That is so when the device itself wrote last (its write compared with a base it knew), when it offers the whole
    record as it stands, or when it asks whether its base still holds, by a change of nothing.
    """
    same = content == Content(current.fields, current.stamps, current.deleted, current.stamp)
    whole = change.base_rev is None and change.fields == current.fields
    return same and (current.device == device or whole or change.base_rev == current.rev)


def is_foreign(change: RecordChange, device: str) -> bool:
    """Return whether these are the derived counters of another device, which only that one may write."""
    return change.type == COUNTERS and not change.id.startswith(f"{device}/")


def answer_on(current: RecordState, change: RecordChange, content: Content, device: str) -> RecordResult | None:
    """Answer a change of a record that is here; None when it is to be written."""
    if is_replay(current, change, content, device):
        return RecordResult(status="applied", rev=current.rev)
    if change.type != COUNTERS and change.base_rev != current.rev:
        return RecordResult(status="conflict", current=current)
    return None


def asks_for_base(change: RecordChange) -> bool:
    """Return whether a change of a record that is not here builds on a base that must be looked up."""
    return change.type != COUNTERS and change.base_rev is not None


def answer_missing(change: RecordChange, known: int | None, horizon: Horizon) -> RecordResult | None:
    """Answer a change on a base of a record that is not here; None when it may make the record.

    `known` is the base's change number if it is of this history. A base of another history means that this database
    lost the record, and the fields that travel are only the changed ones: the device offers it whole. A base of this
    history means that it was deleted and the tombstone is gone: the device is given one, whose revision is the
    horizon's, and may revive the record on top of that.
    """
    if known is None:
        return RecordResult(status="conflict")
    if change.deleted or horizon.change in (0, known):
        # Where nothing was ever cleared away, the base is another record's: a new one starts here.
        return None
    rev = revision_text(horizon.change, horizon.nonce)
    return RecordResult(
        status="conflict", current=RecordState(type=change.type, id=change.id, rev=rev, device="", deleted=True)
    )


def switches(kind: str, before: RecordState | None, after: Content) -> bool:
    """Return whether other imported events count after a record became `after`."""
    if kind != import_batch.TYPE:
        return False
    then = (False, None) if before is None else _covered(before.fields, deleted=before.deleted)
    return then != _covered(after.fields, deleted=after.deleted)


def _covered(fields: dict[str, FieldValue], *, deleted: bool) -> tuple[bool, FieldValue]:
    """Return whether a record takes something out, and what, if it is a selection."""
    inactive = import_batch.is_inactive(fields, deleted=deleted)
    return inactive, fields.get(import_batch.ONLY) if inactive else None


def is_own(record: RecordState, device_id: str) -> bool:
    """Return whether all that a record says is of this device, its last writer, and there is something left of it."""
    said = bool(record.fields or record.stamps) or not record.deleted
    return said and all(parse_stamp(stamp).device == device_id for stamp in record.stamps.values())


def deletion_stamp(record: RecordState, device_id: str, now: int) -> str:
    """Return a stamp above all of the record's own, so that no device takes the deletion for older than an edit."""
    own = [*record.stamps.values(), *([] if record.stamp is None else [record.stamp])]
    latest = max((parse_stamp(stamp).ms for stamp in own), default=0)
    return Stamp(min(max(now // US_PER_MS, latest + 1), MILLIS_MAX), 0, device_id).text()
