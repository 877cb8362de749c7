"""What could not be accepted: a row for ever, its bytes for a while in a private file beside the store.

The bytes are written before the row commits, so a row never promises bytes that are not there; files that no row
names are removed by `sweep`. Values of known secret fields are replaced before anything is written. Nothing here is
ever synced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import NamedTuple

from metricsd.store.connection import Store, translated

BYTES_KEPT_MAX = 1024 * 1024
"""Of a longer item the first this many bytes are kept."""
_SECRET_FIELD = re.compile(
    rb'("[^"]{0,64}(?:token|secret|password|passwd|api_?key|authorization|credential|private_?key|cookie)[^"]{0,64}"\s*:\s*)"(?:[^"\\]|\\.)*"',
    re.IGNORECASE,
)
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


def add_all(store: Store, rejects: Sequence[Reject]) -> None:
    """Quarantine items inside the caller's transaction; a replay adds nothing."""
    now = store.clock.now_us()
    rows = []
    for item in rejects:
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


def scrub(data: bytes) -> bytes:
    """Return the bytes with the values of known secret fields replaced."""
    return _SECRET_FIELD.sub(rb'\1"[scrubbed]"', data)


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
