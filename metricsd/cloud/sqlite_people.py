"""Users and devices on SQLite, as administrators see them.

Counts are of the moment: a token counts while it is neither revoked nor expired, whatever its tenant's state is.
"""

from __future__ import annotations

import sqlite3

from metricsd.cloud.access import Act, Tenant
from metricsd.cloud.registry import Device, User
from metricsd.cloud.sqlite_control import ControlFile, keep

_LIVE = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?2)"
_USERS = f"""
SELECT user.name, tenant.name, user.created_at, (SELECT count(*) FROM device WHERE device.user = user.id),
       (SELECT count(*) FROM token WHERE token.user = user.id AND {_LIVE})
FROM user JOIN tenant ON tenant.id = user.tenant WHERE ?1 IS NULL OR tenant.name = ?1 ORDER BY tenant.name, user.name
"""  # noqa: S608 - constants
_DEVICES = f"""
SELECT device.id, device.name, tenant.name, user.name, device.parent, device.created_at,
       EXISTS (SELECT 1 FROM token WHERE token.device = device.id AND {_LIVE}), device.erased_at
FROM device JOIN user ON user.id = device.user JOIN tenant ON tenant.id = user.tenant
WHERE ?1 IS NULL OR tenant.name = ?1 ORDER BY device.created_at, device.id
"""  # noqa: S608 - constants


class SqlitePeople(ControlFile):
    """`PeopleRegistry`."""

    async def add_user(self, tenant: Tenant, name: str, act: Act) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            added = db.execute(
                "INSERT INTO user (tenant, name, created_at) VALUES (?, ?, ?) ON CONFLICT (tenant, name) DO NOTHING",
                (tenant.id, name, act.at),
            )
            if added.rowcount != 1:
                return False
            keep(db, act)
            return True

        return await self._writer.run(work)

    async def list_users(self, tenant: str | None) -> list[User]:
        now = self._clock.now_us()
        rows = await self._reader.run(lambda db: db.execute(_USERS, (tenant, now)).fetchall())
        return [User(name=r[0], tenant=r[1], created_at=r[2], devices=r[3], tokens=r[4]) for r in rows]

    async def revoke_user(self, tenant: Tenant, name: str, act: Act) -> int | None:
        def work(db: sqlite3.Connection) -> int | None:
            user = db.execute("SELECT id FROM user WHERE tenant = ? AND name = ?", (tenant.id, name)).fetchone()
            if user is None:
                return None
            tokens = db.execute(
                "UPDATE token SET revoked_at = ?1 WHERE user = ?2 AND revoked_at IS NULL", (act.at, user[0])
            ).rowcount
            codes = db.execute(
                "UPDATE code SET spent_at = ?1 WHERE user = ?2 AND spent_at IS NULL", (act.at, user[0])
            ).rowcount
            if tokens or codes:
                keep(db, act)
            return tokens

        return await self._writer.run(work)

    async def list_devices(self, tenant: str | None) -> list[Device]:
        now = self._clock.now_us()
        rows = await self._reader.run(lambda db: db.execute(_DEVICES, (tenant, now)).fetchall())
        return [
            Device(
                id=r[0], name=r[1], tenant=r[2], user=r[3], parent=r[4], created_at=r[5], live=bool(r[6]), erased_at=r[7]
            )
            for r in rows
        ]  # fmt: skip

    async def revoke_device(self, device_id: str, act: Act) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            if db.execute("SELECT 1 FROM device WHERE id = ?", (device_id,)).fetchone() is None:
                return False
            ended = db.execute(
                "UPDATE token SET revoked_at = ? WHERE device = ? AND revoked_at IS NULL", (act.at, device_id)
            )
            if ended.rowcount:
                keep(db, act)
            return True

        return await self._writer.run(work)
