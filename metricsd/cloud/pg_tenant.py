"""One tenant's data on PostgreSQL: a store over one schema, whose work is done by one file a noun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from metricsd.clock import Clock
from metricsd.cloud.backend import (
    Erased,
    EventBatch,
    EventOutcome,
    Exported,
    FeedQuery,
    RecordBatch,
    TenantPolicy,
    TenantStats,
    Writer,
)
from metricsd.cloud.older_fold import FOLDS_MAX, fold, forget, is_behind
from metricsd.cloud.older_plans import Plan
from metricsd.cloud.older_reads import put
from metricsd.cloud.pg_archive import find_have, read_export, read_stats
from metricsd.cloud.pg_erase import erase_device
from metricsd.cloud.pg_events import find_bounds, find_newest, push_events
from metricsd.cloud.pg_feed import read_page
from metricsd.cloud.pg_older import carry_out
from metricsd.cloud.pg_policy import find_policy, find_policy_hash, put_policy
from metricsd.cloud.pg_records import position, push_records
from metricsd.cloud.pg_retention import Sweeper
from metricsd.cloud.pg_session import Session
from metricsd.cloud.positions import hello_reply
from metricsd.cloud.problems import busy
from metricsd.legacy.kept import SESSION, Kept
from metricsd.protocol import ChangesReply, HaveReply, HaveRequest, HelloReply, HelloRequest, RecordResult

T = TypeVar("T")


class PgTenant:
    """`TenantStore` over one schema."""

    def __init__(self, session: Session, sweeper: Sweeper, retention_days: int, clock: Clock) -> None:
        self.session = session
        self._sweeper = sweeper
        self._retention_days = retention_days
        self._clock = clock

    async def hello(self, writer: Writer, request: HelloRequest, now: int) -> HelloReply:
        async with self.session.reading() as (db, _):
            [device] = await self.session.terms.find(db, request.device_id)
            newest = None if device is None else await find_newest(db, device)
            at_acked = None
            if device is not None and newest is not None and newest.epoch >= request.epoch:
                bounds = await find_bounds(db, device, request.epoch, [request.acked_seq])
                at_acked = bounds[request.acked_seq].key if bounds else None
            cursor_ok = request.cursor == "" or await position(db, request.cursor) is not None
            reply = hello_reply(request, newest, at_acked, cursor_ok=cursor_ok, now=now)
            return msgspec.structs.replace(reply, policy_hash=await find_policy_hash(db))

    async def push_events(self, writer: Writer, batch: EventBatch) -> EventOutcome:
        outcome = await push_events(self.session, writer, batch)
        await self._sweeper.beside_push(self._retention_days, self._clock.now_us())
        return outcome

    async def push_records(self, writer: Writer, batch: RecordBatch, now: int) -> list[RecordResult]:
        return await push_records(self.session, writer, batch, now)

    async def changes(self, writer: Writer, query: FeedQuery, now: int) -> ChangesReply:
        return await read_page(self.session, writer, query, now)

    async def find_policy(self) -> TenantPolicy | None:
        async with self.session.reading() as (db, _):
            return await find_policy(db)

    async def put_policy(self, text: str, sha256: str, now: int) -> TenantPolicy:
        async with self.session.writing() as (db, _):
            return await put_policy(db, text, sha256, now)

    async def have(self, writer: Writer, request: HaveRequest, rows_max: int) -> HaveReply:
        return await find_have(self.session, writer, request, rows_max)

    async def erase_device(self, user: str, device_id: str, now: int) -> Erased:
        erased = await erase_device(self.session, user, device_id, now)
        async with self.session.writing() as (db, _):
            [person] = await self.session.terms.find(db, user)
            if person is not None:
                await carry_out(forget(person), self.session, db, person)
        return erased

    async def keep(self, writer: Writer, documents: Sequence[Kept]) -> None:
        ids = await self.session.terms.learn({writer.user, *(kept.key for kept in documents if kept.kind == SESSION)})
        person = ids[writer.user]
        async with self.session.writing() as (db, _):
            await carry_out(put(person, documents), self.session, db, person)

    async def ask(self, user: str, make: Callable[[int], Plan[T]], otherwise: T, *, counted: bool) -> T:
        for _ in range(FOLDS_MAX):
            async with self.session.reading() as (db, _):
                [person] = await self.session.terms.find(db, user)
                if person is None:
                    return otherwise
                if not (counted and await carry_out(is_behind(person), self.session, db, person)):
                    return await carry_out(make(person), self.session, db, person)
            async with self.session.writing() as (db, _):
                await carry_out(fold(person), self.session, db, person)
        raise busy("this user's history is being counted")

    async def export(self, after: int, limit: int) -> list[Exported]:
        return await read_export(self.session, after, limit)

    async def stats(self) -> TenantStats:
        return await read_stats(self.session)
