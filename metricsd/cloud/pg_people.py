"""Users and devices on PostgreSQL, as administrators see them.

Counts are of the moment: a token counts while it is neither revoked nor expired, whatever its tenant's state is.
"""

from __future__ import annotations

from metricsd.cloud.access import Act, Tenant
from metricsd.cloud.pg_control import ControlSchema, changed, keep
from metricsd.cloud.registry import Device, User

_LIVE = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)"
_USERS = f"""
SELECT account.name, tenant.name, account.created_at,
       (SELECT count(*) FROM device WHERE device.account = account.id),
       (SELECT count(*) FROM token WHERE token.account = account.id AND {_LIVE})
FROM account JOIN tenant ON tenant.id = account.tenant WHERE $1::text IS NULL OR tenant.name = $1
ORDER BY tenant.name COLLATE "C", account.name COLLATE "C"
"""  # noqa: S608 - constants
_DEVICES = f"""
SELECT device.id, device.name, tenant.name, account.name, device.parent, device.created_at,
       EXISTS (SELECT 1 FROM token WHERE token.device = device.id AND {_LIVE}), device.erased_at
FROM device JOIN account ON account.id = device.account JOIN tenant ON tenant.id = account.tenant
WHERE $1::text IS NULL OR tenant.name = $1 ORDER BY device.created_at, device.id
"""  # noqa: S608 - constants


class PgPeople(ControlSchema):
    """`PeopleRegistry`."""

    async def add_user(self, tenant: Tenant, name: str, act: Act) -> bool:
        async with self.owner() as db:
            added = await db.execute(
                "INSERT INTO account (tenant, name, created_at) VALUES ($1, $2, $3)"
                " ON CONFLICT (tenant, name) DO NOTHING",
                tenant.id, name, act.at,
            )  # fmt: skip
            if changed(added) != 1:
                return False
            await keep(db, act)
            return True

    async def list_users(self, tenant: str | None) -> list[User]:
        rows = await self.listed(_USERS, tenant, self._clock.now_us())
        return [User(name=r[0], tenant=r[1], created_at=r[2], devices=r[3], tokens=r[4]) for r in rows]

    async def revoke_user(self, tenant: Tenant, name: str, act: Act) -> int | None:
        async with self.owner() as db:
            account = await db.fetchval("SELECT id FROM account WHERE tenant = $1 AND name = $2", tenant.id, name)
            if account is None:
                return None
            tokens = changed(
                await db.execute(
                    "UPDATE token SET revoked_at = $1 WHERE account = $2 AND revoked_at IS NULL", act.at, account
                )
            )
            codes = changed(
                await db.execute(
                    "UPDATE code SET spent_at = $1 WHERE account = $2 AND spent_at IS NULL", act.at, account
                )
            )
            if tokens or codes:
                await keep(db, act)
            return tokens

    async def list_devices(self, tenant: str | None) -> list[Device]:
        rows = await self.listed(_DEVICES, tenant, self._clock.now_us())
        return [
            Device(
                id=r[0], name=r[1], tenant=r[2], user=r[3], parent=r[4], created_at=r[5], live=r[6], erased_at=r[7]
            )
            for r in rows
        ]  # fmt: skip

    async def revoke_device(self, device_id: str, act: Act) -> bool:
        async with self.owner() as db:
            if await db.fetchval("SELECT 1 FROM device WHERE id = $1", device_id) is None:
                return False
            ended = await db.execute(
                "UPDATE token SET revoked_at = $1 WHERE device = $2 AND revoked_at IS NULL", act.at, device_id
            )
            if changed(ended):
                await keep(db, act)
            return True
