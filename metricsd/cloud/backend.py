"""What the cloud needs from a database, as small Protocols that SQLite and PostgreSQL both satisfy.

A `Directory` knows who may do what; a `TenantStore` holds one tenant's streams, records and feed. Both take and give
structs: bytes from the wire were decoded and checked in ingest.py. Every answer about something written is given only
after a durable commit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from metricsd.protocol import (
    ChangesReply,
    EventResult,
    HelloReply,
    HelloRequest,
    RecordChange,
    RecordResult,
    WireEvent,
)


class Scope(StrEnum):
    """What a token may do: make devices, act as one device, read a user's feed, administer a tenant."""

    ENROL = "enrol"
    DEVICE = "device"
    READ = "read"
    ADMIN = "admin"


class Tenant(Struct, frozen=True):
    """An organisation. `id` (16 hex characters) names its database; `key` is its 32-byte key for hashed names."""

    id: str
    name: str
    key: bytes
    created_at: int


class Token(Struct, frozen=True, kw_only=True):
    """A token without its secret: who it speaks for and until when (microseconds UTC)."""

    id: str
    hash: bytes
    scope: Scope
    tenant: Tenant
    user: str
    created_at: int
    device: str | None = None
    expires_at: int | None = None
    revoked_at: int | None = None


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
    """What to read of the feed: after `cursor`, at most `limit` items, events too unless `only_records`."""

    cursor: str
    limit: int
    only_records: bool


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


class Directory(Protocol):
    """Tenants and tokens: the part that requests need."""

    async def find_token(self, digest: bytes) -> Token | None:
        """Return the token with this SHA-256, whatever its state; None if there is none."""
        ...

    async def add_device(self, token: Token, device_id: str, name: str, parent: str | None, digest: bytes) -> None:
        """Make a device of the token's user and a device token with this SHA-256; durable on return."""
        ...

    async def live_tokens(self, ids: Sequence[str], now: int) -> set[str]:
        """Return which of these tokens still count at `now`."""
        ...

    async def ready(self) -> None:
        """Return when the directory answers; raise Refused (503) when it does not."""
        ...


class Registry(Protocol):
    """Tenants and tokens: the part that administrators need."""

    async def create_tenant(self, tenant: Tenant) -> bool:
        """Store a tenant; False when the name is taken."""
        ...

    async def list_tenants(self) -> list[Tenant]:
        """Return all tenants by name."""
        ...

    async def create_token(self, token: Token) -> None:
        """Store a token, and its user if new."""
        ...

    async def list_tokens(self, tenant: str | None) -> list[Token]:
        """Return the tokens of a tenant (by name) or of all, oldest first."""
        ...

    async def revoke_token(self, token_id: str, at: int) -> bool:
        """End a token now; False when there is none with this id. A second time changes nothing."""
        ...


class PolicyShelf(Protocol):
    """Where a tenant's conflict policy is kept."""

    async def find_policy(self) -> TenantPolicy | None:
        """Return the policy in force, None before the first was set."""
        ...

    async def put_policy(self, text: str, sha256: str, now: int) -> TenantPolicy:
        """Make a checked text the policy in force; durable on return. The same text again makes no new version."""
        ...


class TenantStore(PolicyShelf, Protocol):
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
