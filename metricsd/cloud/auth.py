"""Tokens: how they are made, recognised and checked.

A token is 256 random bits behind a prefix that names its scope, so that people and secret scanners recognise it. Only
its SHA-256 is stored; a plain hash is enough for a value that nobody can guess (OWASP ASVS 6.5.2). Every request asks
the directory again: a revoked token is refused by every process from then on.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from metricsd.cloud.backend import Directory, Scope, Token
from metricsd.cloud.problems import refuse

SECRET_BYTES = 32
PREFIXES = {Scope.ENROL: "mde_", Scope.DEVICE: "mdd_", Scope.READ: "mdr_", Scope.ADMIN: "mda_"}
_TEXT = re.compile(r"md[edra]_[A-Za-z0-9_-]{43}")


def new_token(scope: Scope) -> str:
    """Return a new token's text. It is shown once and never stored."""
    return PREFIXES[scope] + secrets.token_urlsafe(SECRET_BYTES)


def digest_of(text: str) -> bytes:
    """Return the SHA-256 under which a token is stored."""
    return hashlib.sha256(text.encode()).digest()


async def authenticate(directory: Directory, authorization: str | None, now: int, *scopes: Scope) -> Token:
    """Return the valid token of one of `scopes` in an Authorization header; raise 401 or 403."""
    kind, _, text = (authorization or "").partition(" ")
    if kind.lower() != "bearer" or not text:
        raise refuse(401, "no_token", "send an Authorization header: Bearer <token>")
    # One answer for all bad tokens, so that nobody learns which ones ever existed.
    bad = refuse(401, "bad_token", "the token is unknown, revoked or expired")
    if _TEXT.fullmatch(text) is None:
        raise bad
    token = await directory.find_token(digest_of(text))
    if token is None or not is_valid(token, now):
        raise bad
    if token.scope not in scopes:
        raise refuse(403, "wrong_scope", f"a token of scope {token.scope} may not do this")
    return token


def is_valid(token: Token, now: int) -> bool:
    """Return whether a token counts at `now` (microseconds UTC). Pure."""
    return token.revoked_at is None and (token.expires_at is None or now < token.expires_at)


def check_device(token: Token, device_id: str) -> None:
    """Raise 403 when a request speaks for a device that is not the token's own."""
    if token.device != device_id:
        raise refuse(403, "wrong_device", "the token belongs to another device")
