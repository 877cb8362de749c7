"""The older API's data in a cloud: what one token's clients write and read for its user.

What is written belongs to a pseudo-device of the token: its events are unsequenced, with change numbers as usual, and
its edits of records compare and set like any device's, so that other devices hear of both. Project and branch are kept
with what the client said, and not in events: at level `metrics` nobody else's are readable in a cloud either.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

from metricsd.clock import US_PER_MS, Clock
from metricsd.cloud import older_reads
from metricsd.cloud.backend import Backend, EventBatch, EventItem, RecordBatch, RecordItem, TenantStore, Token, Writer
from metricsd.cloud.comparing import highest_stamp
from metricsd.cloud.older_plans import Plan, Records
from metricsd.cloud.older_reads import Known
from metricsd.cloud.problems import Refused, busy
from metricsd.hlc import Stamp, next_stamp, parse_stamp
from metricsd.ids import EventId
from metricsd.legacy.api import Remembered
from metricsd.legacy.kept import Call, Edit, Figures, Person, Session, Standing, Synced, Wanted, Writes
from metricsd.model import Event
from metricsd.protocol import FieldValue, RecordChange, RecordState, WireEvent

T = TypeVar("T")

SESSION = "session"
DOWN = "the database cannot be used now"
MEMORIES_MAX = 64
"""Users that are remembered: some hundred kilobytes each, in a busy week."""
FIGURES_KEPT = 4
EDIT_TRIES = 5
"""How often an edit is made anew because somebody else's came in between."""


class Memory:
    """What is remembered of one user between requests: figures by days, and the answers made of them."""

    def __init__(self) -> None:
        self.answers = Remembered()
        self.figures: dict[int, Known] = {}


class Memories:
    """The memories of the users that asked last, in one process."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Memory] = OrderedDict()

    def of(self, token: Token) -> Memory:
        """Return the memory of a token's user."""
        key = (token.tenant.id, token.user)
        memory = self._known.pop(key, None) or Memory()
        self._known[key] = memory
        if len(self._known) > MEMORIES_MAX:
            self._known.popitem(last=False)
        return memory


class CloudShelf:
    """`legacy.kept.Shelf` over one tenant's store, for one request. Nothing is opened before it is needed."""

    def __init__(self, backend: Backend, token: Token, memory: Memory, clock: Clock) -> None:
        self._backend = backend
        self._tenant = token.tenant
        self._memory = memory
        self._clock = clock
        self._writer = Writer(token.user, device_of(token))
        self.wrote = False

    async def write(self, writes: Writes) -> None:
        """Store it in an order in which a repeated request mends what was cut off: every part is harmless twice."""
        self.wrote = True
        async with self._backend.tenant(self._tenant) as store:
            if writes.documents:
                await store.keep(self._writer, writes.documents)
            for edit in writes.edits:
                await self._edit(store, edit)
            if not writes.events:
                return
            items = [_item(event_id, event) for event_id, event in writes.events]
            device = self._writer.device or ""
            batch = EventBatch(device_id=device, epoch=0, base_seq=0, items=items, sequenced=False)
            await store.push_events(self._writer, batch)

    async def find(self, session: str) -> Session | None:
        return await self._ask(lambda person: older_reads.find(person, session), None)

    async def list(self, wanted: Wanted) -> Sequence[Session]:
        return await self._ask(lambda person: older_reads.page(person, wanted), [])

    async def calls(self, session: str) -> Sequence[Call]:
        return await self._ask(lambda person: older_reads.calls(person, session), [])

    async def figures(self, days: int, *, uses: bool) -> Figures:
        now, known = self._clock.now_us(), self._memory.figures.get(days)
        nobody = older_reads.nothing(now)
        found = await self._ask(lambda person: older_reads.figures(person, days, now, known), nobody)
        if len(self._memory.figures) >= FIGURES_KEPT:
            self._memory.figures.clear()
        self._memory.figures[days] = found
        return found.figures

    async def _ask(self, make: Callable[[int], Plan[T]], otherwise: T) -> T:
        async with self._backend.tenant(self._tenant) as store:
            return await store.ask(self._writer.user, make, otherwise, counted=True)

    async def _edit(self, store: TenantStore, edit: Edit) -> None:
        record_id = edit.session.record_id
        for _ in range(EDIT_TRIES):
            known = await store.ask(self._writer.user, lambda _: _record(record_id), None, counted=False)
            change = _change(known, edit, self._clock.now_us(), self._writer.device or "")
            if change is None:
                return
            batch = RecordBatch(device_id=self._writer.device or "", items=[RecordItem(change, None)])
            [result] = await store.push_records(self._writer, batch, self._clock.now_us())
            if result.status == "applied":
                return
            if result.status != "conflict":
                # The clock was set back by more than minutes just now: it passes.
                raise busy(f"the session cannot be changed now ({result.status})")
        raise busy("the session is being changed by others")


