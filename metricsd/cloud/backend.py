"""What the cloud needs from a database, as small Protocols that SQLite and PostgreSQL both satisfy.

A `Directory` knows who may do what; a `TenantStore` holds one tenant's streams, records and feed. Both take and give
structs: bytes from the wire were decoded and checked in ingest.py. Every answer about something written is given only
after a durable commit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from msgspec import Struct

from metricsd.cloud.access import Act, EnrolCode, NewDevice, Scope, Tenant, Token
from metricsd.cloud.older_plans import Plan
from metricsd.cloud.rate import Meter
from metricsd.legacy.kept import Kept
from metricsd.protocol import (
    ChangesReply,
    EventResult,
    HaveReply,
    HaveRequest,
    HelloReply,
    HelloRequest,
    RecordChange,
    RecordResult,
    RecordState,
    WireEvent,
)

T = TypeVar("T")

__all__ = [
    "Backend",
    "Directory",
    "Enrolment",
    "Erased",
    "EventBatch",
    "EventItem",
    "EventOutcome",
    "Exported",
    "FeedQuery",
    "News",
    "OlderShelf",
    "PolicyShelf",
    "RecordBatch",
    "RecordItem",
    "Scope",
    "Tenant",
    "TenantArchive",
    "TenantPolicy",
    "TenantStats",
    "TenantStore",
    "Token",
    "Writer",
]


class Writer(Struct, frozen=True):
    """On whose behalf a tenant's store is read or written; `device` None for a token that has none."""

    user: str
    device: str | None


class EventItem(Struct, frozen=True):
    """One pushed event, checked: `event` is None when it is rejected for `reason`. `key` is the id it is bound under."""

    seq: int
    key: bytes
    event: WireEvent | None
    reason: str | None


class EventBatch(Struct, frozen=True, kw_only=True):
    """A checked `PushEvents`. Unsequenced batches have no positions: `epoch`, `base_seq` and each `seq` mean nothing."""

    device_id: str
    epoch: int
    base_seq: int
    items: list[EventItem]
    sequenced: bool = True


class RecordItem(Struct, frozen=True):
    """One pushed change of a record, checked: `change` is None when it is rejected for `reason`."""

    change: RecordChange | None
    reason: str | None


class RecordBatch(Struct, frozen=True, kw_only=True):
    """A checked `PushRecords`."""

    device_id: str
    items: list[RecordItem]


class EventOutcome(Struct, frozen=True):
    """What became of a batch of events: one result per item, and the new end of the stream."""

    results: list[EventResult]
    acked_through: int


class FeedQuery(Struct, frozen=True):
    """What to read of the feed: after `cursor`, at most `limit` items, events too unless `only_records`.

    `own` brings what the asking device wrote as well, for one that compares and not for one that pulls.
    """

    cursor: str
    limit: int
    only_records: bool
    own: bool = False


class TenantPolicy(Struct, frozen=True):
    """A tenant's conflict policy: TOML text under a version that counts up, its SHA-256, and when it was set."""

    version: int
    sha256: str
    text: str
    set_at: int


class News(Struct, frozen=True):
    """The newest change number of a tenant, and that of each writer, as (user, device), behind a number asked for."""

    head: int
    writers: Mapping[tuple[str, str], int]


class Erased(Struct, frozen=True):
    """What was taken back of a device: events removed, and records turned into empty tombstones, by this call."""

    events: int
    records: int


class Exported(Struct, frozen=True, kw_only=True):
    """One event or record of a tenant, whose it is, and its change number, by which an export goes on."""

    change: int
    user: str
    device: str
    event: WireEvent | None = None
    record: RecordState | None = None


class TenantStats(Struct, frozen=True, kw_only=True):
    """How much a tenant holds. `tombstones` are deleted records that still travel; `size_bytes` is as on disk."""

    events: int
    records: int
    tombstones: int
    size_bytes: int
    change: int


class Enrolment(Protocol):
    """Making devices. Each method keeps its act in the audit log, in the same transaction."""

    async def add_device(self, device: NewDevice, act: Act) -> None:
        """Make a device and its token, and its user if new; durable on return."""
        ...

    async def try_code(self, code_id: str, now: int) -> EnrolCode | None:
        """Take one of a code's attempts (`codes.ATTEMPTS_MAX`) and return the code, so that its secret is compared.

        None when it is unknown, spent, revoked, expired at `now` or has no attempt left. The attempt is durable before
        the answer, so that guesses in parallel, on any process, are counted all the same.
        """
        ...

    async def redeem_code(self, code_id: str, device: NewDevice, act: Act) -> bool:
        """Spend a code and make the device, in one transaction; False, and nothing is done, if it was spent meanwhile."""
        ...

    async def erase_device(self, tenant: Tenant, user: str | None, device_id: str, act: Act) -> str | None:
        """Note that a device's data is taken back, end all its tokens, and return its user; durable on return.

        None, and nothing is done, when the tenant (and `user`, unless None) has no such device. A second time keeps no
        act and returns the same.
        """
        ...


