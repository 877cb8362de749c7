"""Setting a tenant's conflict policy: what an administrator may hand to all devices of a tenant.

The text is checked here, so that a file with a slip never travels, and again on each device, which does not trust
this cloud. It is data: a `custom` rule can only name a plug-in that a device has pinned itself.
"""

from __future__ import annotations

from metricsd.clock import Clock
from metricsd.cloud.backend import Backend, TenantPolicy
from metricsd.cloud.registry import Registry
from metricsd.cloud.tenants import find_tenant
from metricsd.errors import UsageError
from metricsd.policy import parse


async def set_policy(
    backend: Backend, registry: Registry, tenant: str, raw: bytes, source: str, clock: Clock
) -> TenantPolicy:
    """Make a file's bytes the tenant's policy; raise PolicyError that names `source` and line."""
    # Every mistake is one of the file: nothing that a device could not use is handed out.
    checked = parse(raw, source, layer="tenant")
    found = await find_tenant(registry, tenant)
    if found is None:
        raise _no_tenant(tenant)
    async with backend.tenant(found) as store:
        return await store.put_policy(raw.decode(), checked.sha256, clock.now_us())


async def show_policy(backend: Backend, registry: Registry, tenant: str) -> TenantPolicy | None:
    """Return the tenant's policy, None if it has none; raise UsageError for an unknown tenant."""
    found = await find_tenant(registry, tenant)
    if found is None:
        raise _no_tenant(tenant)
    async with backend.tenant(found) as store:
        return await store.find_policy()


def _no_tenant(name: str) -> UsageError:
    return UsageError(f"there is no tenant {name!r}: see `metricsd cloud tenant list`")
