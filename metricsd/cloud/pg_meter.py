"""The sums of requests and bytes of a minute on PostgreSQL: an unlogged table of the control schema.

It is written without waiting for the disk and is empty after a crash of the server: a minute's sums are all there is
to lose. Each write is one statement, so processes add up whatever order they come in. Sizes are asked under the
tenant's own role, in its own schema.
"""

from __future__ import annotations

from collections.abc import Callable

from metricsd.cloud.access import Tenant
from metricsd.cloud.pg_control import ControlSchema
from metricsd.cloud.pg_session import Session
from metricsd.cloud.rate import Amount, kept_minutes

_SPEND = """
INSERT INTO spent AS now (tenant, minute, requests, size) VALUES ($1, $2, $3, $4)
ON CONFLICT (tenant, minute) DO UPDATE SET requests = now.requests + $3, size = now.size + $4
RETURNING requests - $3, size - $4
"""
_FORGET = "DELETE FROM spent WHERE minute NOT BETWEEN $1 AND $2"
_SIZE = """
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind IN ('r', 'm')
"""


class PgMeter:
    """`Meter` over the control schema."""

    def __init__(self, control: ControlSchema, session_of: Callable[[Tenant], Session]) -> None:
        self._control = control
        self._session_of = session_of
        self._minute = 0

    async def spend(self, tenant: Tenant, minute: int, amount: Amount) -> Amount:
        """Add to the sums and return what they were before."""
        async with self._control.request() as db:
            if minute != self._minute:
                await db.execute(_FORGET, *kept_minutes(minute))
            before = await db.fetchrow(_SPEND, tenant.id, minute, *amount)
        self._minute = minute
        return Amount(*before)

    async def stored_bytes(self, tenant: Tenant) -> int:
        """Return the size of a tenant's tables with their indexes."""
        session = self._session_of(tenant)
        async with session.reading() as (db, _):
            return int(await db.fetchval(_SIZE, session.name))
