"""The tenant's conflict policy on PostgreSQL: the newest text that an administrator set, and its earlier versions.

A version is never changed. Setting the text that is in force already makes no new version, so a script may repeat it.
"""

from __future__ import annotations

from metricsd.cloud.backend import TenantPolicy
from metricsd.cloud.pg_pool import Db

VERSIONS_KEPT = 20
_NEWEST = "SELECT version, sha256, text, set_at FROM policy ORDER BY version DESC LIMIT 1"
_PUT = "INSERT INTO policy (version, sha256, text, set_at) VALUES ($1, $2, $3, $4)"


async def find_policy(db: Db) -> TenantPolicy | None:
    """Return the policy in force, None before the first was set."""
    row = await db.fetchrow(_NEWEST)
    return None if row is None else TenantPolicy(*row)


async def find_policy_hash(db: Db) -> str | None:
    """Return the hash of the policy in force without its text."""
    found: str | None = await db.fetchval("SELECT sha256 FROM policy ORDER BY version DESC LIMIT 1")
    return found


async def put_policy(db: Db, text: str, sha256: str, now: int) -> TenantPolicy:
    """Make a text the policy in force and return it with its version. The tenant's lock is held."""
    before = await find_policy(db)
    if before is not None and before.sha256 == sha256:
        return before
    made = TenantPolicy(1 if before is None else before.version + 1, sha256, text, now)
    await db.execute(_PUT, made.version, made.sha256, made.text, made.set_at)
    await db.execute("DELETE FROM policy WHERE version <= $1", made.version - VERSIONS_KEPT)
    return made
