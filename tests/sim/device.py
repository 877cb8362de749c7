"""A device as step functions: what is on its disk, edits, and a round of sync as a generator of requests.

A round yields a request and is sent the reply, None for one that never came; it yields None where a crash may come
between two of its transactions. Whatever a transaction does happens between two yields, so closing the generator is a
kill -9. The order of a round and the rules of the outbox mirror `sync/engine.py` and `store/outbox.py`; decisions are
the product's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from metricsd.conflict import Conflict, Version, same
from metricsd.hlc import Stamp, observe, parse_stamp
from metricsd.protocol import FieldValue, HelloReply, RecordChange, RecordState
from metricsd.store.record_steps import (
    NOTHING,
    Met,
    Pending,
    Record,
    confirmed,
    edited,
    offered,
    restamped,
    sending,
    stamps_of,
    taken,
)
from metricsd.sync.engine import ATTEMPTS_MAX, CLOCK_AHEAD_MS_MAX, STAMP_CEILING_MS
from metricsd.sync.plan import Action, LocalStream
from metricsd.sync.push import RECORD_PASSES_MAX, STAMP_AHEAD_MS
from tests.sim.cloud import US_PER_MS, Page, Refused, version_of
from tests.sim.ghosts import UNSEEN, Ghosts, Mark, Violation
from tests.sim.parts import POLICIES, SHIPPED, Address, Parts

BATCH = 3
"""Events of one push, and records: small, so that short histories have many."""

Steps = Generator[Any, Any, Any]


class Lost(Exception):
    """No answer came."""


class Restart(Exception):
    """The round begins again: after a fork, a gap or a changed history."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Disk(NamedTuple):
    """A copy of everything that survives a crash, but for the installation's clock."""

    values: tuple[Any, ...]


class Entry:
    """A row of the conflict log."""

    __slots__ = ("address", "base", "local", "mark", "remote", "result", "rev", "state")

    def __init__(self, address: Address, record: Record, remote: Version, rev: str, mark: Mark) -> None:
        self.address = address
        self.base = record.base
        self.local = record.version
        self.remote = remote
        self.rev = rev
        self.mark = mark
        self.result: Version | None = None
        self.state = "open"

    def copy(self) -> Entry:
        new = Entry.__new__(Entry)
        for name in self.__slots__:
            setattr(new, name, getattr(self, name))
        return new


