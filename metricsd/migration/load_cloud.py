"""Sends parts straight to the cloud, for a machine that shall not keep the history itself.

What leaves is made by the code that sends everything else (sync/outgoing.py), and what older tools noted of folders and
names does not leave at all. The cloud knows each event by its id, so asking first (`POST /have`) makes a part that was
sent before cost one small question, and a lost answer costs nothing. How far the run is, its own database holds: before
a part leaves, what of it the cloud had; after it, that it is there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import Struct

from metricsd import fields
from metricsd.clock import US_PER_MS, Clock
from metricsd.config import Sync
from metricsd.errors import CloudBusy, CloudRefused, CloudUnreachable
from metricsd.hlc import Stamp, next_stamp, parse_stamp
from metricsd.identity import Credentials
from metricsd.ids import EVENT_ID_BYTES
from metricsd.migration.load import count, to_quarantine
from metricsd.migration.model import Counts, Part, Planned, Position, Progress, Rejected, Stored, batch_name
from metricsd.migration.work import Work
from metricsd.protocol import (
    Capabilities,
    ChangesReply,
    FieldValue,
    HaveReply,
    HaveRequest,
    IdRange,
    PushEventsReply,
    PushRecords,
    PushRecordsReply,
    RecordChange,
    RecordResult,
)
from metricsd.store import digests, imports, tool_metrics
from metricsd.store.digests import Digest
from metricsd.store.events import Identified
from metricsd.store.imports import Fate
from metricsd.store.quarantine import Reject
from metricsd.store.suggestions import Suggestion
from metricsd.sync.outgoing import Outgoing
from metricsd.sync.plan import halves

T = TypeVar("T")

IN_FLIGHT_MAX = 3
BATCH_BYTES_MAX = 512 * 1024
RETRY_S_MAX = 600.0
"""How long a cloud may stay away before the run ends; it is resumed when the cloud is back."""
PAUSE_S_MAX = 60.0
RECORD_PASSES_MAX = 4
EPOCH = 1
_BAD_BATCH = frozenset((400, 413, 422))
_FACT = "cloud"

_encode = msgspec.json.Encoder().encode


class Cloud(Protocol):
    """What is asked of a cloud: its API's client has it, and so has a database that an administrator reaches."""

    url: str

    async def capabilities(self) -> Capabilities: ...
    async def have(self, request: HaveRequest) -> HaveReply: ...
    async def push_unsequenced(self, body: bytes) -> PushEventsReply: ...
    async def push_records(self, request: PushRecords) -> PushRecordsReply: ...
    async def everything(self, cursor: str, limit: int) -> ChangesReply: ...
    async def close(self) -> None: ...


class Connection(NamedTuple):
    """How the cloud is reached: the login, the settings, and what makes a client. `bytes_max` bounds a request."""

    login: Credentials
    settings: Sync
    connect: Callable[[str, str, Sync], Cloud]
    bytes_max: int = BATCH_BYTES_MAX


class _Reached(Struct, frozen=True):
    """What the run's database holds of the cloud."""

    part: int
    after: Position
    rules: bytes
    ledger: int
    counts: Counts
    digest: tuple[int, int]
    """Rows, and the sum's high half; see `low`."""
    low: int = 0


