"""The sending half of a round: events in batches, then session counters, then records.

Each batch is read and encoded, sent, and then settled in a short transaction of its own: no transaction is open while
the network is asked. A batch that is refused as a whole is halved until the bad item is alone; that one goes to
quarantine and the rest goes on.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from metricsd.crash import crash_point
from metricsd.errors import CloudRefused, CloudUnreachable, LineRejected
from metricsd.hlc import parse_stamp
from metricsd.ids import EventId
from metricsd.protocol import EventResult, PushEventsReply, PushRecords, RecordChange, RecordResult, RecordState
from metricsd.store import counters, outbox, quarantine, records
from metricsd.store.connection import Store
from metricsd.store.counters import CounterRow
from metricsd.store.feed import is_device_id
from metricsd.store.outbox import Settled, Stream
from metricsd.store.quarantine import Reject
from metricsd.store.records import Met, Pending, is_stamp
from metricsd.sync import plan
from metricsd.sync.outgoing import Outgoing
from metricsd.sync.round import Round

T = TypeVar("T")

ROUND_EVENTS_MAX = 250_000
"""Events that one round sends; what is left goes with the next, which follows at once."""
REFUSED_MAX = 20
"""Single items that one round gives up on; more means that the cloud refuses everything, not these items."""
RECORD_PASSES_MAX = 3
"""Passes over the records: an answer may ask to send one again on another base or with another stamp."""
STAMP_AHEAD_MS = 5 * 60 * 1000
"""How far above its own time the cloud allows stamps. Ours are re-based onto its time here as they are at a hello: two
places to re-base to would put what was stamped first, by a push, behind what was stamped later, by a hello."""
ENVELOPE_BYTES = 512
"""Room for what surrounds the items of a body."""
REASON_CHARS_MAX = 64
_not_word = re.compile(r"[^A-Za-z0-9_]+")
_BAD_BATCH = frozenset((400, 413, 422))

_encode = msgspec.json.Encoder().encode


class Encoded(NamedTuple):
    """One event as it travels."""

    seq: int
    id: EventId
    data: bytes


async def push_events(sync: Round) -> None:
    """Send own events until none waits, or the round's bound is reached."""
    size = plan.first_batch(sync.settings.batch_size, sync.capabilities.items_max)
    sent = 0
    while sent < ROUND_EVENTS_MAX:
        batch, full = await sync.run(_read_batch, sync.store, sync.stream, sync.outgoing, size, _bytes_max(sync))
        if not batch:
            return
        await _divide(sync, batch, _send_events, _skip_event)
        sent += len(batch)
        size = plan.next_batch(size, full=full, items_max=sync.capabilities.items_max)
    sync.report.more = True


async def push_counters(sync: Round) -> None:
    """Send own session counters that changed."""
    while rows := await sync.run(counters.pending, sync.store, sync.capabilities.items_max):
        before = sync.report.pushed_records + len(sync.report.rejected)
        await _divide(sync, rows, _send_counters, _refuse_counters)
        if sync.report.pushed_records + len(sync.report.rejected) == before:
            return


async def push_records(sync: Round, resolve: Callable[[], Awaitable[int]]) -> None:
    """Send records that changed; what turns out to be in conflict is resolved (`resolve` says how many) and sent too."""
    for _ in range(RECORD_PASSES_MAX):
        again = False
        after = ("", "")
        while items := await sync.run(_offer, sync.store, sync.capabilities.items_max, after):
            after = (items[-1].type, items[-1].id)
            sync.again = False
            await _divide(sync, items, _send_records, _refuse_record)
            again = again or sync.again
        if not await resolve() and not again:
            return


async def _divide(
    sync: Round,
    items: Sequence[T],
    send: Callable[[Round, Sequence[T]], Awaitable[None]],
    give_up: Callable[[Round, T, CloudRefused], Awaitable[None]],
) -> None:
    """Send items together; halve what is refused as a whole until the bad one is alone."""
    try:
        await send(sync, items)
    except CloudRefused as error:
        if error.status not in _BAD_BATCH or sync.refused >= REFUSED_MAX:
            raise
        if len(items) > 1:
            for half in plan.halves(items):
                await _divide(sync, half, send, give_up)
            return
        sync.refused += 1
        await give_up(sync, items[0], error)


