"""Two processes that write one tenant at once: a puller that goes on after the last number it saw misses nothing."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from metricsd.cloud.backend import FeedQuery, RecordBatch, RecordItem, Writer
from metricsd.cloud.sqlite_feed import read_page
from metricsd.cloud.sqlite_file import Terms, open_file
from metricsd.cloud.sqlite_group import Transaction
from metricsd.cloud.sqlite_records import push_records
from metricsd.protocol import RecordChange
from metricsd.schema import load_steps

NOW = 1_790_000_000_000_000
ANN = Writer(user="ann", device="reader")


class PlainSequence(Transaction):
    """What a bare sequence does: the number is drawn before the transaction that makes it visible."""

    drawn = 0

    def begin(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.change = self._before = self.drawn - 1

    def commit(self) -> None:
        highest = self.db.execute("SELECT change FROM counter").fetchone()[0]
        mine, self.change = self.change, max(self.change, highest)
        self.db.execute("INSERT INTO change_log VALUES (?, ?, ?)", (mine, mine, self.nonce))
        self.db.execute("UPDATE counter SET change = ?", (self.change,))
        self.db.execute("COMMIT")


@pytest.fixture
def connections(tmp_path: Path) -> Iterator[list[sqlite3.Connection]]:
    """Two writing connections, as two processes have them, and a reading one."""
    opened = [open_file(tmp_path / "t.db", load_steps("metricsd.cloud.schema.tenant")) for _ in range(2)]
    yield [opened[0][0], opened[1][0], opened[0][1]]
    for pair in opened:
        for db in pair:
            db.close()


def write(transaction: Transaction, name: str) -> None:
    change = RecordChange(type="session", id=name, fields={"score": 1})
    batch = RecordBatch(device_id="writer", items=[RecordItem(change=change, reason=None)])
    push_records(transaction, Writer(user="ann", device="writer"), batch, NOW)


def pull(db: sqlite3.Connection, cursor: str) -> tuple[list[str], str]:
    page = read_page(db, Terms(db), ANN, FeedQuery(cursor=cursor, limit=100, only_records=False), NOW)
    return [item.record.id for item in page.items if item.record is not None], page.cursor


def test_a_writer_that_commits_late_is_seen_by_a_puller_who_came_between(connections: list[sqlite3.Connection]) -> None:
    """The number is taken inside the writing transaction, so the second writer waits and gets the higher one."""
    first, second, reader = connections
    slow, fast = Transaction(first, Terms(first)), Transaction(second, Terms(second))
    slow.begin()
    write(slow, "slow")
    done = threading.Event()

    def overtake() -> None:
        fast.begin()
        write(fast, "fast")
        fast.commit()
        done.set()

    thread = threading.Thread(target=overtake)
    thread.start()
    seen, cursor = pull(reader, "")
    assert (seen, done.is_set()) == ([], False), "nothing is visible before the transaction that has the lower number"
    slow.commit()
    thread.join(10)
    later, _ = pull(reader, cursor)
    assert later == ["slow", "fast"]


def test_with_a_plain_sequence_the_same_puller_misses_a_change_for_ever(
    connections: list[sqlite3.Connection],
) -> None:
    """The same interleaving with numbers drawn outside the transaction: this is what the counter row is for."""
    first, second, reader = connections
    slow, fast = PlainSequence(first, Terms(first)), PlainSequence(second, Terms(second))
    slow.drawn, fast.drawn = 1, 2
    fast.begin()
    write(fast, "fast")
    fast.commit()
    seen, cursor = pull(reader, "")
    slow.begin()
    write(slow, "slow")
    slow.commit()
    later, _ = pull(reader, cursor)
    assert (seen, later) == (["fast"], []), "the slow writer's change lies behind the cursor"
