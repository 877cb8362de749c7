"""The floor under the PostgreSQL bench: a bare ASGI app that stores the same rows by the same SQL, and nothing else.

It takes the same requests through the same HTTP server, inflates and decodes them, and sends the cloud's own
statements, in the cloud's own order, to a schema of the cloud's own making. It authenticates nobody, takes no role,
checks nothing, bounds nothing and counts nothing: what is left is what the work itself costs.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import asyncpg
import msgspec
import uvicorn
import zstandard
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from metricsd.cloud.pg_events import ADVANCE, BEGIN, COPIED_FROM
from metricsd.cloud.pg_rows import CREATE_INCOMING, INCOMING_COLUMNS, INSERT_ARRAYS, INSERT_COPIED
from metricsd.cloud.pg_session import LOCK, MOVE
from metricsd.protocol import EventResult, PushEvents, PushEventsReply

CONNECTIONS = 16
_STORED = EventResult(status="stored")
_DECODE = msgspec.json.Decoder(PushEvents).decode


class Floor:
    """The app over one schema."""

    def __init__(self, pool: Any, schema: str) -> None:
        self._pool = pool
        self._path = f'BEGIN; SET LOCAL search_path = "{schema}", pg_temp'
        self._terms: dict[str | None, int | None] = {None: None}
        self._inflate = zstandard.ZstdDecompressor()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        parts = []
        while True:
            message = await receive()
            parts.append(message["body"])
            if not message.get("more_body"):
                break
        push = _DECODE(self._inflate.decompress(b"".join(parts)))
        await self._learn(push)
        async with self._pool.acquire() as db:
            await self._store(db, push)
        reply = PushEventsReply(
            results=[_STORED] * len(push.events), acked_through=push.events[-1].seq, server_time=0
        )  # fmt: skip
        body = msgspec.json.encode(reply)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _store(self, db: Any, push: PushEvents) -> None:
        ids, rows = self._terms, self._rows(push)
        device = ids[push.device_id]
        if len(rows) < COPIED_FROM:
            await db.execute(f"{self._path}; {LOCK}")
        else:
            await db.execute(f"{self._path}; {CREATE_INCOMING}")
            await db.copy_records_to_table("incoming", records=rows, columns=INCOMING_COLUMNS)
            await db.execute(LOCK)
        change = (await db.fetchrow(BEGIN, device, push.device_id))[4]
        values = (change + 1, ids["ann"], device, push.epoch, 0)
        if len(rows) < COPIED_FROM:
            await db.execute(INSERT_ARRAYS, *values, *zip(*rows, strict=True))
        else:
            await db.execute(INSERT_COPIED, *values)
        await db.execute(MOVE, change + 1, change + len(rows), secrets.randbits(63))
        last = push.events[-1]
        await db.execute(ADVANCE, device, push.epoch, push.base_seq, last.seq, bytes.fromhex(last.id))
        await db.execute("COMMIT")

    def _rows(self, push: PushEvents) -> list[tuple[Any, ...]]:
        ids = self._terms
        return [
            (
                n, event.seq, event.at, event.duration_ms, event.input_bytes, event.output_bytes, event.lines_added,
                event.lines_removed, ids[event.kind], ids[event.name], ids[event.app], ids[event.session],
                ids[event.tool], ids[event.outcome], ids[event.project], ids[event.branch], ids[event.model],
                ids[event.agent], ids[event.subject], ids[event.reason], ids[event.batch], bytes.fromhex(event.id),
                None if event.call is None else event.call.encode(), None,
            )
            for n, event in enumerate(push.events)
        ]  # fmt: skip

    async def _learn(self, push: PushEvents) -> None:
        texts: set[str | None] = {"ann", push.device_id}
        for event in push.events:
            texts.update((
                event.kind, event.name, event.app, event.session, event.tool, event.outcome, event.project,
                event.branch, event.model, event.agent, event.subject, event.reason, event.batch,
            ))  # fmt: skip
        unknown = [text.encode() for text in texts - self._terms.keys() if text is not None]
        if not unknown:
            return
        async with self._pool.acquire() as db:
            await db.execute(self._path)
            await db.execute("INSERT INTO term (text) SELECT unnest($1::bytea[]) ON CONFLICT DO NOTHING", unknown)
            rows = await db.fetch("SELECT text, id FROM term WHERE text = ANY($1::bytea[])", unknown)
            await db.execute("COMMIT")
        self._terms.update({text.decode(): number for text, number in rows})


async def serve(url: str, schema: str) -> None:
    """Serve on a port of the system's choice and print the URL."""
    pool = await asyncpg.create_pool(url, min_size=1, max_size=CONNECTIONS, statement_cache_size=0)
    options: Any = {"http": HttpToolsProtocol, "ws": "none", "lifespan": "off", "log_config": None, "access_log": False}
    server = uvicorn.Server(uvicorn.Config(Floor(pool, schema), host="127.0.0.1", port=0, **options))
    task = asyncio.create_task(server.serve(), name="floor")
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", flush=True)
    await task
