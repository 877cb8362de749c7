"""The life of tenants, users and tokens: what administrators do.

The commands and the embedded cloud call this; it decides names, ids and secrets and leaves storing to a registry,
which keeps each act in the audit log. A secret is returned once, to the caller, and exists nowhere else.
"""

from __future__ import annotations

import secrets

from msgspec.structs import replace

from metricsd.clock import US_PER_S, Clock
from metricsd.cloud.access import Act, Scope, Tenant, Token
from metricsd.cloud.auth import digest_of, is_valid, new_token
from metricsd.cloud.registry import AdminBackend, PeopleRegistry, Registry, TenantRegistry, TokenRegistry
from metricsd.errors import UsageError

LOCAL_ACTOR = "local"
"""The embedded cloud, which makes its own tenant and lets its own home in."""
NAME_CHARS_MAX = 100
OVERLAP_S_MAX = 30 * 86_400
"""How long an old token may go on beside the new one: a forgotten one must not do so for ever."""


def checked_name(what: str, name: str) -> str:
    """Return a name of a tenant, user or device that is fit to store and show; raise UsageError."""
    if not name or len(name) > NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise UsageError(
            f"{what} name {name[:NAME_CHARS_MAX]!r} cannot be used: take 1 to {NAME_CHARS_MAX} printable characters"
            " without spaces at the ends"
        )
    return name


async def create_tenant(
    registry: TenantRegistry, name: str, clock: Clock, *, actor: str = LOCAL_ACTOR, server: str | None = None
) -> Tenant:
    """Return a new tenant, on another `server` if one is given; raise UsageError when the name is taken or unfit."""
    now = clock.now_us()
    checked = checked_name("tenant", name)
    tenant = Tenant(secrets.token_hex(8), checked, secrets.token_bytes(32), now, server=server)
    act = Act(actor=actor, action="tenant.created", tenant=name, subject=tenant.id, at=now)
    if not await registry.create_tenant(tenant, act):
        raise UsageError(f"tenant {name!r} exists already")
    return tenant


async def find_tenant(registry: TenantRegistry, name: str) -> Tenant | None:
    """Return the tenant of that name, None if there is none."""
    return next((tenant for tenant in await registry.list_tenants() if tenant.name == name), None)


async def get_tenant(registry: TenantRegistry, name: str) -> Tenant:
    """Return the tenant of that name; raise UsageError if there is none."""
    found = await find_tenant(registry, name)
    if found is None:
        raise UsageError(f"there is no tenant {name!r}: see `metricsd cloud tenant list`")
    return found


async def suspend_tenant(registry: TenantRegistry, name: str, clock: Clock, *, actor: str) -> Tenant:
    """Shut a tenant out from now on; its data stays as it is. A second time changes nothing."""
    tenant, now = await get_tenant(registry, name), clock.now_us()
    act = Act(actor=actor, action="tenant.suspended", tenant=name, subject=tenant.id, at=now)
    await registry.suspend_tenant(tenant, now, act)
    return await get_tenant(registry, name)


async def resume_tenant(registry: TenantRegistry, name: str, clock: Clock, *, actor: str) -> Tenant:
    """Let a suspended tenant in again; raise UsageError for one that is being dropped."""
    tenant = await get_tenant(registry, name)
    act = Act(actor=actor, action="tenant.resumed", tenant=name, subject=tenant.id, at=clock.now_us())
    await registry.suspend_tenant(tenant, None, act)
    resumed = await get_tenant(registry, name)
    if resumed.suspended_at is not None:
        raise UsageError(
            f"tenant {name!r} is being dropped: finish that with `metricsd cloud tenant drop {name} --yes`"
        )
    return resumed


async def drop_tenant(backend: AdminBackend, name: str, clock: Clock, *, actor: str) -> Tenant:
    """Remove a tenant and all its data for good; what a crash leaves is removed by the next call."""
    tenant = await get_tenant(backend.directory, name)
    act = Act(actor=actor, action="tenant.dropped", tenant=name, subject=tenant.id, at=clock.now_us())
    await backend.drop_tenant(tenant, act)
    return tenant


