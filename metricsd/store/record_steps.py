"""What becomes of a record at each step of its life: edited, offered, confirmed, met by the cloud's version, decided.

All of it is pure: states go in and come out, and the next stamp is given. `records` keeps the results in SQLite, the
simulator in `tests/sim` keeps them in memory; both run these very functions, so what holds there holds here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from metricsd.conflict import Version, same
from metricsd.hlc import Stamp, next_stamp, observe, parse_stamp
from metricsd.protocol import FieldValue

SENT_MAX = 256
"""Marks of offers that a record remembers: four whole records of the most fields."""
SENT_HASH_BYTES = 6
"""Enough to tell two values under one stamp apart, which only twins with one id make."""


_HASH = "~"
"""Between stamp and hash of a mark; no stamp has it."""


class Record(NamedTuple):
    """A record as this device has it. `base` and `rev` are None before the first agreement with the cloud.

    `sent` are marks of what was offered to the cloud on top of the base, each a stamp and a hash of the field and its
    value: an offer may have arrived although its answer was lost, and then the cloud's version is one of ours.
    """

    version: Version
    base: Version | None
    rev: str | None
    dirty: int
    conflict: int | None
    sent: tuple[str, ...] = ()


NOTHING = Record(Version(), None, None, 0, None)
"""A record that nobody has made yet."""


class Pending(NamedTuple):
    """A record to push: what changed since the base, and what it is as a whole when that is applied."""

    type: str
    id: str
    rev: str | None
    changed: dict[str, FieldValue]
    stamps: dict[str, str]
    deleted: bool
    stamp: str | None
    version: Version
    dirty: int


class Met(StrEnum):
    """What came of comparing a remote version with the local one."""

    SAME = "same"
    ADOPTED = "adopted"
    AHEAD = "ahead"
    """The local version builds on the remote one: it is pushed on top of it."""
    CONFLICT = "conflict"


def edited(
    old: Record, fields: Mapping[str, FieldValue], *, delete: bool, make_stamp: Callable[[list[str]], Stamp]
) -> Record:
    """Return a record after an edit (None clears a field), or its deletion; `old` itself when that changes nothing.

    `make_stamp(seen)` gives the stamp of the edit, later than all in `seen`. A field that already has the value keeps
    its stamp. Editing a deleted record brings it back.
    """
    version = old.version
    changed = {name: value for name, value in fields.items() if version.fields.get(name) != value or version.deleted}
    if not changed and delete == version.deleted:
        return old
    stamp = make_stamp(stamps_of(version)).text()
    new = Version(
        fields=version.fields | changed,
        stamps=version.stamps | dict.fromkeys(changed, stamp),
        deleted=delete,
        stamp=stamp if delete != version.deleted else version.stamp,
    )
    return old._replace(version=new, dirty=old.dirty + 1)


def offered(kind: str, record_id: str, record: Record) -> Pending:
    """Return what to push of a record."""
    version, base = record.version, record.base
    known = base.fields if base is not None and record.rev is not None and not base.deleted else {}
    changed = {} if version.deleted else {n: v for n, v in version.fields.items() if n not in known or known[n] != v}
    if not version.deleted and base is not None:
        # What the cloud's version has and ours does not would stay there: it is cleared by name.
        changed |= {n: None for n, v in base.fields.items() if v is not None and n not in version.fields}
    stamps = {name: version.stamps[name] for name in changed if name in version.stamps}
    return Pending(kind, record_id, record.rev, changed, stamps, version.deleted, version.stamp, version, record.dirty)


def sending(record: Record, item: Pending) -> Record:
    """Return a record that remembers an offer, to be kept before that leaves; `record` itself if it knows it already."""
    # What is cleared without a stamp gets the one that it has in the cloud.
    stamps = (record.base.stamps if record.base is not None else {}) | item.stamps
    marks = {_mark(stamps[name], name, value) for name, value in item.changed.items() if name in stamps}
    if item.deleted and item.stamp:
        marks.add(_mark(item.stamp))
    if marks.issubset(record.sent):
        return record
    return record._replace(sent=tuple(sorted(marks.union(record.sent))[-SENT_MAX:]))


def confirmed(record: Record, item: Pending, rev: str) -> Record:
    """Return a record once the cloud has what was offered; one that was edited meanwhile stays dirty.

    The base is what the cloud then has: the offer on top of the old base. That is not quite the version offered: a
    tombstone keeps the fields that were there, and so do the stamps of fields that say what they said. Ours follow,
    or they would look edited for ever.
    """
    base, version = item.version, record.version
    if record.base is not None and item.rev is not None and item.rev == record.rev:
        fields, stamps = record.base.fields | item.changed, record.base.stamps | item.stamps
        base = Version(fields=fields, stamps=stamps, deleted=item.deleted, stamp=item.stamp)
    if record.dirty == item.dirty:
        return Record(base, base, rev, 0, record.conflict)
    sent = {n for n, stamp in version.stamps.items() if stamp == item.version.stamps.get(n)}
    agreed = {n: stamp for n, stamp in base.stamps.items() if n in sent and base.fields[n] == version.fields[n]}
    version = msgspec.structs.replace(version, stamps=version.stamps | agreed)
    return Record(version, base, rev, record.dirty, record.conflict)


def is_own(record: Record, remote: Version, writer: str, device: str) -> bool:
    """Return whether the remote version is an offer of ours whose answer was lost: nobody else changed anything.

    The writer's id is not enough for that: a twin has our id too, and so had we before this store was put back to an
    older copy. Everything that is new in it must be something that was offered from here.
    """
    if record.dirty == 0 or writer != device:
        return False
    base = record.base or NOTHING.version
    known = {_mark(stamp, name, base.fields.get(name)) for name, stamp in base.stamps.items()}.union(record.sent)
    if base.deleted and base.stamp:
        known.add(_mark(base.stamp))
    marks = {_mark(stamp, name, remote.fields[name]) for name, stamp in remote.stamps.items()}
    if remote.deleted:
        marks.add(_mark(remote.stamp or ""))
    return marks <= known


def meet(local: Version, base: Version | None, remote: Version, *, own: bool = False) -> Met:
    """Compare a remote version with the local one and their base.

    `own` says that the remote version is an offer of ours (`is_own`): the local one builds on it.
    """
    if same(local, remote):
        return Met.SAME
    if own:
        return Met.AHEAD
    if base is None:
        return Met.CONFLICT
    # Later stamps on what says the same tell that somebody changed it there and back, or deleted it once more.
    if same(remote, base) and is_past(remote, base) and (not remote.stamp or remote.stamp == base.stamp):
        return Met.AHEAD
    return Met.ADOPTED if same(local, base) and is_past(local, base) else Met.CONFLICT


def common(record: Record, remote: Version) -> Record:
    """Return a record with the base that it has in common with the cloud's version.

    That is the base itself, unless the cloud lost history since (`rev` is None then): what is older there than in the
    base is what the base was made of, not a change that somebody made.
    """
    base = record.base
    if record.rev is not None or base is None:
        return record
    if base.deleted and not remote.deleted:
        # Edits later than the deletion: whether they were made knowing of it went with the history. The policy decides.
        past = max(stamps_of(remote), default="") <= (base.stamp or "")
        return record._replace(base=remote if past else None)
    if remote.deleted:
        # What was brought back has the stamp of that; a later edit of a field does not tell that its writer knew.
        return record._replace(base=remote) if (remote.stamp or "") <= (base.stamp or "") else record
    old = {n for n, stamp in base.stamps.items() if remote.stamps.get(n, "") < stamp}
    fields = {n: remote.fields.get(n) if n in old else value for n, value in base.fields.items()}
    stamps = {n: remote.stamps.get(n, "") if n in old else stamp for n, stamp in base.stamps.items()}
    return record._replace(base=Version(fields=fields, stamps={n: s for n, s in stamps.items() if s}))


def taken(record: Record, theirs: Version, rev: str, met: Met) -> Record:
    """Return a record after it met the cloud's version; one in CONFLICT stays as it is until that is decided."""
    match met:
        case Met.SAME | Met.ADOPTED:
            return Record(theirs, theirs, rev, 0, None)
        case Met.AHEAD:
            return Record(record.version, theirs, rev, max(record.dirty, 1), None)
        case Met.CONFLICT:
            return record


