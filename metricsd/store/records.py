"""Records: the mutable things that can conflict, with a stamp for each field and the base both sides agreed on.

An edit stamps what it changes and marks the record dirty; a push compares and sets on the base's revision. When both
sides changed since the base, the record keeps the local version, `conflict_log` keeps base, local and remote, and
the record is not pushed until `decide` brings the result: nothing is overwritten and nobody decides silently. All
functions that write run inside the caller's transaction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from math import isfinite

import msgspec

from metricsd import import_batch
from metricsd.conflict import Version as Version
from metricsd.conflict import same as same
from metricsd.errors import LineRejected
from metricsd.hlc import parse_stamp
from metricsd.protocol import RECORD_ID_BYTES_MAX, FieldValue, RecordState
from metricsd.store import batches, conflict_log, hlc_mark, place
from metricsd.store.conflict_log import Decision, Entry, State, text_of, version_from
from metricsd.store.connection import Store
from metricsd.store.record_steps import (
    NOTHING,
    common,
    confirmed,
    decided,
    edited,
    is_own,
    offered,
    rebased,
    restamped,
    sending,
    stamps_of,
    taken,
)
from metricsd.store.record_steps import Met as Met
from metricsd.store.record_steps import Pending as Pending
from metricsd.store.record_steps import Record as Record
from metricsd.store.record_steps import meet as meet

FIELDS_MAX = 64
VALUE_BYTES_MAX = 16 * 1024
"""Longest text of one field, and of all texts of a list together."""
REV_CHARS_MAX = 100
BY_HAND = "by_hand"
"""Strategy of a conflict that a person decided."""
_NUMBER_MAX = 2**63 - 1
_is_name = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}").fullmatch

_GET = "SELECT fields, stamps, deleted, stamp, base, rev, dirty, conflict, sent FROM record WHERE type = ? AND id = ?"
_PUT = """
INSERT INTO record (type, id, fields, stamps, deleted, stamp, base, rev, dirty, conflict, sent)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET fields = excluded.fields, stamps = excluded.stamps, deleted = excluded.deleted,
    stamp = excluded.stamp, base = excluded.base, rev = excluded.rev, dirty = excluded.dirty,
    conflict = excluded.conflict, sent = excluded.sent
"""
_PENDING = """
SELECT type, id FROM record WHERE dirty > 0 AND conflict IS NULL AND (type, id) > (?, ?) ORDER BY type, id LIMIT ?
"""
_DIRTY = "SELECT type, id FROM record WHERE dirty > 0"
_STAMP_CHARS = 18
"""Characters of a stamp's text before the device id."""
_NAME_DEVICE = f"""
UPDATE record SET stamps = replace(stamps, ?, ?),
    stamp = CASE WHEN stamp LIKE ? THEN substr(stamp, 1, {_STAMP_CHARS}) || ? ELSE stamp END
WHERE dirty > 0
"""


_encode = msgspec.json.Encoder(order="sorted").encode
_decode_fields = msgspec.json.Decoder(dict[str, FieldValue]).decode
_decode_stamps = msgspec.json.Decoder(dict[str, str]).decode


def get(store: Store, kind: str, record_id: str) -> Record | None:
    """Return a record, deleted ones too; None when there is none."""
    row = store.db.execute(_GET, (kind, record_id)).fetchone()
    if row is None:
        return None
    fields, stamps, deleted, stamp, base, rev, dirty, conflict, sent = row
    version = Version(fields=_decode_fields(fields), stamps=_decode_stamps(stamps), deleted=bool(deleted), stamp=stamp)
    known = tuple(sent.split()) if sent else ()
    return Record(version, version_from(base) if base else None, rev, dirty, conflict, known)


def edit(store: Store, kind: str, record_id: str, fields: Mapping[str, FieldValue], *, delete: bool = False) -> Version:
    """Change fields of a record (None clears one), or delete it; return the version that results.

    A field that already has the value keeps its stamp. Editing a deleted record brings it back. Raises LineRejected
    for a name or value that the wire could not carry.
    """
    check(kind, record_id, fields)
    old = get(store, kind, record_id) or NOTHING
    new = edited(old, fields, delete=delete, make_stamp=partial(hlc_mark.make, store))
    if new is old:
        return old.version
    _put(store, kind, record_id, new)
    if old.conflict is not None:
        conflict_log.local_changed(store, old.conflict, new.version)
    return new.version


def replace(store: Store, kind: str, record_id: str, wanted: Version) -> Version:
    """Make a record say what `wanted` says, as an edit of now; return the version that results."""
    if wanted.deleted:
        return edit(store, kind, record_id, {}, delete=True)
    old = get(store, kind, record_id)
    cleared: dict[str, FieldValue] = dict.fromkeys(old.version.fields) if old is not None else {}
    return edit(store, kind, record_id, cleared | wanted.fields)


