"""The small documents of the older hooks: a few for each session, rewritten in place or appended to once.

A document is read as a whole when it is new or looks different; how it looked is stored with what it said, so a restart
stores nothing again. One that cannot be read may be half written, so it is looked at again until it has not changed
for long. Nothing is ever written to these folders, and a folder of any size costs a bounded share of the time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

from metricsd import growing
from metricsd.clock import US_PER_S, Clock
from metricsd.config import Tail as Settings
from metricsd.decode.older_hooks import APP, NO_SESSION, read_document, read_line
from metricsd.errors import LineRejected
from metricsd.ids import Occurrences
from metricsd.lines import Unit
from metricsd.older.lines import Adding, bad_line
from metricsd.older.sessions import OlderSessions, Span
from metricsd.sink import NOTHING, REFUSALS, Sink, Ticked, take_each, ticked
from metricsd.store.orphans import Adoption
from metricsd.store.quarantine import Reject
from metricsd.store.sources import Checkpoint, Progress

FORM = "older-document"
"""Form of the checkpoints of documents; `head_hash` holds how the document looked."""
DOCUMENT_BYTES_MAX = 1024 * 1024
PER_TICK = 200
NAMES_MAX = 200_000
"""Documents that are followed in all, about 60 MB of memory; the newest of a folder that holds more."""
LIST_SHARE = 50
"""A look at every document takes at most one part in so many of the time."""
YOUNG_S = 1.0
"""A file's times have a grain of milliseconds: one that changed so lately is read once more later."""
NS_PER_S = 1_000_000_000
QUIET_S = 5.0
"""After this long without a document that was new, sessions claim calls that came before them."""
HOT_MAX = 256
"""Young and half-written documents that are looked at in every round."""


class _Bad(NamedTuple):
    """A document that could not be read: how it looked, and since when (monotonic) it has looked like that."""

    look: bytes
    since: float


class _Read(NamedTuple):
    """What reading a document came to: how it looked, and whether that stays true (else it is read again)."""

    look: bytes
    sure: bool


