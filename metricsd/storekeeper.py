"""Looks after the store of a running daemon: opens it, notices what befalls it, and brings it back.

Nothing that happens to the store ends the daemon. A trouble is held here, with its kind, its reason and since when;
the failover decides by it, and `check` recovers by itself as soon as the disk allows: it opens again, puts back what
was deleted, repairs what is damaged. Everything but the properties belongs to the thread that writes the store; the
store object stays the same for the keeper's life, and its use raises StoreUnavailable while it is shut.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import structlog

from metricsd import disk, spool
from metricsd.backlog import Progress
from metricsd.clock import US_PER_S, Clock
from metricsd.config import Config, Paths
from metricsd.disk import Pressure, Usage
from metricsd.errors import BackupFailed, SpoolUnavailable, StoreCorrupt, StoreError, StoreUnavailable
from metricsd.identity import Identity
from metricsd.ids import EventId
from metricsd.intake import make_tail, prepare
from metricsd.sink import Ticked
from metricsd.store import outbox, salvage, state
from metricsd.store.connection import Store, sqlite_translated, translated, wal_of
from metricsd.store.events import Identified
from metricsd.store.ingest import Beside, Ingest, Taken
from metricsd.store.recent import CallKey
from metricsd.store.retention import make_room
from metricsd.store.salvage import Recovery
from metricsd.store.trouble import StoreTrouble as StoreTrouble
from metricsd.store.trouble import TroubleKind as TroubleKind
from metricsd.store.trouble import ask_folder, is_writable, told, trouble_of
from metricsd.tail import Tail

T = TypeVar("T")

ROOM_ROWS = 20_000
"""Events that one look drops when the store or the disk is short of room: about 2 MB."""
SPARE_BYTES_MIN = 256 * 1024
"""On a disk without room the store goes on while so much is free inside its own file."""
CHECKPOINT_WAIT_MS = 200
"""How long a look waits for readers that keep the WAL from being emptied."""
WAL_FACTOR_MAX = 4
"""A WAL that readers keep from being emptied may grow to so many times its limit before nothing is taken in."""
FULL_SHARE = 100
"""The store counts as full when less than one part in so many of its limit is left."""
REPAIR_DOUBLINGS_MAX = 5
"""The pause between attempts at a repair doubles so often: from two looks to a minute."""
CHECKED = "store_checked_us"
"""State key: when a write was last tried after a trouble."""

NS_PER_US = 1000

log = structlog.get_logger("store")


class StoreKeeper:
    """The store of one home, and the tail over it. Make it, then call `open` in the writer's thread."""

    def __init__(
        self,
        paths: Paths,
        config: Config,
        clock: Clock,
        *,
        sent_calls: Callable[[], Mapping[CallKey, EventId]] = dict,
    ) -> None:
        """`sent_calls` names the calls that went to the cloud while the store was away (`Direct.calls`)."""
        self.store = Store(paths.store, None, clock)
        """Always the same object, for the engine and everybody else to hold."""
        self.trouble: StoreTrouble | None = None
        """What keeps the store from being used; None when it is well. May be read by any thread."""
        self.recovery: Recovery | None = None
        """The newest repair of this process, for logs and `status`. May be read by any thread."""
        self._paths = paths
        self._config = config
        self._clock = clock
        self._sent_calls = sent_calls
        self._identity: Identity | None = None
        self._ingest: Ingest | None = None
        self._expected: Mapping[CallKey, EventId] = {}
        self._tail: Tail | None = None
        self._repairs_failed = 0
        self._repair_at = 0.0

    @property
    def progress(self) -> Progress:
        """How many captures are left, and how fast they are taken in. May be read by any thread."""
        if self._tail is None:
            return Progress(0, 0.0, self._clock.monotonic())
        return self._tail.progress

    def open(self) -> StoreTrouble | None:
        """Open the store, repairing it if it is damaged; return what keeps it from being used, or None.

        Raises ConfigError or StoreUnavailable when not even the identity or the spool can be had: then there is
        nothing that a daemon could do.
        """
        self._identity = prepare(self._paths)
        self._bring_back()
        return self.trouble

    def call(self, work: Callable[..., T], /, *args: object) -> T:
        """Return `work(*args)`; what the store fails with is noted here and leaves as StoreUnavailable.

        Everything that uses the store goes through this: engine, chores, commands of the control socket.
        """
        try:
            with sqlite_translated(self.store.path):
                return work(*args)
        except StoreError as error:
            raise self.note(error) from error

    def tick(self) -> Ticked:
        """Take in one bounded round of captures and shared files; raise StoreUnavailable, and nothing is lost then.

        SpoolUnavailable among them means that the store is well, and that something stored cannot be deleted.
        """
        if self.trouble is not None or self._tail is None:
            raise StoreUnavailable(self.trouble.reason if self.trouble else None)
        self._expect()
        return self.call(self._tail.tick)

    def take(self, items: list[Identified], beside: Sequence[Beside]) -> Taken:
        """Store what came by another way than files, on disk when this returns; use it through `call`."""
        if self.trouble is not None or self._ingest is None:
            raise StoreUnavailable(self.trouble.reason if self.trouble else None)
        return self._ingest.take(items, beside=beside, full=True)

    def check(self) -> StoreTrouble | None:
        """Look whether the store is well, cheaply, and recover it if it is not; return the trouble that is left.

        To be called every `store.check_s`, and after anything that may have mended the disk.
        """
        if self.trouble is None and self.store.is_open:
            self._look()
        else:
            self._bring_back()
        return self.trouble

    def note(self, error: StoreError) -> StoreUnavailable:
        """Hold what the store failed with, and return the error that its user should see."""
        if isinstance(error, SpoolUnavailable | BackupFailed):
            return error
        trouble = trouble_of(error, self.store.path, self._clock.now_us())
        if trouble.kind is TroubleKind.FULL and self._is_at_limit():
            self._tell_limit()
        else:
            self._hold(trouble)
        return error if isinstance(error, StoreUnavailable) else StoreUnavailable(str(error))

    def synced_through(self) -> int | None:
        """Return the newest own position that the cloud has; None where there is no cloud to wait for."""
        stream = outbox.find(self.store)
        if stream is None or not self._paths.credentials.exists():
            return None
        return stream.base + stream.acked_seq

    def close(self) -> None:
        """Empty the WAL and close; a second call does nothing."""
        self._stop_tail()
        if self.store.is_open and self.trouble is None:
            with contextlib.suppress(StoreError):
                self.store.checkpoint()
        self.store.close()

    def _hold(self, trouble: StoreTrouble) -> None:
        """Keep the trouble; one of the same kind goes on since it began. A new one is logged once."""
        old = self.trouble
        if old is not None:
            trouble = trouble._replace(since_us=old.since_us)
        self.trouble = trouble
        if old is None or old.kind is not trouble.kind:
            log.error("store.failed", kind=trouble.kind.value, reason=trouble.reason)

    def _tell(self, kind: TroubleKind, detail: str, fix: str | None = None) -> None:
        self._hold(told(kind, self.store.path, self._clock.now_us(), detail=detail, fix=fix))

    def _release(self) -> None:
        """Note that the store is well again."""
        if self.trouble is None:
            return
        seconds = (self._clock.now_us() - self.trouble.since_us) / US_PER_S
        log.info("store.recovered", kind=self.trouble.kind.value, after_s=round(seconds, 1))
        self.trouble = None

    def _look(self) -> None:
        """See whether the file is still ours and has room. Costs some microseconds when all is well."""
        if not self.store.is_in_place():
            self._tell(TroubleKind.MISSING, "it was deleted or replaced")
            self._bring_back()
        elif not is_writable(self.store.path):
            self._tell(ask_folder(self.store.path) or TroubleKind.PERMISSION, "it was made read-only")
        else:
            with contextlib.suppress(StoreUnavailable):
                self.call(self._keep_bounds)

    def _bring_back(self) -> None:
        """Open, put back or repair, whatever the trouble calls for; hold what stands in the way."""
        if self._clock.monotonic() < self._repair_at:
            return
        try:
            if self.store.is_open and self.trouble is not None and self.trouble.kind is TroubleKind.CORRUPT:
                self._set_aside()
            if not self.store.is_open:
                self._open_store()
            elif not self.store.is_in_place():
                self._put_back()
            elif (kind := ask_folder(self.store.path)) is not None:
                self._tell(kind, kind.value)
                return
            else:
                self._try_writing()
            if self._keep_bounds(returning=self.trouble is not None):
                self._release()
        except StoreError as error:
            self.note(error)

    def _open_store(self) -> None:
        """Open the store and its tail; one that is damaged or lost is repaired first, if need be from a backup alone."""
        try:
            self._open_file()
        except StoreCorrupt as error:
            self.note(error)
            self._set_aside()
            self._open_file()
        if salvage.is_lost(self.store, self._paths):
            self._set_aside()
            self._open_file()
        self.store.limit(self._config.store.bytes_max)
        self._start_tail()

    def _open_file(self) -> None:
        """Open what lies at the path, after repairing what there is to repair; raise StoreCorrupt for a damaged one."""
        path = self.store.path
        is_unclean = disk.size_of(wal_of(path)) > 0
        salvage.finish(path)
        if salvage.is_needed(self._paths):
            self._repair()
        self.store.reopen(backups=self._paths.backups)
        if is_unclean:
            salvage.check(self.store)

    def _set_aside(self) -> None:
        """Take the damaged file out of the way; from then on it is only read."""
        self._stop_tail()
        self.store.shut(StoreUnavailable(f"{self.store.path} is damaged and is being repaired"))
        salvage.set_aside(self._paths, self._clock)

    def _repair(self) -> None:
        """Make a whole store of what can be read; after a failure the next attempt waits, longer each time."""
        began = self._clock.monotonic()
        try:
            self.recovery = salvage.repair(self._paths, self._clock)
        except StoreError:
            self._repairs_failed += 1
            pause_s = self._config.store.check_s * 2.0 ** min(self._repairs_failed, REPAIR_DOUBLINGS_MAX)
            self._repair_at = self._clock.monotonic() + pause_s
            raise
        self._repairs_failed = 0
        log.warning("store.repaired", took_s=round(self._clock.monotonic() - began, 1), **self.recovery._asdict())

    def _put_back(self) -> None:
        """Save what the open database holds although its file lost its name, and open again."""
        salvage.save_open(self.store, self._paths, self._clock)
        self._stop_tail()
        self.store.close()
        self._open_store()

    def _try_writing(self) -> None:
        """Write and sync one small fact, and take in one round; raise StoreError when that fails.

        What failed may be beside the database (the folder of the quarantine): a round tells.
        """
        with self.store.transaction(full=True):
            state.put(self.store, CHECKED, self._clock.now_us())
        if self._tail is not None:
            self._expect()
            with contextlib.suppress(SpoolUnavailable):
                self._tail.tick()

    def _start_tail(self) -> None:
        if self._identity is None:
            raise AssertionError("open() comes first")
        self._ingest, self._tail = make_tail(self.store, self._paths, self._config, self._identity)
        self._expected = {}

    def _expect(self) -> None:
        """Tell the ingest which calls went to the cloud, if there are new ones."""
        calls = self._sent_calls()
        if self._ingest is not None and calls != self._expected:
            self._ingest.expect(calls)
            self._expected = calls

    def _stop_tail(self) -> None:
        if self._tail is not None:
            self._tail.close()
        self._tail = self._ingest = None

    def _keep_bounds(self, *, returning: bool = False) -> bool:
        """Make room where a limit is reached; return False, and hold the trouble, when there is none to make."""
        settings = self._config.store
        usage = self._measure()
        pressure = disk.pressure_on(usage, settings, returning=returning)
        if pressure is None:
            return True
        if usage.wal_bytes:
            self.store.checkpoint(wait_ms=CHECKPOINT_WAIT_MS)
            usage = self._measure()
            pressure = disk.pressure_on(usage, settings, returning=returning)
        match pressure:
            case None:
                return True
            case Pressure.WAL:
                return self._is_wal_bearable(usage)
            case Pressure.STORE:
                return self._drop_old() or self._is_below_limit(usage, returning=returning)
            case Pressure.DISK:
                return usage.spare_bytes >= SPARE_BYTES_MIN or self._drop_old() or self._tell_floor(usage)

    def _measure(self) -> Usage:
        used, spare = self.store.sizes()
        with translated(self.store.path):
            return disk.measure(self._paths, store_bytes=used, spare_bytes=spare)

    def _drop_old(self) -> bool:
        """Drop the oldest events that the cloud has; return whether there were any."""
        with translated(self._paths.spool):
            waiting = spool.pending(self._paths.spool).oldest_mtime_ns
        # What still waits must not become too old to be taken in.
        before_us = None if waiting is None else waiting // NS_PER_US - US_PER_S
        dropped = make_room(self.store, ROOM_ROWS, synced_through=self.synced_through(), before_us=before_us)
        if dropped:
            log.info("store.made_room", events=dropped)
        return dropped > 0

    def _is_wal_bearable(self, usage: Usage) -> bool:
        """Return whether the WAL may stay as it is for now: a reader may keep it from being emptied for a while."""
        limit = self._config.store.wal_bytes_max
        if usage.wal_bytes <= WAL_FACTOR_MAX * limit:
            return True
        self._tell(TroubleKind.BUSY, f"its write-ahead log has {usage.wal_bytes} bytes, and another program reads it")
        return False

    def _is_below_limit(self, usage: Usage, *, returning: bool) -> bool:
        """Return whether what the store may still grow is worth going on; after it was full, only room to spare is."""
        limit = self._config.store.bytes_max
        if not returning and usage.store_bytes < limit - limit // FULL_SHARE:
            return True
        self._tell_limit()
        return False

    def _is_at_limit(self) -> bool:
        """Return whether a write that found no room met the store's own limit, not the disk's."""
        with contextlib.suppress(StoreError):
            limit = self._config.store.bytes_max
            return self.store.sizes()[0] > limit - limit // disk.STORE_SHARE
        return False

    def _tell_limit(self) -> None:
        fix = "raise store.bytes_max, or log in so that old events can go once they are synced; captures wait in the spool"
        self._tell(TroubleKind.QUOTA, f"it has reached store.bytes_max, {self._config.store.bytes_max} bytes", fix)

    def _tell_floor(self, usage: Usage) -> bool:
        floor = disk.floor_bytes(usage, self._config.store)
        said = f"{usage.free_bytes >> 20} MiB of the disk are free, of which {max(floor >> 20, 1)} MiB stay free"
        self._tell(TroubleKind.FULL, said)
        return False
