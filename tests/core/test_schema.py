"""Schema steps: numbered, one transaction each, refused from the future, copied before an upgrade."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from metricsd.errors import SchemaTooNew
from metricsd.schema import Step, apply_steps, load_steps, pending_steps, version_of
from metricsd.store.connection import Store, copy_before_upgrade

GOOD = Step(1, "0001_create_t.sql", "CREATE TABLE t (x INTEGER) STRICT;")


@pytest.fixture
def db(tmp_path: Path) -> sqlite3.Connection:
    return sqlite3.connect(tmp_path / "x.db", isolation_level=None)


def test_the_steps_of_the_store_start_at_one_and_have_no_gap() -> None:
    """A gap would let two databases of one version differ."""
    steps = load_steps("metricsd.store.schema")
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert all(step.sql.lstrip().startswith("--") for step in steps), "each step says first why it is there"


def test_a_failing_step_leaves_the_schema_of_the_step_before(db: sqlite3.Connection) -> None:
    """A kill or an error half way gives the old schema, never half of the new one."""
    bad = Step(2, "0002_break_it.sql", "CREATE TABLE u (x INTEGER) STRICT; INSERT INTO nowhere VALUES (1);")
    with pytest.raises(sqlite3.OperationalError):
        list(apply_steps(db, [GOOD, bad]))
    assert version_of(db) == 1
    assert [row[0] for row in db.execute("SELECT name FROM sqlite_master")] == ["t"]
    assert not db.in_transaction
    db.close()


def test_steps_run_once(db: sqlite3.Connection) -> None:
    """A second start has nothing to do."""
    list(apply_steps(db, pending_steps(db, [GOOD], what="x")))
    assert pending_steps(db, [GOOD], what="x") == []
    db.close()


def test_a_newer_minor_version_opens_and_a_newer_major_is_refused(tmp_path: Path) -> None:
    """The user is told to upgrade, and the file is not touched."""
    path = tmp_path / "store.db"
    Store.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 900")
    db.close()
    Store.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 1001")
    db.close()
    with pytest.raises(SchemaTooNew, match="upgrade metricsd"):
        Store.open(path)


def test_the_file_is_copied_before_an_upgrade(store: Store, tmp_path: Path) -> None:
    """The copy is a whole database with the old rows, readable by its owner alone."""
    store.db.execute("INSERT INTO term (text) VALUES ('kept')")
    copy = copy_before_upgrade(store.db, tmp_path / "backups", 1)
    assert copy.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(copy) as db:
        assert db.execute("SELECT text FROM term").fetchall() == [("kept",)]
    db.close()
