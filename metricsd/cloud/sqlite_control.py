"""The control database's file on SQLite: its two threads, its rows as structs, and the audit log inside it.

Reads never wait for a writer's fsync. An act is appended in the transaction that it tells of, through `keep`, which is
the only place that writes the log.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from metricsd.clock import Clock
from metricsd.cloud.access import Act, NewDevice, Scope, Tenant, Token
from metricsd.cloud.audit import chained
from metricsd.cloud.registry import AuditHead, AuditRow
from metricsd.cloud.sqlite_cache import FileCache
from metricsd.cloud.sqlite_file import FileThread, open_file
from metricsd.schema import load_steps

FILE_NAME = "directory.db"
LOOKUP_BYTES = 8
_AUDIT = "SELECT seq, at, actor, action, tenant, subject, detail, hash FROM audit WHERE seq > ? ORDER BY seq LIMIT ?"
_DETAIL = msgspec.json.Decoder(dict[str, str])


class ControlFile:
    """The file and its audit log."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        writing, reading = open_file(folder / FILE_NAME, load_steps("metricsd.cloud.schema.directory"))
        self._clock = clock
        self._reader = FileThread(reading, name="directory-read")
        self._writer = FileThread(writing, name="directory-write", begin="BEGIN IMMEDIATE")
        self._tokens: FileCache[Token | None] = FileCache(folder / FILE_NAME)

    async def keep_act(self, act: Act) -> None:
        await self._writer.run(lambda db: keep(db, act))

    async def audit_page(self, after: int, limit: int) -> list[AuditRow]:
        return [
            audit_row(row) for row in await self._reader.run(lambda db: db.execute(_AUDIT, (after, limit)).fetchall())
        ]

    async def audit_head(self) -> AuditHead:
        return await self._reader.run(_head)

    def close(self) -> None:
        self._tokens.close()
        self._reader.close()
        self._writer.close()


def keep(db: sqlite3.Connection, act: Act) -> None:
    """Append an act to the log, inside the open transaction."""
    row = chained(_head(db), act)
    detail = msgspec.json.encode(act.detail).decode()
    values = (row.seq, act.at, act.actor, act.action, act.tenant, act.subject, detail, row.hash)
    db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
    db.execute("UPDATE audit_head SET seq = ?, hash = ?", (row.seq, row.hash))


def audit_row(row: Any) -> AuditRow:
    """Return a row of the log as a struct."""
    seq, at, actor, action, tenant, subject, detail, digest = row
    act = Act(
        actor=actor, action=action, tenant=tenant, subject=subject, at=at, detail=_DETAIL.decode(detail)
    )  # fmt: skip
    return AuditRow(seq, act, digest)


def user_id(db: sqlite3.Connection, tenant: str, name: str, now: int) -> int:
    """Return the number of a tenant's user, who is made if new. `tenant` is the tenant's id."""
    db.execute(
        "INSERT INTO user (tenant, name, created_at) VALUES (?, ?, ?) ON CONFLICT (tenant, name) DO NOTHING",
        (tenant, name, now),
    )
    return int(db.execute("SELECT id FROM user WHERE tenant = ? AND name = ?", (tenant, name)).fetchone()[0])


def insert_token(db: sqlite3.Connection, user: int, token: Token) -> None:
    """Store a token of the user with that number."""
    db.execute(
        "INSERT INTO token (id, lookup, hash, scope, user, device, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            token.id, token.hash[:LOOKUP_BYTES], token.hash, str(token.scope), user, token.device, token.created_at,
            token.expires_at,
        ),
    )  # fmt: skip


def insert_device(db: sqlite3.Connection, device: NewDevice) -> None:
    """Store a device, its token, and its user if new."""
    user = user_id(db, device.tenant.id, device.user, device.at)
    db.execute(
        "INSERT INTO device (id, user, name, parent, created_at) VALUES (?, ?, ?, ?, ?)",
        (device.id, user, device.name, device.parent, device.at),
    )
    token = Token(
        id=device.token_id, hash=device.digest, scope=Scope.DEVICE, tenant=device.tenant, user=device.user,
        created_at=device.at, device=device.id,
    )  # fmt: skip
    insert_token(db, user, token)


def tenant_of(row: Any) -> Tenant:
    """Return five columns (id, name, key, created_at, suspended_at) as a tenant."""
    return Tenant(*row)


def _head(db: sqlite3.Connection) -> AuditHead:
    return AuditHead(*db.execute("SELECT seq, hash FROM audit_head").fetchone())
