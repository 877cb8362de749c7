"""The audit log's hash chain: how a row is hashed, and how a changed, removed or reordered row is found.

Each row's hash covers the row and the hash before it, and where the log ends is kept beside it. Whoever can write the
database can make a new chain that is consistent in itself; a head that an administrator wrote down elsewhere
(`audit verify --expect`) finds that too. Everything here is pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from metricsd.cloud.access import Act
from metricsd.cloud.registry import AuditHead, AuditRow

GENESIS = bytes(32)
"""The hash before the first row."""


def canonical(seq: int, act: Act) -> bytes:
    """Return the one text of a row that its hash covers: a JSON array without spaces, details sorted by name."""
    details = sorted(act.detail.items())
    return msgspec.json.encode([seq, act.at, act.actor, act.action, act.tenant, act.subject, details])


def chained(before: AuditHead, act: Act) -> AuditRow:
    """Return the row that an act becomes behind `before`."""
    seq = before.seq + 1
    return AuditRow(seq, act, hashlib.sha256(before.hash + canonical(seq, act)).digest())


def find_break(before: AuditHead, rows: Sequence[AuditRow]) -> str | None:
    """Return what is wrong with the first row that does not follow `before`; None when all do."""
    for row in rows:
        if row.seq != before.seq + 1:
            return f"row {before.seq + 1} is missing: row {row.seq} comes in its place"
        if chained(before, row.act).hash != row.hash:
            return f"row {row.seq} was changed, or a row before it was exchanged"
        before = AuditHead(row.seq, row.hash)
    return None


def find_wrong_end(last: AuditHead, kept: AuditHead) -> str | None:
    """Return what is wrong with the log's end, `last` being its last row; None when it is where it should be."""
    if last.seq != kept.seq:
        return f"the log ends with row {last.seq}, and row {kept.seq} was written: rows at its end are missing or new"
    return None if last.hash == kept.hash else f"row {last.seq} is not the one that was written last"
