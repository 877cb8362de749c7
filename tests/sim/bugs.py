"""Seeded bugs: what the simulator must find. Each is the product, or the model around it, doing one thing wrong.

They are mistakes that somebody made or nearly made, here or in other systems. A simulator that lets one of them live
is blind; `test_histories.py` holds it to finding each within a bounded number of seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from metricsd.conflict import Conflict, Resolution
from metricsd.hlc import Stamp
from metricsd.policy import InForce
from metricsd.protocol import HelloReply, RecordChange, RecordState
from metricsd.store.record_steps import Met, Pending, Record, meet
from metricsd.sync.plan import Action, Decision, LocalStream, decide
from tests.sim.cloud import Cloud, Page
from tests.sim.device import Device
from tests.sim.ghosts import Mark
from tests.sim.parts import Parts, resolve_by


class Bug(NamedTuple):
    """A wrong product: replaced decisions, or a model that does a step wrong."""

    name: str
    parts: Parts = Parts()
    device: type[Device] = Device
    cloud: type[Cloud] = Cloud


SOUND = Bug("none")


class _AnswersBeforeCommit(Cloud):
    """A push is answered, and on disk only with the next request. (With the right hello, devices would heal it.)"""

    safe: Any = None

    def push_records(self, device: str, items: tuple[tuple[RecordChange, Mark], ...]) -> list[Any]:
        self.safe = self.backup()
        return super().push_records(device, items)

    def ask(self, request: tuple[Any, ...]) -> Any:
        self.safe = None
        return super().ask(request)

    def crash(self) -> None:
        if self.safe is not None:
            self.restore(self.safe)


class _AcknowledgesBeforeAnswer(Device):
    """A record counts as pushed when it is sent."""

    def before_push(self, items: list[Pending]) -> None:
        super().before_push(items)
        for item in items:
            record = self.records[item.type, item.id]
            self.records[item.type, item.id] = record._replace(dirty=0)


class _CursorBeforeRows(Device):
    """The cursor is committed, then the rows."""

    def apply(self, page: Page) -> Iterator[None]:
        self._set_cursor(page.cursor)
        yield None
        for item in page.items:
            self.apply_one(item)


class _NoCompare(Cloud):
    """A push is set without comparing its base."""

    def differs(self, base_rev: str | None, rev: str) -> bool:
        return False


class _NumbersCompared(Cloud):
    """A restored cloud takes cursors and revisions of the history that it lost for its own: numbers without nonces."""

    def differs(self, base_rev: str | None, rev: str) -> bool:
        return (base_rev or "").partition("-")[0] != rev.partition("-")[0]

    def position(self, text: str) -> int | None:
        return min(int(text.partition("-")[0]), len(self.log))


class _HighestNotContiguous(Cloud):
    """A stream counts as settled up to the highest position seen, whatever is missing before it."""

    def push_events(self, device: str, base_seq: int, ids: tuple[str, ...]) -> Any:
        stream = self.bound.setdefault(device, [])
        missing = base_seq - len(stream)
        if missing > 0:
            stream.extend(f"{-seq:032x}" for seq in range(1, missing + 1))
        return super().push_events(device, base_seq, ids)


class _PlainSequence(Cloud):
    """A number is taken before the commit: while one transaction is open, a later one becomes visible first."""

    def page(self, device: str, cursor: str) -> Any:
        page = super().page(device, cursor)
        if isinstance(page, Page) and not page.more and len(page.items) > 1 and self.rng.random() < 0.2:
            return page._replace(items=[*page.items[:-2], page.items[-1]])
        return page


class _OwnRecordsLeftOut(Cloud):
    """The feed leaves out what the asking device wrote; one that was restored never gets it back."""

    def page(self, device: str, cursor: str) -> Any:
        page = super().page(device, cursor)
        if not isinstance(page, Page):
            return page
        kept = [item for item in page.items if not (isinstance(item[0], RecordState) and item[0].device == device)]
        return page._replace(items=kept)


class _TombstonesDropped(Device):
    """The feed's deletions are passed over."""

    def met(self, remote: RecordState, mark: Mark) -> Met:
        return Met.SAME if remote.deleted else super().met(remote, mark)


class _RestampIgnored(Device):
    """An edit from a wrong year counts as done when the cloud asks for another stamp."""

    def settle(self, item: Pending, mark: Mark, result: Any) -> bool:
        if result[0] == "restamp":
            self.records[item.type, item.id] = self.records[item.type, item.id]._replace(dirty=0)
            return False
        return super().settle(item, mark, result)

    def restamp(self, limit_ms: int, ceiling_ms: int) -> None:
        """Keep the wrong year."""


class _WrongYearsTaken(Cloud):
    """The cloud takes any stamp, and the devices bound none."""

    def push_records(self, device: str, items: tuple[tuple[RecordChange, Mark], ...]) -> list[Any]:
        return [self.set(device, change, mark, self.nonce()) for change, mark in items]


class _NotBounded(Device):
    """The device does not bound its stamps."""

    def restamp(self, limit_ms: int, ceiling_ms: int) -> None:
        """Keep the wrong year."""


class _EditsDuringPushForgotten(Device):
    """An answer confirms the record as it is, also what was edited since the request."""

    def confirm(self, record: Record, item: Pending, rev: str) -> Record:
        return super().confirm(record, item, rev)._replace(base=record.version, dirty=0)


class _CursorAlone(Device):
    """A hello shows the cursor, not what pushes were told: a cloud may lose those and not be found out."""

    def place(self) -> str:
        return self.cursor


