"""The control database on SQLite: tenants, users, devices and the hashes of tokens.

Nothing is remembered between requests, so a revocation by any process counts for the next request of every other.
Writes are short transactions of their own with `synchronous=FULL`; commands may run while a server does.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metricsd.clock import Clock
from metricsd.cloud.backend import Scope, Tenant, Token
from metricsd.cloud.sqlite_file import FileThread, open_file
from metricsd.schema import load_steps

FILE_NAME = "directory.db"
LOOKUP_BYTES = 8
_FIND = """
SELECT token.id, token.hash, token.scope, tenant.id, tenant.name, tenant.key, tenant.created_at,
       user.name, token.created_at, token.device, token.expires_at, token.revoked_at
FROM token JOIN user ON user.id = token.user JOIN tenant ON tenant.id = user.tenant
"""

_LIVE = """
SELECT id FROM token WHERE id IN (SELECT value FROM json_each(?)) AND revoked_at IS NULL
AND (expires_at IS NULL OR expires_at > ?)
"""


class SqliteDirectory:
    """`Directory` and `Registry` over one file. Two threads: reads never wait for a writer's fsync."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        writing, reading = open_file(folder / FILE_NAME, load_steps("metricsd.cloud.schema.directory"))
        self._clock = clock
        self._reader = FileThread(reading, name="directory-read")
        self._writer = FileThread(writing, name="directory-write", begin="BEGIN IMMEDIATE")

    async def find_token(self, digest: bytes) -> Token | None:
        rows = await self._reader.run(
            lambda db: db.execute(_FIND + "WHERE token.lookup = ?", (digest[:LOOKUP_BYTES],)).fetchall()
        )
        # Every candidate is compared whole and in constant time.
        matching = [row for row in rows if hmac.compare_digest(row[1], digest)]
        return _token(matching[0]) if matching else None

    async def add_device(self, token: Token, device_id: str, name: str, parent: str | None, digest: bytes) -> None:
        now = self._clock.now_us()

        def work(db: sqlite3.Connection) -> None:
            user = _user_id(db, token.tenant.id, token.user, now)
            db.execute(
                "INSERT INTO device (id, user, name, parent, created_at) VALUES (?, ?, ?, ?, ?)",
                (device_id, user, name, parent, now),
            )
            _insert_token(db, secrets.token_hex(8), digest, Scope.DEVICE, user, device_id, now, None)

        await self._writer.run(work)

    async def live_tokens(self, ids: Sequence[str], now: int) -> set[str]:
        wanted = json.dumps(list(ids))
        return await self._reader.run(lambda db: {str(row[0]) for row in db.execute(_LIVE, (wanted, now))})

    async def ready(self) -> None:
        await self._reader.run(lambda db: db.execute("SELECT count(*) FROM tenant").fetchone())

    async def create_tenant(self, tenant: Tenant) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            added = db.execute(
                "INSERT INTO tenant (id, name, key, created_at) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
                (tenant.id, tenant.name, tenant.key, tenant.created_at),
            )
            return added.rowcount == 1

        return await self._writer.run(work)

    async def list_tenants(self) -> list[Tenant]:
        rows = await self._reader.run(
            lambda db: db.execute("SELECT id, name, key, created_at FROM tenant ORDER BY name").fetchall()
        )
        return [Tenant(*row) for row in rows]

    async def create_token(self, token: Token) -> None:
        def work(db: sqlite3.Connection) -> None:
            user = _user_id(db, token.tenant.id, token.user, token.created_at)
            _insert_token(db, token.id, token.hash, token.scope, user, token.device, token.created_at, token.expires_at)

        await self._writer.run(work)

    async def list_tokens(self, tenant: str | None) -> list[Token]:
        rows = await self._reader.run(
            lambda db: db.execute(
                _FIND + "WHERE ?1 IS NULL OR tenant.name = ?1 ORDER BY token.created_at, token.id", (tenant,)
            ).fetchall()
        )
        return [_token(row) for row in rows]

    async def revoke_token(self, token_id: str, at: int) -> bool:
        return await self._writer.run(
            lambda db: (
                db.execute(
                    "UPDATE token SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?", (at, token_id)
                ).rowcount
                == 1
            )
        )

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


def _user_id(db: sqlite3.Connection, tenant: str, name: str, now: int) -> int:
    db.execute(
        "INSERT INTO user (tenant, name, created_at) VALUES (?, ?, ?) ON CONFLICT (tenant, name) DO NOTHING",
        (tenant, name, now),
    )
    return int(db.execute("SELECT id FROM user WHERE tenant = ? AND name = ?", (tenant, name)).fetchone()[0])


def _insert_token(
    db: sqlite3.Connection,
    token_id: str,
    digest: bytes,
    scope: Scope,
    user: int,
    device: str | None,
    created_at: int,
    expires_at: int | None,
) -> None:
    db.execute(
        "INSERT INTO token (id, lookup, hash, scope, user, device, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (token_id, digest[:LOOKUP_BYTES], digest, str(scope), user, device, created_at, expires_at),
    )


def _token(row: Any) -> Token:
    return Token(
        id=row[0],
        hash=row[1],
        scope=Scope(row[2]),
        tenant=Tenant(row[3], row[4], row[5], row[6]),
        user=row[7],
        created_at=row[8],
        device=row[9],
        expires_at=row[10],
        revoked_at=row[11],
    )
