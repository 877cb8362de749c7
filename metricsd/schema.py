"""Numbered schema steps for SQLite files: the store and the embedded cloud use the same rule.

A step is `NNNN_verb_noun.sql`, frozen once released; each runs in one transaction together with the new
`user_version`, so a kill at any point leaves the old schema or the new one. A database written by a newer
metricsd is refused: `user_version` is major * 1000 + step, and only the major decides.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

from metricsd.crash import crash_point
from metricsd.errors import SchemaTooNew

STEPS_PER_MAJOR = 1000
_STEP_NAME = re.compile(r"(\d{4})_[a-z0-9]+(?:_[a-z0-9]+)+\.sql")


class Step(NamedTuple):
    """One schema step: its number (the version after it) and its SQL."""

    number: int
    name: str
    sql: str


def load_steps(package: str) -> list[Step]:
    """Return the steps that lie in `package` (for example `metricsd.store.schema`), in order, without a gap."""
    found = []
    for entry in files(package).iterdir():
        matched = _STEP_NAME.fullmatch(entry.name)
        if matched:
            found.append(Step(int(matched[1]), entry.name, entry.read_text("utf-8")))
    found.sort()
    numbers = [step.number for step in found]
    if numbers != list(range(1, len(found) + 1)):
        raise AssertionError(f"schema steps of {package} are not numbered 1..n: {numbers}")
    return found


def version_of(connection: sqlite3.Connection) -> int:
    """Return the schema version of an open database; 0 for an empty file."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def pending_steps(connection: sqlite3.Connection, steps: list[Step], *, what: str) -> list[Step]:
    """Return the steps still to run; raise SchemaTooNew for a database of a newer major version."""
    version = version_of(connection)
    newest = steps[-1].number
    if version // STEPS_PER_MAJOR > newest // STEPS_PER_MAJOR:
        raise SchemaTooNew(
            f"{what} has schema {version}, this metricsd knows up to {newest}: upgrade metricsd to open it"
        )
    return [step for step in steps if step.number > version]


def apply_steps(connection: sqlite3.Connection, steps: list[Step]) -> Iterator[Step]:
    """Run each step in a transaction of its own, yielding it when it is committed.

    The connection must be in autocommit mode (`isolation_level=None`).
    """
    for step in steps:
        # executescript() would commit a transaction that is open, so the transaction is part of the script.
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{step.sql}\nPRAGMA user_version = {step.number};")
            crash_point("during_schema_step")
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        yield step