def decided(record: Record, theirs: Version, rev: str, result: Version) -> Record:
    """Return a record in conflict once `result` holds: on top of the cloud's version, to be pushed if it differs."""
    if same(result, theirs):
        return Record(theirs, theirs, rev, 0, None)
    return Record(_covering(result, theirs), theirs, rev, record.dirty + 1, None)


def rebased(changed: Iterable[Record], limit_ms: int, ceiling_ms: int, device: str) -> tuple[dict[str, str], Stamp]:
    """Return new names for the unpushed stamps later than `limit_ms`, from that time on, and the mark after them.

    Their order among each other stays, and so does their place behind what they were made after: an agreed stamp of
    the same records up to `ceiling_ms` (the latest that the cloud allows) is still passed. So is one that was offered,
    which keeps its name: the cloud may have it under that.
    """
    records = list(changed)
    agreed = {s for record in records if record.base is not None for s in stamps_of(record.base)}
    offers = {mark.partition(_HASH)[0] for record in records for mark in record.sent}
    agreed |= {stamp for stamp in offers if parse_stamp(stamp).ms <= ceiling_ms}
    own = {s for record in records for s in stamps_of(record.version)} - agreed
    mark = Stamp(limit_ms, 0, device)
    for stamp in map(parse_stamp, agreed):
        mark = observe(mark, stamp) if stamp.ms <= ceiling_ms else mark
    renamed: dict[str, str] = {}
    for text in sorted(s for s in own if parse_stamp(s).ms > limit_ms):
        mark = next_stamp(mark, limit_ms, device)
        renamed[text] = mark.text()
    return renamed, mark


