"""Taking a device's data back on SQLite, and refusing what would bring it again.

Rows go in transactions of bounded size, so that other devices' pushes wait no longer than for a large batch of their
own. What was removed is overwritten in the file (secure_delete). Interned words stay: they are linked to nothing, and
other processes remember their numbers.
"""

from __future__ import annotations

from typing import NamedTuple

from metricsd.cloud.comparing import deletion_stamp, is_own
from metricsd.cloud.positions import device_erased
from metricsd.cloud.problems import refuse
from metricsd.cloud.sqlite_group import Transaction
from metricsd.cloud.sqlite_records import RECORD_COLUMNS, record_state
from metricsd.protocol import RecordState

ROWS_PER_STEP = 5_000
"""Rows that one transaction removes or looks at: some tens of milliseconds."""
EVERYONE = ""
_IS_SHUT = "SELECT device FROM shut WHERE device IN (?, ?) ORDER BY device LIMIT 1"
_EVENTS = f"""
DELETE FROM event WHERE change IN (SELECT change FROM event WHERE device = ? AND seq IS NOT NULL LIMIT {ROWS_PER_STEP})
"""  # noqa: S608 - a constant
_BINDINGS = f"""
DELETE FROM binding WHERE (device, epoch, seq) IN
    (SELECT device, epoch, seq FROM binding WHERE device = ? LIMIT {ROWS_PER_STEP})
"""  # noqa: S608 - a constant
_WINDOW = f"SELECT max(change) FROM (SELECT change FROM {{}} WHERE user = ? AND change > ? ORDER BY change LIMIT {ROWS_PER_STEP})"  # noqa: S608
_EVENT_WINDOW, _RECORD_WINDOW = _WINDOW.format("event"), _WINDOW.format("record")
_UNSEQUENCED = "DELETE FROM event WHERE user = ? AND change > ? AND change <= ? AND device = ?"
_RECORDS = f"SELECT {RECORD_COLUMNS} FROM record WHERE user = ? AND change > ? AND change <= ? AND device = ?"  # noqa: S608
_EMPTY = "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?, ?, '{}', '{}', 1, ?, ?)"


class Subject(NamedTuple):
    """Whose data goes, by number and as text, and when by the server's clock."""

    user: int
    device: int
    device_id: str
    now: int


class Walk(NamedTuple):
    """What one step removed, and behind which change number the next one goes on; None when it was the last."""

    removed: int
    after: int | None


def check_not_shut(transaction: Transaction, device_id: str) -> None:
    """Raise 403 when this device's data was taken back, or the tenant was dropped."""
    row = transaction.db.execute(_IS_SHUT, (EVERYONE, device_id)).fetchone()
    if row is None:
        return
    if row[0] == EVERYONE:
        raise refuse(403, "tenant_suspended", "this tenant is being removed")
    raise device_erased()


def shut_out(transaction: Transaction, user: str, device_id: str, now: int) -> Subject:
    """Refuse every later write of the device, and forget where its streams stand."""
    # Stays on for this connection: another erasure may be under way, and little else is ever deleted.
    transaction.db.execute("PRAGMA secure_delete = ON")
    transaction.db.execute("INSERT INTO shut VALUES (?) ON CONFLICT DO NOTHING", (device_id,))
    subject = Subject(transaction.terms.id_of(user), transaction.terms.id_of(device_id), device_id, now)
    transaction.db.execute("DELETE FROM device_stream WHERE device = ?", (subject.device,))
    return subject


def erase_bindings(transaction: Transaction, subject: Subject) -> int:
    """Remove some settled positions of the device's streams; return how many."""
    return transaction.db.execute(_BINDINGS, (subject.device,)).rowcount


def erase_events(transaction: Transaction, subject: Subject) -> int:
    """Remove some events of the device's streams; return how many."""
    return transaction.db.execute(_EVENTS, (subject.device,)).rowcount


def erase_unsequenced(transaction: Transaction, subject: Subject, after: int) -> Walk:
    """Look at some of the user's events behind `after`, and remove those of the device that no stream has."""
    upto = transaction.db.execute(_EVENT_WINDOW, (subject.user, after)).fetchone()[0]
    if upto is None:
        return Walk(0, None)
    return Walk(transaction.db.execute(_UNSEQUENCED, (subject.user, after, upto, subject.device)).rowcount, upto)


def erase_records(transaction: Transaction, subject: Subject, after: int, head: int) -> Walk:
    """Look at some of the user's records behind `after`, and empty those that the device alone wrote.

    Emptied ones get change numbers above `head`, where the walk ends.
    """
    db = transaction.db
    upto = db.execute(_RECORD_WINDOW, (subject.user, after)).fetchone()[0]
    if after >= head or upto is None:
        return Walk(0, None)
    upto = min(upto, head)
    rows = db.execute(_RECORDS, (subject.user, after, upto, subject.device)).fetchall()
    found = [record_state(row, transaction.terms) for row in rows]
    own = [record for record in found if is_own(record, subject.device_id)]
    for record in own:
        _put_empty(transaction, subject, record)
    return Walk(len(own), upto)


def head_of(transaction: Transaction) -> int:
    """Return the newest change number."""
    return transaction.change


def _put_empty(transaction: Transaction, subject: Subject, record: RecordState) -> None:
    stamp = deletion_stamp(record, subject.device_id, subject.now)
    values = (subject.user, record.type, record.id, transaction.next_change(), transaction.nonce, subject.device)
    transaction.db.execute(_EMPTY, (*values, stamp, subject.now))