def _bytes_max(sync: Round) -> int:
    # The body counts uncompressed against both limits: how well it compresses is known only afterwards.
    limits = sync.capabilities
    return max(min(limits.body_bytes_max, limits.inflated_bytes_max) - ENVELOPE_BYTES, 1)


def _read_batch(
    store: Store, stream: Stream, outgoing: Outgoing, size: int, bytes_max: int
) -> tuple[list[Encoded], bool]:
    """Return the next batch, and whether more waits behind it."""
    items = outbox.next_items(store, stream, size)
    batch = [Encoded(seq, event_id, _encode(outgoing.event(event_id, seq, event))) for seq, event_id, event in items]
    fitting = plan.take_bytes([len(item.data) for item in batch], bytes_max)
    return batch[:fitting], len(items) == size


async def _send_events(sync: Round, batch: Sequence[Encoded]) -> None:
    stream = sync.stream
    head = _encode({"device_id": stream.device_id, "epoch": stream.epoch, "base_seq": stream.acked_seq})
    body = b"".join((head[:-1], b',"events":[', b",".join([item.data for item in batch]), b"]}"))
    reply = await sync.client.push_events(body)
    settled = _settled(sync, batch, reply)
    crash_point("after_answer_before_ack")
    sync.stream = await sync.run(outbox.acknowledge, sync.store, stream, settled)


def _settled(sync: Round, batch: Sequence[Encoded], reply: PushEventsReply) -> Settled:
    """Return what an answer settles; raise CloudUnreachable for one that does not fit the question."""
    done = sum(1 for item in batch if item.seq <= reply.acked_through)
    devices = {result.device for result in reply.results if result.device is not None}
    if len(reply.results) != len(batch) or not done or not all(map(is_device_id, devices)):
        raise CloudUnreachable(f"{sync.client.url} gave an answer that does not fit the events that were sent")
    mine: list[int] = []
    elsewhere: dict[str, list[int]] = {}
    rejects: list[Reject] = []
    for item, result in zip(batch[:done], reply.results, strict=False):
        match result.status:
            case "rejected":
                rejects.append(_rejected(sync, item, result))
            case "duplicate" if result.device is not None and result.device != sync.stream.device_id:
                elsewhere.setdefault(result.device, []).append(item.seq)
            case "stored" | "duplicate":
                mine.append(item.seq)
                sync.report.pushed_events += result.status == "stored"
    last = batch[done - 1]
    return Settled(last.seq, last.id.hex(), mine, elsewhere, rejects)


def _rejected(sync: Round, item: Encoded, result: EventResult) -> Reject:
    reason = _word(result.reason)
    sync.report.reject(item.id.hex(), reason)
    return Reject(f"event:{item.id.hex()}", 0, item.data, f"cloud_{reason}", sync.client.url)


async def _skip_event(sync: Round, item: Encoded, error: CloudRefused) -> None:
    sync.report.reject(item.id.hex(), _word(error.code or "refused"))
    reject = Reject(f"event:{item.id.hex()}", 0, item.data, "cloud_refused", str(error))
    sync.stream = await sync.run(outbox.skip, sync.store, sync.stream, item.seq, reject)


async def _send_counters(sync: Round, rows: Sequence[CounterRow]) -> None:
    changes = [(row, change) for row in rows if (change := sync.outgoing.counters(row)) is not None]
    results = await _ask(sync, [change for _, change in changes])
    answers = dict(zip((row for row, _ in changes), results, strict=True))
    await sync.run(_settle_counters, sync.store, rows, answers, sync.report.reject)
    sync.report.pushed_records += sum(result.status == "applied" for result in results)


