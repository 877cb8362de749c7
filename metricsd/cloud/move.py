"""Moving an embedded cloud to PostgreSQL: every tenant whole or not at all, compared row by row before it counts.

The tenant's file is locked while it is copied, so its server, if one still runs, refuses writes meanwhile. One
transaction holds a tenant's schema, its rows, its users, devices and tokens; it is committed only when what was
written reads back with the same counts and digests. A move that was stopped goes on with the tenants that are missing.
Tokens, change numbers and nonces stay, so devices go on as if nothing had happened.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from metricsd.clock import Clock
from metricsd.cloud.access import Act, Tenant
from metricsd.cloud.move_people import copy_people, people_here, people_there
from metricsd.cloud.move_rows import TABLES, Counting, Digest, source_rows, target_digest
from metricsd.cloud.pg_control import keep
from metricsd.cloud.pg_errors import as_told
from metricsd.cloud.pg_install import make_tenant
from metricsd.cloud.pg_names import CONTROL, schema_of
from metricsd.cloud.pg_pool import Db
from metricsd.cloud.postgres import PostgresBackend
from metricsd.cloud.sqlite import SqliteBackend
from metricsd.cloud.sqlite_control import FILE_NAME
from metricsd.crash import crash_point
from metricsd.errors import MetricsdError

_AUDIT = "SELECT seq, at, actor, action, tenant, subject, detail, hash FROM audit ORDER BY seq"
_PUT_AUDIT = "INSERT INTO audit VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
_AUDIT_IS_THERE = """
SELECT 1 FROM audit WHERE (seq = $1 AND hash = $2) OR (action = 'audit.left' AND subject = $3)
"""
LOCK_TIMEOUT_S = 3.0


class MoveFailed(MetricsdError):
    """The move stopped; what was moved so far stays, and the same command goes on with the rest."""


class Moved(Struct, frozen=True, kw_only=True):
    """What became of one tenant: its rows, and one digest over all of them, equal on both sides."""

    tenant: str
    rows: dict[str, int]
    digest: str
    change: int
    already: bool = False


class Source:
    """The folder of an embedded cloud, read with its write locks held."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def directory(self) -> Iterator[sqlite3.Connection]:
        """The control database, locked against writers."""
        with _locked(self._folder / FILE_NAME) as db:
            yield db

    @contextmanager
    def tenant(self, tenant: Tenant) -> Iterator[sqlite3.Connection]:
        """A tenant's file, locked against writers."""
        with _locked(self._folder / f"{schema_of(tenant.id)}.db") as db:
            yield db


async def move_cloud(
    source: SqliteBackend, folder: Path, target: PostgresBackend, clock: Clock, *, actor: str
) -> AsyncIterator[Moved]:
    """Move every tenant that the target lacks, and compare those that it has; raise MoveFailed or UsageError."""
    tenants = await source.directory.list_tenants()
    for tenant in tenants:
        # Opening brings the file's schema up to date, or makes the file of a tenant that nobody wrote to yet.
        async with source.tenant(tenant):
            continue
    await target.directory.install()
    here = Source(folder)
    with here.directory() as directory:
        try:
            await _move_audit(directory, target, clock, actor)
            known = {tenant.id: tenant for tenant in await target.directory.list_tenants()}
            changes = {}
            for tenant in tenants:
                with here.tenant(tenant) as db:
                    moved = await _move_or_compare(db, directory, target, tenant, known, clock, actor)
                changes[tenant.name] = moved.change
                yield moved
            for tenant in tenants:
                with here.tenant(tenant) as db:
                    _check_unchanged(db, tenant, changes[tenant.name])
        except Exception as error:
            raise as_told(error) from error


async def _move_or_compare(
    db: sqlite3.Connection, directory: sqlite3.Connection, target: PostgresBackend, tenant: Tenant,
    known: dict[str, Tenant], clock: Clock, actor: str,
) -> Moved:  # fmt: skip
    people = people_here(directory, tenant)
    if tenant.id in known:
        read = "ISOLATION LEVEL REPEATABLE READ"
        async with target.pool(known[tenant.id].server).transaction(_path(tenant), mode=read) as to:
            there = {table.name: await target_digest(to, table) for table in TABLES}
        async with target.pool(None).transaction(mode=read) as to:
            there |= await people_there(to, tenant)
        return _compared(tenant, _source_digests(db) | people, there, _change(db), already=True)
    if tenant.name in {found.name for found in known.values()}:
        raise MoveFailed(f"the target has another tenant {tenant.name!r}: drop it there, or move into another database")
    async with target.pool(None).transaction() as to:
        await make_tenant(to, await target.directory.instance(), tenant.id)
        here = await _copy(db, to)
        there = {table.name: await target_digest(to, table) for table in TABLES}
        if not await copy_people(directory, to, tenant):
            raise MoveFailed(f"the target has a tenant {tenant.name!r} already")
        there |= await people_there(to, tenant)
        moved = _compared(tenant, here | people, there, _change(db), already=False)
        act = Act(
            actor=actor, action="tenant.moved", tenant=tenant.name, subject=tenant.id, at=clock.now_us(),
            detail={"digest": moved.digest, "events": str(moved.rows["event"])},
        )  # fmt: skip
        await keep(to, act)
        crash_point("before_commit")
    crash_point("after_commit")
    return moved


