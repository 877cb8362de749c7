"""One tenant's data on SQLite: a store over one file, whose work is done by one file a noun.

Writes go through the group writer, reads through a thread of their own. Before anything that a device wrote is stored,
the same transaction looks whether the device's data was taken back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

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
from metricsd.cloud.older_fold import FOLDS_MAX, STEP, fold, forget, is_behind
from metricsd.cloud.older_plans import Plan
from metricsd.cloud.older_reads import put
from metricsd.cloud.problems import busy
from metricsd.cloud.sqlite_archive import read_export, read_stats
from metricsd.cloud.sqlite_erase import (
    ROWS_PER_STEP,
    Subject,
    Walk,
    check_not_shut,
    erase_bindings,
    erase_events,
    erase_records,
    erase_unsequenced,
    head_of,
    shut_out,
)
from metricsd.cloud.sqlite_events import find_hello, push_events
from metricsd.cloud.sqlite_feed import is_known, read_page
from metricsd.cloud.sqlite_file import FileThread, open_file
from metricsd.cloud.sqlite_group import GroupWriter, Transaction
from metricsd.cloud.sqlite_have import find_have
from metricsd.cloud.sqlite_older import carry_out
from metricsd.cloud.sqlite_policy import find_policy, find_policy_hash, put_policy
from metricsd.cloud.sqlite_records import push_records
from metricsd.config import Cloud
from metricsd.legacy.kept import Kept
from metricsd.protocol import ChangesReply, HaveReply, HaveRequest, HelloReply, HelloRequest, RecordResult
from metricsd.schema import load_steps

T = TypeVar("T")


class SqliteTenant:
    """`TenantStore` over one file."""

    def __init__(self, path: Path, settings: Cloud) -> None:
        writing, reading = open_file(path, load_steps("metricsd.cloud.schema.tenant"))
        self.writer = GroupWriter(writing, delay_s=settings.commit_delay_ms / 1000, name=path.stem)
        self._path = path
        self._reader = FileThread(reading, name=f"read-{path.stem}")

    async def hello(self, writer: Writer, request: HelloRequest, now: int) -> HelloReply:
        def work(db: sqlite3.Connection) -> HelloReply:
            reply = find_hello(db, self._reader.terms, request, is_known(db, request.cursor), now)
            return msgspec.structs.replace(reply, policy_hash=find_policy_hash(db))

        return await self._reader.run(work)

    async def push_events(self, writer: Writer, batch: EventBatch) -> EventOutcome:
        def work(transaction: Transaction) -> EventOutcome:
            check_not_shut(transaction, batch.device_id)
            return push_events(transaction, writer, batch)

        return await self.writer.write(work, items=len(batch.items))

    async def push_records(self, writer: Writer, batch: RecordBatch, now: int) -> list[RecordResult]:
        def work(transaction: Transaction) -> list[RecordResult]:
            check_not_shut(transaction, batch.device_id)
            return push_records(transaction, writer, batch, now)

        return await self.writer.write(work, items=len(batch.items))

    async def changes(self, writer: Writer, query: FeedQuery, now: int) -> ChangesReply:
        def work(db: sqlite3.Connection) -> ChangesReply:
            return read_page(db, self._reader.terms, writer, query, now)

        return await self._reader.run(work)

    async def find_policy(self) -> TenantPolicy | None:
        return await self._reader.run(find_policy)

    async def put_policy(self, text: str, sha256: str, now: int) -> TenantPolicy:
        return await self.writer.write(lambda transaction: put_policy(transaction, text, sha256, now), items=1)

    async def have(self, writer: Writer, request: HaveRequest, rows_max: int) -> HaveReply:
        return await self._reader.run(lambda db: find_have(db, self._reader.terms, writer, request, rows_max))

    async def erase_device(self, user: str, device_id: str, now: int) -> Erased:
        write = self.writer.write
        subject = await write(lambda transaction: shut_out(transaction, user, device_id, now), items=1)
        events = await self._repeat(erase_events, subject)
        await self._repeat(erase_bindings, subject)
        events += await self._walk(lambda after, transaction: erase_unsequenced(transaction, subject, after))
        head = await write(head_of, items=1)
        records = await self._walk(lambda after, transaction: erase_records(transaction, subject, after, head))
        await write(lambda transaction: self._forget_counts(transaction, subject.user), items=1)
        return Erased(events, records)

    async def keep(self, writer: Writer, documents: Sequence[Kept]) -> None:
        def work(transaction: Transaction) -> None:
            check_not_shut(transaction, writer.device or "")
            person = transaction.terms.id_of(writer.user)
            carry_out(put(person, documents), transaction.db, transaction.terms, person, learns=True)

        await self.writer.write(work, items=len(documents))

    async def ask(self, user: str, make: Callable[[int], Plan[T]], otherwise: T, *, counted: bool) -> T:
        terms = self._reader.terms

        def look(db: sqlite3.Connection) -> tuple[int | None, T]:
            """Return the number of a user whose events must be counted first, else what is asked for."""
            person = terms.find(user)
            if person is None:
                return None, otherwise
            if counted and carry_out(is_behind(person), db, terms, person):
                return person, otherwise
            return None, carry_out(make(person), db, terms, person)

        for _ in range(FOLDS_MAX):
            behind, found = await self._reader.run(look)
            if behind is None:
                return found
            await self._count(behind)
        raise busy("this user's history is being counted")

    async def _count(self, person: int) -> None:
        def work(transaction: Transaction) -> bool:
            return carry_out(fold(person), transaction.db, transaction.terms, person)

        await self.writer.write(work, items=STEP)

    async def export(self, after: int, limit: int) -> list[Exported]:
        return await self._reader.run(lambda db: read_export(db, self._reader.terms, after, limit))

    async def stats(self) -> TenantStats:
        return await self._reader.run(lambda db: read_stats(db, self._path))

    @staticmethod
    def _forget_counts(transaction: Transaction, person: int) -> None:
        carry_out(forget(person), transaction.db, transaction.terms, person)

    def close(self) -> None:
        self.writer.close()
        self._reader.close()

    async def _repeat(self, step: Callable[[Transaction, Subject], int], subject: Subject) -> int:
        """Run a step until it removes nothing; return how many rows it removed. Each run removes some, so it ends."""
        total = 0
        while removed := await self.writer.write(lambda transaction: step(transaction, subject), items=ROWS_PER_STEP):
            total += removed
        return total

    async def _walk(self, step: Callable[[int, Transaction], Walk]) -> int:
        """Run a step over all change numbers; return how many rows it removed. Each run goes further, so it ends."""
        total = 0
        after: int | None = 0
        while after is not None:
            walk = await self.writer.write(partial(step, after), items=ROWS_PER_STEP)
            total, after = total + walk.removed, walk.after
        return total
