"""What administrators and enrolment need from the control database, as small Protocols.

SQLite and PostgreSQL both satisfy them. Every method that changes something takes the `Act` that the audit log keeps
of it and stores both in one transaction: nothing is done that the log does not know, and nothing is logged that was
not done. Where a method says that nothing was changed, no act is kept either.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from metricsd.cloud.access import Act, EnrolCode, Tenant, Token
from metricsd.cloud.backend import Backend, Directory


class AuditRow(Struct, frozen=True):
    """An act in the log. `seq` counts from 1 without gaps; `hash` is `audit.chained(hash of the row before, ...)`."""

    seq: int
    act: Act
    hash: bytes


class AuditHead(Struct, frozen=True):
    """How many rows the log has, and the hash of the last one (`audit.GENESIS` when it has none)."""

    seq: int
    hash: bytes


class User(Struct, frozen=True, kw_only=True):
    """A person of a tenant, with how many devices and live tokens they have."""

    name: str
    tenant: str
    created_at: int
    devices: int
    tokens: int


class Device(Struct, frozen=True, kw_only=True):
    """One installation. `live` while a token of it counts; `erased_at` when its user took its data back."""

    id: str
    name: str
    tenant: str
    user: str
    parent: str | None
    created_at: int
    live: bool
    erased_at: int | None = None


class TenantRegistry(Protocol):
    """Tenants, for administrators."""

    async def create_tenant(self, tenant: Tenant, act: Act) -> bool:
        """Store a tenant; False when the name is taken."""
        ...

    async def list_tenants(self) -> list[Tenant]:
        """Return all tenants by name."""
        ...

    async def suspend_tenant(self, tenant: Tenant, suspended_at: int | None, act: Act) -> bool:
        """Shut a tenant out from `suspended_at` on, or let it in again (None); False when that is so already."""
        ...


class TokenRegistry(Protocol):
    """Tokens, for administrators."""

    async def create_token(self, token: Token, act: Act) -> None:
        """Store a token, and its user if new."""
        ...

    async def list_tokens(self, tenant: str | None) -> list[Token]:
        """Return the tokens of a tenant (by name) or of all, oldest first."""
        ...

    async def find_token_by_id(self, token_id: str) -> Token | None:
        """Return the token with this id, whatever its state; None if there is none."""
        ...

    async def revoke_token(self, token_id: str, act: Act) -> bool:
        """End a token at `act.at`; False when there is none with this id. A second time changes nothing."""
        ...

    async def rotate_token(self, old: str, new: Token, old_expires_at: int, act: Act) -> bool:
        """Store `new` and let the token with the id `old` end at `old_expires_at`, if it does not end before.

        False, and nothing is stored, when `old` is unknown or does not count at `act.at`.
        """
        ...


class PeopleRegistry(Protocol):
    """Users and devices, for administrators."""

    async def add_user(self, tenant: Tenant, name: str, act: Act) -> bool:
        """Store a user; False when the tenant has one of that name."""
        ...

    async def list_users(self, tenant: str | None) -> list[User]:
        """Return the users of a tenant (by name) or of all, by tenant and name. Counts are as of now."""
        ...

    async def revoke_user(self, tenant: Tenant, name: str, act: Act) -> int | None:
        """End all tokens and codes of a user; return how many tokens it ended, None for an unknown user.

        When nothing was left to end, no act is kept.
        """
        ...

    async def list_devices(self, tenant: str | None) -> list[Device]:
        """Return the devices of a tenant (by name) or of all, oldest first."""
        ...

    async def revoke_device(self, device_id: str, act: Act) -> bool:
        """End all tokens of a device; False when there is none with this id. A second time changes nothing."""
        ...


class CodeRegistry(Protocol):
    """Enrolment codes, for administrators."""

    async def create_code(self, code: EnrolCode, act: Act) -> bool:
        """Store a code, and its user if new; False when its id is in use. Codes long expired are cleared away."""
        ...


class AuditLog(Protocol):
    """The audit log. Rows come in by the acts of the other Protocols, and by `keep_act` for what lies elsewhere."""

    async def keep_act(self, act: Act) -> None:
        """Append an act whose effect is not in the control database."""
        ...

    async def audit_page(self, after: int, limit: int) -> list[AuditRow]:
        """Return rows behind the number `after`, in the order of their numbers."""
        ...

    async def audit_head(self) -> AuditHead:
        """Return where the log should end, from the place that is kept beside it."""
        ...


class Registry(TenantRegistry, TokenRegistry, PeopleRegistry, CodeRegistry, AuditLog, Protocol):
    """The part of the control database that administrators need."""


class Control(Directory, Registry, Protocol):
    """The whole control database."""


class AdminBackend(Backend, Protocol):
    """A database of many tenants, with what only administrators do to it."""

    @property
    def directory(self) -> Control: ...

    async def drop_tenant(self, tenant: Tenant, act: Act) -> None:
        """Remove a suspended tenant: its data for good, then users, devices and tokens, together with the act.

        Whatever a crash leaves can be dropped again. No process writes or makes the tenant's data any more once this
        has begun, also for requests that were authenticated before.
        """
        ...