async def _copy(db: sqlite3.Connection, to: Db) -> dict[str, Digest]:
    """Copy every table into the open transaction's schema; return the digests of what was read."""
    digests = {}
    for table in TABLES:
        counting = Counting()
        rows = source_rows(db, table, counting)
        await to.copy_records_to_table(table.name, records=rows, columns=table.columns)
        digests[table.name] = counting.digest()
    horizon = db.execute("SELECT change FROM horizon").fetchone()[0]
    await to.execute("UPDATE head SET change = $1, horizon = $2", _change(db), horizon)
    await to.execute("SELECT setval(pg_get_serial_sequence('term', 'id'), (SELECT max(id) FROM term))")
    return digests


def _change(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT change FROM counter").fetchone()[0])


def _check_unchanged(db: sqlite3.Connection, tenant: Tenant, change: int) -> None:
    if _change(db) != change:
        raise MoveFailed(
            f"tenant {tenant.name!r} was written to after it was copied: stop the server on the folder, drop the tenant"
            " in the target, run again"
        )


def _source_digests(db: sqlite3.Connection) -> dict[str, Digest]:
    digests = {}
    for table in TABLES:
        counting = Counting()
        for _ in source_rows(db, table, counting):
            continue
        digests[table.name] = counting.digest()
    return digests


def _compared(
    tenant: Tenant, here: dict[str, Digest], there: dict[str, Digest], change: int, *, already: bool
) -> Moved:
    for name, digest in here.items():
        if there[name] != digest:
            served = "; if the target is served already, that is why, and nothing is left to do" if already else ""
            raise MoveFailed(
                f"tenant {tenant.name!r}: {name} has {digest.rows} rows in the source and {there[name].rows} in the"
                " target, or other contents: stop the server on the folder, drop the tenant in the target, run again"
                f"{served}"
            )
    whole = Counting()
    whole.add(tuple(here.values()))
    return Moved(
        tenant=tenant.name, rows={name: digest.rows for name, digest in here.items()}, digest=whole.digest().hash, change=change,
        already=already,
    )  # fmt: skip


async def _move_audit(directory: sqlite3.Connection, target: PostgresBackend, clock: Clock, actor: str) -> None:
    """Copy the audit log where the target's is still empty: its chain goes on there. Otherwise note where it ended."""
    seq, digest = directory.execute("SELECT seq, hash FROM audit_head").fetchone()
    async with target.pool(None).transaction(f"SET LOCAL search_path = {CONTROL}, pg_temp") as to:
        if seq == 0:
            return
        if await to.fetchval("SELECT seq FROM audit_head FOR UPDATE") != 0:
            # The head is what proves the old log, which stays in the old folder.
            head = f"{seq}:{digest.hex()}"
            if await to.fetchval(_AUDIT_IS_THERE, seq, digest, head) is None:
                await keep(to, Act(actor=actor, action="audit.left", tenant="", subject=head, at=clock.now_us()))
            return
        for row in directory.execute(_AUDIT):
            await to.execute(_PUT_AUDIT, *row)
        await to.execute("UPDATE audit_head SET seq = $1, hash = $2", seq, digest)


def _path(tenant: Tenant) -> str:
    return f'SET LOCAL search_path = "{schema_of(tenant.id)}", pg_temp'


@contextmanager
def _locked(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that holds the file's write lock and changes nothing."""
    with closing(sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)) as db:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise MoveFailed(f"{path}: cannot be locked ({error}): stop the server that uses it") from error
        try:
            yield db
        finally:
            db.execute("ROLLBACK")


def totals(moved: list[Moved]) -> dict[str, Any]:
    """Return what a whole move comes to."""
    return {
        "tenants": len(moved),
        "already_there": sum(each.already for each in moved),
        "events": sum(each.rows["event"] for each in moved),
        "records": sum(each.rows["record"] for each in moved),
    }
