"""The control schema on PostgreSQL: under which role it is asked, its rows as structs, and the audit log inside it.

Requests run as the ingest login, whoever the URL names; administrators' acts run as the URL's own login, which must be
the owner. An act is appended in the transaction that it tells of, as its last step, so that writers take the log's end
in one order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from metricsd.clock import Clock
from metricsd.cloud.access import Act, NewDevice, Scope, Tenant, Token
from metricsd.cloud.audit import GENESIS, chained
from metricsd.cloud.pg_errors import as_told, schema_not_ready
from metricsd.cloud.pg_install import Instance, find_instance
from metricsd.cloud.pg_names import CONTROL
from metricsd.cloud.pg_pool import Db, Pool
from metricsd.cloud.registry import AuditHead, AuditRow

LOOKUP_BYTES = 8
TENANT_COLUMNS = (
    "tenant.id, tenant.name, tenant.key, tenant.created_at, tenant.suspended_at, tenant.server, tenant.retention_days"
)
_PATH = f"SET LOCAL search_path = {CONTROL}, pg_temp"
_AUDIT = "SELECT seq, at, actor, action, tenant, subject, detail, hash FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2"
_DETAIL = msgspec.json.Decoder(dict[str, str])


class ControlSchema:
    """The control schema and its audit log."""

    def __init__(self, pool_of: Callable[[str | None], Pool], clock: Clock) -> None:
        self._pool_of = pool_of
        self._pool = pool_of(None)
        self._clock = clock
        self._instance: Instance | None = None

    async def is_installed(self) -> bool:
        """Return whether the database holds a cloud."""
        if self._instance is None:
            async with self._pool.transaction() as db:
                self._instance = await find_instance(db)
        return self._instance is not None

    async def instance(self) -> Instance:
        """Return the installation; raise 503 when the database holds none."""
        if not await self.is_installed() or self._instance is None:
            raise schema_not_ready(
                "this database holds no metricsd cloud: make its first tenant with `metricsd cloud tenant create NAME`"
            )
        return self._instance

    @asynccontextmanager
    async def request(self, setting: str = "") -> AsyncIterator[Db]:
        """One transaction as the ingest login, with one more SET LOCAL statement if need be."""
        ingest = (await self.instance()).ingest
        async with self._pool.transaction(f'SET LOCAL ROLE "{ingest}"; {_PATH}; {setting}') as db:
            yield db

    @asynccontextmanager
    async def owner(self) -> AsyncIterator[Db]:
        """One transaction as the login of the URL; raise UsageError when it may not do what is asked."""
        try:
            await self.instance()
            async with self._pool.transaction(_PATH) as db:
                yield db
        except Exception as error:
            raise as_told(error) from error

    async def listed(self, query: str, *args: Any) -> list[Any]:
        """Return what the owner reads; [] where no cloud has been made yet, as in an empty folder."""
        try:
            if not await self.is_installed():
                return []
        except Exception as error:
            raise as_told(error) from error
        async with self.owner() as db:
            return await db.fetch(query, *args)

    async def keep_act(self, act: Act) -> None:
        async with self.request() as db:
            await keep(db, act)

    async def audit_page(self, after: int, limit: int) -> list[AuditRow]:
        return [_audit_row(row) for row in await self.listed(_AUDIT, after, limit)]

    async def audit_head(self) -> AuditHead:
        rows = await self.listed("SELECT seq, hash FROM audit_head")
        return AuditHead(*rows[0]) if rows else AuditHead(0, GENESIS)


async def keep(db: Db, act: Act) -> None:
    """Append an act to the log, as the last step of the open transaction."""
    head = await db.fetchrow("SELECT seq, hash FROM audit_head FOR UPDATE")
    row = chained(AuditHead(*head), act)
    detail = msgspec.json.encode(act.detail).decode()
    values = (row.seq, act.at, act.actor, act.action, act.tenant, act.subject, detail, row.hash)
    await db.execute("INSERT INTO audit VALUES ($1, $2, $3, $4, $5, $6, $7, $8)", *values)
    await db.execute("UPDATE audit_head SET seq = $1, hash = $2", row.seq, row.hash)


async def account_id(db: Db, tenant: str, name: str, now: int) -> int:
    """Return the number of a tenant's user, who is made if new. `tenant` is the tenant's id."""
    await db.execute(
        "INSERT INTO account (tenant, name, created_at) VALUES ($1, $2, $3) ON CONFLICT (tenant, name) DO NOTHING",
        tenant, name, now,
    )  # fmt: skip
    return int(await db.fetchval("SELECT id FROM account WHERE tenant = $1 AND name = $2", tenant, name))


async def insert_token(db: Db, account: int, token: Token) -> None:
    """Store a token of the user with that number."""
    await db.execute(
        "INSERT INTO token (id, lookup, hash, scope, account, device, created_at, expires_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        token.id, token.hash[:LOOKUP_BYTES], token.hash, str(token.scope), account, token.device, token.created_at,
        token.expires_at,
    )  # fmt: skip


async def insert_device(db: Db, device: NewDevice) -> None:
    """Store a device, its token, and its user if new."""
    account = await account_id(db, device.tenant.id, device.user, device.at)
    await db.execute(
        "INSERT INTO device (id, account, name, parent, created_at) VALUES ($1, $2, $3, $4, $5)",
        device.id, account, device.name, device.parent, device.at,
    )  # fmt: skip
    token = Token(
        id=device.token_id, hash=device.digest, scope=Scope.DEVICE, tenant=device.tenant, user=device.user,
        created_at=device.at, device=device.id,
    )  # fmt: skip
    await insert_token(db, account, token)


def tenant_of(row: Any) -> Tenant:
    """Return the columns TENANT_COLUMNS as a tenant."""
    return Tenant(*row)


def changed(status: str) -> int:
    """Return how many rows a statement touched, from its command tag."""
    return int(status.rpartition(" ")[2])


def _audit_row(row: Any) -> AuditRow:
    seq, at, actor, action, tenant, subject, detail, digest = row
    act = Act(
        actor=actor, action=action, tenant=tenant, subject=subject, at=at, detail=_DETAIL.decode(detail)
    )  # fmt: skip
    return AuditRow(seq, act, digest)
