"""Who is in a tenant, moved from an embedded cloud to PostgreSQL: users, devices, tokens and codes, and a digest of them.

Ids, hashes and times stay what they are, so every token that counted goes on counting and every one that was revoked
stays so. Users have other numbers on the other side; what is compared names them.
"""

from __future__ import annotations

import sqlite3

from metricsd.cloud.access import Tenant
from metricsd.cloud.move_rows import Counting, Digest
from metricsd.cloud.pg_directory import insert_tenant
from metricsd.cloud.pg_names import CONTROL
from metricsd.cloud.pg_pool import Db

_ACCOUNTS = "SELECT id, name, created_at FROM user WHERE tenant = ? ORDER BY id"
_DEVICES = "SELECT id, name, parent, created_at, erased_at FROM device WHERE user = ? ORDER BY id"
_TOKENS = """
SELECT id, lookup, hash, scope, device, created_at, expires_at, revoked_at FROM token WHERE user = ? ORDER BY id
"""
_CODES = "SELECT id, salt, digest, created_at, expires_at, attempts, spent_at FROM code WHERE user = ? ORDER BY id"
_PUT_ACCOUNT = "INSERT INTO account (tenant, name, created_at) VALUES ($1, $2, $3) RETURNING id"
_PUT_DEVICE = "INSERT INTO device (account, id, name, parent, created_at, erased_at) VALUES ($1, $2, $3, $4, $5, $6)"
_PUT_TOKEN = """
INSERT INTO token (account, id, lookup, hash, scope, device, created_at, expires_at, revoked_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""  # noqa: S105 - SQL
_PUT_CODE = """
INSERT INTO code (account, id, salt, digest, created_at, expires_at, attempts, spent_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""
_COMPARED = {
    "tenant": "SELECT id, name, key, created_at, suspended_at FROM tenant WHERE id = {mark}",
    "user": "SELECT who.name, who.created_at FROM {who} AS who WHERE tenant = {mark}",
    "device": "SELECT device.id, who.name, device.name, parent, device.created_at, erased_at"
    " FROM device JOIN {who} AS who ON who.id = device.{who} WHERE tenant = {mark}",
    "token": "SELECT token.id, who.name, lookup, hash, scope, device, token.created_at, expires_at, revoked_at"
    " FROM token JOIN {who} AS who ON who.id = token.{who} WHERE tenant = {mark}",
    "code": "SELECT code.id, who.name, salt, digest, code.created_at, expires_at, attempts, spent_at"
    " FROM code JOIN {who} AS who ON who.id = code.{who} WHERE tenant = {mark}",
}
_HERE = {name: query.format(who="user", mark="?") for name, query in _COMPARED.items()}
_THERE = {name: query.format(who="account", mark="$1") for name, query in _COMPARED.items()}


async def copy_people(directory: sqlite3.Connection, to: Db, tenant: Tenant) -> bool:
    """Copy a tenant's row, users, devices, tokens and codes into the open transaction; False when its name is taken."""
    if not await insert_tenant(to, tenant):
        return False
    for user, name, created_at in directory.execute(_ACCOUNTS, (tenant.id,)).fetchall():
        account = await to.fetchval(_PUT_ACCOUNT, tenant.id, name, created_at)
        for query, put in ((_DEVICES, _PUT_DEVICE), (_TOKENS, _PUT_TOKEN), (_CODES, _PUT_CODE)):
            for row in directory.execute(query, (user,)):
                await to.execute(put, account, *row)
    return True


def people_here(directory: sqlite3.Connection, tenant: Tenant) -> dict[str, Digest]:
    """Return the digests of who is in a tenant of the embedded cloud, table by table."""
    return {name: _digest(directory.execute(query, (tenant.id,)).fetchall()) for name, query in _HERE.items()}


async def people_there(to: Db, tenant: Tenant) -> dict[str, Digest]:
    """Return the same of the target. Moves the search path of the open transaction to the control schema."""
    await to.execute(f"SET LOCAL search_path = {CONTROL}, pg_temp")
    return {name: _digest(await to.fetch(query, tenant.id)) for name, query in _THERE.items()}


def _digest(rows: list[tuple[object, ...]]) -> Digest:
    counting = Counting()
    # Each row begins with what tells it apart from the others; the databases would order names differently.
    for row in sorted((tuple(row) for row in rows), key=lambda row: str(row[0])):
        counting.add(row)
    return counting.digest()
