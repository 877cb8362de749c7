"""A tenant as JSON lines: all events and records, and whose they are, for keeping or taking elsewhere.

The first line names the tenant, the last one counts, so that a copy that broke off is recognised. What changes while
the export runs comes again further on, with its newer change number: of several lines for one record the last counts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from metricsd.clock import Clock
from metricsd.cloud.access import Act
from metricsd.cloud.backend import Exported
from metricsd.cloud.registry import AdminBackend
from metricsd.cloud.tenants import LOCAL_ACTOR, get_tenant

FORM = 1
"""Version of this form; fields are only added."""
PAGE_ITEMS = 1000


async def export_lines(
    backend: AdminBackend, name: str, clock: Clock, *, actor: str = LOCAL_ACTOR
) -> AsyncIterator[bytes]:
    """Yield the tenant's lines in pieces of at most a page; raise UsageError for an unknown tenant."""
    tenant, now = await get_tenant(backend.directory, name), clock.now_us()
    await backend.directory.keep_act(
        Act(actor=actor, action="tenant.exported", tenant=name, subject=tenant.id, at=now)
    )  # fmt: skip
    yield _line("tenant", form=FORM, id=tenant.id, name=name, created_at=tenant.created_at, exported_at=now)
    for user in await backend.directory.list_users(name):
        yield _line("user", name=user.name, created_at=user.created_at)
    for device in await backend.directory.list_devices(name):
        yield _line("device", id=device.id, name=device.name, user=device.user, parent=device.parent)
    events = records = change = 0
    async with backend.tenant(tenant) as store:
        while page := await store.export(change, PAGE_ITEMS):
            yield b"".join(_item(item) for item in page)
            events += sum(item.event is not None for item in page)
            records += sum(item.record is not None for item in page)
            change = page[-1].change
    yield _line("end", events=events, records=records, change=change)


def _item(item: Exported) -> bytes:
    whose = {"change": item.change, "user": item.user, "device": item.device}
    if item.event is not None:
        return _line("event", **whose, event=item.event)
    return _line("record", **whose, record=item.record)


def _line(kind: str, **fields: Any) -> bytes:
    return msgspec.json.encode({"kind": kind, **fields}) + b"\n"
