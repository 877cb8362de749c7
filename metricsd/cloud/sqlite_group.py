"""Group commit: the one thread of a process that writes a tenant's file.

Requests that arrive together share one transaction and one fsync; each runs in a savepoint of its own, so that a bad
one never fails its neighbours, and is answered only after the COMMIT. The queue is bounded in requests and in items,
so that whoever is let in is answered within seconds; a full one refuses with 503 at once instead of growing.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from metricsd.cloud.problems import Refused, busy
from metricsd.cloud.sqlite_file import Terms, as_refusal

T = TypeVar("T")

WRITE_QUEUE_MAX = 256
QUEUE_ITEMS_MAX = 50_000
"""Items that wait: one to two seconds of work, after which a client would rather come back than wait."""
GROUP_ITEMS_MAX = 10_000
"""Items in one transaction: bounds how long a small request waits behind large ones (about 0.2 s)."""


class Transaction:
    """What a write job may use: the connection, interned terms and the next change numbers."""

    def __init__(self, db: sqlite3.Connection, terms: Terms) -> None:
        self.db = db
        self.terms = terms
        self.nonce = secrets.randbits(63)
        self.change = 0
        """The number of the newest change, this transaction's own included."""
        self._before = 0

    def begin(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.change = self._before = self.db.execute("SELECT change FROM counter").fetchone()[0]

    def next_change(self) -> int:
        self.change += 1
        return self.change

    def run(self, work: Callable[[Transaction], T]) -> T:
        """Run one job in a savepoint of its own; on any error nothing of it stays."""
        change, learned = self.change, self.terms.learned()
        self.db.execute("SAVEPOINT job")
        try:
            result = work(self)
        except BaseException:
            self.change = change
            self.terms.forget_new(learned)
            # A full disk has rolled the whole transaction back already.
            if self.db.in_transaction:
                self.db.execute("ROLLBACK TO job")
                self.db.execute("RELEASE job")
            raise
        self.db.execute("RELEASE job")
        return result

    def commit(self) -> None:
        if self.change > self._before:
            self.db.execute("UPDATE counter SET change = ?", (self.change,))
            self.db.execute(
                "INSERT INTO change_log (first, last, nonce) VALUES (?, ?, ?)",
                (self._before + 1, self.change, self.nonce),
            )
        self.db.execute("COMMIT")
        self.terms.settle()

    def roll_back(self) -> None:
        self.terms.forget_new()
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")


class _Job:
    """A request's work, how many items it has, and where its answer goes."""

    __slots__ = ("answer", "error", "future", "items", "work")

    def __init__(self, work: Callable[[Transaction], Any], items: int, future: asyncio.Future[Any]) -> None:
        self.work = work
        self.items = items
        self.future = future
        self.answer: Any = None
        self.error: BaseException | None = None


class GroupWriter:
    """The one thread that writes a file of this process. `write` belongs to one event loop."""

    def __init__(self, db: sqlite3.Connection, *, delay_s: float, name: str) -> None:
        self.commits = 0
        self.jobs = 0
        self._db = db
        self._terms = Terms(db)
        self._delay_s = delay_s
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # Each of the two is written by one thread alone; their difference is what waits.
        self._items_offered = 0
        self._items_taken = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name=f"write-{name}", daemon=True)
        self._thread.start()

    async def write(self, work: Callable[[Transaction], T], *, items: int) -> T:
        """Return the job's result once it is durable; raise what it raised, or 503 when the queue is full."""
        waiting = self._items_offered - self._items_taken
        # One request of any size may always wait: a limit on items must not shut out the largest.
        if self._queue.qsize() >= WRITE_QUEUE_MAX:
            raise busy("too many requests wait to be written", "waiting_requests_max")
        if waiting and waiting + items > QUEUE_ITEMS_MAX:
            raise busy("too many items wait to be written", "waiting_items_max")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._items_offered += items
        self._queue.put(_Job(work, items, future))
        return await future

    def close(self) -> None:
        """Finish what is queued, then close the connection. Blocks for as long as that takes."""
        self._queue.put(None)
        self._thread.join()
        self._db.close()

    def _loop(self) -> None:
        company = 1
        while group := self._collect(company):
            company = len(group)
            self._commit(group)

    def _collect(self, company: int) -> list[_Job]:
        """Return the next group; [] at the end.

        Whoever waits in the queue joins at once. Only if the last group had company does this one wait for as many
        again, at most `commit_delay_ms`: a lonely client pays no delay.
        """
        if self._stopping or (first := self._queue.get()) is None:
            return []
        group, items = [first], first.items
        deadline = time.monotonic() + self._delay_s
        while items < GROUP_ITEMS_MAX:
            wait_s = deadline - time.monotonic() if len(group) < company else 0.0
            try:
                job = self._queue.get(timeout=wait_s) if wait_s > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._stopping = True
                break
            group.append(job)
            items += job.items
        self._items_taken += items
        return group

    def _commit(self, group: list[_Job]) -> None:
        # A request whose client has gone is not run; one that has started is finished.
        running = [job for job in group if not job.future.cancelled()]
        transaction = Transaction(self._db, self._terms)
        try:
            transaction.begin()
            for job in running:
                self._run_one(transaction, job)
            transaction.commit()
        except BaseException as error:
            transaction.roll_back()
            for job in running:
                job.error = as_refusal(error)
        self.commits += 1
        self.jobs += len(running)
        _settle(running)

    @staticmethod
    def _run_one(transaction: Transaction, job: _Job) -> None:
        try:
            job.answer = transaction.run(job.work)
        except Refused as refusal:
            job.error = refusal
        except Exception as error:
            # The transaction is gone (disk full, I/O error): nobody in this group may be told "stored".
            if not transaction.db.in_transaction:
                raise
            job.error = as_refusal(error)


def _settle(jobs: list[_Job]) -> None:
    """Hand the answers over: one call into the event loop for the whole group, because each one wakes it up."""
    if not jobs:
        return
    try:
        jobs[0].future.get_loop().call_soon_threadsafe(_answer, jobs)
    except RuntimeError:
        # The loop of the waiting requests has ended; the writes themselves are done.
        return


def _answer(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            # Its client has gone meanwhile.
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.answer)
