"""The control database on SQLite: tenants and the hashes of tokens; enrolment and people have files of their own.

Nothing is remembered beyond the next commit of anybody, so a revocation by any process counts for the next request of
every other.
Writes are short transactions of their own with `synchronous=FULL`; commands may run while a server does.
"""

from __future__ import annotations

import hmac
import json
import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Any

from metricsd.cloud.access import Act, Scope, Tenant, Token
from metricsd.cloud.sqlite_control import LOOKUP_BYTES, insert_token, keep, tenant_of, user_id
from metricsd.cloud.sqlite_enrolment import SqliteEnrolment
from metricsd.cloud.sqlite_people import SqlitePeople
from metricsd.errors import UsageError

_FIND = """
SELECT token.id, token.hash, token.scope, tenant.id, tenant.name, tenant.key, tenant.created_at, tenant.suspended_at,
       user.name, token.created_at, token.device, token.expires_at, token.revoked_at, device.erased_at
FROM token JOIN user ON user.id = token.user JOIN tenant ON tenant.id = user.tenant
LEFT JOIN device ON device.id = token.device
"""
_LIVE = """
SELECT token.id FROM token JOIN user ON user.id = token.user JOIN tenant ON tenant.id = user.tenant
WHERE token.id IN (SELECT value FROM json_each(?)) AND tenant.suspended_at IS NULL AND token.revoked_at IS NULL
AND (token.expires_at IS NULL OR token.expires_at > ?)
"""
_SUSPEND = "UPDATE tenant SET suspended_at = ?1 WHERE id = ?2 AND dropped_at IS NULL AND (suspended_at IS NULL) != (?1 IS NULL)"
_ROTATE = """
UPDATE token SET expires_at = min(coalesce(expires_at, ?2), ?2)
WHERE id = ?1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?3)
"""
_FORGET = (
    "DELETE FROM code WHERE user IN (SELECT id FROM user WHERE tenant = ?)",
    "DELETE FROM token WHERE user IN (SELECT id FROM user WHERE tenant = ?)",
    "DELETE FROM device WHERE user IN (SELECT id FROM user WHERE tenant = ?)",
    "DELETE FROM user WHERE tenant = ?",
    "DELETE FROM tenant WHERE id = ?",
)


def _find(digest: bytes, db: sqlite3.Connection) -> Token | None:
    rows = db.execute(_FIND + "WHERE token.lookup = ?", (digest[:LOOKUP_BYTES],)).fetchall()
    # Every candidate is compared whole and in constant time.
    matching = [row for row in rows if hmac.compare_digest(row[1], digest)]
    return _token(matching[0]) if matching else None


class SqliteDirectory(SqliteEnrolment, SqlitePeople):
    """`Control` over one file."""

    async def find_token(self, digest: bytes) -> Token | None:
        # Every request asks this: no thread is woken for a token that is known and a file that nobody has changed.
        try:
            return self._tokens.get(digest, partial(_find, digest))
        except sqlite3.OperationalError:
            return await self._reader.run(partial(_find, digest))

    async def find_token_by_id(self, token_id: str) -> Token | None:
        row = await self._reader.run(lambda db: db.execute(_FIND + "WHERE token.id = ?", (token_id,)).fetchone())
        return None if row is None else _token(row)

    async def live_tokens(self, ids: Sequence[str], now: int) -> set[str]:
        wanted = json.dumps(list(ids))
        return await self._reader.run(lambda db: {str(row[0]) for row in db.execute(_LIVE, (wanted, now))})

    async def ready(self) -> None:
        await self._reader.run(lambda db: db.execute("SELECT count(*) FROM tenant").fetchone())

    async def create_tenant(self, tenant: Tenant, act: Act) -> bool:
        if tenant.server is not None:
            raise UsageError("tenants of an embedded cloud lie in its folder: --server is for PostgreSQL")

        def work(db: sqlite3.Connection) -> bool:
            added = db.execute(
                "INSERT INTO tenant (id, name, key, created_at) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
                (tenant.id, tenant.name, tenant.key, tenant.created_at),
            )
            if added.rowcount == 1:
                keep(db, act)
            return added.rowcount == 1

        return await self._writer.run(work)

    async def list_tenants(self) -> list[Tenant]:
        rows = await self._reader.run(
            lambda db: db.execute("SELECT id, name, key, created_at, suspended_at FROM tenant ORDER BY name").fetchall()
        )
        return [tenant_of(row) for row in rows]

    async def suspend_tenant(self, tenant: Tenant, suspended_at: int | None, act: Act) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            if db.execute(_SUSPEND, (suspended_at, tenant.id)).rowcount != 1:
                return False
            keep(db, act)
            return True

        return await self._writer.run(work)

    async def create_token(self, token: Token, act: Act) -> None:
        def work(db: sqlite3.Connection) -> None:
            insert_token(db, user_id(db, token.tenant.id, token.user, token.created_at), token)
            keep(db, act)

        await self._writer.run(work)

    async def list_tokens(self, tenant: str | None) -> list[Token]:
        rows = await self._reader.run(
            lambda db: db.execute(
                _FIND + "WHERE ?1 IS NULL OR tenant.name = ?1 ORDER BY token.created_at, token.id", (tenant,)
            ).fetchall()
        )
        return [_token(row) for row in rows]

    async def revoke_token(self, token_id: str, act: Act) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            if db.execute("SELECT 1 FROM token WHERE id = ?", (token_id,)).fetchone() is None:
                return False
            ended = db.execute(
                "UPDATE token SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (act.at, token_id)
            )
            if ended.rowcount:
                keep(db, act)
            return True

        return await self._writer.run(work)

    async def rotate_token(self, old: str, new: Token, old_expires_at: int, act: Act) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            if db.execute(_ROTATE, (old, old_expires_at, act.at)).rowcount != 1:
                return False
            insert_token(db, user_id(db, new.tenant.id, new.user, new.created_at), new)
            keep(db, act)
            return True

        return await self._writer.run(work)

    async def begin_drop(self, tenant: Tenant, at: int) -> None:
        """Shut a tenant out and keep every process from opening its file; durable on return."""
        await self._writer.run(
            lambda db: db.execute(
                "UPDATE tenant SET dropped_at = coalesce(dropped_at, ?1), suspended_at = coalesce(suspended_at, ?1)"
                " WHERE id = ?2",
                (at, tenant.id),
            )
        )

    async def end_drop(self, tenant: Tenant, act: Act) -> None:
        """Forget a tenant whose file is gone, with everybody in it."""

        def work(db: sqlite3.Connection) -> None:
            for statement in _FORGET:
                db.execute(statement, (tenant.id,))
            keep(db, act)

        await self._writer.run(work)


def _token(row: Any) -> Token:
    return Token(
        id=row[0],
        hash=row[1],
        scope=Scope(row[2]),
        tenant=tenant_of(row[3:8]),
        user=row[8],
        created_at=row[9],
        device=row[10],
        expires_at=row[11],
        revoked_at=row[12],
        erased=row[13] is not None,
    )
