"""What could not be accepted: a row for ever, its bytes for a while in a private file beside the store.

The bytes are written before the row commits, so a row never promises bytes that are not there; files that no row
names are removed by `sweep`. Values of known secret fields are replaced before anything is written. Nothing here is
ever synced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import NamedTuple

from metricsd.scrubbing import scrub
from metricsd.store.connection import Store, translated

BYTES_KEPT_MAX = 1024 * 1024
"""Of a longer item the first this many bytes are kept."""
EACH_MAX = 16
"""Of one unit (a chunk of a file) so many lines with the same reason get entries of their own, the others share some."""
_CAPTURES, _NO_FILE = "new/", ""
_INSERT = """
INSERT INTO quarantine (key, at, file, offset, bytes, reason, detail, sha256, stored) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET state = 'open', stored = excluded.stored WHERE state = 'retried'
"""
_COLUMNS = "id, at, file, offset, bytes, reason, detail, lower(hex(sha256)), stored, state"


class Reject(NamedTuple):
    """One item to quarantine. `data` None: only its size is known (`size`), the bytes are not kept."""

    file: str
    offset: int
    data: bytes | None
    reason: str
    detail: str = ""
    size: int = 0


class Entry(NamedTuple):
    """One row: `at` microseconds UTC, `bytes` the item's full size, `stored` its file's name or None."""

    id: int
    at: int
    file: str
    offset: int
    bytes: int
    reason: str
    detail: str
    sha256: str
    stored: str | None
    state: str


def folder_of(store: Store) -> Path:
    """Return the folder that holds the bytes."""
    return store.path.parent / "quarantine"


def add(store: Store, file: str, offset: int, data: bytes | None, reason: str, detail: str = "", size: int = 0) -> None:
    """Quarantine one item inside the caller's transaction; a replay adds nothing."""
    add_all(store, [Reject(file, offset, data, reason, detail, size)])


def add_all(store: Store, rejects: Sequence[Reject], *, each_max: int = EACH_MAX) -> int:
    """Quarantine items inside the caller's transaction; a replay adds nothing. Return how many bytes were kept."""
    now = store.clock.now_us()
    rows = []
    items = pack(rejects, each_max)
    for item in items:
        data = item.data or b""
        digest = sha256(data).digest()
        key = blake2b(
            f"{item.file}\0{item.offset}\0{item.reason}\0".encode("utf-8", "surrogateescape") + digest, digest_size=16
        ).digest()
        stored = _write(store, key.hex(), data) if item.data is not None else None
        rows.append(
            (
                key,
                now,
                _text(item.file),
                item.offset,
                item.size or len(data),
                item.reason,
                _text(item.detail),
                digest,
                stored,
            )
        )
    store.db.executemany(_INSERT, rows)
    return sum(min(len(item.data or b""), BYTES_KEPT_MAX) for item in items)


def pack(rejects: Sequence[Reject], each_max: int = EACH_MAX) -> list[Reject]:
    """Return the items with a flood of alike ones joined, so that a million bad lines do not make a million files.

    Lines of one file and reason share an entry up to the bytes that are kept of one, so that all of them can be
    retried; items without bytes share one summary. Captures stay apart: their names are part of their ids. Pure.
    """
    if len(rejects) <= each_max:
        return list(rejects)
    apart: list[Reject] = []
    flood: dict[tuple[str, str, bool], list[Reject]] = {}
    seen: dict[tuple[str, str, bool], int] = {}
    for item in rejects:
        kind = _NO_FILE if item.data is None else item.file
        group = (kind, item.reason, item.data is None)
        seen[group] = seen.get(group, 0) + 1
        joinable = item.data is None or (not item.file.startswith(_CAPTURES) and len(item.data) < BYTES_KEPT_MAX)
        if seen[group] <= each_max or not joinable:
            apart.append(item)
        else:
            flood.setdefault(group, []).append(item)
    for (_, _, is_bare), items in flood.items():
        apart.extend([_summary(items)] if is_bare else _joined(items))
    return apart


def _summary(items: list[Reject]) -> Reject:
    first, last = items[0], items[-1]
    if len(items) == 1:
        return first
    digest = sha256("\0".join(f"{item.file}:{item.offset}" for item in items).encode("utf-8", "surrogateescape"))
    detail = f"{len(items)} alike, the last is {last.file}:{last.offset} (all: {digest.hexdigest()[:16]})"
    return first._replace(detail=detail, size=sum(item.size for item in items))


