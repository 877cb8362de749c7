"""Makes a whole store of what is left of a damaged, deleted or replaced one.

A damaged file is moved into the `damaged` folder and only read from then on: row by row, around what cannot be read.
The newest backup is the ground, what the damaged file has beyond it is added by event id, and the files that are
still tailed are read again from where the backup stood. The result counts as a device restored from a backup: its
next hello leads to a new device id, under which the cloud gives back what it has. Each step leaves a state from which
the next start goes on; nothing is deleted before what it held is on disk elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import NamedTuple

import structlog

from metricsd.clock import US_PER_S, Clock
from metricsd.config import Paths
from metricsd.errors import StoreCorrupt, StoreError
from metricsd.store import outbox, state
from metricsd.store.backup import backups_newest_first, sync_path
from metricsd.store.connection import Store, place_of, translated, wal_of
from metricsd.store.damaged import Damaged, Found

FOLDER = "damaged"
KEEP = 2
"""Damaged files that are kept once they have been read, for whoever wants to look at them."""
_UNREAD = ".unread.db"
_READ = ".db"
_PARTIAL = ".partial"
_REBUILT = ".rebuilt"
_SIDE_FILES = ("-wal", "-shm", "-journal")
_OWN = """
SELECT count(*), coalesce(min(pos), 0), coalesce(max(pos), 0), coalesce(max(at), 0) FROM event WHERE pos > 0
"""

log = structlog.get_logger("store")


class Recovery(NamedTuple):
    """What a repair brought back.

    at_us         when it was made
    backup        name of the backup that it began with; "" without one
    from_backup   events that it brought
    saved         events that were read out of the damaged file beyond that
    missing_max   own events of which neither has a trace, at most; None when that cannot be told
    since_us      what is missing is younger than this (0: unknown); the cloud and the tailed files may still have it
    kept          where the damaged file lies; "" when there was none
    """

    at_us: int
    backup: str
    from_backup: int
    saved: int
    missing_max: int | None
    since_us: int
    kept: str


def check(store: Store) -> None:
    """Raise StoreCorrupt unless the structure of the open store is sound. For a start after an unclean stop."""
    with translated(store.path):
        found = store.db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreCorrupt(
            f"{store.path} is damaged ({found}): start the daemon with `metricsd up`, it repairs the store"
        )


def is_needed(paths: Paths) -> bool:
    """Return whether there is something to repair from: a damaged file not read yet, or a backup of a lost store."""
    if _unread(paths):
        return True
    return place_of(paths.store) is None and bool(backups_newest_first(paths.backups))


def is_lost(store: Store, paths: Paths) -> bool:
    """Return whether an open store is a new one in the place of one that was lost: it is blank, and a backup is not."""
    if state.get_int(store, "last_pos"):
        return False
    return any(_holds_events(backup) for backup in backups_newest_first(paths.backups)[:1])


def finish(path: Path) -> None:
    """Put a store in its place that was whole when the process ended, and sweep up what was not."""
    with translated(path):
        for left in path.parent.glob(f"{path.name}{_PARTIAL}*"):
            left.unlink(missing_ok=True)
        rebuilt = _beside(path, _REBUILT)
        if rebuilt.exists() and not path.exists():
            _drop_side_files(path)
            rebuilt.replace(path)
            sync_path(path.parent)


def save_open(store: Store, paths: Paths, clock: Clock) -> None:
    """Save all that an open store holds whose file was deleted, replaced, or lost its WAL, as the system keeps it open.

    A deleted one goes back to its place as it was; beside a file that took its place it lies as one to be read.
    """
    path = store.path
    if place_of(path) == store.place:
        store.checkpoint()
        return
    with translated(path):
        partial = _beside(path, _PARTIAL)
        partial.unlink(missing_ok=True)
        store.db.execute("VACUUM INTO ?", (str(partial),))
        partial.chmod(0o600)
        sync_path(partial)
        if path.exists():
            partial.replace(_unread_name(paths, clock))
            return
        partial.replace(_beside(path, _REBUILT))
        sync_path(path.parent)
    store.close()
    finish(path)


def set_aside(paths: Paths, clock: Clock) -> None:
    """Move the damaged store, and what SQLite keeps beside it, where it is only read. Needs no space."""
    path = paths.store
    with translated(path):
        if not path.exists():
            return
        target = _unread_name(paths, clock)
        wal = wal_of(path)
        if wal.exists():
            wal.replace(wal_of(target))
        path.replace(target)
        _drop_side_files(path)
        sync_path(path.parent)


def repair(paths: Paths, clock: Clock) -> Recovery:
    """Make a whole store of the one in place or the newest sound backup, and of every damaged file not read yet.

    Raises StoreUnavailable when the disk does not allow it now; then nothing is lost, and it can be tried again.
    """
    unread = _unread(paths)
    backup = "" if paths.store.exists() else _copy_newest_backup(paths)
    base = paths.store if paths.store.exists() else _beside(paths.store, _PARTIAL)
    with contextlib.closing(Store.open(base, clock=clock)) as store:
        had = _Base.of(store)
        found = _pour(unread, store)
        missing = _missing(had, found) if unread else None
        if backup or found.rows or missing:
            outbox.doubt(store)
        store.checkpoint()
    if base != paths.store:
        with translated(base):
            sync_path(base)
            base.replace(_beside(paths.store, _REBUILT))
        finish(paths.store)
    kept = _mark_read(paths, unread)
    since = 0 if missing == 0 else had.newest_us
    done = Recovery(clock.now_us(), backup, had.events if backup else 0, found.rows, missing, since, kept)
    _note(paths, done)
    return done


def _note(paths: Paths, done: Recovery) -> None:
    """Keep what the repair brought back, for `status`; the log has it too."""
    draft = _beside(paths.repair, _PARTIAL)
    with translated(paths.repair):
        draft.write_text(json.dumps(done._asdict(), indent=1))
        draft.replace(paths.repair)


class _Base(NamedTuple):
    """What the store began with: events, own ones, the lowest and highest own position, and the newest own time."""

    events: int
    own: int
    first_pos: int
    last_pos: int
    newest_us: int

    @classmethod
    def of(cls, store: Store) -> _Base:
        return cls(state.get_int(store, "live_events"), *store.db.execute(_OWN).fetchone())


def _pour(unread: list[Path], store: Store) -> Found:
    found = Found()
    for file in unread:
        try:
            with contextlib.closing(Damaged(file)) as damaged:
                found = found.plus(damaged.pour_into(store))
        except StoreCorrupt as error:
            # Nothing in it can be read at all; the file is kept.
            log.warning("damaged.unreadable", file=str(file), reason=str(error))
    return found


def _missing(had: _Base, found: Found) -> int | None:
    """Return how many own positions left no trace, at most: what retention dropped in between is counted too."""
    if found.last_pos is None:
        return None
    lowest = [pos for pos in (found.first_pos, had.first_pos) if pos]
    expected = max(found.last_pos, had.last_pos) - min(lowest, default=1) + 1
    return max(expected - had.own - (found.own - found.known), 0)


def _copy_newest_backup(paths: Paths) -> str:
    """Copy the newest backup that is sound to where the new store is made; return its name, "" without one."""
    for backup in backups_newest_first(paths.backups):
        partial = _beside(paths.store, _PARTIAL)
        with translated(partial):
            _drop_side_files(partial)
            shutil.copyfile(backup, partial)
            partial.chmod(0o600)
        if _is_sound(partial):
            return backup.name
        log.error("backup.damaged", file=str(backup))
        with translated(partial):
            partial.unlink()
    return ""


def _is_sound(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path)) as db:
            return bool(db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False


def _holds_events(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT value FROM state WHERE key = 'last_pos'").fetchone()
    except sqlite3.DatabaseError:
        return False
    return row is not None and bool(row[0])


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _drop_side_files(path: Path) -> None:
    for suffix in _SIDE_FILES:
        _beside(path, suffix).unlink(missing_ok=True)


def _folder(paths: Paths) -> Path:
    folder = paths.state_dir / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _unread_name(paths: Paths, clock: Clock) -> Path:
    """Return a free name for a damaged file; later ones sort behind."""
    for number in range(1000):
        target = _folder(paths) / f"store-{clock.now_us() // US_PER_S}-{number:03d}{_UNREAD}"
        if not target.exists():
            return target
    raise StoreError(f"{_folder(paths)}: a thousand damaged files of one second: move them away")


def _unread(paths: Paths) -> list[Path]:
    return sorted((paths.state_dir / FOLDER).glob(f"*{_UNREAD}"))


def _mark_read(paths: Paths, unread: list[Path]) -> str:
    """Note that these files were read, and keep the newest few; return where the newest lies."""
    if not unread:
        return ""
    with translated(_folder(paths)):
        for file in unread:
            _drop_side_files(file)
            target = file.with_name(file.name.removesuffix(_UNREAD) + _READ)
            file.replace(target)
        read = sorted(file for file in _folder(paths).glob(f"*{_READ}") if not file.name.endswith(_UNREAD))
        for old in read[:-KEEP]:
            old.unlink(missing_ok=True)
    return str(target)
