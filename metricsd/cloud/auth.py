"""Tokens: how they are made, recognised and checked.

A token is 256 random bits behind a prefix that names its scope, so that people and secret scanners recognise it. Only
its SHA-256 is stored; a plain hash is enough for a value that nobody can guess (OWASP ASVS 6.5.2). Every request asks
the directory again: a revoked token is refused by every process from then on.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from metricsd.cloud.access import Scope, Tenant, Token
from metricsd.cloud.backend import Directory
from metricsd.cloud.problems import Refused, refuse

SECRET_BYTES = 32
PREFIXES = {
    Scope.ENROL: "mde_",
    Scope.DEVICE: "mdd_",
    Scope.READ: "mdr_",
    Scope.ADMIN: "mda_",
    Scope.LEGACY: "mdl_",
}
_TEXT = re.compile(r"md[edral]_[A-Za-z0-9_-]{43}")


def new_token(scope: Scope) -> str:
    """Return a new token's text. It is shown once and never stored."""
    return PREFIXES[scope] + secrets.token_urlsafe(SECRET_BYTES)


def digest_of(text: str) -> bytes:
    """Return the SHA-256 under which a token is stored."""
    return hashlib.sha256(text.encode()).digest()


async def authenticate(
    directory: Directory, authorization: str | None, now: int, *scopes: Scope, erased_too: bool = False
) -> Token:
    """Return the valid token of one of `scopes` in an Authorization header; raise 401 or 403.

    With `erased_too` the token of a device whose data was taken back counts as well, although it was revoked then.
    """
    text = bearer_of(authorization)
    if _TEXT.fullmatch(text) is None:
        raise bad_token()
    token = await directory.find_token(digest_of(text))
    if token is None or not (is_valid(token, now) or (erased_too and token.erased)):
        raise bad_token()
    check_tenant(token.tenant)
    if token.scope not in scopes:
        raise refuse(403, "wrong_scope", f"a token of scope {token.scope} may not do this")
    return token


def bearer_of(authorization: str | None) -> str:
    """Return what an Authorization header of the kind Bearer holds; raise 401 without one."""
    kind, _, text = (authorization or "").partition(" ")
    if kind.lower() != "bearer" or not text:
        raise refuse(401, "no_token", "send an Authorization header: Bearer <token>")
    return text


def bad_token() -> Refused:
    """Return the one answer for all bad tokens and codes, so that nobody learns which ones ever existed."""
    return refuse(401, "bad_token", "the token or code is unknown, revoked, used up or expired")


def check_tenant(tenant: Tenant) -> None:
    """Raise 403 for a suspended tenant. Only who holds a valid token of it hears that."""
    if tenant.suspended_at is not None:
        raise refuse(
            403,
            "tenant_suspended",
            "this tenant is suspended: its data is kept; ask whoever runs this cloud to resume it",
        )


def is_valid(token: Token, now: int) -> bool:
    """Return whether a token counts at `now` (microseconds UTC). Pure."""
    return token.revoked_at is None and (token.expires_at is None or now < token.expires_at)


def check_device(token: Token, device_id: str) -> None:
    """Raise 403 when a request speaks for a device that is not the token's own."""
    if token.device != device_id:
        raise refuse(403, "wrong_device", "the token belongs to another device")
