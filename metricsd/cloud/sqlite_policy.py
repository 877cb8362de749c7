"""The tenant's conflict policy on SQLite: the newest text that an administrator set, and its earlier versions.

A version is never changed. Setting the text that is in force already makes no new version, so a script may repeat it.
"""

from __future__ import annotations

import sqlite3

from metricsd.cloud.backend import TenantPolicy
from metricsd.cloud.sqlite_group import Transaction

VERSIONS_KEPT = 20
_NEWEST = "SELECT version, sha256, text, set_at FROM policy ORDER BY version DESC LIMIT 1"
_PUT = "INSERT INTO policy (version, sha256, text, set_at) VALUES (?, ?, ?, ?)"


def find_policy(db: sqlite3.Connection) -> TenantPolicy | None:
    """Return the policy in force, None before the first was set."""
    row = db.execute(_NEWEST).fetchone()
    return None if row is None else TenantPolicy(*row)


def find_policy_hash(db: sqlite3.Connection) -> str | None:
    """Return the hash of the policy in force without its text."""
    row = db.execute("SELECT sha256 FROM policy ORDER BY version DESC LIMIT 1").fetchone()
    return None if row is None else str(row[0])


def put_policy(transaction: Transaction, text: str, sha256: str, now: int) -> TenantPolicy:
    """Make a text the policy in force and return it with its version."""
    before = find_policy(transaction.db)
    if before is not None and before.sha256 == sha256:
        return before
    made = TenantPolicy(1 if before is None else before.version + 1, sha256, text, now)
    transaction.db.execute(_PUT, (made.version, made.sha256, made.text, made.set_at))
    transaction.db.execute("DELETE FROM policy WHERE version <= ?", (made.version - VERSIONS_KEPT,))
    return made
