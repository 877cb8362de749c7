"""Bringing every tenant's schema up to date: one tenant a transaction, so that it can be stopped and begun again.

A tenant whose schema is up to date already costs one look. One that cannot be upgraded now (somebody holds its tables)
is tried again and then reported, and the others go on; it keeps its old step, on which it is served or refused clearly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

import structlog
from msgspec import Struct

from metricsd.cloud.access import Tenant
from metricsd.cloud.problems import Refused
from metricsd.cloud.registry import AdminBackend
from metricsd.errors import MetricsdError

TRIES = 3
PAUSE_S = 0.5

log = structlog.get_logger("cloud")


class Upgraded(Struct, frozen=True, kw_only=True):
    """What became of one tenant: `steps` were run, or `error` says why not."""

    tenant: str
    number: int
    of: int
    steps: int = 0
    error: str | None = None


class Upgradable(Protocol):
    """A backend whose tenants' schemas are brought up to date one by one."""

    async def upgrade_control(self) -> None:
        """Bring the control database up to date."""
        ...

    async def upgrade_tenant(self, tenant: Tenant) -> int:
        """Bring a tenant's schema up to date in one transaction; return how many steps that took."""
        ...


async def upgrade_all(backend: AdminBackend, schemas: Upgradable) -> AsyncIterator[Upgraded]:
    """Upgrade all tenants by name, yielding each when it is done or given up."""
    await schemas.upgrade_control()
    tenants = await backend.directory.list_tenants()
    for number, tenant in enumerate(tenants, 1):
        yield await _upgrade(schemas, tenant, number, len(tenants))


async def _upgrade(schemas: Upgradable, tenant: Tenant, number: int, of: int) -> Upgraded:
    for left in range(TRIES - 1, -1, -1):
        try:
            steps = await schemas.upgrade_tenant(tenant)
        except Refused as refusal:
            # Locks and lost connections pass; what does not is said when the tries are used up.
            if left == 0:
                return Upgraded(tenant=tenant.name, number=number, of=of, error=str(refusal))
            log.info("schema.upgrade_postponed", tenant=tenant.id, reason=str(refusal))
            await asyncio.sleep(PAUSE_S)
        except MetricsdError as error:
            return Upgraded(tenant=tenant.name, number=number, of=of, error=str(error))
        else:
            return Upgraded(tenant=tenant.name, number=number, of=of, steps=steps)
    raise AssertionError("the last try returns")
