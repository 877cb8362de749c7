"""The audit log's hash chain: how a row is hashed, and how a changed, removed or reordered row is found.

Each row's hash covers the row and the hash before it, and where the log ends is kept beside it. Whoever can write the
database can make a new chain that is consistent in itself; a head that an administrator wrote down elsewhere
(`audit verify --expect`) finds that too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from metricsd.cloud.access import Act
from metricsd.cloud.registry import AuditHead, AuditLog, AuditRow

GENESIS = bytes(32)
"""The hash before the first row."""
PAGE_ROWS = 1000


class Verdict(msgspec.Struct, frozen=True):
    """The last row that was looked at, and what is wrong with the log; None when nothing is."""

    last: AuditHead
    fault: str | None


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


async def verify(log: AuditLog, expected: AuditHead | None = None) -> Verdict:
    """Return whether the log is as it was written, and holds the row `expected` if one is given.

    The log may grow meanwhile: where it ends is asked again after the last page.
    """
    last = AuditHead(0, GENESIS)
    while True:
        while rows := await log.audit_page(last.seq, PAGE_ROWS):
            fault = find_break(last, rows) or find_unexpected(rows, expected)
            if fault is not None:
                return Verdict(last, fault)
            last = AuditHead(rows[-1].seq, rows[-1].hash)
        kept = await log.audit_head()
        if kept.seq <= last.seq or not await log.audit_page(last.seq, 1):
            break
    if expected is not None and expected.seq > last.seq:
        return Verdict(last, f"row {expected.seq} is missing: the log ends with row {last.seq}")
    return Verdict(last, find_wrong_end(last, kept))


def find_unexpected(rows: Sequence[AuditRow], expected: AuditHead | None) -> str | None:
    """Return what is wrong when one of the rows has the number of `expected` and another hash; None otherwise."""
    if expected is None:
        return None
    found = next((row for row in rows if row.seq == expected.seq), None)
    return None if found is None or found.hash == expected.hash else f"row {found.seq} is not the one that was expected"