def decide(store: Store, entry: Entry, result: Version, decision: Decision) -> bool:
    """Make `result` the version of a record in conflict, on top of the remote one, and log by what it was decided.

    Returns False, and changes nothing, when either side has changed since the entry was read. Raises LineRejected
    for a result that no record can have.
    """
    record = get(store, entry.type, entry.record_id)
    if record is None or record.conflict != entry.id or record.version != entry.local:
        return False
    if not conflict_log.is_open(store, entry.id, entry.remote_rev):
        return False
    check(entry.type, entry.record_id, result.fields)
    new = decided(record, entry.remote, entry.remote_rev, result)
    _put(store, entry.type, entry.record_id, new)
    conflict_log.resolve(store, entry._replace(local=record.version), new.version, decision)
    return True


def restore(store: Store, entry: Entry, wanted: Version) -> Version:
    """Bring one side of a logged conflict back as an edit of now. An open conflict is decided by it."""
    if entry.state == State.OPEN:
        # The edit goes on top of the cloud's version, or it would be the same conflict again.
        adopted = Record(entry.remote, entry.remote, entry.remote_rev, 0, None)
        _put(store, entry.type, entry.record_id, adopted)
        conflict_log.resolve(store, entry, wanted, Decision(BY_HAND, "metricsd conflicts restore", None))
    return replace(store, entry.type, entry.record_id, wanted)


def pending(store: Store, limit: int, after: tuple[str, str] = ("", "")) -> list[Pending]:
    """Return up to `limit` records that the cloud does not have yet, behind `after`, without those in conflict."""
    found = []
    for kind, record_id in store.db.execute(_PENDING, (*after, limit)).fetchall():
        record = get(store, kind, record_id)
        if record is not None:
            found.append(offered(kind, record_id, record))
    return found


def pending_count(store: Store) -> int:
    """Return how many records wait to be pushed, without those in conflict."""
    sql = "SELECT count(*) FROM record WHERE dirty > 0 AND conflict IS NULL"
    return int(store.db.execute(sql).fetchone()[0])


def note_sending(store: Store, items: Iterable[Pending]) -> None:
    """Remember what is about to be offered, so that it is known again should the answer be lost."""
    for item in items:
        record = get(store, item.type, item.id)
        if record is not None and (new := sending(record, item)) is not record:
            _put(store, item.type, item.id, new)


def applied(store: Store, item: Pending, rev: str) -> None:
    """Note that the cloud has this version; a record that was edited meanwhile stays dirty."""
    record = get(store, item.type, item.id)
    if record is None:
        return
    _put(store, item.type, item.id, confirmed(record, item, rev))
    place.note(store, rev)


def refused(store: Store, item: Pending) -> None:
    """Stop pushing a version that the cloud will never take; the next edit tries again."""
    store.db.execute(
        "UPDATE record SET dirty = 0 WHERE type = ? AND id = ? AND dirty = ?", (item.type, item.id, item.dirty)
    )


def forgotten(store: Store, item: Pending) -> None:
    """Note that the cloud does not have this record any more: it is offered as a new one."""
    store.db.execute("UPDATE record SET rev = NULL WHERE type = ? AND id = ?", (item.type, item.id))


def conflict(store: Store, item: Pending, current: RecordState) -> Met:
    """Take the cloud's answer that it has another version than our base."""
    met = pulled(store, current)
    place.note(store, current.rev)
    return met


def pulled(store: Store, remote: RecordState) -> Met:
    """Take the cloud's version of a record: adopt it, keep ours on top of it, or open a conflict.

    Doing it twice changes nothing more. Raises LineRejected for a version that cannot be.
    """
    theirs = version_of(remote)
    hlc_mark.witness(store, stamps_of(theirs))
    record = get(store, remote.type, remote.id)
    if record is None:
        _put(store, remote.type, remote.id, Record(theirs, theirs, remote.rev, 0, None))
        return Met.ADOPTED
    own = is_own(record, theirs, remote.device, hlc_mark.device_of(store))
    record = common(record, theirs)
    met = meet(record.version, record.base, theirs, own=own)
    if met is Met.CONFLICT:
        _keep_open(store, remote, record, theirs)
        return met
    _close(store, record, met)
    _put(store, remote.type, remote.id, taken(record, theirs, remote.rev, met))
    return met


def in_conflict(store: Store, limit: int, after: int = 0) -> list[Entry]:
    """Return open conflicts behind number `after`, with the local version as it is now."""
    found = []
    for entry in conflict_log.list_open(store, limit, after):
        record = get(store, entry.type, entry.record_id)
        if record is not None and record.conflict == entry.id:
            found.append(entry._replace(local=record.version))
    return found


def stamps_in(entry: Entry) -> list[str]:
    """Return every stamp of a conflict's versions."""
    return [stamp for version in (entry.base, entry.local, entry.remote) if version for stamp in stamps_of(version)]


def verify(store: Store) -> None:
    """Ask the cloud for each record whether it still stands: deletions may be forgotten by now. Revisions stay."""
    store.db.execute("UPDATE record SET dirty = dirty + 1 WHERE rev IS NOT NULL")