async def add_user(registry: Registry, tenant: str, name: str, clock: Clock, *, actor: str) -> None:
    """Make a user without a token or device; raise UsageError when there is one of that name."""
    found = await get_tenant(registry, tenant)
    act = Act(actor=actor, action="user.added", tenant=tenant, subject=name, at=clock.now_us())
    if not await registry.add_user(found, checked_name("user", name), act):
        raise UsageError(f"tenant {tenant!r} has a user {name!r} already")


async def revoke_user(registry: Registry, tenant: str, name: str, clock: Clock, *, actor: str) -> int:
    """End every token and code of a user, and so every device; return how many tokens. The data stays."""
    found = await get_tenant(registry, tenant)
    act = Act(actor=actor, action="user.revoked", tenant=tenant, subject=name, at=clock.now_us())
    ended = await registry.revoke_user(found, name, act)
    if ended is None:
        raise UsageError(f"tenant {tenant!r} has no user {name!r}: see `metricsd cloud user list`")
    return ended


async def revoke_device(registry: PeopleRegistry, device_id: str, clock: Clock, *, actor: str) -> None:
    """End every token of a device; its data stays. A second time changes nothing."""
    device = next((found for found in await registry.list_devices(None) if found.id == device_id), None)
    act = Act(
        actor=actor, action="device.revoked", tenant="" if device is None else device.tenant, subject=device_id,
        at=clock.now_us(), detail={} if device is None else {"user": device.user},
    )  # fmt: skip
    if not await registry.revoke_device(device_id, act):
        raise UsageError(f"there is no device with id {device_id!r}: see `metricsd cloud device list`")


async def create_token(
    registry: Registry,
    tenant: str,
    user: str,
    scope: Scope,
    clock: Clock,
    *,
    expires_at: int | None = None,
    actor: str = LOCAL_ACTOR,
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
    await registry.create_token(token, _token_act(actor, "token.created", token))
    return text


async def rotate_token(
    registry: TokenRegistry, token_id: str, overlap_s: int, clock: Clock, *, actor: str
) -> tuple[str, Token]:
    """Return the text and the facts of a new token that may do what the one with this id may.

    The old one ends after `overlap_s`, or earlier if it would have anyway; 0 ends it now. The new one expires when the
    old one would have. Raises UsageError for a token that is unknown, revoked or expired.
    """
    if not 0 <= overlap_s <= OVERLAP_S_MAX:
        raise UsageError(f"--overlap is from 0h to {OVERLAP_S_MAX // 86_400}d")
    now = clock.now_us()
    old = await get_token(registry, token_id)
    text = new_token(old.scope)
    new = replace(old, id=secrets.token_hex(8), hash=digest_of(text), created_at=now)
    ends_at = now + overlap_s * US_PER_S
    act = _token_act(actor, "token.rotated", old, now, replaced_by=new.id, overlap_s=str(overlap_s))
    if not is_valid(old, now) or not await registry.rotate_token(old.id, new, ends_at, act):
        raise UsageError(f"token {token_id} has ended already: make one with `metricsd cloud token create`")
    return text, new


async def revoke_token(registry: TokenRegistry, token_id: str, clock: Clock, *, actor: str) -> None:
    """End a token now, for every process. A second time changes nothing."""
    token = await get_token(registry, token_id)
    await registry.revoke_token(token.id, _token_act(actor, "token.revoked", token, clock.now_us()))


async def get_token(registry: TokenRegistry, token_id: str) -> Token:
    """Return the token with this id; raise UsageError if there is none."""
    found = await registry.find_token_by_id(token_id)
    if found is None:
        raise UsageError(f"there is no token with id {token_id!r}: see `metricsd cloud token list`")
    return found


def _token_act(actor: str, action: str, token: Token, at: int | None = None, **detail: str) -> Act:
    return Act(
        actor=actor,
        action=action,
        tenant=token.tenant.name,
        subject=token.id,
        at=token.created_at if at is None else at,
        detail={"scope": str(token.scope), "user": token.user, **detail},
    )
