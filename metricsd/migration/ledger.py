"""A run's ledger: what was rejected, found and noted, one JSON line each, in the order of the source, without content.

It is written ahead: a part's lines are in the file before the part commits, and its size then is stored with the part. A
run that goes on cuts off what belongs to no stored part. Reports are made from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

from metricsd.migration.model import Finding, Note, Rejected

HASH_CHARS = 16
_encode = msgspec.json.Encoder().encode


class Line(Struct, frozen=True, omit_defaults=True):
    """One line. `entry` is `reject`, `finding` or `note`.

    code    the reason of a reject, the rule of a finding, `<kind>.<code>` of a note
    value   what kind of value a finding is about, a reject's subject
    hash    the first 16 hexadecimal digits of SHA-256 of a rejected entry's bytes
    others  how many other entries were merged
    """

    entry: str
    code: str
    file: str = ""
    line: int = 0
    offset: int = 0
    field: str = ""
    severity: str = ""
    value: str = ""
    hash: str = ""
    others: int = 0
    detail: str = ""


_decode = msgspec.json.Decoder(Line).decode


class Ledger:
    """The ledger of a run that is being written."""

    def __init__(self, path: Path, size: int) -> None:
        """Go on behind the first `size` bytes; what lies behind them belongs to nothing that is stored."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(descriptor, min(size, os.fstat(descriptor).st_size))
        self._file = os.fdopen(descriptor, "r+b")
        self._file.seek(0, os.SEEK_END)

    def add(
        self, rejected: Sequence[Rejected] = (), findings: Sequence[Finding] = (), notes: Sequence[Note] = ()
    ) -> int:
        """Write lines and return the file's size."""
        parts = [_encode(_rejected(one)) for one in rejected]
        parts += [_encode(_found(one)) for one in findings]
        parts += [_encode(_noted(one)) for one in notes]
        if parts:
            self._file.write(b"\n".join(parts) + b"\n")
        self._file.flush()
        return self._file.tell()

    def close(self) -> None:
        """Make it last, and close it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def read_ledger(path: Path) -> Iterator[Line]:
    """Yield the lines of a ledger; a last one that is torn is passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for raw in file:
            try:
                yield _decode(raw)
            except msgspec.MsgspecError:
                continue


def _rejected(one: Rejected) -> Line:
    place = one.place
    digest = "" if one.data is None else sha256(one.data).hexdigest()[:HASH_CHARS]
    return Line(
        "reject", one.reason, place.file, place.line, place.offset, value=one.subject.value, hash=digest,
        others=one.entries - 1, detail=one.detail,
    )  # fmt: skip


def _found(one: Finding) -> Line:
    file, line, offset = ("", 0, 0) if one.place is None else (one.place.file, one.place.line, one.place.offset)
    return Line("finding", one.rule, file, line, offset, one.field, one.severity.value, one.value_class)


def _noted(one: Note) -> Line:
    place = one.place
    code = f"{one.kind.value}.{one.code}"
    return Line("note", code, place.file, place.line, place.offset, one.field, others=len(one.others))