def restamped(version: Version, renamed: Mapping[str, str]) -> Version:
    """Return a version with its stamps under their new names."""
    stamps = {name: renamed.get(text, text) for name, text in version.stamps.items()}
    stamp = renamed.get(version.stamp, version.stamp) if version.stamp else None
    return Version(fields=version.fields, stamps=stamps, deleted=version.deleted, stamp=stamp)


def is_past(remote: Version, known: Version) -> bool:
    """Return whether nothing in the remote version, nor its deletion, is later than in a version that we know.

    Another value under an equal stamp is no past of ours: a twin with our identity wrote it at the same moment.
    """
    if (remote.stamp or "") > (known.stamp or ""):
        return False
    return all(
        stamp < (here := known.stamps.get(name, ""))
        or (stamp == here and remote.fields[name] == known.fields.get(name))
        for name, stamp in remote.stamps.items()
    )


def stamps_of(version: Version) -> list[str]:
    """Return every stamp in a version."""
    return [*version.stamps.values(), *([version.stamp] if version.stamp else [])]


def _mark(stamp: str, name: str = "", value: FieldValue = None) -> str:
    """Return the mark of a field's value under its stamp, or of a deletion."""
    if not name:
        return stamp
    said = msgspec.json.encode((name, value))
    return stamp + _HASH + blake2b(said, digest_size=SENT_HASH_BYTES).hexdigest()


def _covering(version: Version, remote: Version) -> Version:
    """Return the version with every field of the remote one named: what it does not have is cleared, not forgotten."""
    cleared: dict[str, FieldValue] = {name: None for name in remote.fields if name not in version.fields}
    return msgspec.structs.replace(version, fields=cleared | version.fields) if cleared else version