class Directory(Enrolment, Protocol):
    """Tenants and tokens: the part that requests need."""

    async def find_token(self, digest: bytes) -> Token | None:
        """Return the token with this SHA-256, whatever its state; None if there is none."""
        ...

    async def live_tokens(self, ids: Sequence[str], now: int) -> set[str]:
        """Return which of these tokens still count at `now`; none of a suspended tenant does."""
        ...

    async def ready(self) -> None:
        """Return when the directory answers; raise Refused (503) when it does not."""
        ...


class PolicyShelf(Protocol):
    """Where a tenant's conflict policy is kept."""

    async def find_policy(self) -> TenantPolicy | None:
        """Return the policy in force, None before the first was set."""
        ...

    async def put_policy(self, text: str, sha256: str, now: int) -> TenantPolicy:
        """Make a checked text the policy in force; durable on return. The same text again makes no new version."""
        ...


class TenantArchive(Protocol):
    """What is asked of a tenant's data as a whole."""

    async def have(self, writer: Writer, request: HaveRequest, rows_max: int) -> HaveReply:
        """Return which of the user's events are here, looking at no more than `rows_max` rows for all ranges together.

        Digest of a range: BLAKE2b with 16 bytes over its ids (16 bytes each) in ascending order; see `RangeDigest`.
        """
        ...

    async def erase_device(self, user: str, device_id: str, now: int) -> Erased:
        """Remove what a device wrote; durable on return. The same again removes what came in between, usually nothing.

        Its events and stream positions go. A record whose last writer is the device and whose stamps are all of it
        becomes an empty tombstone (no fields, no stamps, stamp above all of its own), the device's counters too, so
        that other devices hear of it by the feed. From the first commit on every push of this device is refused with
        403 `device_erased`, also one that was authenticated before. Work is done in transactions of bounded size.
        """
        ...

    async def export(self, after: int, limit: int) -> list[Exported]:
        """Return at most `limit` events and records behind the change number `after`, in order; [] at the end."""
        ...

    async def stats(self) -> TenantStats:
        """Return how much there is."""
        ...


class OlderShelf(Protocol):
    """What clients of the older API are told and tell."""

    async def keep(self, writer: Writer, documents: Sequence[Kept]) -> None:
        """Keep documents of the writer's user, or forget them; durable on return."""
        ...

    async def ask(self, user: str, make: Callable[[int], Plan[T]], otherwise: T, *, counted: bool) -> T:
        """Return what a reading plan finds for a user, whose number it is made with; `otherwise` for one without.

        With `counted` the user's newest events are counted first; raises 503 while that takes too long.
        """
        ...


class TenantStore(PolicyShelf, TenantArchive, OlderShelf, Protocol):
    """One tenant's data. Methods raise Refused for what the protocol refuses as a whole."""

    async def hello(self, writer: Writer, request: HelloRequest, now: int) -> HelloReply:
        """Return what is held of the device's stream, whether its cursor is of this history, and the policy's hash."""
        ...

    async def push_events(self, writer: Writer, batch: EventBatch) -> EventOutcome:
        """Store a batch of events; durable on return."""
        ...

    async def push_records(self, writer: Writer, batch: RecordBatch, now: int) -> list[RecordResult]:
        """Compare and set each record; durable on return."""
        ...

    async def changes(self, writer: Writer, query: FeedQuery, now: int) -> ChangesReply:
        """Return the next page of the feed."""
        ...


class Backend(Protocol):
    """A database of many tenants."""

    @property
    def directory(self) -> Directory: ...

    @property
    def meter(self) -> Meter: ...

    def tenant(self, tenant: Tenant) -> AbstractAsyncContextManager[TenantStore]:
        """Hold a tenant's store open while the context lasts."""
        ...

    async def news(self, tenant: Tenant, after: int | None, users: Collection[str]) -> News:
        """Return the tenant's newest change number, and who of `users` wrote behind `after`; cheap enough to repeat."""
        ...

    def gauges(self) -> dict[str, float]:
        """Return figures for /metrics, by name without prefix; a fixed set of names."""
        ...

    async def close(self) -> None:
        """Finish what was begun and release everything."""
        ...
