"""How much each tenant holds and who is in it, for administrators. One tenant is opened after the other."""

from __future__ import annotations

from msgspec import Struct

from metricsd.cloud.access import Tenant
from metricsd.cloud.backend import TenantStats
from metricsd.cloud.registry import AdminBackend
from metricsd.cloud.tenants import get_tenant


class Figures(Struct, frozen=True, kw_only=True):
    """A tenant's row. `devices` and `tokens` count what was ever made, and what counts now."""

    tenant: str
    suspended: bool
    users: int
    devices: int
    tokens: int
    stats: TenantStats


async def read_figures(backend: AdminBackend, name: str | None) -> list[Figures]:
    """Return the figures of a tenant or of all by name; raise UsageError for an unknown one."""
    directory = backend.directory
    wanted = await directory.list_tenants() if name is None else [await get_tenant(directory, name)]
    return [await _figures(backend, tenant) for tenant in wanted]


async def _figures(backend: AdminBackend, tenant: Tenant) -> Figures:
    users = await backend.directory.list_users(tenant.name)
    async with backend.tenant(tenant) as store:
        stats = await store.stats()
    return Figures(
        tenant=tenant.name,
        suspended=tenant.suspended_at is not None,
        users=len(users),
        devices=sum(user.devices for user in users),
        tokens=sum(user.tokens for user in users),
        stats=stats,
    )
