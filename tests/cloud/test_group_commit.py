"""Group commit: neighbours share a commit and nothing else, and whoever is told "stored" is on disk."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from metricsd.cloud import sqlite_file
from metricsd.cloud.problems import Refused, refuse
from metricsd.cloud.sqlite_file import FileThread, open_file
from metricsd.cloud.sqlite_group import WRITE_QUEUE_MAX, GroupWriter, Transaction
from metricsd.schema import load_steps

STEPS = load_steps("metricsd.cloud.schema.tenant")


class File:
    """A tenant's file with its two threads."""

    def __init__(self, path: Path, delay_s: float = 0.005) -> None:
        writing, reading = open_file(path, STEPS)
        self.writer = GroupWriter(writing, delay_s=delay_s, name="test")
        self.reader = FileThread(reading, name="test-read")

    async def terms(self) -> set[str]:
        return {row[0] for row in await self.reader.run(lambda db: db.execute("SELECT text FROM term").fetchall())}

    def close(self) -> None:
        self.writer.close()
        self.reader.close()


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[File]:
    made = File(tmp_path / "t.db")
    yield made
    await asyncio.to_thread(made.close)


def adding(text: str, error: Exception | None = None) -> Callable[[Transaction], int]:
    def work(transaction: Transaction) -> int:
        transaction.next_change()
        number = transaction.terms.id_of(text)
        if error is not None:
            raise error
        return number

    return work


async def settled(file: File, works: list[Callable[[Transaction], int]]) -> list[int | BaseException]:
    return await asyncio.gather(*[file.writer.write(work, items=1) for work in works], return_exceptions=True)


@pytest.mark.parametrize("error", [refuse(409, "gap"), ValueError("a bug"), sqlite3.OperationalError("a statement")])
async def test_a_bad_request_takes_nobody_with_it(file: File, error: Exception) -> None:
    """Its own writes and interned texts are gone, its neighbours' are there, numbers have no hole."""
    works = [adding("a"), adding("bad", error), adding("b"), adding("bad", error), adding("c")]
    first, bad, *_ = await settled(file, works)
    assert isinstance(first, int) and isinstance(bad, type(error) if not isinstance(error, sqlite3.Error) else Refused)
    assert await file.terms() == {"a", "b", "c"}
    head = await file.reader.run(lambda db: db.execute("SELECT change FROM counter").fetchone()[0])
    assert head == 3
    # A text whose number was taken back is interned again, not remembered.
    number = await file.writer.write(adding("bad"), items=1)
    found = await file.reader.run(lambda db: db.execute("SELECT text FROM term WHERE id = ?", (number,)).fetchone()[0])
    assert found == "bad"


async def test_requests_that_come_together_share_commits(file: File) -> None:
    """Eight clients in a loop need far fewer commits than requests."""

    async def client(name: str) -> None:
        for number in range(20):
            await file.writer.write(adding(f"{name}-{number}"), items=1)

    await asyncio.gather(*[client(str(number)) for number in range(8)])
    assert file.writer.jobs == 160
    assert file.writer.commits <= 80


async def test_an_answer_comes_after_the_commit(file: File) -> None:
    """What was answered is visible to another connection at once."""
    for number in range(20):
        await file.writer.write(adding(str(number)), items=1)
        assert str(number) in await file.terms()


