"""A cloud's PostgreSQL as the target of a migration, for an administrator who has its DSN.

It answers what the API answers and takes what the API takes, checked by the same code, without a server in between:
each request is one COPY into a temporary table and one INSERT. The events belong to a device that is made for the
migration, so they can be taken back with it. The DSN is read from an environment variable and kept nowhere.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import msgspec

from metricsd.clock import SystemClock
from metricsd.config import Cloud
from metricsd.errors import UsageError
from metricsd.identity import Credentials
from metricsd.ids import DeviceId
from metricsd.protocol import (
    Capabilities,
    ChangesReply,
    HaveReply,
    HaveRequest,
    PushEventsReply,
    PushRecords,
    PushRecordsReply,
)

if TYPE_CHECKING:
    from metricsd.cloud.backend import Tenant, Writer
    from metricsd.cloud.postgres import PostgresBackend
    from metricsd.migration.work import Work

DEVICE_NAME = "migration"
REQUEST_BYTES_MAX = 4 * 1024 * 1024
TIMEOUT_S = 600.0
"""For one statement: a part is a few thousand rows."""
_FACT = "database_login"

_encode = msgspec.json.Encoder().encode


class DatabaseCloud:
    """One tenant of a PostgreSQL cloud, as whoever loads asks it. Belongs to one event loop."""

    def __init__(self, backend: PostgresBackend, tenant: str, writer: Writer, settings: Cloud) -> None:
        self.url = f"the tenant {tenant}"
        self._backend = backend
        self._name = tenant
        self._tenant: Tenant | None = None
        self._writer = writer
        self._settings = settings
        self._clock = SystemClock()

    async def capabilities(self) -> Capabilities:
        """Return the bounds of one request."""
        from metricsd import __version__

        settings = self._settings
        return Capabilities(
            protocol=1, version=__version__, server_time=self._clock.now_us(), items_max=settings.items_max,
            body_bytes_max=REQUEST_BYTES_MAX, inflated_bytes_max=REQUEST_BYTES_MAX,
            item_bytes_max=settings.item_bytes_max, page_max=settings.page_max,
        )  # fmt: skip

    async def have(self, request: HaveRequest) -> HaveReply:
        """Return which events are there."""
        from metricsd.cloud.have import ROWS_MAX

        async with self._backend.tenant(await self._found()) as store:
            return await store.have(self._writer, request, ROWS_MAX)

    async def push_unsequenced(self, body: bytes) -> PushEventsReply:
        """Store events that are not there yet."""
        from metricsd.cloud.ingest import parse_events

        batch = parse_events(body, self._settings, sequenced=False)
        async with self._backend.tenant(await self._found()) as store:
            done = await store.push_events(self._writer, batch)
        return PushEventsReply(results=done.results, acked_through=done.acked_through, server_time=self._clock.now_us())

    async def push_records(self, request: PushRecords) -> PushRecordsReply:
        """Store changes of records."""
        from metricsd.cloud.ingest import parse_records

        now = self._clock.now_us()
        batch = parse_records(_encode(request), self._settings)
        async with self._backend.tenant(await self._found()) as store:
            results = await store.push_records(self._writer, batch, now)
        return PushRecordsReply(results=results, server_time=now)

    async def everything(self, cursor: str, limit: int) -> ChangesReply:
        """Return a page of all that the user has there."""
        from metricsd.cloud.backend import FeedQuery

        query = FeedQuery(cursor, min(limit, self._settings.page_max), only_records=False, own=True)
        async with self._backend.tenant(await self._found()) as store:
            return await store.changes(self._writer, query, self._clock.now_us())

    async def close(self) -> None:
        """Close the connections."""
        await self._backend.close()

    async def _found(self) -> Tenant:
        """Return the tenant, looked up with the first question."""
        from metricsd.cloud.tenants import get_tenant

        if self._tenant is None:
            self._tenant = await get_tenant(self._backend.directory, self._name)
        return self._tenant


def login(work: Work, variable: str, tenant: str, user: str) -> Credentials:
    """Return whose the events will be: a device that is made once for a run, and noted with it."""
    dsn = dsn_of(variable)
    noted = work.fact(_FACT)
    if noted:
        device, key = msgspec.json.decode(noted, type=tuple[str, str])
    else:
        device, key = asyncio.run(_enrolled(dsn, tenant, user))
        work.note_fact(_FACT, _encode((device, key)).decode())
    return Credentials(
        url="", token="", tenant_key=bytes.fromhex(key), tenant=tenant, user=user, device_id=DeviceId(device)
    )


def connect(variable: str, tenant: str, user: str, device: str) -> DatabaseCloud:
    """Return the cloud, to be used in the running event loop."""
    from metricsd.cli.cloud_options import open_postgres
    from metricsd.cloud.backend import Writer
    from metricsd.config import find_paths, load_config

    backend = open_postgres(dsn_of(variable), timeout_s=TIMEOUT_S)
    settings = load_config(find_paths()).cloud
    return DatabaseCloud(backend, tenant, Writer(user, device), settings)


def dsn_of(variable: str) -> str:
    """Return the DSN; raise UsageError where the variable holds none."""
    from metricsd.cloud.pg_names import is_postgres

    dsn = os.environ.get(variable, "")
    if not is_postgres(dsn):
        raise UsageError(f"--dsn-from {variable}: the variable must hold postgresql://USER@HOST/DATABASE")
    return dsn


async def _enrolled(dsn: str, tenant: str, user: str) -> tuple[str, str]:
    from metricsd.cli.cloud_options import actor, open_postgres
    from metricsd.cloud.enrolment import enrol_by_administrator

    backend = open_postgres(dsn)
    try:
        directory = backend.directory
        made = await enrol_by_administrator(
            directory, directory, tenant, user, DEVICE_NAME, SystemClock(), actor=actor()
        )
    finally:
        await backend.close()
    return made.device_id, made.tenant_key
