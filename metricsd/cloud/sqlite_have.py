"""Which events of a user a tenant's file holds, by id and by range of ids.

Ids are unique in a tenant, but only the asking user's own count: what another user has is not told.
"""

from __future__ import annotations

import sqlite3
from hashlib import blake2b

from metricsd.cloud.backend import Writer
from metricsd.cloud.sqlite_events import IDS_PER_QUERY
from metricsd.cloud.sqlite_file import Terms
from metricsd.ids import EVENT_ID_BYTES
from metricsd.protocol import HaveReply, HaveRequest, IdRange, RangeDigest

NOBODY = -1
_RANGE = "SELECT id, user FROM event WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"


def find_have(db: sqlite3.Connection, terms: Terms, writer: Writer, asked: HaveRequest, rows_max: int) -> HaveReply:
    """Return what is missing of `ids`, and digests of the ranges as far as `rows_max` rows reach."""
    found = terms.find(writer.user)
    user = NOBODY if found is None else found
    held = _held(db, user, [bytes.fromhex(text) for text in asked.ids])
    digests: list[RangeDigest] = []
    rows_left = rows_max
    for each in asked.ranges:
        digest, looked_at = _digest(db, user, each, rows_left)
        digests.append(digest)
        rows_left -= looked_at
        if digest.through is not None or rows_left <= 0:
            break
    return HaveReply(missing=[text for text in asked.ids if bytes.fromhex(text) not in held], ranges=digests)


def _held(db: sqlite3.Connection, user: int, keys: list[bytes]) -> set[bytes]:
    held: set[bytes] = set()
    for start in range(0, len(keys), IDS_PER_QUERY):
        part = keys[start : start + IDS_PER_QUERY]
        marks = ",".join("?" * len(part))
        rows = db.execute(f"SELECT id FROM event WHERE user = ? AND id IN ({marks})", (user, *part))  # noqa: S608 - question marks only
        held.update(row[0] for row in rows)
    return held


def _digest(db: sqlite3.Connection, user: int, wanted: IdRange, rows_max: int) -> tuple[RangeDigest, int]:
    """Return a range's digest over the first `rows_max` rows, and how many rows were looked at."""
    ids = blake2b(digest_size=EVENT_ID_BYTES)
    count = looked_at = 0
    last = b""
    bounds = (bytes.fromhex(wanted.first), bytes.fromhex(wanted.last), rows_max + 1)
    for key, owner in db.execute(_RANGE, bounds):
        if looked_at == rows_max:
            return RangeDigest(count=count, digest=ids.hexdigest(), through=last.hex()), looked_at
        looked_at += 1
        last = key
        if owner == user:
            count += 1
            ids.update(key)
    return RangeDigest(count=count, digest=ids.hexdigest()), looked_at
