"""The PostgreSQL backend: a schema and a role per tenant, any number of servers, no state outside the database.

Requests run as the ingest login or under a tenant's role, whoever the URL names. Connections are bounded per server,
every statement has a deadline, and a server that is away is 503 with Retry-After until it is back. Works behind a
proxy that pools transactions: nothing outlives a transaction, on the server or here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime

import asyncpg

from metricsd.clock import US_PER_S, Clock, SystemClock
from metricsd.cloud.access import Act, Tenant
from metricsd.cloud.backend import News
from metricsd.cloud.pg_directory import PgDirectory
from metricsd.cloud.pg_errors import as_told, will_pass
from metricsd.cloud.pg_install import drop_tenant, upgrade_tenant
from metricsd.cloud.pg_meter import PgMeter
from metricsd.cloud.pg_names import checked_url
from metricsd.cloud.pg_news import read_news
from metricsd.cloud.pg_pool import Pool
from metricsd.cloud.pg_retention import Sweeper, drop_before, due_before
from metricsd.cloud.pg_session import Session
from metricsd.cloud.pg_tenant import PgTenant
from metricsd.config import Cloud
from metricsd.errors import SchemaStepFailed, UsageError

SESSIONS_MAX = 1000
"""Tenants whose interned texts are remembered; each is some kilobytes, at most some megabytes."""


LOCK_WAIT_MS = 2000
_LOOK = """
SELECT session_user::text, current_setting('fsync') = 'on' AND current_setting('synchronous_commit') != 'off'
"""


class PostgresBackend:
    """`Backend` over the database at a URL, for one event loop. Nothing connects before the first use."""

    def __init__(self, url: str, settings: Cloud, clock: Clock | None = None) -> None:
        self._settings = settings
        self._url = checked_url(url)
        self._pools: dict[str, Pool] = {}
        self._clock = clock or SystemClock()
        self._sessions: OrderedDict[tuple[str, str | None], tuple[Session, Sweeper]] = OrderedDict()
        self.directory = PgDirectory(self.pool, self._clock)
        self.meter = PgMeter(self.directory, self._session)

    def pool(self, server: str | None) -> Pool:
        """Return the connections to a server, None for the one that holds the directory."""
        url = self._url if server is None else checked_url(server)
        if url not in self._pools:
            self._pools[url] = Pool(
                url, size=self._settings.database_connections, timeout_s=self._settings.database_timeout_s
            )
        return self._pools[url]

    def tenant(self, tenant: Tenant) -> AbstractAsyncContextManager[PgTenant]:
        return self._hold(tenant)

    async def news(self, tenant: Tenant, after: int | None, users: Collection[str]) -> News:
        return await read_news(self._session(tenant), after, users)

    async def warnings(self) -> list[str]:
        """Return what whoever starts a server on this URL should know; raise UsageError when it can never work."""
        try:
            if not await self.directory.is_installed():
                return ["this database holds no cloud yet: make a tenant with `metricsd cloud tenant create NAME`"]
            instance = await self.directory.instance()
            async with self.pool(None).transaction() as db:
                login, lasting = await db.fetchrow(_LOOK)
        except Exception as error:
            if will_pass(error):
                return [f"the database is not ready ({error}): requests are answered with 503 until it is"]
            raise as_told(error) from error
        told = []
        if not lasting:
            told.append("fsync or synchronous_commit is off there: a power failure may take what was acknowledged")
        if login != instance.ingest:
            told.append(
                f"the URL's login {login!r} may do more than serving needs: requests run under {instance.ingest!r} and"
                " the tenants' roles; give that role a password and use it in the URL"
            )
        return told

    async def retain(self, tenant: Tenant, days: int, act: Act, *, sure: bool = False) -> int:
        """Keep a tenant's events for so many days from now on (0: for ever); return how many were dropped for it.

        Raise UsageError, and change nothing, where clocks may be wrong by which events would go, unless one is `sure`.
        """
        session = self._session(tenant)
        horizon, doubt = await due_before(session, days, act.at) if days else (0, None)
        if doubt is not None and not sure:
            raise UsageError(
                f"nothing was changed, because a clock may be wrong: events from before {_day(horizon)} would go, and"
                f" {doubt}; look at the clocks of this machine and of the database, and say --yes if they are right"
            )
        await self.directory.set_retention(tenant, days, act)
        return await drop_before(session, horizon) if days else 0

    async def upgrade_control(self) -> None:
        """Bring the control schema up to date; raise UsageError for who may not."""
        await self.directory.install()

    async def upgrade_tenant(self, tenant: Tenant) -> int:
        """Bring a tenant's schema up to date in one transaction; return how many steps that took."""
        try:
            # Whoever waits for a table's lock makes everybody wait who comes later, so not for long.
            async with self.pool(tenant.server).transaction(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS}") as db:
                return await upgrade_tenant(db, tenant.id)
        except asyncpg.InsufficientPrivilegeError as error:
            raise as_told(error) from error
        except asyncpg.PostgresError as error:
            # A step that this tenant's data does not fit must not keep the others from theirs.
            raise SchemaStepFailed(f"the step failed and left nothing behind ({error}): report it") from error

    async def drop_tenant(self, tenant: Tenant, act: Act) -> None:
        await self.directory.begin_drop(tenant, act.at)
        try:
            async with self.pool(tenant.server).transaction() as db:
                await drop_tenant(db, tenant.id)
        except Exception as error:
            raise as_told(error) from error
        await self.directory.end_drop(tenant, act)

    def gauges(self) -> dict[str, float]:
        pools = list(self._pools.values())
        return {
            "database_connections": sum(len(pool) for pool in pools),
            "database_connects_total": sum(pool.connects for pool in pools),
            "database_transactions_total": sum(pool.transactions for pool in pools),
        }

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.close()

    @asynccontextmanager
    async def _hold(self, tenant: Tenant) -> AsyncIterator[PgTenant]:
        session, sweeper = self._known(tenant)
        yield PgTenant(session, sweeper, tenant.retention_days, self._clock)

    def _session(self, tenant: Tenant) -> Session:
        return self._known(tenant)[0]

    def _known(self, tenant: Tenant) -> tuple[Session, Sweeper]:
        key = (tenant.id, tenant.server)
        known = self._sessions.get(key)
        if known is None:
            session = Session(self.pool(tenant.server), tenant.id)
            known = self._sessions[key] = (session, Sweeper(session))
            if len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(key)
        return known


def _day(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // US_PER_S, UTC).date().isoformat()
