"""One tenant's transactions on PostgreSQL: under its role, in its schema, and from its head row on.

Readers see one moment (REPEATABLE READ). Writers of a tenant take turns by the lock on `head`, and number their
changes from it, so that numbers become visible in their order. The role and the schema's step are looked at in each.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from metricsd.cloud.pg_errors import schema_not_ready
from metricsd.cloud.pg_install import TENANT_STEP_NEEDED, TENANT_STEPS
from metricsd.cloud.pg_names import schema_of
from metricsd.cloud.pg_pool import Db, Pool
from metricsd.cloud.pg_terms import Terms
from metricsd.cloud.problems import busy
from metricsd.schema import STEPS_PER_MAJOR

LOCK = "SELECT 1 FROM head FOR UPDATE"
HEAD_COLUMNS = "head.change, head.step, head.horizon, current_user::text"
_HEAD = f"SELECT {HEAD_COLUMNS} FROM head"  # noqa: S608 - constants
MOVE = """
WITH moved AS (UPDATE head SET change = $2) INSERT INTO change_log (first, last, nonce) VALUES ($1, $2, $3)
"""
_READ = "ISOLATION LEVEL REPEATABLE READ READ ONLY"


class Head(NamedTuple):
    """Where a tenant stands: its newest change number, and the highest whose tombstone was cleared away."""

    change: int
    horizon: int


class Session:
    """How transactions of one tenant begin."""

    def __init__(self, pool: Pool, tenant_id: str) -> None:
        self.name = schema_of(tenant_id)
        self._pool = pool
        self._opening = f'SET LOCAL ROLE "{self.name}"; SET LOCAL search_path = "{self.name}", pg_temp'
        self._newest = 0
        self.terms = Terms(pool, self._opening)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[tuple[Db, Head]]:
        """A read-only transaction that sees one moment, and the head then."""
        async with self._pool.transaction(self._opening, mode=_READ) as db:
            yield db, self.checked(await db.fetchrow(_HEAD))

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[tuple[Db, Head]]:
        """A transaction that holds the head's lock, and the head."""
        async with self.prepared(LOCK) as db:
            head = self.checked(await db.fetchrow(_HEAD))
            self.look_back(head)
            yield db, head

    @asynccontextmanager
    async def prepared(self, opening: str) -> AsyncIterator[Db]:
        """A transaction that begins with further statements; whoever writes takes LOCK and reads the head."""
        async with self._pool.transaction(f"{self._opening}; {opening}") as db:
            yield db

    def checked(self, row: Any) -> Head:
        """Return a row of HEAD_COLUMNS; raise 503 for a schema on an old step, AssertionError for a wrong role."""
        change, step, horizon, role = row
        if role != self.name:
            raise AssertionError("a transaction runs under another role than its tenant's")
        if step < TENANT_STEP_NEEDED:
            raise schema_not_ready("the tenant's schema is on an old step: run `metricsd cloud migrate-schema`")
        if step // STEPS_PER_MAJOR > TENANT_STEPS[-1].number // STEPS_PER_MAJOR:
            raise schema_not_ready("the tenant's schema is newer than this server: upgrade metricsd")
        return Head(change, horizon)

    def look_back(self, head: Head) -> None:
        """Raise 503 when the tenant, whose lock is held, is behind where it was: it was restored from an older copy."""
        if head.change < self._newest:
            # What is remembered of it may be wrong now; the next try reads everything anew.
            self._newest = head.change
            self.terms.forget()
            raise busy("the database was restored; everything is read anew")
        self._newest = head.change


def new_nonce() -> int:
    """Return a random number for one writing transaction."""
    return secrets.randbits(63)


async def move_head(db: Db, head: Head, change: int, nonce: int) -> None:
    """Note that this transaction made the changes up to `change`."""
    if change > head.change:
        await db.execute(MOVE, head.change + 1, change, nonce)