def _joined(items: list[Reject]) -> Iterator[Reject]:
    start, size = 0, 0
    for number, item in enumerate(items):
        length = len(item.data or b"") + 1
        if size + length > BYTES_KEPT_MAX:
            yield _lines(items[start:number])
            start, size = number, 0
        size += length
    yield _lines(items[start:])


def _lines(items: list[Reject]) -> Reject:
    if len(items) == 1:
        return items[0]
    data = b"".join((item.data or b"").removesuffix(b"\n") + b"\n" for item in items)
    return items[0]._replace(data=data, detail=f"{len(items)} lines up to offset {items[-1].offset}: {items[0].detail}")


def list_open(store: Store, limit: int = 1000) -> list[Entry]:
    """Return the newest open entries."""
    rows = store.db.execute(
        f"SELECT {_COLUMNS} FROM quarantine WHERE state = 'open' ORDER BY id DESC LIMIT ?", (limit,)
    )
    return [Entry(*row) for row in rows]


def get(store: Store, entry: int) -> Entry | None:
    """Return one entry, whatever its state."""
    row = store.db.execute(f"SELECT {_COLUMNS} FROM quarantine WHERE id = ?", (entry,)).fetchone()
    return Entry(*row) if row else None


def count_open(store: Store) -> int:
    """Return how many entries are open."""
    return int(store.db.execute("SELECT count(*) FROM quarantine WHERE state = 'open'").fetchone()[0])


class Count(NamedTuple):
    """How many entries are open for a reason, and how large what they stand for was."""

    reason: str
    entries: int
    bytes: int


def count_by_reason(store: Store) -> list[Count]:
    """Return the open entries counted by reason, most frequent first."""
    rows = store.db.execute(
        "SELECT reason, count(*), sum(bytes) FROM quarantine WHERE state = 'open' GROUP BY reason ORDER BY 2 DESC, 1"
    )
    return [Count(*row) for row in rows]


def bytes_of(store: Store, entry: Entry) -> bytes | None:
    """Return the kept bytes, or None when they are gone."""
    if entry.stored is None:
        return None
    try:
        return (folder_of(store) / entry.stored).read_bytes()
    except FileNotFoundError:
        return None


def mark_retried(store: Store, entry: int) -> None:
    """Note that an entry's bytes are being handed back. They stay, and a second refusal opens the entry again."""
    with store.transaction(full=True):
        store.db.execute("UPDATE quarantine SET state = 'retried' WHERE id = ?", (entry,))


def settle(store: Store, entries: Sequence[int], *, how: str) -> int:
    """Mark open entries as `retried` or `purged` and drop their bytes; return how many there were."""
    done = 0
    names: list[str] = []
    with store.transaction():
        for entry in entries:
            found = get(store, entry)
            if found is not None and found.state == "open":
                store.db.execute("UPDATE quarantine SET state = ?, stored = NULL WHERE id = ?", (how, entry))
                done += 1
                if found.stored:
                    names.append(found.stored)
    with translated(folder_of(store)):
        for name in names:
            (folder_of(store) / name).unlink(missing_ok=True)
    return done


def sweep(store: Store, *, older_than_us: int, bytes_max: int) -> int:
    """Drop bytes older than the limit or beyond the cap (oldest first), keeping the summaries; return how many files."""
    folder = folder_of(store)
    try:
        sizes = {
            entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)
        }
    except FileNotFoundError:
        return 0
    rows = store.db.execute(
        "SELECT stored, at FROM quarantine WHERE stored IS NOT NULL ORDER BY at DESC, id DESC"
    ).fetchall()
    kept, total, before = set(), 0, store.clock.now_us() - older_than_us
    for stored, at in rows:
        total += sizes.get(stored, 0)
        if at >= before and total <= bytes_max:
            kept.add(stored)
    gone = [name for name in sizes if name not in kept]
    with store.transaction():
        store.db.executemany("UPDATE quarantine SET stored = NULL WHERE stored = ?", [(name,) for name in gone])
    with translated(folder):
        for name in gone:
            (folder / name).unlink(missing_ok=True)
    return len(gone)


def _write(store: Store, name: str, data: bytes) -> str:
    folder = folder_of(store)
    with translated(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(scrub(data[:BYTES_KEPT_MAX]))
            file.flush()
            os.fsync(file.fileno())
    return name


def _text(text: str) -> str:
    return text[:500].encode("utf-8", "backslashreplace").decode()