def _settle_counters(
    store: Store, rows: Sequence[CounterRow], answers: dict[CounterRow, RecordResult], note: Callable[[str, str], None]
) -> None:
    with store.transaction():
        for row in rows:
            result = answers.get(row)
            if result is not None and result.status == "applied" and result.rev:
                counters.mark_pushed(store, row, result.rev)
            elif result is None or result.status == "rejected":
                reason = "id_too_long" if result is None else _word(result.reason)
                note(row.session_id, reason)
                _give_up_counters(store, row, f"cloud_{reason}")


async def _refuse_counters(sync: Round, row: CounterRow, error: CloudRefused) -> None:
    def give_up(store: Store) -> None:
        with store.transaction():
            _give_up_counters(store, row, "cloud_refused")

    sync.report.reject(row.session_id, _word(error.code or "refused"))
    await sync.run(give_up, sync.store)


def _give_up_counters(store: Store, row: CounterRow, reason: str) -> None:
    quarantine.add(store, f"counters:{row.device_id}/{row.app}/{row.session_id}", 0, _encode(row.fields()), reason)
    outbox.drop_counters(store, row)


def _offer(store: Store, limit: int, after: tuple[str, str]) -> list[Pending]:
    """Return records to push, remembered as offered before they leave: their answers may be lost."""
    items = records.pending(store, limit, after)
    if items:
        with store.transaction(full=True):
            records.note_sending(store, items)
    return items


async def _send_records(sync: Round, items: Sequence[Pending]) -> None:
    results = await _ask(sync, [sync.outgoing.record(item) for item in items])
    met = await sync.run(_settle_records, sync.store, items, results, sync.report.reject)
    sync.report.pushed_records += sum(result.status == "applied" for result in results)
    sync.again = sync.again or met


def _settle_records(
    store: Store, items: Sequence[Pending], results: Sequence[RecordResult], note: Callable[[str, str], None]
) -> bool:
    """Take the answers; return whether some record should be sent again."""
    again = False
    with store.transaction(full=True):
        for item, result in zip(items, results, strict=True):
            match result.status:
                case "applied":
                    records.applied(store, item, result.rev or "")
                case "conflict" if result.current is None:
                    records.forgotten(store, item)
                    again = True
                case "conflict" if result.current is not None and _answers(item, result.current):
                    again = records.conflict(store, item, result.current) is Met.AHEAD or again
                case "restamp" if result.stamp is not None and is_stamp(result.stamp):
                    allowed_ms = parse_stamp(result.stamp).ms
                    records.restamp(store, max(allowed_ms - STAMP_AHEAD_MS, 0), max(allowed_ms - 1, 0))
                    again = True
                case _:
                    reason = _word(result.reason or result.status)
                    note(f"{item.type}/{item.id}", reason)
                    _give_up_record(store, item, f"cloud_{reason}")
    return again


def _answers(item: Pending, current: RecordState) -> bool:
    """Return whether the cloud's version is one of this record, and one that can be."""
    try:
        records.version_of(current)
    except LineRejected:
        return False
    return (current.type, current.id) == (item.type, item.id)


async def _refuse_record(sync: Round, item: Pending, error: CloudRefused) -> None:
    def give_up(store: Store) -> None:
        with store.transaction():
            _give_up_record(store, item, "cloud_refused")

    sync.report.reject(f"{item.type}/{item.id}", _word(error.code or "refused"))
    await sync.run(give_up, sync.store)


def _give_up_record(store: Store, item: Pending, reason: str) -> None:
    quarantine.add(store, f"record:{item.type}/{item.id}", 0, _encode(item.version), reason)
    records.refused(store, item)


def _word(reason: str | None) -> str:
    """Return the cloud's reason as one word: it ends in a table, and on a terminal."""
    return _not_word.sub("_", reason or "rejected")[:REASON_CHARS_MAX]


async def _ask(sync: Round, changes: list[RecordChange]) -> list[RecordResult]:
    if not changes:
        return []
    reply = await sync.client.push_records(PushRecords(device_id=sync.stream.device_id, changes=changes))
    if len(reply.results) != len(changes):
        raise CloudUnreachable(f"{sync.client.url} gave an answer that does not fit the records that were sent")
    return reply.results
