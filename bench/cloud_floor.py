"""The floor under the cloud's bench: a bare ASGI app that stores the same rows by the same SQL, and nothing else.

It takes the same requests through the same HTTP server, inflates and decodes them, and writes with the cloud's own
statements into the cloud's own schema, FULL, and groups batches into commits by the same rule. It authenticates nobody, checks
nothing, bounds nothing, counts nothing and keeps no savepoints: what is left is what the work itself costs.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
import zstandard
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from metricsd.cloud.sqlite_events import ADVANCE, FIND_OWNERS, NEWEST_STREAM, insert_events
from metricsd.cloud.sqlite_file import open_file
from metricsd.cloud.sqlite_group import GROUP_ITEMS_MAX
from metricsd.config import Cloud
from metricsd.protocol import EventResult, PushEvents, PushEventsReply
from metricsd.schema import load_steps

_TEXTS = ("session", "tool", "outcome", "project", "branch", "model", "agent", "subject", "reason", "batch")
COMMIT_DELAY_S = Cloud().commit_delay_ms / 1000
_STORED = EventResult(status="stored")
_DECODE = msgspec.json.Decoder(PushEvents).decode


class Floor:
    """The app, and the thread that writes."""

    def __init__(self, file: Path) -> None:
        self._db, reading = open_file(file, load_steps("metricsd.cloud.schema.tenant"))
        reading.close()
        self._terms: dict[str | None, int | None] = {None: None}
        self._queue: queue.SimpleQueue[tuple[PushEvents, asyncio.Future[bytes]]] = queue.SimpleQueue()
        self._inflate = zstandard.ZstdDecompressor()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._write_for_ever, name="floor", daemon=True).start()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        parts = []
        while True:
            message = await receive()
            parts.append(message["body"])
            if not message.get("more_body"):
                break
        push = _DECODE(self._inflate.decompress(b"".join(parts)))
        done: asyncio.Future[bytes] = self._loop.create_future()
        self._queue.put((push, done))
        body = await done
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _write_for_ever(self) -> None:
        company = 1
        while True:
            group = [self._queue.get()]
            items, deadline = len(group[0][0].events), time.monotonic() + COMMIT_DELAY_S
            while items < GROUP_ITEMS_MAX:
                wait_s = deadline - time.monotonic() if len(group) < company else 0.0
                try:
                    group.append(self._queue.get(timeout=wait_s) if wait_s > 0 else self._queue.get_nowait())
                except queue.Empty:
                    break
                items += len(group[-1][0].events)
            company = len(group)
            answers = self._commit([push for push, _ in group])
            self._loop.call_soon_threadsafe(_answer, group, answers)

    def _commit(self, group: list[PushEvents]) -> list[bytes]:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        change = before = db.execute("SELECT change FROM counter").fetchone()[0]
        answers = []
        for push in group:
            rows = self._rows(push, change)
            change += len(rows)
            db.execute(NEWEST_STREAM, (rows[0][3],)).fetchone()
            db.execute(FIND_OWNERS.format(",".join("?" * len(rows))), [row[1] for row in rows]).fetchall()
            insert_events(db, rows)
            db.execute(ADVANCE, (rows[0][3], push.epoch, push.base_seq, rows[-1][5], rows[-1][1]))
            reply = PushEventsReply(results=[_STORED] * len(rows), acked_through=rows[-1][5], server_time=0)
            answers.append(msgspec.json.encode(reply))
        db.execute("UPDATE counter SET change = ?", (change,))
        db.execute(
            "INSERT INTO change_log (first, last, nonce) VALUES (?, ?, ?)", (before + 1, change, secrets.randbits(63))
        )
        db.execute("COMMIT")
        return answers

    def _rows(self, push: PushEvents, change: int) -> list[tuple[Any, ...]]:
        term = self._term
        user, device = term("ann"), term(push.device_id)
        return [
            (
                number, bytes.fromhex(event.id), user, device, push.epoch, event.seq, event.at, term(event.kind),
                term(event.name), term(event.app), term(event.session), term(event.tool), term(event.outcome),
                event.duration_ms, event.call, term(event.project), term(event.branch), term(event.model),
                term(event.agent), term(event.subject), term(event.reason), event.input_bytes, event.output_bytes,
                event.lines_added, event.lines_removed, term(event.batch), None,
            )
            for number, event in enumerate(push.events, change + 1)
        ]  # fmt: skip

    def _term(self, text: str | None) -> int | None:
        found = self._terms.get(text)
        if found is None and text is not None:
            try:
                made = self._db.execute("INSERT INTO term (text) VALUES (?) RETURNING id", (text,)).fetchone()
            except sqlite3.IntegrityError:
                made = self._db.execute("SELECT id FROM term WHERE text = ?", (text,)).fetchone()
            found = self._terms[text] = int(made[0])
        return found


def _answer(group: list[tuple[PushEvents, asyncio.Future[bytes]]], answers: list[bytes]) -> None:
    for (_, done), answer in zip(group, answers, strict=True):
        if not done.done():
            done.set_result(answer)


async def serve(folder: Path) -> None:
    """Serve on a port of the system's choice and print the URL."""
    options: Any = {"http": HttpToolsProtocol, "ws": "none", "lifespan": "off", "log_config": None, "access_log": False}
    server = uvicorn.Server(uvicorn.Config(Floor(folder / "floor.db"), host="127.0.0.1", port=0, **options))
    task = asyncio.create_task(server.serve(), name="floor")
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", flush=True)
    await task
