"""How installations become devices, and how a user takes a device's data back.

A device is made by an enrolment token, by a one-time code that somebody typed, or, after a fork, by the device itself.
Both ways end in the audit log. Secrets are returned once, to the caller, and exist nowhere else.
"""

from __future__ import annotations

import asyncio
import re
import secrets

from metricsd.clock import US_PER_S, Clock
from metricsd.cloud import codes
from metricsd.cloud.access import Act, EnrolCode, NewDevice, Scope, Tenant, Token
from metricsd.cloud.auth import bad_token, check_device, check_tenant, digest_of, new_token
from metricsd.cloud.backend import Directory, Enrolment, Erased
from metricsd.cloud.problems import refuse
from metricsd.cloud.registry import AdminBackend, Registry
from metricsd.cloud.tenants import checked_name, get_tenant
from metricsd.errors import UsageError
from metricsd.ids import new_device_id
from metricsd.protocol import EnrolReply, EnrolRequest

CODE_TRIES = 20
"""Codes that are made before giving up on finding a free id: with a thousand in use, one in a thousand is taken."""
_DEVICE_ID = re.compile(r"[0-9a-f]{32}")


async def create_code(
    registry: Registry, tenant: str, user: str, life_s: int, clock: Clock, *, actor: str
) -> tuple[str, EnrolCode]:
    """Return the text and the facts of a new enrolment code for a user, who is made if new."""
    if not 0 < life_s <= codes.LIFE_S_MAX:
        raise UsageError(f"--expires of a code is at most {codes.LIFE_S_MAX // 86_400}d from now")
    found, now = await get_tenant(registry, tenant), clock.now_us()
    for _ in range(CODE_TRIES):
        made, salt = codes.new_code(), codes.new_salt()
        code = EnrolCode(
            id=made.id,
            salt=salt,
            digest=await asyncio.to_thread(codes.digest_of, made.secret, salt),
            tenant=found,
            user=checked_name("user", user),
            created_at=now,
            expires_at=now + life_s * US_PER_S,
        )
        act = Act(actor=actor, action="code.created", tenant=tenant, subject=made.id, at=now, detail={"user": user})
        if await registry.create_code(code, act):
            return made.text(), code
    raise UsageError("no free code was found: try again when some of the open ones have expired")


async def find_code(directory: Enrolment, typed: codes.Code, now: int) -> EnrolCode:
    """Return the code that was typed, having taken one of its attempts; raise 401 or 403."""
    code = await directory.try_code(typed.id, now)
    if code is None or not await asyncio.to_thread(codes.is_match, typed.secret, code.salt, code.digest):
        raise bad_token()
    check_tenant(code.tenant)
    return code


async def enrol_by_code(directory: Directory, code: EnrolCode, request: EnrolRequest, clock: Clock) -> EnrolReply:
    """Make a device of the code's user, which spends the code; raise 401 when it was spent meanwhile."""
    device, text = _new_device(code.tenant, code.user, request, clock)
    if not await directory.redeem_code(code.id, device, _act(f"code:{code.id}", device)):
        raise bad_token()
    return _reply(device, text)


async def enrol(directory: Directory, token: Token, request: EnrolRequest, clock: Clock) -> EnrolReply:
    """Make a device of the token's user and return its token.

    A device that found itself forked enrols with its own token, naming itself as the parent; its old token stays
    valid, because the other installation goes on under the old identity.
    """
    if token.scope is Scope.DEVICE:
        check_device(token, request.parent or "")
    device, text = _new_device(token.tenant, token.user, request, clock)
    await directory.add_device(device, _act(f"token:{token.id}", device))
    return _reply(device, text)


async def enrol_by_administrator(
    registry: Registry, directory: Enrolment, tenant: str, user: str, name: str, clock: Clock, *, actor: str
) -> EnrolReply:
    """Make a device of a user, who is made if new, for whoever can reach the database itself; raise UsageError."""
    found = await get_tenant(registry, tenant)
    device, text = _new_device(found, checked_name("user", user), EnrolRequest(name=name), clock)
    await directory.add_device(device, _act(actor, device))
    return _reply(device, text)


async def erase_device(directory: Directory, token: Token, device_id: str, now: int) -> str:
    """Note that a device's data is taken back, which ends its tokens, and return whose device it is.

    Raises 404 for a device that is not the caller's. A device token may name any device of its user, an admin token any
    of its tenant. The token of an erased device may only name itself: so the call can be repeated when its answer was
    lost.
    """
    user = None if token.scope is Scope.ADMIN else token.user
    if token.erased and token.device != device_id:
        raise bad_token()
    act = Act(
        actor=f"token:{token.id}", action="device.erased", tenant=token.tenant.name, subject=device_id, at=now,
        detail={"user": token.user},
    )  # fmt: skip
    known = _DEVICE_ID.fullmatch(device_id) is not None
    owner = await directory.erase_device(token.tenant, user, device_id, act) if known else None
    if owner is None:
        raise refuse(404, "no_device", "there is no such device")
    return owner


async def erase_by_administrator(backend: AdminBackend, device_id: str, clock: Clock, *, actor: str) -> Erased:
    """Take any device's data back, as its user could; raise UsageError for an unknown device."""
    directory, now = backend.directory, clock.now_us()
    device = next((found for found in await directory.list_devices(None) if found.id == device_id), None)
    if device is None:
        raise UsageError(f"there is no device with id {device_id!r}: see `metricsd cloud device list`")
    tenant = await get_tenant(directory, device.tenant)
    act = Act(
        actor=actor, action="device.erased", tenant=tenant.name, subject=device_id, at=now, detail={"user": device.user}
    )
    await directory.erase_device(tenant, None, device_id, act)
    async with backend.tenant(tenant) as store:
        return await store.erase_device(device.user, device_id, now)


def _new_device(tenant: Tenant, user: str, request: EnrolRequest, clock: Clock) -> tuple[NewDevice, str]:
    """Return a device with a new id, and its token's text; raise 400 for an unfit name or parent."""
    if request.parent is not None and _DEVICE_ID.fullmatch(request.parent) is None:
        raise refuse(400, "bad_request", "parent is not a device id")
    try:
        name = checked_name("device", request.name)
    except UsageError as error:
        raise refuse(400, "bad_name", str(error)) from error
    text = new_token(Scope.DEVICE)
    device = NewDevice(
        id=new_device_id(),
        tenant=tenant,
        user=user,
        name=name,
        parent=request.parent,
        token_id=secrets.token_hex(8),
        digest=digest_of(text),
        at=clock.now_us(),
    )
    return device, text


def _act(actor: str, device: NewDevice) -> Act:
    detail = {"user": device.user, "name": device.name, "token": device.token_id}
    return Act(
        actor=actor, action="device.enrolled", tenant=device.tenant.name, subject=device.id, at=device.at, detail=detail
    )


def _reply(device: NewDevice, text: str) -> EnrolReply:
    return EnrolReply(
        device_id=device.id,
        device_token=text,
        tenant_key=device.tenant.key.hex(),
        tenant=device.tenant.name,
        user=device.user,
    )
