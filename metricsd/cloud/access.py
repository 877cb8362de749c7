"""Who may do what in the cloud: tenants, tokens, enrolment codes, and the acts that the audit log keeps.

Plain facts, shared by the requests' part of a backend (backend.py) and the administrators' (registry.py). No struct
here holds a secret: tokens and codes are known by their hashes alone.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Scope(StrEnum):
    """What a token may do.

    enrol     make devices of its user
    device    act as one device; made by enrolment alone
    read      read its user's feed
    admin     read its user's feed, and take back any device's data in its tenant
    legacy    speak the older API for its user
    """

    ENROL = "enrol"
    DEVICE = "device"
    READ = "read"
    ADMIN = "admin"
    LEGACY = "legacy"


class Tenant(Struct, frozen=True):
    """An organisation. `id` (16 hex characters) names its database; `key` is its 32-byte key for hashed names."""

    id: str
    name: str
    key: bytes
    created_at: int
    suspended_at: int | None = None
    server: str | None = None
    """The URL of the PostgreSQL server that holds its schema; None: the one that holds the directory."""
    retention_days: int = 0
    """On PostgreSQL events older than this are dropped; 0: never."""


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
    erased: bool = False
    """Its device's data was taken back: the token may only ask for that again."""


class Act(Struct, frozen=True, kw_only=True):
    """One administrative act or enrolment, before it is in the log.

    actor     who: `cli:<system user>`, `token:<id>`, `code:<id>` or `local` (the embedded cloud itself)
    action    what, as `noun.past`: `tenant.created`, `token.revoked`, `device.enrolled`
    tenant    the tenant's name, "" for none; a name, because the tenant may be dropped later
    subject   the id or name that it was done to
    detail    further facts, never a secret
    at        microseconds UTC
    """

    actor: str
    action: str
    tenant: str
    subject: str
    at: int
    detail: dict[str, str] = {}


class NewDevice(Struct, frozen=True, kw_only=True):
    """A device to make, and its user if new, with the id and SHA-256 of its token."""

    id: str
    tenant: Tenant
    user: str
    name: str
    parent: str | None
    token_id: str
    digest: bytes
    at: int


class EnrolCode(Struct, frozen=True, kw_only=True):
    """A one-time enrolment code without its secret. `id` is the part of the code that is not secret.

    `digest` is `codes.digest_of(secret, salt)`, slow on purpose because the secret is short.
    """

    id: str
    salt: bytes
    digest: bytes
    tenant: Tenant
    user: str
    created_at: int
    expires_at: int
