"""Sessions as people see them: what the events of all devices add up to, and what was written by hand.

Counters are summed over the devices that saw a session, so nothing here is stored twice and nothing can conflict; the
hand-made fields are the `session` record's. A session that nobody has edited has no record, and an edit makes it.
Reading changes nothing. A plain project name behind a hash of another device is a label of this machine alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from metricsd.protocol import FieldValue
from metricsd.store import records, retracted
from metricsd.store.connection import Store
from metricsd.store.counters import FIELDS, INFERRED, NUMBERS
from metricsd.store.records import Record

TYPE = "session"
HASHED = "h:"
"""Begins a name that travelled as a hash."""

Address = Callable[[str, str], str]
"""(app, session id as it is here) -> the record's id, `<app>/<session>` in wire form."""

_ROWS = f"""
SELECT c.session, s.app, s.session_id, d.device_id, {", ".join("c." + name for name in FIELDS)}
FROM session_counters AS c JOIN session AS s ON s.id = c.session JOIN device AS d ON d.id = c.device
WHERE c.events > 0
"""
_ROWS_OF = f"{_ROWS} AND s.session_id >= ? AND s.session_id < ?"
_RECORDS = "SELECT id FROM record WHERE type = 'session'"
_NAMES = """
SELECT DISTINCT project FROM session_counters WHERE project IS NOT NULL AND substr(project, 1, 2) != 'h:'
UNION SELECT DISTINCT branch FROM session_counters WHERE branch IS NOT NULL AND substr(branch, 1, 2) != 'h:'
"""
_PROJECT = """
SELECT c.project FROM session_counters AS c JOIN session AS s ON s.id = c.session
WHERE s.session_id = ? AND s.app = ? AND c.project IS NOT NULL
ORDER BY substr(c.project, 1, 2) = 'h:', c.last_at DESC LIMIT 1
"""
_AFTER_ALL = "\U0010ffff"


class Seen(NamedTuple):
    """One device's counters of a session; `values` in the order of FIELDS."""

    app: str
    session_id: str
    device_id: str
    values: tuple[Any, ...]

    def get(self, name: str) -> Any:
        return self.values[_INDEX[name]]


class Session(NamedTuple):
    """A session of all devices together. Times are microseconds UTC; `record` is None before the first edit."""

    record_id: str
    app: str
    session_id: str
    device: str | None
    project: str | None
    branch: str | None
    model: str | None
    started_at: int | None
    last_at: int | None
    ended_at: int | None
    end_reason: str | None
    numbers: Mapping[str, int]
    record: Record | None

    @property
    def deleted(self) -> bool:
        """Return whether it was deleted by hand; its events stay."""
        return self.record is not None and self.record.version.deleted

    def field(self, name: str) -> FieldValue:
        """Return a hand-made field; None when it has no value."""
        return self.record.version.fields.get(name) if self.record is not None else None


_INDEX = {name: index for index, name in enumerate(FIELDS)}


def read_all(store: Store, address: Address) -> list[Session]:
    """Return every session, deleted ones too, the newest first."""
    ids = [str(row[0]) for row in store.db.execute(_RECORDS).fetchall()]
    known = {one: records.get(store, TYPE, one) for one in ids}
    return _joined(_seen(store, store.db.execute(_ROWS).fetchall()), ids, address, known.get)


def find(store: Store, text: str, address: Address) -> list[Session]:
    """Return the sessions that `text` names: the one whose id it is, with or without the app, else all it begins.

    The same session id under two apps gives two sessions; `<app>/<id>` tells them apart.
    """
    app, slash, rest = text.partition("/")
    starts = [rest, text] if slash else [text]
    rows = [row for start in starts for row in store.db.execute(_ROWS_OF, (start, start + _AFTER_ALL)).fetchall()]
    ids = [str(row[0]) for row in store.db.execute(_RECORDS).fetchall()]
    wanted = [one for one in ids if one.startswith(text) or one.partition("/")[2].startswith(text)]
    joined = _joined(_seen(store, rows), wanted, address, lambda record_id: records.get(store, TYPE, record_id))
    found = [one for one in joined if not slash or _is_under(one, app, text)]
    exact = [one for one in found if text in (one.session_id, one.record_id, f"{one.app}/{one.session_id}")]
    return exact or found


def project_of(store: Store, kind: str, record_id: str) -> str | None:
    """Return the project of a session's or a tool metric's record as this device knows it; None when it does not."""
    if kind == TYPE:
        app, _, session_id = record_id.partition("/")
    else:
        record = records.get(store, kind, record_id)
        fields: Mapping[str, FieldValue] = record.version.fields if record is not None else {}
        app, session_id = str(fields.get("app") or ""), str(fields.get("session") or "")
    row = store.db.execute(_PROJECT, (session_id, app)).fetchone() if session_id else None
    return str(row[0]) if row else None


def names(store: Store) -> list[str]:
    """Return the plain names of projects and branches that this machine knows."""
    return [str(row[0]) for row in store.db.execute(_NAMES)]


