"""The names that PostgreSQL knows the cloud by: schemas and roles, all of them generated, none from a user's text.

Identifiers cannot be bound like values, so this is the one place where they become SQL, and it takes nothing that was
not made here: a tenant's schema and role are `t_` and 16 hexadecimal digits, the two roles of an installation end in
eight random ones.
"""

from __future__ import annotations

import re
import secrets
from urllib.parse import urlsplit

from metricsd.errors import UsageError

CONTROL = "metricsd_control"
SCHEMES = ("postgresql", "postgres")
_TENANT_ID = re.compile(r"[0-9a-f]{16}")
_ROLE = re.compile(r"metricsd_(?:ingest|tenants)_[0-9a-f]{8}")


def schema_of(tenant_id: str) -> str:
    """Return the name of a tenant's schema and role; raise ValueError for what is not a tenant's id."""
    if _TENANT_ID.fullmatch(tenant_id) is None:
        raise ValueError("not a tenant id")
    return f"t_{tenant_id}"


def new_roles() -> tuple[str, str]:
    """Return new names for an installation's ingest login and for the group of its tenants' roles."""
    number = secrets.token_hex(4)
    return f"metricsd_ingest_{number}", f"metricsd_tenants_{number}"


def role(name: str) -> str:
    """Return the name of an installation's role as it was read from the database; raise ValueError for any other."""
    if _ROLE.fullmatch(name) is None:
        raise ValueError("not a role of a metricsd installation")
    return name


def is_postgres(url: str) -> bool:
    """Return whether this is the URL of a PostgreSQL database."""
    return url.partition(":")[0] in SCHEMES


def checked_url(url: str) -> str:
    """Return a database's URL; raise UsageError, which never shows a password, when it cannot be one."""
    try:
        parts = urlsplit(url)
        named = (
            parts.scheme in SCHEMES
            and url.startswith(f"{parts.scheme}://")
            and len(parts.path) > 1
            and (parts.port or 1) > 0
        )
    except ValueError:
        named = False
    if not named:
        raise UsageError("--database: write postgresql://USER@HOST:PORT/DATABASE, the password in ~/.pgpass")
    return url