class Documents:
    """All documents of some folders. Belongs to the thread that writes the store."""

    def __init__(
        self,
        sink: Sink,
        roots: Sequence[str],
        sessions: OlderSessions,
        settings: Settings,
        clock: Clock,
        checkpoints: Mapping[str, Checkpoint],
    ) -> None:
        self._sink = sink
        self._folders = [f"{root}/{name}" for root in roots for name in growing.OLDER_FOLDERS]
        self._sessions = sessions
        self._settings = settings
        self._clock = clock
        self._seen = {path: found.head_hash for path, found in checkpoints.items() if found.form == FORM}
        self._unnoted = set(self._seen)
        """Documents of which the store has everything, but this process has not read which session they tell of."""
        self._bad: dict[str, _Bad] = {}
        self._young: dict[str, float] = {}
        self._waiting: dict[str, None] = {}
        self._listed: dict[str, int] = {}
        """When each folder's entries had changed (ns) when they were last listed."""
        self._looked_at: float | None = None
        self._look_cost_s = 0.0
        self._read_at = -QUIET_S

    @property
    def waits(self) -> bool:
        """Whether there are documents to read, or sessions whose earlier calls have not been looked for."""
        return bool(self._waiting or self._claiming(1))

    def tick(self) -> Ticked:
        """Read what is new or has changed, a bounded number of documents. Raises StoreError, and nothing is lost."""
        if not self._waiting:
            self._look()
        batch = list(islice(self._waiting, PER_TICK))
        unit, read = Unit([], [], []), {}
        for path in batch:
            found = self._read(path, unit)
            if found is not None:
                read[path] = found
        spans = [] if batch else self._claiming(PER_TICK)
        unit.beside.extend(
            Adoption(APP, NO_SESSION, span.start_us, span.until_us, self._sessions.owner) for span in spans
        )
        done = self._take(unit)
        self._sessions.settle(spans)
        for path in batch:
            self._waiting.pop(path, None)
        for path, found in read.items():
            self._settle(path, found)
        if batch:
            self._read_at = self._clock.monotonic()
        return done._replace(more=self.waits)

    def note_new(self) -> None:
        """Learn of the sessions whose documents appeared since the last look; `tick` stores what they say."""
        self._find_new()
        for path in islice(self._waiting, PER_TICK):
            if path not in self._bad:
                self._read(path, Unit([], [], []))

    def _claiming(self, limit: int) -> list[Span]:
        """Return sessions that may claim earlier calls now: when all documents that were copied here have been read.

        Half of them would claim what belongs to the other half: a session whose end is not known yet runs for long.
        """
        is_quiet = not self._waiting and self._clock.monotonic() - self._read_at >= QUIET_S
        return self._sessions.fresh(limit) if is_quiet else []

    def _take(self, unit: Unit) -> Ticked:
        if not (unit.items or unit.rejects or unit.beside):
            return NOTHING
        try:
            return ticked(self._sink.take(unit.items, rejects=unit.rejects, beside=unit.beside))
        except REFUSALS:
            return ticked(take_each(self._sink, unit.items, unit.rejects, unit.beside, name="sessions"))

    def _settle(self, path: str, found: _Read) -> None:
        """Remember that a document's words are stored."""
        self._unnoted.discard(path)
        if found.sure:
            self._seen[path] = found.look
            self._young.pop(path, None)
        elif path not in self._bad:
            self._seen[path] = found.look
            self._young[path] = self._clock.monotonic()

    def _look(self) -> None:
        """Find what to read: new names at once, changed documents now and then, the hot ones always."""
        now = self._clock.monotonic()
        pause_s = max(self._settings.rescan_s, self._look_cost_s * LIST_SHARE)
        if self._looked_at is None or now - self._looked_at >= pause_s:
            self._look_at_all()
        else:
            self._find_new()
            self._look_at_hot()

    def _look_at_all(self) -> None:
        """Find every document that looks different from when it was read; a folder that cannot be listed waits."""
        began = self._clock.monotonic()
        present: set[str] = set()
        unlisted = []
        waiting: list[str] = []
        for folder in self._folders:
            changed_ns = _changed_ns(folder)
            found = _documents(folder)
            if found is None:
                unlisted.append(f"{folder}/")
                continue
            self._note_listed(folder, changed_ns)
            for path, look in found:
                present.add(path)
                if self._must_read(path, look):
                    waiting.append(path)
        self._waiting.update(dict.fromkeys(sorted(waiting, key=_order)))
        self._forget(
            path for path in [*self._seen, *self._bad] if path not in present and not path.startswith(tuple(unlisted))
        )
        self._looked_at = self._clock.monotonic()
        self._look_cost_s = self._looked_at - began

    def _find_new(self) -> None:
        """Find documents with new names, in the folders whose entries changed."""
        for folder in self._folders:
            changed_ns = _changed_ns(folder)
            if changed_ns in (0, self._listed.get(folder)) or len(self._seen) >= NAMES_MAX:
                continue
            try:
                names = os.listdir(folder)  # noqa: PTH208
            except OSError:
                continue
            self._note_listed(folder, changed_ns)
            new = (f"{folder}/{name}" for name in names if _is_document(name))
            unknown = [path for path in new if path not in self._seen and path not in self._bad]
            self._waiting.update(dict.fromkeys(sorted(unknown, key=_order)))

    def _look_at_hot(self) -> None:
        """Look at documents that are half written, or changed so lately that their times may not tell."""
        for path in [*self._bad, *self._young][:HOT_MAX]:
            look = _look_of(path)
            if look is not None and self._must_read(path, look):
                self._waiting[path] = None

    def _must_read(self, path: str, look: bytes) -> bool:
        bad, young = self._bad.get(path), self._young.get(path)
        if bad is not None and bad.look == look:
            return self._is_given_up(bad)
        if young is not None and self._clock.monotonic() - young >= YOUNG_S:
            return True
        return self._seen.get(path) != look or path in self._unnoted

    def _is_given_up(self, bad: _Bad) -> bool:
        return self._clock.monotonic() - bad.since >= self._settings.incomplete_after_s

    def _forget(self, gone: Iterable[str]) -> None:
        """Forget documents that are not there any more; what they said stays."""
        paths = list(gone)
        for path in paths:
            self._bad.pop(path, None)
            self._young.pop(path, None)
            self._unnoted.discard(path)
            self._waiting.pop(path, None)
        stored = [path for path in paths if self._seen.pop(path, None) is not None]
        if stored:
            self._sink.take([], forget=stored)

    def _read(self, path: str, unit: Unit) -> _Read | None:
        """Add what a document says; return how it looked, or None to look at it again."""
        try:
            handle = growing.open_plain(path)
        except OSError:
            # Gone, or no permission, or no descriptors left: the next look finds it again if it is there.
            return None
        try:
            found = os.fstat(handle)
            data = os.pread(handle, DOCUMENT_BYTES_MAX + 1, 0)
        except OSError:
            return None
        finally:
            os.close(handle)
        look, part = _look(found), Unit([], [], [])
        if len(data) > DOCUMENT_BYTES_MAX:
            part.rejects.append(Reject(_name(path), 0, None, "too_long", "", found.st_size))
            whole = True
        else:
            whole = self._decode_lines(path, data, part) if path.endswith("l") else self._decode(path, data, part)
        if not whole and not self._is_bad_for_good(path, look):
            # What can be read of it counts at once; what cannot may be there the next time.
            unit.items.extend(part.items)
            unit.beside.extend(part.beside)
            return None
        self._bad.pop(path, None)
        sure = self._is_sure(path, look, found.st_mtime)
        if self._seen.get(path) == look and path in self._unnoted:
            return _Read(look, sure=True)
        unit.items.extend(part.items)
        unit.beside.extend(part.beside)
        unit.rejects.extend(part.rejects)
        if sure and _is_storable(path):
            unit.beside.append(
                Progress(growing.fresh(path, found, FORM)._replace(offset=found.st_size, head_hash=look))
            )
        return _Read(look, sure)

    def _is_sure(self, path: str, look: bytes, changed_at: float) -> bool:
        """Return whether no change can have left this look: it is old, or was read like this long enough ago."""
        if abs(self._clock.now_us() / US_PER_S - changed_at) >= YOUNG_S:
            return True
        young = self._young.get(path)
        return young is not None and self._seen.get(path) == look and self._clock.monotonic() - young >= YOUNG_S

    def _is_bad_for_good(self, path: str, look: bytes) -> bool:
        """Return whether a document that cannot be read has been like this for so long that it stays so."""
        bad = self._bad.get(path)
        if bad is not None and bad.look == look:
            return self._is_given_up(bad)
        self._bad[path] = _Bad(look, self._clock.monotonic())
        self._seen.pop(path, None)
        return False

    def _decode(self, path: str, data: bytes, unit: Unit) -> bool:
        try:
            found = read_document(data)
        except LineRejected as rejected:
            unit.rejects.append(bad_line(_name(path), 0, data, rejected))
            return False
        adding = Adding(unit, Occurrences(), self._sessions, _name(path))
        adding.add(found)
        adding.finish()
        return True

    def _decode_lines(self, path: str, data: bytes, unit: Unit) -> bool:
        """Read a session's two lines; a bad line with its end is bad for good, one without may still grow."""
        *lines, rest = data.split(b"\n")
        adding = Adding(unit, Occurrences(), self._sessions, _name(path))
        offset = 0
        for raw in lines:
            if raw.strip():
                try:
                    found = read_line(raw)
                    if found is not None:
                        adding.add(found)
                except LineRejected as rejected:
                    unit.rejects.append(bad_line(_name(path), offset, raw, rejected))
            offset += len(raw) + 1
        adding.finish()
        if rest.strip():
            unit.rejects.append(Reject(_name(path), offset, None, "incomplete", "no final newline", len(rest)))
            return False
        return True

    def _note_listed(self, folder: str, changed_ns: int) -> None:
        """Remember as of when a folder was listed, unless it changed so lately that another change may look the same."""
        if abs(self._clock.now_us() * 1000 - changed_ns) < YOUNG_S * NS_PER_S:
            self._listed.pop(folder, None)
        else:
            self._listed[folder] = changed_ns


