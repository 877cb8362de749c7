"""What the older API needs from whoever keeps the data: a store on a laptop, or a tenant of a cloud.

Both sides speak of the same few things: events with their ids, fields of session records, and documents of what a
client said beyond metricsd's own fields. Everything that one request writes is one unit, and durable when `write`
returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from metricsd.analytics.baseline import Baseline
from metricsd.decode.older_hooks import APP as APP
from metricsd.ids import EventId
from metricsd.model import Event
from metricsd.protocol import FieldValue
from metricsd.totals import Cell, HourCell, SessionTotal

Document = Mapping[str, Any]

SESSION = "session"
CALL = "tool"
DOCUMENT_BYTES_MAX = 64 * 1024
"""Largest document that is kept of one session or call."""


class SessionId(NamedTuple):
    """Which session: the app it belongs to, and its id as events have it."""

    app: str
    id: str

    @property
    def record_id(self) -> str:
        """Return the id of its record, the same on every device."""
        return f"{self.app}/{self.id}"


class Edit(NamedTuple):
    """Fields of a session's record to set (None clears), or its deletion. `unless_set` leaves what has a value."""

    session: SessionId
    fields: Mapping[str, FieldValue]
    delete: bool = False
    unless_set: bool = False


class Kept(NamedTuple):
    """A document to keep in place of what was known under its key, or with `add` beside it; without values it goes."""

    kind: str
    key: str
    values: Document | None
    add: bool = False


class Writes(NamedTuple):
    """What one request writes."""

    events: Sequence[tuple[EventId, Event]] = ()
    edits: Sequence[Edit] = ()
    documents: Sequence[Kept] = ()


class Session(NamedTuple):
    """A session as it is known: `document` is what a client said of it, `total` what its events add up to."""

    key: SessionId
    document: Document
    fields: Mapping[str, FieldValue]
    total: SessionTotal | None


class Wanted(NamedTuple):
    """Which sessions to list, in the order in which they became known; times are inclusive microseconds UTC.

    `owner` is whose a session is of which nobody said it.
    """

    user: str | None = None
    owner: str = ""
    from_us: int | None = None
    until_us: int | None = None
    skip: int = 0
    limit: int = 50


class Call(NamedTuple):
    """A call of a tool (or several as one figure, then `times` says how many) with what its client said of it."""

    event: Event
    document: Document
    times: int = 1
    failures: int = 0


class Figures(NamedTuple):
    """What analytics are made of, of some days until today: sessions that were active and cells by day, kind and tool, or
    where `uses` were asked for, cells by kind, tool and bucket, and hours."""

    sessions: Sequence[SessionTotal]
    cells: Sequence[Cell]
    uses: Sequence[Cell]
    hours: Sequence[HourCell]
    usual: Baseline
    day_of: Callable[[int], int]
    today: int


class Shelf(Protocol):
    """Where sessions and calls are kept."""

    async def write(self, writes: Writes) -> None:
        """Store all of it, durably; what is there already changes nothing. Raises StoreError, and nothing is stored then."""
        ...

    async def find(self, session: str) -> Session | None:
        """Return the session with this id; None for none and for a deleted one."""
        ...

    async def list(self, wanted: Wanted) -> Sequence[Session]:
        """Return a page of sessions."""
        ...

    async def calls(self, session: str) -> Sequence[Call]:
        """Return the calls of a session, deleted or not, in the order of time."""
        ...

    async def figures(self, days: int, *, uses: bool) -> Figures:
        """Return what the last `days` days' analytics are made of; the same object while nothing has changed."""
        ...


class Standing(NamedTuple):
    """How the keeper stands with the cloud. `synced_us` is None when it never was synced."""

    mode: str
    has_cloud: bool
    is_local: bool
    pending_sessions: int
    pending_calls: int
    failed_sessions: int
    failed_calls: int
    synced_us: int | None
    follows_hooks: bool
    is_syncing: bool


class Synced(NamedTuple):
    """What a round of sync did."""

    ok: bool
    sessions: int
    calls: int
    errors: Sequence[str] = ()


class Person(NamedTuple):
    """Who and where, for requests that do not say."""

    user: str
    directory: str


class Host(Protocol):
    """The process that answers, and what surrounds it."""

    @property
    def person(self) -> Person:
        """Return who uses it."""
        ...

    async def trouble(self) -> str | None:
        """Return why the database cannot be used now, in words for strangers; None when it can."""
        ...

    async def standing(self) -> Standing:
        """Return how much waits for the cloud."""
        ...

    async def sync(self) -> Synced:
        """Send what waits, now."""
        ...

    def find_file(self, name: str) -> bytes | None:
        """Return a file of the older hooks' metrics folder; None when there is none, or no such folder."""
        ...


def is_own(session: SessionId) -> bool:
    """Return whether a session came through the older API or from the older hooks."""
    return session.app == APP
