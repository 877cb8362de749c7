"""Enrolment on SQLite: devices, the codes that make them, and the mark that a device's data was taken back.

A code's attempt is counted before anybody compares its secret, and a code is spent in the transaction that makes the
device, so that neither guesses nor redemptions in parallel get around the bounds.
"""

from __future__ import annotations

import sqlite3

from metricsd.cloud.access import Act, EnrolCode, NewDevice, Tenant
from metricsd.cloud.codes import ATTEMPTS_MAX
from metricsd.cloud.sqlite_control import ControlFile, insert_device, keep, tenant_of, user_id

CODES_KEPT_US = 30 * 86_400 * 1_000_000
"""How long an expired code's row stays, so that its short id is not given out again soon."""
_TRY = """
UPDATE code SET attempts = attempts + 1 WHERE id = ? AND attempts < ? AND spent_at IS NULL AND expires_at > ?
"""
_CODE = """
SELECT code.salt, code.digest, code.created_at, code.expires_at, user.name,
       tenant.id, tenant.name, tenant.key, tenant.created_at, tenant.suspended_at
FROM code JOIN user ON user.id = code.user JOIN tenant ON tenant.id = user.tenant WHERE code.id = ?
"""
_SPEND = "UPDATE code SET spent_at = ? WHERE id = ? AND spent_at IS NULL AND expires_at > ?"
_DEVICE = """
SELECT device.erased_at, user.name FROM device JOIN user ON user.id = device.user
WHERE device.id = ?1 AND user.tenant = ?2 AND (?3 IS NULL OR user.name = ?3)
"""


class SqliteEnrolment(ControlFile):
    """`Enrolment` and `CodeRegistry`."""

    async def add_device(self, device: NewDevice, act: Act) -> None:
        def work(db: sqlite3.Connection) -> None:
            insert_device(db, device)
            keep(db, act)

        await self._writer.run(work)

    async def create_code(self, code: EnrolCode, act: Act) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            db.execute("DELETE FROM code WHERE expires_at < ?", (code.created_at - CODES_KEPT_US,))
            added = db.execute(
                "INSERT INTO code (id, salt, digest, user, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                (
                    code.id, code.salt, code.digest, user_id(db, code.tenant.id, code.user, code.created_at),
                    code.created_at, code.expires_at,
                ),
            ).rowcount == 1  # fmt: skip
            if added:
                keep(db, act)
            return added

        return await self._writer.run(work)

    async def try_code(self, code_id: str, now: int) -> EnrolCode | None:
        def work(db: sqlite3.Connection) -> EnrolCode | None:
            if db.execute(_TRY, (code_id, ATTEMPTS_MAX, now)).rowcount != 1:
                return None
            salt, digest, created_at, expires_at, user, *tenant = db.execute(_CODE, (code_id,)).fetchone()
            return EnrolCode(
                id=code_id, salt=salt, digest=digest, tenant=tenant_of(tenant), user=user, created_at=created_at,
                expires_at=expires_at,
            )  # fmt: skip

        # Whoever guesses at names of codes, without any token, must not keep others from writing.
        known = await self._reader.run(lambda db: db.execute("SELECT 1 FROM code WHERE id = ?", (code_id,)).fetchone())
        return None if known is None else await self._writer.run(work)

    async def redeem_code(self, code_id: str, device: NewDevice, act: Act) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            if db.execute(_SPEND, (act.at, code_id, act.at)).rowcount != 1:
                return False
            insert_device(db, device)
            keep(db, act)
            return True

        return await self._writer.run(work)

    async def erase_device(self, tenant: Tenant, user: str | None, device_id: str, act: Act) -> str | None:
        def work(db: sqlite3.Connection) -> str | None:
            found = db.execute(_DEVICE, (device_id, tenant.id, user)).fetchone()
            if found is None:
                return None
            if found[0] is None:
                db.execute("UPDATE device SET erased_at = ? WHERE id = ?", (act.at, device_id))
                db.execute(
                    "UPDATE token SET revoked_at = coalesce(revoked_at, ?) WHERE device = ?", (act.at, device_id)
                )
                keep(db, act)
            return str(found[1])

        return await self._writer.run(work)
