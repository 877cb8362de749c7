"""Digests of sets of rows: the sum of the rows' hashes, so that order does not matter and parts add up and come off.

A hash is 128 bits of BLAKE2b over the row's canonical bytes, keyed with a constant of this use; the sum is modulo 2^128.
That shows what was lost, doubled or changed by mistake; it is no proof against somebody who picks rows on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from metricsd.model import Event
from metricsd.protocol import FieldValue
from metricsd.store.events import Identified

HASH_BYTES = 16
_MODULUS = 1 << (8 * HASH_BYTES)
_KEY = b"metricsd import"
_encode = msgspec.msgpack.Encoder(order="sorted").encode
_encode_json = msgspec.json.Encoder(order="sorted").encode


class Digest(NamedTuple):
    """How many rows, and the sum of their hashes."""

    rows: int = 0
    total: int = 0

    def plus(self, other: Digest) -> Digest:
        """Return the digest of both sets together."""
        return Digest(self.rows + other.rows, (self.total + other.total) % _MODULUS)

    def minus(self, other: Digest) -> Digest:
        """Return the digest of what is left without the other set."""
        return Digest(self.rows - other.rows, (self.total - other.total) % _MODULUS)

    def pack(self) -> bytes:
        """Return the sum as 16 bytes."""
        return self.total.to_bytes(HASH_BYTES, "big")

    def text(self) -> str:
        """Return it for people and for comparing: rows, then the sum."""
        return f"{self.rows}:{self.pack().hex()}"


def unpack(rows: int, total: bytes) -> Digest:
    """Return the digest of what `pack` made."""
    return Digest(rows, int.from_bytes(total, "big"))


def of_events(items: Iterable[Identified]) -> Digest:
    """Return the digest of events. The import that brought one is no part of it: the same fact has the same hash."""
    rows = total = 0
    for event_id, event in items:
        total += int.from_bytes(_hash(event_id + _encode(_bare(event))), "big")
        rows += 1
    return Digest(rows, total % _MODULUS)


def of_record(kind: str, record_id: str, fields: Mapping[str, FieldValue], *, deleted: bool = False) -> Digest:
    """Return the digest of one record's values; stamps are no part of it."""
    return Digest(1, int.from_bytes(hash_of(kind, record_id, fields, deleted), "big"))


def hash_of(*values: object) -> bytes:
    """Return 16 bytes that are equal for equal values, whole numbers of any length among them."""
    return _hash(_encode_json(values))


def _bare(event: Event) -> Event:
    return event if event.batch is None else replace(event, batch=None)


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=HASH_BYTES, key=_KEY).digest()
