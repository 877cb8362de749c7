"""Enrolment on PostgreSQL: devices, the codes that make them, and the mark that a device's data was taken back.

A code's attempt is counted before anybody compares its secret, and a code is spent in the transaction that makes the
device, so that neither guesses nor redemptions in parallel get around the bounds.
"""

from __future__ import annotations

from metricsd.cloud.access import Act, EnrolCode, NewDevice, Tenant
from metricsd.cloud.codes import ATTEMPTS_MAX
from metricsd.cloud.pg_control import (
    TENANT_COLUMNS,
    ControlSchema,
    account_id,
    changed,
    insert_device,
    keep,
    tenant_of,
)

KEPT_US = 30 * 86_400 * 1_000_000
"""How long an expired code's row stays, so that its short id is not given out again soon."""
_INSERT = """
INSERT INTO code (id, salt, digest, account, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (id) DO NOTHING
"""
_TRY = """
UPDATE code SET attempts = attempts + 1 WHERE id = $1 AND attempts < $2 AND spent_at IS NULL AND expires_at > $3
"""
_CODE = f"""
SELECT code.salt, code.digest, code.created_at, code.expires_at, account.name, {TENANT_COLUMNS}
FROM code JOIN account ON account.id = code.account JOIN tenant ON tenant.id = account.tenant WHERE code.id = $1
"""  # noqa: S608 - constants
_SPEND = "UPDATE code SET spent_at = $2 WHERE id = $1 AND spent_at IS NULL AND expires_at > $2"
_DEVICE = """
SELECT device.erased_at, account.name FROM device JOIN account ON account.id = device.account
WHERE device.id = $1 AND account.tenant = $2 AND ($3::text IS NULL OR account.name = $3) FOR UPDATE OF device
"""


class PgEnrolment(ControlSchema):
    """`Enrolment` and `CodeRegistry`."""

    async def add_device(self, device: NewDevice, act: Act) -> None:
        async with self.request() as db:
            await insert_device(db, device)
            await keep(db, act)

    async def create_code(self, code: EnrolCode, act: Act) -> bool:
        async with self.owner() as db:
            await db.execute("DELETE FROM code WHERE expires_at < $1", code.created_at - KEPT_US)
            account = await account_id(db, code.tenant.id, code.user, code.created_at)
            added = await db.execute(
                _INSERT, code.id, code.salt, code.digest, account, code.created_at, code.expires_at
            )  # fmt: skip
            if changed(added) != 1:
                return False
            await keep(db, act)
            return True

    async def try_code(self, code_id: str, now: int) -> EnrolCode | None:
        async with self.request() as db:
            if changed(await db.execute(_TRY, code_id, ATTEMPTS_MAX, now)) != 1:
                return None
            salt, digest, created_at, expires_at, user, *tenant = await db.fetchrow(_CODE, code_id)
            return EnrolCode(
                id=code_id, salt=salt, digest=digest, tenant=tenant_of(tenant), user=user, created_at=created_at,
                expires_at=expires_at,
            )  # fmt: skip

    async def redeem_code(self, code_id: str, device: NewDevice, act: Act) -> bool:
        async with self.request() as db:
            if changed(await db.execute(_SPEND, code_id, act.at)) != 1:
                return False
            await insert_device(db, device)
            await keep(db, act)
            return True

    async def erase_device(self, tenant: Tenant, user: str | None, device_id: str, act: Act) -> str | None:
        async with self.request() as db:
            found = await db.fetchrow(_DEVICE, device_id, tenant.id, user)
            if found is None:
                return None
            erased_at, owner = found
            if erased_at is None:
                await db.execute("UPDATE device SET erased_at = $1 WHERE id = $2", act.at, device_id)
                await db.execute(
                    "UPDATE token SET revoked_at = coalesce(revoked_at, $1) WHERE device = $2", act.at, device_id
                )
                await keep(db, act)
            return str(owner)