def _changed_ns(folder: str) -> int:
    """Return when a folder's entries changed, 0 when it cannot be told."""
    try:
        return os.stat(folder).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0


def _documents(folder: str) -> list[tuple[str, bytes]] | None:
    """Return the documents of a folder and how they look; None when it cannot be listed now."""
    found: list[tuple[int, str, bytes]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _is_document(entry.name):
                    continue
                try:
                    status = entry.stat()
                except OSError:
                    # Gone just now, or a link that leads nowhere.
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.append((status.st_mtime_ns, entry.path, _look(status)))
    except FileNotFoundError:
        return []
    except OSError:
        return None
    if len(found) > NAMES_MAX:
        found.sort()
        del found[:-NAMES_MAX]
    return [(path, look) for _, path, look in found]


def _is_document(name: str) -> bool:
    return name.endswith((".json", ".jsonl")) and not name.startswith(".")


def _order(path: str) -> tuple[bool, str]:
    """Sort a session's first record, which alone has its true start, first, then its summary, then its lines."""
    return path.endswith("l"), path


def _look_of(path: str) -> bytes | None:
    try:
        return _look(os.stat(path))  # noqa: PTH116
    except OSError:
        return None


def _look(found: os.stat_result) -> bytes:
    return blake2b(repr(growing.stamp_of(found)).encode(), digest_size=16).digest()


def _is_storable(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(path: str) -> str:
    return "/".join(path.split("/")[-2:])
