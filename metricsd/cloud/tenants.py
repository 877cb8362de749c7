"""The life of tenants, users, tokens and devices: what administrators and enrolment do.

The commands and the embedded cloud call this; it decides names, ids and secrets and leaves storing to a registry. A
secret is returned once, to the caller, and exists nowhere else.
"""

from __future__ import annotations

import re
import secrets

from metricsd.clock import Clock
from metricsd.cloud.auth import check_device, digest_of, new_token
from metricsd.cloud.backend import Directory, Scope, Tenant, Token
from metricsd.cloud.problems import refuse
from metricsd.cloud.registry import Registry
from metricsd.errors import UsageError
from metricsd.ids import new_device_id
from metricsd.protocol import EnrolReply, EnrolRequest

NAME_CHARS_MAX = 100
_DEVICE_ID = re.compile(r"[0-9a-f]{32}")


def checked_name(what: str, name: str) -> str:
    """Return a name of a tenant, user or device that is fit to store and show; raise UsageError."""
    if not name or len(name) > NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise UsageError(
            f"{what} name {name[:NAME_CHARS_MAX]!r} cannot be used: take 1 to {NAME_CHARS_MAX} printable characters"
            " without spaces at the ends"
        )
    return name


async def create_tenant(registry: Registry, name: str, clock: Clock) -> Tenant:
    """Return a new tenant; raise UsageError when the name is taken or unfit."""
    tenant = Tenant(secrets.token_hex(8), checked_name("tenant", name), secrets.token_bytes(32), clock.now_us())
    if not await registry.create_tenant(tenant):
        raise UsageError(f"tenant {name!r} exists already")
    return tenant


async def find_tenant(registry: Registry, name: str) -> Tenant | None:
    """Return the tenant of that name, None if there is none."""
    return next((tenant for tenant in await registry.list_tenants() if tenant.name == name), None)


async def create_token(
    registry: Registry, tenant: str, user: str, scope: Scope, clock: Clock, *, expires_at: int | None = None
) -> str:
    """Return the text of a new token for a user, who is made if new; raise UsageError for an unknown tenant."""
    if scope is Scope.DEVICE:
        raise UsageError("device tokens are made by enrolment: create one of scope enrol and run `metricsd login`")
    found = await find_tenant(registry, tenant)
    if found is None:
        raise UsageError(f"there is no tenant {tenant!r}: make it with `metricsd cloud tenant create {tenant}`")
    text = new_token(scope)
    token = Token(
        id=secrets.token_hex(8),
        hash=digest_of(text),
        scope=scope,
        tenant=found,
        user=checked_name("user", user),
        created_at=clock.now_us(),
        expires_at=expires_at,
    )
    await registry.create_token(token)
    return text


async def enrol(directory: Directory, token: Token, request: EnrolRequest) -> EnrolReply:
    """Make a device of the token's user and return its token.

    A device that found itself forked enrols with its own token, naming itself as the parent; its old token stays
    valid, because the other installation goes on under the old identity.
    """
    if token.scope is Scope.DEVICE:
        check_device(token, request.parent or "")
    elif request.parent is not None and _DEVICE_ID.fullmatch(request.parent) is None:
        raise refuse(400, "bad_request", "parent is not a device id")
    try:
        name = checked_name("device", request.name)
    except UsageError as error:
        raise refuse(400, "bad_name", str(error)) from error
    device_id, text = new_device_id(), new_token(Scope.DEVICE)
    await directory.add_device(token, device_id, name, request.parent, digest_of(text))
    return EnrolReply(
        device_id=device_id,
        device_token=text,
        tenant_key=token.tenant.key.hex(),
        tenant=token.tenant.name,
        user=token.user,
    )