async def test_a_failed_commit_fails_all_of_its_group_and_nobody_else(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a COMMIT lasts nobody is told "stored"; when it fails all of its group are told so, and the next one works."""
    ending, go_on = threading.Event(), threading.Event()

    def failing(_: Transaction) -> None:
        ending.set()
        assert go_on.wait(20)
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "commit", failing)
        tasks = [asyncio.create_task(file.writer.write(adding(text), items=1)) for text in "ab"]
        assert await asyncio.to_thread(ending.wait, 20)
        # What was handed over before is in the loop by now.
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        go_on.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, Refused) and result.problem.status for result in results] == [503, 503]
    assert await file.terms() == set()
    assert isinstance(await file.writer.write(adding("b"), items=1), int)
    assert await file.terms() == {"b"}


async def test_a_transaction_that_cannot_begin_fails_all_of_its_group_and_nobody_else(tmp_path: Path) -> None:
    """Another process holds the file for too long: 503; the next group works."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite_file, "BUSY_TIMEOUT_S", 0.05)
        short = await asyncio.to_thread(File, tmp_path / "t2.db")
        blocker = sqlite3.connect(tmp_path / "t2.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        results = await settled(short, [adding("a"), adding("b")])
        assert [isinstance(result, Refused) and result.problem.status for result in results] == [503, 503]
        blocker.execute("ROLLBACK")
        blocker.close()
        assert isinstance((await settled(short, [adding("a")]))[0], int)
        assert await short.terms() == {"a"}
        await asyncio.to_thread(short.close)


async def test_a_full_disk_is_503_and_passes(file: File) -> None:
    """The whole group is refused, nothing of it stays, and writing goes on when there is room again."""

    def bound(transaction: Transaction) -> int:
        pages = transaction.db.execute("PRAGMA page_count").fetchone()[0]
        return int(transaction.db.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0])

    def unbound(transaction: Transaction) -> int:
        return int(transaction.db.execute("PRAGMA max_page_count = 1000000").fetchone()[0])

    await file.writer.write(bound, items=1)
    results = await settled(file, [adding("x" * 100_000), adding("y" * 100_000)])
    assert all(isinstance(result, Refused) and result.problem.status == 503 for result in results)
    assert await file.terms() == set()
    await file.writer.write(unbound, items=1)
    await settled(file, [adding("x" * 100_000)])
    assert await file.terms() == {"x" * 100_000}


async def test_a_transaction_that_sqlite_ended_takes_its_whole_group(file: File) -> None:
    """Some disk errors roll everything back by themselves: nobody may be told "stored", and nobody's work stays."""

    def ended(transaction: Transaction) -> int:
        transaction.db.execute("ROLLBACK")
        raise sqlite3.OperationalError("disk I/O error")

    results = await settled(file, [adding("a"), adding("b"), ended, adding("c")])
    *_, after = results
    assert all(isinstance(result, Refused) for result in results[1:])
    assert isinstance(after, Refused) and after.problem.status == 503
    # The first may have had a commit of its own before the others came.
    assert await file.terms() == ({"a"} if isinstance(results[0], int) else set())


async def test_a_full_queue_refuses_instead_of_growing(file: File) -> None:
    """While the writer is held up the queue fills; whoever comes then gets 503 at once, the others are served."""
    held, go_on = threading.Event(), threading.Event()

    def hold(transaction: Transaction) -> int:
        held.set()
        assert go_on.wait(20)
        return transaction.change

    first = asyncio.create_task(file.writer.write(hold, items=1))
    assert await asyncio.to_thread(held.wait, 20)
    waiting = [asyncio.create_task(file.writer.write(adding(str(n)), items=1)) for n in range(WRITE_QUEUE_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(Refused) as refused:
        await file.writer.write(adding("one too many"), items=1)
    told = refused.value.problem
    assert (told.status, told.limit) == (503, "waiting_requests_max") and told.retry_after_s
    go_on.set()
    await asyncio.gather(first, *waiting)
    assert await file.terms() == {str(n) for n in range(WRITE_QUEUE_MAX)}


async def test_a_request_whose_client_has_gone_before_its_turn_is_not_run(file: File) -> None:
    """And one that has begun is finished: either way nobody else notices."""
    tasks = [asyncio.create_task(file.writer.write(adding(str(number)), items=1)) for number in range(20)]
    await asyncio.sleep(0)
    tasks[10].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [index for index, result in enumerate(results) if not isinstance(result, int)] == [10]
    assert await file.terms() >= {str(number) for number in range(20) if number != 10}


async def test_closing_finishes_what_is_queued(tmp_path: Path) -> None:
    """A stop loses nothing that was accepted."""
    file = File(tmp_path / "t.db")
    tasks = [asyncio.create_task(file.writer.write(adding(str(number)), items=1)) for number in range(30)]
    await asyncio.sleep(0)
    await asyncio.to_thread(file.close)
    assert all(isinstance(result, int) for result in await asyncio.gather(*tasks))


def test_commits_are_synchronous(tmp_path: Path) -> None:
    """FULL on the writing connection: a commit is on the disk before it is answered (PRAGMA synchronous = 2)."""
    writing, reading = open_file(tmp_path / "t.db", STEPS)
    assert writing.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert writing.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reading.execute("INSERT INTO term (text) VALUES ('x')")
    writing.close()
    reading.close()


def test_two_processes_may_create_a_file_at_once(tmp_path: Path) -> None:
    """The schema steps run once, whoever comes first."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        pairs = list(pool.map(lambda _: open_file(tmp_path / "t.db", STEPS), range(8)))
    for writing, reading in pairs:
        assert writing.execute("SELECT count(*) FROM counter").fetchone()[0] == 1
        writing.close()
        reading.close()