class CloudSink:
    """The cloud as a target, over its API."""

    def __init__(
        self,
        connection: Connection,
        work: Work,
        clock: Clock,
        *,
        batch: int,
        label: str,
        keep: Callable[[Sequence[Reject]], None],
        is_hooked: Callable[[Planned], bool],
        let_go: Callable[[], None] = lambda: None,
    ) -> None:
        """`keep` quarantines what was rejected; `is_hooked` tells calls of a transcript that hooks captured.

        `let_go` is called at the end: what the other two use can be closed.
        """
        self._outgoing = Outgoing(connection.login.tenant_key, connection.settings)
        self._connection = connection
        self._work = work
        self._clock = clock
        self._batch = batch
        self._label = label
        self._keep = keep
        self._is_hooked = is_hooked
        self._let_go = let_go
        self._mark = Stamp(0, 0, connection.login.device_id)
        self._runner: asyncio.Runner | None = None
        self._client: Cloud | None = None
        self._items_max = 0
        self._reached = _reached(work)

    def progress(self) -> Progress:
        """Return how far this run is in the cloud."""
        found = self._reached
        return Progress(found.part, found.after, found.rules, found.ledger, found.counts)

    def take(self, part: Part, ledger: Callable[[Sequence[Rejected]], int]) -> Stored:
        """Send a part; raise CloudError when the cloud stays away, and AuthError."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(self.send(part, ledger))

    def digest(self) -> str:
        """Return the digest of the events that the run brought."""
        return _digest_of(self._reached).text()

    def close(self) -> None:
        """Close the connection."""
        if self._runner is not None:
            self._runner.run(self.leave())
            self._runner.close()
            self._runner = None
        self._let_go()

    async def leave(self) -> None:
        """Close the connection, from within an event loop."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def send(self, part: Part, ledger: Callable[[Sequence[Rejected]], int]) -> Stored:
        """Do what `take` does, from within an event loop."""
        client = await self._connected()
        wanted = [one for one in part.planned if not self._is_hooked(one)]
        items = {bytes(item.id): item for one in wanted for item in one.items}
        known = await self._known(client, part.number, list(items))
        new = {key: item for key, item in items.items() if known[key] == (part.number, False)}
        refused = await self._push(client, new)
        added = digests.of_events(item for key, item in new.items() if key not in refused)
        changed = await self._push_records(client, part, wanted, added.rows)
        fresh = set(new)
        hooked = {id(one) for one in part.planned} - {id(one) for one in wanted}
        fates = [
            Fate.NOTHING if id(one) in hooked else _fate(one, fresh, known, refused, changed) for one in part.planned
        ]
        rejected = _refused(part.planned, refused)
        counts = count(part, fates)
        self._keep([to_quarantine(one) for one in (*part.rejected, *rejected)])
        size = ledger(rejected)
        total = _digest_of(self._reached).plus(added)
        high, low = divmod(total.total, 1 << 64)
        self._reached = _Reached(
            part.number, part.after, part.rules, size, self._reached.counts + counts, (total.rows, high), low,
        )  # fmt: skip
        self._work.note_fact(_FACT, msgspec.msgpack.encode(self._reached).hex())
        return Stored(counts, tuple(rejected), added.text())

    async def _connected(self) -> Cloud:
        if self._client is None:
            link = self._connection
            self._client = link.connect(link.login.url, link.login.token, link.settings)
        if not self._items_max:
            self._items_max = (await self._asked(self._client.capabilities)).items_max
        return self._client

    async def _known(self, client: Cloud, part: int, ids: list[bytes]) -> dict[bytes, tuple[int, bool]]:
        """Return for each event which part brings it and whether the cloud had it before; noted before anything leaves."""
        noted = self._work.sent(ids)
        asked = [key for key in ids if key not in noted]
        if asked:
            held = await self._held(client, sorted(asked))
            self._work.note_sending(part, {key: key in held for key in asked})
            noted |= {key: (part, key in held) for key in asked}
        return noted

    async def _held(self, client: Cloud, ids: list[bytes]) -> set[bytes]:
        """Return which of these events the cloud has, by one question about all of them where that is enough."""
        device = self._connection.login.device_id
        whole = HaveRequest(device_id=device, ranges=[IdRange(first=ids[0].hex(), last=ids[-1].hex())])
        reply = await self._asked(partial(client.have, whole))
        if reply.ranges and reply.ranges[0].through is None:
            if reply.ranges[0].count == 0:
                return set()
            digest = blake2b(b"".join(ids), digest_size=EVENT_ID_BYTES).hexdigest()
            if (reply.ranges[0].count, reply.ranges[0].digest) == (len(ids), digest):
                return set(ids)
        held = set(ids)
        for start in range(0, len(ids), self._items_max):
            some = HaveRequest(device_id=device, ids=[key.hex() for key in ids[start : start + self._items_max]])
            held -= {bytes.fromhex(text) for text in (await self._asked(partial(client.have, some))).missing}
        return held

    async def _push(self, client: Cloud, items: Mapping[bytes, Identified]) -> dict[bytes, str]:
        """Send events, a few requests at a time; return those that the cloud refuses, with its reason."""
        refused: dict[bytes, str] = {}
        wires = [(key, _encode(self._outgoing.event(item.id, 0, item.event))) for key, item in items.items()]
        batches = list(_batches(wires, min(self._batch, self._items_max), self._connection.bytes_max))
        for start in range(0, len(batches), IN_FLIGHT_MAX):
            some = (self._send(client, batch) for batch in batches[start : start + IN_FLIGHT_MAX])
            # Each of them comes to its end, so that an error leaves nothing at work behind it.
            for found in await asyncio.gather(*some, return_exceptions=True):
                if isinstance(found, BaseException):
                    raise found
                refused |= found
        return refused

    async def _send(self, client: Cloud, batch: Sequence[tuple[bytes, bytes]]) -> dict[bytes, str]:
        head = _encode({"device_id": self._connection.login.device_id, "epoch": EPOCH, "base_seq": 0})
        body = b"".join((head[:-1], b',"events":[', b",".join([data for _, data in batch]), b"]}"))
        try:
            reply = await self._asked(partial(client.push_unsequenced, body))
        except CloudRefused as error:
            if error.status not in _BAD_BATCH:
                raise
            if len(batch) == 1:
                return {batch[0][0]: error.code or "refused"}
            found: dict[bytes, str] = {}
            for half in halves(batch):
                found |= await self._send(client, half)
            return found
        if len(reply.results) != len(batch):
            raise CloudUnreachable(f"{client.url} gave an answer that does not fit the events that were sent")
        pairs = zip(batch, reply.results, strict=True)
        return {key: result.reason or "rejected" for (key, _), result in pairs if result.status == "rejected"}

    async def _push_records(self, client: Cloud, part: Part, wanted: Sequence[Planned], added: int) -> set[str]:
        """Send values for fields that nobody has set; return the addresses of records that were made or changed."""
        values: dict[tuple[str, str], dict[str, FieldValue]] = {}
        for planned in wanted:
            for one in planned.beside:
                if isinstance(one, Suggestion):
                    values.setdefault((one.type, one.id), {}).update(_possible(one))
        changed: set[str] = set()
        waiting = [self._change(kind, record_id, found) for (kind, record_id), found in values.items() if found]
        await self._settle(client, waiting, changed)
        # A session that is there already answers as if it had been changed when the values are the same.
        if added or any(address.startswith(f"{tool_metrics.TYPE}/") for address in changed):
            told: dict[str, FieldValue] = {
                "active": True, "label": self._label, "source": "migration", "imported_at": self._clock.now_us(),
                "events": added, "records": len(changed),
            }  # fmt: skip
            name = batch_name(part.run, part.number)
            await self._settle(client, [self._change(imports.TYPE, name, told)], set())
        return changed

    async def _settle(self, client: Cloud, waiting: list[RecordChange], changed: set[str]) -> None:
        for _ in range(RECORD_PASSES_MAX):
            again: list[RecordChange] = []
            for start in range(0, len(waiting), self._items_max):
                some = waiting[start : start + self._items_max]
                request = PushRecords(device_id=self._connection.login.device_id, changes=some)
                reply = await self._asked(partial(client.push_records, request))
                if len(reply.results) != len(some):
                    raise CloudUnreachable(f"{client.url} gave an answer that does not fit the records that were sent")
                for change, result in zip(some, reply.results, strict=True):
                    more = self._answered(change, result, changed)
                    if more is not None:
                        again.append(more)
            if not again:
                return
            waiting = again

    def _answered(self, change: RecordChange, result: RecordResult, changed: set[str]) -> RecordChange | None:
        """Take an answer; return what to send again. What people or others wrote stands over an older tool's note."""
        match result.status:
            case "applied":
                changed.add(f"{change.type}/{change.id}")
            case "conflict" if result.current is not None and not result.current.deleted:
                current = result.current
                left = {name: value for name, value in change.fields.items() if name not in current.stamps}
                if left and change.type != imports.TYPE and "batch" not in change.fields:
                    return self._change(change.type, change.id, left, base=current.rev)
            case "restamp" if result.stamp is not None:
                # The cloud's clock is behind ours: it names the highest stamp that it takes.
                self._mark = parse_stamp(result.stamp)._replace(device=self._mark.device)
                stamps = dict.fromkeys(change.fields, result.stamp)
                return msgspec.structs.replace(change, stamps=stamps)
            case _:
                return None
        return None

    def _change(
        self, kind: str, record_id: str, values: Mapping[str, FieldValue], base: str | None = None
    ) -> RecordChange:
        self._mark = next_stamp(self._mark, self._clock.now_us() // US_PER_MS, self._mark.device)
        stamps = dict.fromkeys(values, self._mark.text())
        return RecordChange(type=kind, id=record_id, base_rev=base, fields=dict(values), stamps=stamps)

    async def _asked(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask, and ask again while the cloud is away or busy, with pauses that grow and differ."""
        waited = 0.0
        pause_s = 1.0
        while True:
            try:
                return await ask()
            except (CloudUnreachable, CloudBusy) as error:
                if waited >= RETRY_S_MAX:
                    raise
                asked_s = error.retry_after_s if isinstance(error, CloudBusy) else None
                # Full jitter, so that many machines do not come back in one moment.
                wait_s = asked_s if asked_s is not None else random.uniform(0, pause_s)  # noqa: S311
                wait_s = min(wait_s, PAUSE_S_MAX)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
                waited += max(wait_s, 0.1)
                await self._clock.sleep(wait_s)


def _fate(
    planned: Planned,
    fresh: set[bytes],
    known: Mapping[bytes, tuple[int, bool]],
    refused: Mapping[bytes, str],
    changed: set[str],
) -> Fate:
    """Return what became of a row; what is new is taken out of `fresh`, for whoever tells of it next tells of it again."""
    keys = [bytes(item.id) for item in planned.items]
    if not keys:
        names = [f"{one.type}/{one.id}" for one in planned.beside if isinstance(one, Suggestion)]
        if not planned.beside:
            return Fate.NOTHING
        return Fate.NEW if any(name in changed for name in names) else Fate.KNOWN
    if any(key in refused for key in keys):
        return Fate.REFUSED
    if not fresh.isdisjoint(keys):
        fresh.difference_update(keys)
        return Fate.NEW
    return Fate.KNOWN if known[keys[0]][1] else Fate.TWICE


def _reached(work: Work) -> _Reached:
    text = work.fact(_FACT)
    if not text:
        return _Reached(0, Position(), b"", 0, Counts(), (0, 0))
    return msgspec.msgpack.decode(bytes.fromhex(text), type=_Reached)


def _digest_of(reached: _Reached) -> Digest:
    rows, high = reached.digest
    return Digest(rows, (high << 64) | reached.low)


def _possible(one: Suggestion) -> dict[str, FieldValue]:
    return {
        name: value
        for name, value in one.values.items()
        if value is not None and fields.problem(one.type, name, value) is None
    }


def _refused(planned: Sequence[Planned], refused: Mapping[bytes, str]) -> list[Rejected]:
    found = []
    for one in planned:
        reason = next((refused[bytes(item.id)] for item in one.items if bytes(item.id) in refused), None)
        if reason is not None:
            row = one.row
            found.append(
                Rejected(
                    row.place, row.subject, f"cloud_{reason}", "", row.data or None, len(row.data), 1 + len(row.others)
                )
            )
    return found


def _batches(
    items: Iterable[tuple[bytes, bytes]], items_max: int, bytes_max: int
) -> Iterable[list[tuple[bytes, bytes]]]:
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for item in items:
        if batch and (len(batch) >= items_max or size + len(item[1]) > bytes_max):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item[1]) + 1
    if batch:
        yield batch
