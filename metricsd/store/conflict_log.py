"""The conflict log: base, local and remote of every record that both sides changed, and what was decided by which rule.

A row is open until something is decided; then it keeps what lost, so that it can be restored, for as long as the
setting `store.conflict_days` says. Open rows are never swept. Functions that write run inside the caller's
transaction, but for `sweep`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from metricsd.clock import US_PER_S
from metricsd.conflict import Version
from metricsd.store.connection import Store

DAY_US = 86_400 * US_PER_S
_COLUMNS = "id, at, type, record_id, base, local, remote, remote_rev, state, strategy, rule, policy, result"
_OPEN = """
INSERT INTO conflict_log (at, type, record_id, base, local, remote, remote_rev) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id
"""
_LIST_OPEN = f"SELECT {_COLUMNS} FROM conflict_log WHERE state = 'open' AND id > ? ORDER BY id LIMIT ?"
_LIST_ALL = f"SELECT {_COLUMNS} FROM conflict_log ORDER BY id DESC LIMIT ?"
_FIND = f"SELECT {_COLUMNS} FROM conflict_log WHERE id = ?"
_RESOLVE = """
UPDATE conflict_log SET at = ?, state = 'resolved', strategy = ?, rule = ?, policy = ?, local = ?, result = ? WHERE id = ?
"""


class State(StrEnum):
    """What became of a conflict."""

    OPEN = "open"
    RESOLVED = "resolved"
    """Decided by a policy or by hand: the loser is in the row."""
    SETTLED = "settled"
    """Nothing was left to decide: the two sides had become equal, or one was undone."""


class Decision(NamedTuple):
    """By what a conflict was decided: the strategy, the rule as `file:line`, and the policy's sha256."""

    strategy: str
    rule: str
    policy: str | None


class Entry(NamedTuple):
    """A row. `at` is when it was found, or decided, in microseconds UTC; the last four are None while it is open."""

    id: int
    at: int
    type: str
    record_id: str
    base: Version | None
    local: Version
    remote: Version
    remote_rev: str
    state: str
    strategy: str | None
    rule: str | None
    policy: str | None
    result: Version | None


_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(Version).decode


def text_of(version: Version) -> str:
    """Return a version as the store keeps it."""
    return _encode(version).decode()


def version_from(text: str) -> Version:
    """Return the version that `text_of` wrote."""
    return _decode(text)


def begin(
    store: Store, address: tuple[str, str], versions: tuple[Version | None, Version, Version], remote_rev: str
) -> int:
    """Open a row for the record (type, id) with its (base, local, remote), and return its number."""
    base, local, remote = versions
    row = (
        store.clock.now_us(), *address, text_of(base) if base else None, text_of(local), text_of(remote), remote_rev
    )  # fmt: skip
    return int(store.db.execute(_OPEN, row).fetchone()[0])


def local_changed(store: Store, conflict_id: int, local: Version) -> None:
    """Note what the local side of an open conflict has become."""
    store.db.execute("UPDATE conflict_log SET local = ? WHERE id = ?", (text_of(local), conflict_id))


def remote_changed(store: Store, conflict_id: int, remote: Version, remote_rev: str) -> None:
    """Note what the remote side of an open conflict has become."""
    store.db.execute(
        "UPDATE conflict_log SET remote = ?, remote_rev = ? WHERE id = ?", (text_of(remote), remote_rev, conflict_id)
    )


def settle(store: Store, conflict_id: int, how: str) -> None:
    """Close a conflict in which nothing is left to decide."""
    store.db.execute("UPDATE conflict_log SET state = 'settled', strategy = ? WHERE id = ?", (how, conflict_id))


def resolve(store: Store, entry: Entry, result: Version, decision: Decision) -> None:
    """Close a conflict with what was decided. It is kept from now on for as long as the setting says."""
    row = (store.clock.now_us(), *decision, text_of(entry.local), text_of(result), entry.id)
    store.db.execute(_RESOLVE, row)


def list_open(store: Store, limit: int = 1000, after: int = 0) -> list[Entry]:
    """Return the open conflicts behind number `after`, oldest first."""
    return [_entry(row) for row in store.db.execute(_LIST_OPEN, (after, limit)).fetchall()]


def last_open(store: Store, limit: int, after: int) -> int:
    """Return the number of the last of the next `limit` open conflicts behind `after`; `after` if there is none."""
    sql = "SELECT max(id) FROM (SELECT id FROM conflict_log WHERE state = 'open' AND id > ? ORDER BY id LIMIT ?)"
    return int(store.db.execute(sql, (after, limit)).fetchone()[0] or after)


def list_all(store: Store, limit: int = 1000) -> list[Entry]:
    """Return the newest conflicts of every state, newest first."""
    return [_entry(row) for row in store.db.execute(_LIST_ALL, (limit,)).fetchall()]


def find(store: Store, conflict_id: int) -> Entry | None:
    """Return one conflict, whatever its state; None when there is none."""
    row = store.db.execute(_FIND, (conflict_id,)).fetchone()
    return _entry(row) if row else None


def is_open(store: Store, conflict_id: int, remote_rev: str) -> bool:
    """Return whether a conflict is still open, with this revision of the remote side."""
    row = store.db.execute("SELECT state, remote_rev FROM conflict_log WHERE id = ?", (conflict_id,)).fetchone()
    return bool(row == (State.OPEN, remote_rev))


def count_open(store: Store) -> int:
    """Return how many conflicts are open."""
    return int(store.db.execute("SELECT count(*) FROM conflict_log WHERE state = 'open'").fetchone()[0])


def sweep(store: Store, days: int) -> int:
    """Forget conflicts that were closed more than `days` ago; return how many. Open ones stay."""
    with store.transaction():
        before = store.clock.now_us() - days * DAY_US
        return store.db.execute("DELETE FROM conflict_log WHERE state != 'open' AND at < ?", (before,)).rowcount


def _entry(row: tuple[Any, ...]) -> Entry:
    conflict_id, at, kind, record_id, base, local, remote, remote_rev, state, strategy, rule, policy, result = row
    return Entry(
        conflict_id, at, kind, record_id, _decode(base) if base else None, _decode(local), _decode(remote), remote_rev,
        state, strategy, rule, policy, _decode(result) if result else None,
    )  # fmt: skip