class CloudHost:
    """`legacy.kept.Host` of a cloud: what is written is there at once, so nothing ever waits."""

    def __init__(self, backend: Backend, token: Token, clock: Clock) -> None:
        self.person = Person(token.user, "")
        self._backend = backend
        self._token = token
        self._clock = clock

    async def trouble(self) -> str | None:
        try:
            await self._backend.directory.ready()
            async with self._backend.tenant(self._token.tenant) as store:
                await store.ask(self._token.user, lambda _: _record(""), None, counted=False)
        except Refused:
            return DOWN
        return None

    async def standing(self) -> Standing:
        return Standing(
            mode="hybrid", has_cloud=True, is_local=False, pending_sessions=0, pending_calls=0, failed_sessions=0,
            failed_calls=0, synced_us=self._clock.now_us(), follows_hooks=True, is_syncing=True,
        )  # fmt: skip

    async def sync(self) -> Synced:
        return Synced(True, 0, 0)

    def find_file(self, name: str) -> bytes | None:
        return None


def device_of(token: Token) -> str:
    """Return the id of the pseudo-device that a token's clients write as."""
    return f"legacy-{token.id}"


def _item(event_id: EventId, event: Event) -> EventItem:
    wire = WireEvent(
        id=event_id.hex(), at=event.at, kind=event.kind, name=event.name, app=event.app, session=event.session,
        tool=event.tool, outcome=event.outcome, duration_ms=event.duration_ms, agent=event.agent, subject=event.subject,
        output_bytes=event.output_bytes, lines_added=event.lines_added, lines_removed=event.lines_removed,
        extra=event.extra,
    )  # fmt: skip
    return EventItem(0, bytes(event_id), wire, None)


def _record(record_id: str) -> Plan[RecordState | None]:
    found = yield Records(SESSION, [record_id])
    state: RecordState | None = found.get(record_id)
    return state


def _change(known: RecordState | None, edit: Edit, now_us: int, device: str) -> RecordChange | None:
    """Return the change that an edit makes on the version that is here; None when there is nothing to change. Pure."""
    stamps = {} if known is None else known.stamps
    made = [parse_stamp(stamp) for stamp in stamps.values()]
    if known is not None and known.stamp is not None:
        made.append(parse_stamp(known.stamp))
    mark = max(made, default=Stamp(0, 0, device))
    # What was stamped by a clock that was years ahead then can be edited now: the revision says what came after what.
    stamp = min(next_stamp(mark, now_us // US_PER_MS, device), highest_stamp(now_us, device)).text()
    base = None if known is None else known.rev
    if edit.delete:
        if known is not None and known.deleted:
            return None
        return RecordChange(type=SESSION, id=edit.session.record_id, base_rev=base, deleted=True, stamp=stamp)
    if edit.unless_set and known is not None and known.deleted:
        return None
    fields: dict[str, FieldValue] = {
        name: value
        for name, value in edit.fields.items()
        if not (edit.unless_set and name in stamps)
        and (known is None or known.fields.get(name) != value or known.deleted)
    }
    if known is None:
        fields = {name: value for name, value in fields.items() if value is not None}
    if not fields and known is not None and not known.deleted:
        return None
    return RecordChange(
        type=SESSION, id=edit.session.record_id, base_rev=base, fields=fields, stamps=dict.fromkeys(fields, stamp)
    )