class Device:
    """One installation."""

    def __init__(self, name: str, login: str, parts: Parts, ghosts: Ghosts) -> None:
        self.name = name
        self.parts = parts
        self.ghosts = ghosts
        self.wall_ms = 0
        self.policy = SHIPPED
        self.login = login
        """The device id in the credentials; `id` is the stream's."""
        self.id = login
        self.base = 0
        self.acked = 0
        self.acked_id = ""
        self.own: list[str] = []
        """Own events in the order of their positions; `owner` has the device that each counts for."""
        self.owner: dict[str, str] = {}
        self.foreign: list[str] = []
        self.cursor = ""
        self.newest = ""
        """The newest revision that a push was given (store/place.py)."""
        self.clock = Stamp(0, 0, login)
        self.records: dict[Address, Record] = {}
        self.marks: dict[Address, Mark] = {}
        self.held: dict[Address, frozenset[object]] = {}
        """What the records ever said on this disk: only the observer knows."""
        self.log: list[Entry] = []
        self.locked_out = False

    # What survives

    def backup(self) -> Disk:
        """Return a copy of the disk."""
        return Disk((
            self.login, self.id, self.base, self.acked, self.acked_id, list(self.own), dict(self.owner),
            list(self.foreign), self.cursor, self.newest, self.clock, dict(self.records), dict(self.marks),
            dict(self.held), [entry.copy() for entry in self.log],
        ))  # fmt: skip

    def restore(self, disk: Disk) -> None:
        """Put a copy in the place of the disk."""
        (self.login, self.id, self.base, self.acked, self.acked_id, own, owner, foreign, self.cursor, self.newest,
         self.clock, records, marks, held, log) = disk.values  # fmt: skip
        self.own, self.owner, self.foreign = list(own), dict(owner), list(foreign)
        self.records, self.marks, self.held = dict(records), dict(marks), dict(held)
        self.log = [entry.copy() for entry in log]

    # What a person and the tail do

    def take(self, event: str) -> None:
        """Take a captured event into the store."""
        self.own.append(event)
        self.owner[event] = self.id

    def edit(self, address: Address, fields: dict[str, FieldValue], *, delete: bool = False) -> bool:
        """Edit or delete a record; return whether that changed anything."""
        old = self.records.get(address, NOTHING)
        new = edited(old, fields, delete=delete, make_stamp=self.stamp)
        if new is old:
            return False
        self._hold(address, new.version)
        self.records[address] = new
        _, self.marks[address] = self.ghosts.act(self.marks.get(address, UNSEEN), deletes=delete)
        return True

    def stamp(self, seen: list[str]) -> Stamp:
        """Return a new stamp, and keep it as the high-water mark."""
        self.clock = self.parts.make_stamp(self.clock, seen, self.wall_ms, self.id)
        return self.clock

    # A round

    def round(self) -> Steps:
        """Sync once. Returns whether it came to its end."""
        try:
            for _ in range(ATTEMPTS_MAX):
                try:
                    yield from self._attempt()
                except Restart as restart:
                    match restart.code:
                        case "stream_fork":
                            yield from self._fork()
                        case "history_changed":
                            self._reoffer()
                        case _:
                            pass
                else:
                    return True
        except Lost:
            pass
        return False

    def log_in(self) -> Steps:
        """Log in again, as a person does whose token is not known any more."""
        reply = yield ("login", "")
        if reply is not None:
            self.login = reply
            self.locked_out = False

    def _attempt(self) -> Steps:
        if self.login != self.id:
            self._enrol()
        reply = yield from self._ask("hello", self.id, self.acked, self.acked_id, self.place())
        self._compare(reply)
        yield from self._push_events()
        yield from self._pull()
        yield from self._resolve_open()
        yield from self._push_records()

    def _ask(self, *request: Any) -> Steps:
        reply = yield request
        if reply is None:
            raise Lost
        if isinstance(reply, Refused):
            if reply.code == "auth":
                self.locked_out = True
                raise Lost
            raise Restart(reply.code)
        return reply

    # Streams: store/outbox.py

    def _enrol(self) -> None:
        self._switch(self.base + self.acked)
        self.base = self.acked = 0
        self.acked_id = ""
        self._verify()

    def _fork(self) -> Steps:
        self.login = yield from self._ask("fork", self.id)
        yield None
        after = self.base + self.acked
        self._switch(after)
        self.base, self.acked, self.acked_id = after, 0, ""
        self._verify()

    def _switch(self, after: int) -> None:
        old, self.id = self.id, self.login
        for event in self.own[after:]:
            if self.owner[event] == old:
                self.owner[event] = self.id
        self.clock = self.clock._replace(device=self.id)

    def _verify(self) -> None:
        self.newest = self.place()
        self._set_cursor("", reset=True)
        for address, record in self.records.items():
            if record.rev is not None:
                self.records[address] = record._replace(dirty=record.dirty + 1)

    def _reoffer(self) -> None:
        self._set_cursor("", reset=True)
        self.newest = ""
        for address, record in self.records.items():
            if record.rev is not None:
                self.records[address] = record._replace(rev=None, dirty=record.dirty + 1)

    def place(self) -> str:
        """Return the newest place in the cloud's history that is known."""
        return max(self.cursor, self.newest, key=_number)

    def _set_cursor(self, cursor: str, *, reset: bool = False) -> None:
        if not reset and _number(cursor) < _number(self.cursor):
            raise Violation(f"{self.name}: the cursor went back from {self.cursor} to {cursor}")
        self.cursor = cursor

    def _compare(self, reply: HelloReply) -> None:
        last = reply.last_seq
        at = self.base + last
        decision = self.parts.decide(
            LocalStream(
                epoch=1,
                acked_seq=self.acked,
                acked_id=self.acked_id,
                last_seq=max(len(self.own) - self.base, 0),
                id_at_last=self.own[at - 1] if last > 0 and at <= len(self.own) else None,
                holds_last=reply.last_id in self.owner or reply.last_id in self.foreign,
            ),
            reply,
        )
        match decision.action:
            case Action.FORK:
                raise Restart("stream_fork")
            case Action.REOFFER:
                self.acked, self.acked_id = decision.seq, decision.id
                self._reoffer()
            case _:
                if decision.reset_cursor:
                    self._reoffer()
        server_ms = reply.server_time // US_PER_MS
        if self.clock.ms > server_ms + CLOCK_AHEAD_MS_MAX:
            self.restamp(server_ms, server_ms + STAMP_CEILING_MS)

    def _push_events(self) -> Steps:
        while True:
            base = self.acked
            batch = tuple(self.own[self.base + base : self.base + base + BATCH])
            if not batch:
                return
            owners, through = yield from self._ask("events", self.id, base, batch)
            done = min(through - base, len(batch))
            for event, device in zip(batch[:done], owners, strict=False):
                self.owner[event] = device
            if done > 0:
                self.acked, self.acked_id = base + done, batch[done - 1]

    # The feed: store/feed.py

    def _pull(self) -> Steps:
        while True:
            page = yield from self._ask("changes", self.id, self.cursor)
            yield from self.apply(page)
            if not page.more:
                return

    def apply(self, page: Page) -> Iterator[None]:
        """Apply a page and keep its cursor, in one transaction."""
        for item in page.items:
            self.apply_one(item)
        self._set_cursor(page.cursor)
        yield from ()

    def apply_one(self, item: Any) -> None:
        """Apply one item of the feed."""
        first, second = item
        if isinstance(first, RecordState):
            self.met(first, second)
        elif first != self.id:
            if second in self.owner:
                self.owner[second] = first
            else:
                self.foreign.append(second)
                self.owner[second] = first

    # Records: store/records.py

    def witness(self, version: Version) -> None:
        """Raise the mark to what a remote version has."""
        for text in stamps_of(version):
            self.clock = observe(self.clock, parse_stamp(text))

    def met(self, remote: RecordState, mark: Mark) -> Met:
        """Take the cloud's version of a record."""
        address = (remote.type, remote.id)
        theirs = version_of(remote)
        self.witness(theirs)
        record = self.records.get(address)
        if record is None:
            self._hold(address, theirs)
            self.records[address] = Record(theirs, theirs, remote.rev, 0, None)
            self.marks[address] = mark
            return Met.ADOPTED
        own = self.parts.is_own(record, theirs, remote.device, self.id)
        record = self.parts.common(record, theirs)
        met = self.parts.meet(record.version, record.base, theirs, own=own)
        if met is Met.CONFLICT:
            seen = not mark.seen & ~self.marks[address].seen
            if remote.device == self.id and seen and self.ghosts.remembered:
                raise Violation(f"{self.name} {address}: a conflict with itself")
            self.open(address, record, theirs, remote.rev, mark)
            return met
        if record.conflict is not None:
            self.log[record.conflict].state = "settled"
        new = taken(record, theirs, remote.rev, met)
        if met is Met.ADOPTED and record.dirty and record.base is not None and not same(record.version, record.base):
            raise Violation(f"{self.name} {address}: an edit was replaced without a conflict")
        if met is Met.AHEAD and not self.ghosts.lost and _said(theirs) - self.held[address]:
            raise Violation(f"{self.name} {address}: its version was put on top of one that it had not seen")
        self._keep(address, record, new, mark)
        return met

    def open(self, address: Address, record: Record, theirs: Version, rev: str, mark: Mark) -> None:
        """Log a conflict, or what its remote side has become."""
        if record.conflict is not None:
            entry = self.log[record.conflict]
            entry.remote, entry.rev, entry.mark = theirs, rev, mark
            return
        self.log.append(Entry(address, record, theirs, rev, mark))
        self.records[address] = record._replace(conflict=len(self.log) - 1, dirty=max(record.dirty, 1))

    def _keep(self, address: Address, old: Record, new: Record, mark: Mark) -> None:
        before = self.marks.get(address, UNSEEN)
        after = before.join(mark, deleted=new.version.deleted)
        self.ghosts.changed(self.name, address, old.version, new.version, before, after)
        self._hold(address, new.version)
        if new.base is not None:
            self._hold(address, new.base)
        self.records[address] = new
        self.marks[address] = after

    def _hold(self, address: Address, version: Version) -> None:
        self.held[address] = self.held.get(address, frozenset()) | _said(version)

    def _resolve_open(self) -> Steps:
        entries = [entry for entry in self.log if entry.state == "open"]
        if not entries:
            return 0
        seen = [
            text
            for entry in entries
            for version in (entry.base, self.records[entry.address].version, entry.remote)
            if version is not None
            for text in stamps_of(version)
        ]
        fresh = self.stamp(seen)
        read = [(entry, self.records[entry.address].version, entry.rev) for entry in entries]
        yield None
        return sum(self.resolve(entry, local, rev, fresh) for entry, local, rev in read)

    def resolve(self, entry: Entry, local: Version, rev: str, fresh: Stamp) -> bool:
        """Decide a conflict, unless a side has changed since it was read; return whether it was."""
        record = self.records[entry.address]
        if record.version != local or entry.state != "open" or entry.rev != rev:
            return False
        conflict = Conflict(*entry.address, entry.base, local, entry.remote)
        resolution = self.parts.resolve(conflict, POLICIES[self.policy], fresh)
        entry.local, entry.state = local, "resolved"
        new = self.parts.decided(record, entry.remote, entry.rev, resolution.version)
        entry.result = new.version
        remote = entry.mark
        self._keep(entry.address, record, new, remote)
        return True

    def restamp(self, limit_ms: int, ceiling_ms: int) -> None:
        """Re-base the unpushed stamps that are later than `limit_ms`, and lower the mark."""
        if self.clock.ms <= limit_ms:
            return
        changed = {address: record for address, record in self.records.items() if record.dirty > 0}
        renamed, self.clock = self.parts.rebased(changed.values(), limit_ms, ceiling_ms, self.id)
        for address, record in changed.items():
            self.records[address] = record._replace(version=restamped(record.version, renamed))
            self._hold(address, self.records[address].version)

    def _push_records(self) -> Steps:
        for _ in range(RECORD_PASSES_MAX):
            again = False
            waiting = sorted(a for a, record in self.records.items() if record.dirty > 0 and record.conflict is None)
            for start in range(0, len(waiting), BATCH):
                items = [offered(*address, self.records[address]) for address in waiting[start : start + BATCH]]
                request = tuple((_change(item), self.marks[item.type, item.id]) for item in items)
                self.before_push(items)
                results = yield from self._ask("records", self.id, request)
                for item, (_, mark), result in zip(items, request, results, strict=True):
                    again = self.settle(item, mark, result) or again
            resolved = yield from self._resolve_open()
            if not resolved and not again:
                return

    def before_push(self, items: list[Pending]) -> None:
        """Remember what is offered: whether it arrived may never be said. Nothing else is noted before the answer."""
        for item in items:
            address = (item.type, item.id)
            record = self.records[address] = sending(self.records[address], item)
            self._hold(address, self.confirm(record, item, "").base or item.version)

    def settle(self, item: Pending, mark: Mark, result: Any) -> bool:
        """Take the answer to one item; return whether it is to be sent again."""
        address = (item.type, item.id)
        match result:
            case ("applied", rev):
                new = self.records[address] = self.confirm(self.records[address], item, rev)
                self._hold(address, new.base or new.version)
                self.newest = max(self.newest, rev, key=_number)
                return False
            case ("conflict", None, _):
                self.records[address] = self.records[address]._replace(rev=None)
                return True
            case ("conflict", current, theirs):
                self.newest = max(self.newest, current.rev, key=_number)
                return self.met(current, theirs) is Met.AHEAD
            case ("restamp", limit_ms):
                self.restamp(max(limit_ms - STAMP_AHEAD_MS, 0), max(limit_ms - 1, 0))
                return True
            case _:
                raise AssertionError(result)

    def confirm(self, record: Record, item: Pending, rev: str) -> Record:
        """Return a record once the cloud has what was offered."""
        return confirmed(record, item, rev)

    # At rest

    def check(self) -> None:
        """Check what must hold whenever a device is at rest."""
        every = [*self.own, *self.foreign]
        if len(every) != len(set(every)):
            raise Violation(f"{self.name}: an event is there twice")
        for entry in self.log:
            if entry.state == "resolved" and entry.result is None:
                raise Violation(f"{self.name} {entry.address}: a conflict was decided without a log of the result")


def _change(item: Pending) -> RecordChange:
    return RecordChange(
        type=item.type, id=item.id, base_rev=item.rev, fields=item.changed, stamps=item.stamps,
        deleted=item.deleted, stamp=item.stamp,
    )  # fmt: skip


def _said(version: Version) -> frozenset[object]:
    """Return what a version says, and which deletion it is."""
    said: set[object] = {(name, str(value)) for name, value in version.fields.items()}
    return frozenset(said | {version.stamp} if version.deleted else said)


def _number(cursor: str) -> int:
    return int(cursor.partition("-")[0] or 0)
