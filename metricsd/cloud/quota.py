"""How much room a tenant may take: above it, what would add to it is refused and everything else goes on.

The database is asked at most twice a minute for each tenant, so a tenant may pass its quota by what it sends within
that time, which its rate bounds. Laptops keep what is refused; reading, and taking data back, are always possible.
"""

from __future__ import annotations

from collections import OrderedDict

from metricsd.clock import US_PER_S, Clock
from metricsd.cloud.access import Tenant
from metricsd.cloud.problems import refuse
from metricsd.cloud.rate import Meter
from metricsd.config import Cloud

LOOK_AGAIN_US = 30 * US_PER_S
RETRY_AFTER_S = 600.0
"""Somebody has to make room or raise the limit; that takes its time."""
TENANTS_MAX = 10_000
"""Sizes that are remembered; the one that was asked for first goes first."""


class Quotas:
    """The sizes of tenants, as one process knows them."""

    def __init__(self, meter: Meter, settings: Cloud, clock: Clock) -> None:
        self._meter = meter
        self._clock = clock
        self._limit = settings.tenant_bytes_max
        self._seen: OrderedDict[str, tuple[int, int]] = OrderedDict()

    async def check(self, tenant: Tenant) -> None:
        """Raise 503 when a tenant's data takes more room than it may."""
        if not self._limit:
            return
        now = self._clock.now_us()
        at, size = self._seen.get(tenant.id, (now - LOOK_AGAIN_US, 0))
        # A clock that was put back must not keep an old size for ever.
        if not 0 <= now - at < LOOK_AGAIN_US:
            size = await self._meter.stored_bytes(tenant)
            self._seen[tenant.id] = (now, size)
            if len(self._seen) > TENANTS_MAX:
                self._seen.popitem(last=False)
        if size >= self._limit:
            detail = f"this tenant's data takes {size} bytes of {self._limit}"
            raise refuse(503, "quota_full", detail, limit="tenant_bytes_max", retry_after_s=RETRY_AFTER_S)