def count_deleted(store: Store) -> int:
    """Return how many sessions were deleted by hand."""
    return int(store.db.execute("SELECT count(*) FROM record WHERE type = 'session' AND deleted = 1").fetchone()[0])


def _is_under(session: Session, app: str, text: str) -> bool:
    # An id may hold a slash of its own, so `a/b` is also the beginning of an id.
    return session.app == app or session.session_id.startswith(text)


def _seen(store: Store, rows: Iterable[tuple[Any, ...]]) -> list[Seen]:
    """Return the devices' counters of sessions, less what retracted imports brought; of which device does not matter."""
    groups: dict[int, list[Seen]] = {}
    for session, app, session_id, device, *values in dict.fromkeys(rows):
        groups.setdefault(session, []).append(Seen(app, session_id, device, tuple(values)))
    for session, kinds in retracted.read(store.db, groups).items():
        parts = sorted(groups[session], key=lambda part: (part.get("events"), part.device_id))
        left = dict(zip(FIELDS, parts[-1].values, strict=True))
        left |= {name: max(left[name] - n, 0) for name, n in retracted.taken(kinds).items() if name != "events"}
        left["events"] -= retracted.taken(kinds)["events"]
        parts[-1] = parts[-1]._replace(values=tuple(left.values()))
        groups[session] = parts if sum(part.get("events") for part in parts) > 0 else []
    return [part for parts in groups.values() for part in parts]


def _joined(
    seen: Sequence[Seen], record_ids: Iterable[str], address: Address, record_of: Callable[[str], Record | None]
) -> list[Session]:
    """Put the devices' counters of each session and its record together."""
    groups: dict[str, list[Seen]] = {one: [] for one in record_ids}
    for one in seen:
        groups.setdefault(address(one.app, one.session_id), []).append(one)
    found = [combined(record_id, parts, record_of(record_id)) for record_id, parts in groups.items()]
    # What an import noted of a session and took back again leaves a record that says nothing.
    found = [one for one in found if groups[one.record_id] or _says_something(one)]
    return sorted(found, key=lambda one: (-(one.started_at or 0), one.record_id))


def _says_something(one: Session) -> bool:
    return one.deleted or (one.record is not None and any(v is not None for v in one.record.version.fields.values()))


def combined(record_id: str, parts: list[Seen], record: Record | None) -> Session:
    """Return one session of what each device counted and what was written by hand."""
    # The order of the parts decides nothing but ties, and by the device's id: every device shows the same.
    parts = sorted(parts, key=lambda part: (part.get("last_at"), part.device_id))
    fields: Mapping[str, Any] = record.version.fields if record is not None else {}
    app, _, session_id = record_id.partition("/")
    if parts:
        # A plain id is this machine's own; where it travels as a hash, the other devices have that.
        app, session_id = max(parts, key=lambda part: not part.session_id.startswith(HASHED))[:2]
    first = min(parts, key=lambda part: (part.get("started_at"), part.device_id), default=None)
    ended_at, end_reason = _end(parts)
    # What was noted is better than what silence suggests, and gives way to an end that was seen.
    noted_end = fields.get("ended_at") is not None and (ended_at is None or end_reason == INFERRED)
    last_at = max((part.get("last_at") for part in parts), default=0) or None
    return Session(
        record_id=record_id,
        app=app,
        session_id=session_id,
        device=first.device_id or None if first else None,
        project=_latest(parts, "project") or fields.get("project"),
        branch=_latest(parts, "branch") or fields.get("branch"),
        model=_latest(parts, "model"),
        started_at=_start(parts, first, fields),
        last_at=last_at,
        ended_at=fields["ended_at"] if noted_end else ended_at,
        end_reason=fields.get("end_reason") if noted_end else end_reason,
        numbers={name: sum(part.get(name) for part in parts) for name in NUMBERS},
        record=record,
    )


def _start(parts: Sequence[Seen], first: Seen | None, fields: Mapping[str, Any]) -> int | None:
    """Return when a session began: as an event of its start tells, as noted, or with its first event."""
    told = any(part.get("starts") for part in parts)
    noted = fields.get("started_at")
    if noted is not None and not told:
        return int(noted)
    return (first.get("started_at") if first else 0) or noted


def _end(parts: Sequence[Seen]) -> tuple[int | None, str | None]:
    """Return when and why a session ended, by the rule of store/counters.py: a later event reopens it."""
    last_at = max((part.get("last_at") for part in parts), default=0)
    end = max(
        (part for part in parts if part.get("end_at") is not None),
        key=lambda part: (part.get("end_at"), part.device_id),
        default=None,
    )
    if end is not None and end.get("end_at") >= last_at:
        return end.get("end_at"), end.get("end_reason")
    if parts and max(part.get("idle_at") or -1 for part in parts) >= last_at:
        return last_at, INFERRED
    return None, None


def _latest(parts: Sequence[Seen], name: str) -> str | None:
    """Return the text that the device with the last activity has, of those that have one."""
    return next((str(part.get(name)) for part in reversed(parts) if part.get(name) is not None), None)
