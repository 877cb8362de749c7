"""The control schema's tenants and tokens on PostgreSQL; enrolment and people have files of their own.

Nothing is remembered between requests, so a revocation by any process counts for the next request of every other. A
tenant and its schema are made in one transaction, and dropped in one, where both lie on one server.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from metricsd.cloud.access import Act, Scope, Tenant, Token
from metricsd.cloud.pg_control import (
    LOOKUP_BYTES,
    TENANT_COLUMNS,
    account_id,
    changed,
    insert_token,
    keep,
    tenant_of,
)
from metricsd.cloud.pg_enrolment import PgEnrolment
from metricsd.cloud.pg_errors import as_told
from metricsd.cloud.pg_install import Instance, install, make_roles, make_tenant
from metricsd.cloud.pg_names import CONTROL, checked_url
from metricsd.cloud.pg_people import PgPeople
from metricsd.cloud.pg_pool import Db
from metricsd.errors import UsageError

_FIND = f"""
SELECT token.id, token.hash, token.scope, account.name, token.created_at, token.device, token.expires_at,
       token.revoked_at, device.erased_at, {TENANT_COLUMNS}
FROM token JOIN account ON account.id = token.account JOIN tenant ON tenant.id = account.tenant
LEFT JOIN device ON device.id = token.device
"""  # noqa: S608 - constants
_LIVE = """
SELECT token.id FROM token JOIN account ON account.id = token.account JOIN tenant ON tenant.id = account.tenant
WHERE token.id = ANY($1::text[]) AND tenant.suspended_at IS NULL AND token.revoked_at IS NULL
AND (token.expires_at IS NULL OR token.expires_at > $2)
"""
_LIST = f'SELECT {TENANT_COLUMNS} FROM tenant ORDER BY name COLLATE "C"'  # noqa: S608 - constants
_CREATE = """
INSERT INTO tenant (id, name, key, created_at, suspended_at, server) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (name) DO NOTHING
"""
_SUSPEND = """
UPDATE tenant SET suspended_at = $1
WHERE id = $2 AND dropped_at IS NULL AND (suspended_at IS NULL) != ($1::bigint IS NULL)
"""
_ROTATE = """
UPDATE token SET expires_at = least(coalesce(expires_at, $2), $2)
WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $3)
"""
_BEGIN_DROP = """
UPDATE tenant SET dropped_at = coalesce(dropped_at, $1), suspended_at = coalesce(suspended_at, $1) WHERE id = $2
"""
_FORGET = (
    "DELETE FROM code WHERE account IN (SELECT id FROM account WHERE tenant = $1)",
    "DELETE FROM token WHERE account IN (SELECT id FROM account WHERE tenant = $1)",
    "DELETE FROM device WHERE account IN (SELECT id FROM account WHERE tenant = $1)",
    "DELETE FROM account WHERE tenant = $1",
    "DELETE FROM tenant WHERE id = $1",
)


class PgDirectory(PgEnrolment, PgPeople):
    """`Control` over the control schema."""

    async def find_token(self, digest: bytes) -> Token | None:
        if not await self.is_installed():
            return None
        async with self.request() as db:
            rows = await db.fetch(_FIND + "WHERE token.lookup = $1", digest[:LOOKUP_BYTES])
        # Every candidate is compared whole and in constant time.
        matching = [row for row in rows if hmac.compare_digest(row[1], digest)]
        return _token(matching[0]) if matching else None

    async def find_token_by_id(self, token_id: str) -> Token | None:
        async with self.owner() as db:
            row = await db.fetchrow(_FIND + "WHERE token.id = $1", token_id)
        return None if row is None else _token(row)

    async def live_tokens(self, ids: Sequence[str], now: int) -> set[str]:
        async with self.request() as db:
            return {str(row[0]) for row in await db.fetch(_LIVE, list(ids), now)}

    async def ready(self) -> None:
        if not await self.is_installed():
            # It answers, and waits for its first tenant.
            return
        async with self.request() as db:
            await db.fetchval("SELECT 1 FROM instance")

    async def install(self) -> Instance:
        """Make the control schema and its roles, or bring them up to date; raise UsageError for who may not."""
        try:
            async with self._pool.transaction() as db:
                self._instance = await install(db)
        except Exception as error:
            raise as_told(error) from error
        return self._instance

    async def create_tenant(self, tenant: Tenant, act: Act) -> bool:
        instance = await self.install()
        if tenant.server is not None:
            if tenant.name in {known.name for known in await self.list_tenants()}:
                return False
            await self._make_elsewhere(tenant, tenant.server, instance)
        async with self.owner() as db:
            if not await insert_tenant(db, tenant):
                return False
            await keep(db, act)
            if tenant.server is None:
                # Last, because it moves the search path to the new schema.
                await make_tenant(db, instance, tenant.id)
            return True

    async def _make_elsewhere(self, tenant: Tenant, server: str, instance: Instance) -> None:
        """Make a tenant's schema on another server. Until the directory names it nobody looks there."""
        if urlsplit(checked_url(server)).password is not None:
            raise UsageError("the directory keeps the server's URL, so its password belongs into ~/.pgpass")
        try:
            async with self._pool_of(server).transaction() as db:
                await make_roles(db, instance)
                await make_tenant(db, instance, tenant.id)
        except Exception as error:
            raise as_told(error) from error

    async def list_tenants(self) -> list[Tenant]:
        return [tenant_of(row) for row in await self.listed(_LIST)]

    async def suspend_tenant(self, tenant: Tenant, suspended_at: int | None, act: Act) -> bool:
        async with self.owner() as db:
            if changed(await db.execute(_SUSPEND, suspended_at, tenant.id)) != 1:
                return False
            await keep(db, act)
            return True

    async def set_retention(self, tenant: Tenant, days: int, act: Act) -> None:
        """Note for how many days a tenant's events are kept."""
        async with self.owner() as db:
            await db.execute("UPDATE tenant SET retention_days = $1 WHERE id = $2", days, tenant.id)
            await keep(db, act)

    async def create_token(self, token: Token, act: Act) -> None:
        async with self.owner() as db:
            await insert_token(db, await account_id(db, token.tenant.id, token.user, token.created_at), token)
            await keep(db, act)

    async def list_tokens(self, tenant: str | None) -> list[Token]:
        of_tenant = "WHERE $1::text IS NULL OR tenant.name = $1 ORDER BY token.created_at, token.id"
        return [_token(row) for row in await self.listed(_FIND + of_tenant, tenant)]

    async def revoke_token(self, token_id: str, act: Act) -> bool:
        async with self.owner() as db:
            if await db.fetchval("SELECT 1 FROM token WHERE id = $1", token_id) is None:
                return False
            ended = await db.execute(
                "UPDATE token SET revoked_at = $1 WHERE id = $2 AND revoked_at IS NULL", act.at, token_id
            )
            if changed(ended):
                await keep(db, act)
            return True

    async def rotate_token(self, old: str, new: Token, old_expires_at: int, act: Act) -> bool:
        async with self.owner() as db:
            if changed(await db.execute(_ROTATE, old, old_expires_at, act.at)) != 1:
                return False
            await insert_token(db, await account_id(db, new.tenant.id, new.user, new.created_at), new)
            await keep(db, act)
            return True

    async def begin_drop(self, tenant: Tenant, at: int) -> None:
        """Shut a tenant out; durable on return."""
        async with self.owner() as db:
            await db.execute(_BEGIN_DROP, at, tenant.id)

    async def end_drop(self, tenant: Tenant, act: Act) -> None:
        """Forget a tenant whose schema is gone, with everybody in it."""
        async with self.owner() as db:
            for statement in _FORGET:
                await db.execute(statement, tenant.id)
            await keep(db, act)


async def insert_tenant(db: Db, tenant: Tenant) -> bool:
    """Store a tenant's row; False when its name is taken."""
    values = (tenant.id, tenant.name, tenant.key, tenant.created_at, tenant.suspended_at, tenant.server)
    await db.execute(f"SET LOCAL search_path = {CONTROL}, pg_temp")
    return changed(await db.execute(_CREATE, *values)) == 1


def _token(row: Any) -> Token:
    return Token(
        id=row[0],
        hash=row[1],
        scope=Scope(row[2]),
        user=row[3],
        created_at=row[4],
        device=row[5],
        expires_at=row[6],
        revoked_at=row[7],
        erased=row[8] is not None,
        tenant=tenant_of(row[9:]),
    )