def reoffer(store: Store) -> None:
    """Offer every record again: the cloud lost history, or it is another cloud. Bases stay, to recognise our past."""
    store.db.execute("UPDATE record SET rev = NULL, dirty = dirty + 1 WHERE rev IS NOT NULL")


def name_device(store: Store) -> None:
    """Put the device's id into the stamps that were made before it had one."""
    device = hlc_mark.device_of(store)
    if device != hlc_mark.UNENROLLED:
        # Device ids are of an alphabet that needs no escaping in JSON.
        store.db.execute(_NAME_DEVICE, (f'-{hlc_mark.UNENROLLED}"', f'-{device}"', f"%-{hlc_mark.UNENROLLED}", device))


def restamp(store: Store, limit_ms: int, ceiling_ms: int) -> int:
    """Re-base the unpushed stamps that are later than `limit_ms` onto that time, in their order; return how many records.

    Their order among each other stays, and so does their place behind what they were made after: an agreed stamp of
    the same records up to `ceiling_ms` (the latest that the cloud allows) is still passed. No edit is lost, and the
    mark is lowered with them.
    """
    if hlc_mark.read(store).ms <= limit_ms:
        return 0
    changed = {
        (kind, record_id): record
        for kind, record_id in store.db.execute(_DIRTY).fetchall()
        if (record := get(store, kind, record_id)) is not None
    }
    renamed, mark = rebased(changed.values(), limit_ms, ceiling_ms, hlc_mark.device_of(store))
    hlc_mark.lower(store, mark)
    count = 0
    for (kind, record_id), record in changed.items():
        version = restamped(record.version, renamed)
        if version != record.version:
            _put(store, kind, record_id, record._replace(version=version))
            count += 1
    return count


def version_of(remote: RecordState) -> Version:
    """Return the version in a state from the cloud; raise LineRejected for one that cannot be."""
    check(remote.type, remote.id, remote.fields)
    if not 0 < len(remote.rev) <= REV_CHARS_MAX:
        raise LineRejected("bad_record", "the revision is missing or too long")
    version = Version(fields=remote.fields, stamps=remote.stamps, deleted=remote.deleted, stamp=remote.stamp)
    if not version.stamps.keys() <= version.fields.keys():
        raise LineRejected("bad_record", "it has stamps of fields that it does not have")
    if not all(map(is_stamp, stamps_of(version))):
        raise LineRejected("bad_record", "it has a stamp that is none")
    return version


def is_stamp(text: str) -> bool:
    """Return whether this is the text of a stamp."""
    try:
        parse_stamp(text)
    except ValueError:
        return False
    return True


def check(kind: str, record_id: str, fields: Mapping[str, FieldValue]) -> None:
    """Raise LineRejected unless the address and the fields are ones that a record can have."""
    if not _is_name(kind) or not record_id or len(record_id.encode("utf-8", "replace")) > RECORD_ID_BYTES_MAX:
        raise LineRejected("bad_record", f"a record's id has 1 to {RECORD_ID_BYTES_MAX} bytes, its type is a name")
    if len(fields) > FIELDS_MAX:
        raise LineRejected("bad_record", f"{len(fields)} fields, more than {FIELDS_MAX}")
    for name, value in fields.items():
        if not _is_name(name):
            raise LineRejected("bad_record", "a field's name is letters, digits, '_' and '.'")
        if not _is_value(value):
            raise LineRejected("bad_record", f"{name}: its value is too large")


def _is_value(value: FieldValue) -> bool:
    match value:
        case bool() | None:
            return True
        case int():
            return -_NUMBER_MAX <= value <= _NUMBER_MAX
        case float():
            return isfinite(value)
        case str():
            return len(value) <= VALUE_BYTES_MAX
        case list():
            return sum(len(part) + 1 for part in value) <= VALUE_BYTES_MAX


def _keep_open(store: Store, remote: RecordState, record: Record, theirs: Version) -> None:
    if record.conflict is not None:
        conflict_log.remote_changed(store, record.conflict, theirs, remote.rev)
        return
    versions = (record.base, record.version, theirs)
    opened = conflict_log.begin(store, (remote.type, remote.id), versions, remote.rev)
    _put(store, remote.type, remote.id, record._replace(conflict=opened, dirty=max(record.dirty, 1)))


def _close(store: Store, record: Record, met: Met) -> None:
    if record.conflict is not None:
        conflict_log.settle(store, record.conflict, met.value)


def _put(store: Store, kind: str, record_id: str, record: Record) -> None:
    version = record.version
    old = get(store, kind, record_id) if kind == import_batch.TYPE else None
    values = (
        kind, record_id, _encode(version.fields).decode(), _encode(version.stamps).decode(), int(version.deleted),
        version.stamp, text_of(record.base) if record.base else None, record.rev, record.dirty, record.conflict,
        " ".join(record.sent) or None,
    )  # fmt: skip
    store.db.execute(_PUT, values)
    if kind == import_batch.TYPE:
        # Whatever changed it (a person, the cloud, a policy), the events that it covers follow at once.
        batches.changed(store, record_id, old.version if old is not None else None, version)
