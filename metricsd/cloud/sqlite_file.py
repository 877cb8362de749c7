"""One SQLite file of the cloud: its connections, its one writer thread with group commit, its one reader thread.

Requests that arrive together share one transaction and one fsync; each runs in a savepoint of its own, so that a bad
one never fails its neighbours, and is answered only after the COMMIT. Queues are bounded: a full one refuses with 503
instead of growing. Several processes may work on the same file; writers then take turns through BEGIN IMMEDIATE.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from metricsd.cloud.problems import Refused, busy
from metricsd.schema import Step, apply_steps, pending_steps

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
"""How long a transaction waits for another process before the request is refused with 503."""
WRITE_QUEUE_MAX = 256
READ_QUEUE_MAX = 64
GROUP_ITEMS_MAX = 10_000
"""Items in one transaction: bounds how long a small request waits behind large ones (about 0.2 s)."""
TERMS_MAX = 20_000
WAL_BYTES_KEPT = 16 * 1024 * 1024
_SETTINGS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA cache_size = -4096",
    f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}",
)


def open_file(path: Path, steps: list[Step]) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Return a writing and a reading connection, after bringing the schema up to date.

    The folder's lock file keeps two processes from running the same schema step at once. Files are private (0600).
    """
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    writing = _connect(path)
    try:
        with _schema_lock(path.parent):
            writing.execute("PRAGMA journal_mode = WAL")
            for _ in apply_steps(writing, pending_steps(writing, steps, what=str(path))):
                continue
        reading = _connect(path)
        reading.execute("PRAGMA query_only = ON")
    except BaseException:
        writing.close()
        raise
    return writing, reading


@contextmanager
def _schema_lock(folder: Path) -> Iterator[None]:
    lock = os.open(folder / "schema.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    for setting in _SETTINGS:
        connection.execute(setting)
    return connection


class Terms:
    """Interned texts of one connection. Rows of `term` are never changed, so remembering them is always right."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._ids: dict[str, int] = {}
        self._texts: dict[int, str] = {}
        self._new: list[str] = []

    def id_of(self, text: str) -> int:
        """Return the number of a text, giving it one inside the open transaction if it has none."""
        found = self._ids.get(text)
        return found if found is not None else self._learn(text)

    def find(self, text: str) -> int | None:
        """Return the number of a text, None if it has none. For readers."""
        row = self._db.execute("SELECT id FROM term WHERE text = ?", (text,)).fetchone()
        return None if row is None else int(row[0])

    def text_of(self, number: int) -> str:
        """Return the text of a number."""
        text = self._texts.get(number)
        if text is None:
            if len(self._texts) >= TERMS_MAX:
                self._texts.clear()
            text = str(self._db.execute("SELECT text FROM term WHERE id = ?", (number,)).fetchone()[0])
            self._texts[number] = text
        return text

    def forget_new(self, keep: int = 0) -> None:
        """Forget what was learned after the first `keep` texts of this transaction: it was rolled back."""
        for text in self._new[keep:]:
            self._ids.pop(text, None)
            # The number may be given to another text now.
            self._texts.clear()
        del self._new[keep:]

    def learned(self) -> int:
        """Return how many texts this transaction added so far."""
        return len(self._new)

    def settle(self) -> None:
        """Take what was learned as lasting: the transaction was committed."""
        self._new.clear()
        if len(self._ids) > TERMS_MAX:
            self._ids.clear()

    def _learn(self, text: str) -> int:
        number = self.find(text)
        if number is None:
            number = int(self._db.execute("INSERT INTO term (text) VALUES (?) RETURNING id", (text,)).fetchone()[0])
            self._new.append(text)
        self._ids[text] = number
        return number


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

    def __init__(self, work: Callable[[Transaction], Any], items: int) -> None:
        self.work = work
        self.items = items
        self.future: Future[Any] = Future()
        self.answer: Any = None
        self.error: BaseException | None = None


class GroupWriter:
    """The one thread that writes a file of this process."""

    def __init__(self, db: sqlite3.Connection, *, delay_s: float, name: str) -> None:
        self.commits = 0
        self.jobs = 0
        self._db = db
        self._terms = Terms(db)
        self._delay_s = delay_s
        self._queue: queue.Queue[_Job | None] = queue.Queue(WRITE_QUEUE_MAX)
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name=f"write-{name}", daemon=True)
        self._thread.start()

    async def write(self, work: Callable[[Transaction], T], *, items: int) -> T:
        """Return the job's result once it is durable; raise what it raised, or 503 when the queue is full."""
        job = _Job(work, items)
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            raise busy("the write queue is full") from None
        result: T = await asyncio.wrap_future(job.future)
        return result

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
        return group

    def _commit(self, group: list[_Job]) -> None:
        # A request whose client has gone is not run; one that has started is finished.
        running = [job for job in group if job.future.set_running_or_notify_cancel()]
        transaction = Transaction(self._db, self._terms)
        try:
            transaction.begin()
            for job in running:
                self._run_one(transaction, job)
            transaction.commit()
        except BaseException as error:
            transaction.roll_back()
            for job in running:
                job.error = _as_refusal(error)
        self.commits += 1
        self.jobs += len(running)
        for job in running:
            _settle(job)

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
            job.error = _as_refusal(error)


class FileThread:
    """One thread with one connection that runs small transactions, one after the other."""

    def __init__(self, db: sqlite3.Connection, *, name: str, begin: str = "BEGIN") -> None:
        self.terms = Terms(db)
        self._db = db
        self._begin = begin
        self._waiting = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of `work`, done in one transaction; raise 503 when too many wait."""
        if self._waiting >= READ_QUEUE_MAX:
            raise busy("the read queue is full")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._transact, work)
        except sqlite3.OperationalError as error:
            raise _as_refusal(error) from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        self._db.close()

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._db.execute(self._begin)
        try:
            result = work(self._db)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return result


def _settle(job: _Job) -> None:
    try:
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.answer)
    except (InvalidStateError, RuntimeError):
        # The loop of the waiting request has ended; the write itself is done.
        return


def _as_refusal(error: BaseException) -> BaseException:
    """Return 503 for what passes by itself (locked, full, unreadable); anything else is a fault of ours."""
    if isinstance(error, sqlite3.OperationalError):
        return busy(f"the database cannot be used now ({type(error).__name__})")
    return error
