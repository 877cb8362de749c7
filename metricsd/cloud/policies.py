"""Setting a tenant's conflict policy: what an administrator may hand to all devices of a tenant.

The text is checked here, so that a file with a slip never travels, and again on each device, which does not trust
this cloud. It is data: a `custom` rule can only name a plug-in that a device has pinned itself.
"""

from __future__ import annotations

from metricsd.clock import Clock
from metricsd.cloud.access import Act
from metricsd.cloud.backend import TenantPolicy
from metricsd.cloud.registry import AdminBackend
from metricsd.cloud.tenants import LOCAL_ACTOR, get_tenant
from metricsd.policy import parse


async def set_policy(
    backend: AdminBackend, tenant: str, raw: bytes, source: str, clock: Clock, *, actor: str = LOCAL_ACTOR
) -> TenantPolicy:
    """Make a file's bytes the tenant's policy; raise PolicyError that names `source` and line."""
    # Every mistake is one of the file: nothing that a device could not use is handed out.
    checked = parse(raw, source, layer="tenant")
    found, now = await get_tenant(backend.directory, tenant), clock.now_us()
    async with backend.tenant(found) as store:
        made = await store.put_policy(raw.decode(), checked.sha256, now)
    # The policy lies in the tenant's database, so its act follows it; a crash in between leaves a version without one.
    detail = {"version": str(made.version), "sha256": made.sha256}
    await backend.directory.keep_act(
        Act(actor=actor, action="policy.set", tenant=tenant, subject=found.id, at=now, detail=detail)
    )
    return made


async def show_policy(backend: AdminBackend, tenant: str) -> TenantPolicy | None:
    """Return the tenant's policy, None if it has none; raise UsageError for an unknown tenant."""
    found = await get_tenant(backend.directory, tenant)
    async with backend.tenant(found) as store:
        return await store.find_policy()