class _ForkIsLostHistory(Device):
    """A new device id is taken for another history of the cloud, and what is agreed for what has to be."""

    def _verify(self) -> None:
        self._reoffer()


class _FeedDoubles(Device):
    """Events of the feed are inserted without looking whether they are here."""

    def apply_one(self, item: Any) -> None:
        if isinstance(item[0], RecordState):
            super().apply_one(item)
        elif item[0] != self.id:
            self.foreign.append(item[1])
            self.owner[item[1]] = item[0]


class _ConflictNotLogged(Device):
    """A conflict is decided without a row of the log that says how."""

    def resolve(self, *args: Any) -> bool:
        done = super().resolve(*args)
        for entry in self.log:
            entry.result = None
        return done


class _DecidesOverEdits(Device):
    """A decision is written over an edit that was made while it was being taken."""

    def resolve(self, entry: Any, local: Any, rev: str, fresh: Stamp) -> bool:
        record = self.records[entry.address]
        newer = record.version
        self.records[entry.address] = record._replace(version=local)
        done = super().resolve(entry, local, rev, fresh)
        if newer is not local and done:
            after = self.records[entry.address]
            self.records[entry.address] = after._replace(version=after.version)
        return done


def _wall_clock(mark: Stamp, seen: object, wall_ms: int, device: str) -> Stamp:
    return Stamp(wall_ms, 0, device)


def _union_without_base(conflict: Conflict, in_force: InForce, fresh: Stamp) -> Resolution:
    return resolve_by(conflict._replace(base=None), in_force, fresh)


def _edit_wins(conflict: Conflict, in_force: InForce, fresh: Stamp) -> Resolution:
    alive = conflict.remote if conflict.local.deleted else conflict.local
    resolution = resolve_by(conflict, in_force, fresh)
    return resolution._replace(version=alive) if resolution.version.deleted and not alive.deleted else resolution


def _own_side_stays(record: Record, theirs: object, rev: str, result: object) -> Record:
    """local_wins decided on both sides, each keeping its own: nothing is pushed, nothing adopted."""
    return record._replace(rev=rev, dirty=0, conflict=None)


def _never_forks(local: LocalStream, reply: HelloReply) -> Decision:
    decision = decide(local, reply)
    return Decision(Action.IN_SYNC) if decision.action is Action.FORK else decision


def _never_reoffers(local: LocalStream, reply: HelloReply) -> Decision:
    decision = decide(local, reply)
    return Decision(Action.IN_SYNC) if decision.action is Action.REOFFER else decision._replace(reset_cursor=False)


def _last_pull_wins(*args: Any, **options: Any) -> Met:
    met = meet(*args, **options)
    return Met.ADOPTED if met is Met.CONFLICT else met


def _base_of_lost_history(record: Record, theirs: object) -> Record:
    """What a restored cloud still has counts as a change to what it has lost."""
    return record


def _writer_alone(record: Record, remote: Any, writer: str, device: str) -> bool:
    """Whatever carries our id is our own word, also a twin's, or that of ourselves before a restore."""
    return record.dirty > 0 and writer == device


def _never_own(record: Record, remote: Any, writer: str, device: str) -> bool:
    """A push whose answer was lost is another's change."""
    return False


def _values_alone(local: Any, base: Any, remote: Any, *, own: bool = False) -> Met:
    """Versions are compared by what they say, not by when it was said."""
    met = meet(local, base, remote, own=own)
    if met is Met.CONFLICT and base is not None and local.deleted and base.deleted:
        return Met.ADOPTED
    return met


BUGS = (
    Bug("answer before commit", cloud=_AnswersBeforeCommit, device=_CursorAlone),
    Bug("hello without what pushes were told", device=_CursorAlone),
    Bug("acknowledged before the answer", device=_AcknowledgesBeforeAnswer),
    Bug("cursor before rows", device=_CursorBeforeRows),
    Bug("no base check", cloud=_NoCompare),
    Bug("revision without nonce", cloud=_NumbersCompared),
    Bug("highest instead of contiguous", cloud=_HighestNotContiguous),
    Bug("plain sequence", cloud=_PlainSequence),
    Bug("own records left out of the feed", cloud=_OwnRecordsLeftOut),
    Bug("lost history taken for a change", parts=Parts(common=_base_of_lost_history)),
    Bug("tombstone dropped", device=_TombstonesDropped),
    Bug("restamp ignored", device=_RestampIgnored),
    Bug("wrong years taken", device=_NotBounded, cloud=_WrongYearsTaken),
    Bug("edit during a push forgotten", device=_EditsDuringPushForgotten),
    Bug("feed applied without ids", device=_FeedDoubles),
    Bug("conflict not logged", device=_ConflictNotLogged),
    Bug("decision written over an edit", device=_DecidesOverEdits),
    Bug("wall clock", parts=Parts(make_stamp=_wall_clock)),
    Bug("merge without base", parts=Parts(resolve=_union_without_base)),
    Bug("edit beats deletion", parts=Parts(resolve=_edit_wins)),
    Bug("each side decides for itself", parts=Parts(decided=_own_side_stays)),
    Bug("no fork", parts=Parts(decide=_never_forks)),
    Bug("nothing offered again", parts=Parts(decide=_never_reoffers)),
    Bug("last pull wins", parts=Parts(meet=_last_pull_wins)),
    Bug("there and back unseen", parts=Parts(meet=_values_alone)),
    Bug("a writer's id taken for our word", parts=Parts(is_own=_writer_alone)),
    Bug("own push not known again", parts=Parts(is_own=_never_own)),
    Bug("fork taken for lost history", device=_ForkIsLostHistory),
)
"""Every bug; the order is of no meaning."""
