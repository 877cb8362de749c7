"""The daemon's half of the control socket.

Accepts one request a connection from this user only, hands it to a handler by verb and answers with its result or
its error. A slow, silent or oversized client costs a bounded time and memory and never stops the daemon; a handler
that fails answers with the error and leaves a log line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from metricsd import __version__
from metricsd.control import CONTROL_VERSION, REQUEST_BYTES_MAX, check_folder, peer_uid
from metricsd.errors import AlreadyRunning, MetricsdError, UsageError

Handler = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]

READ_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 900.0
"""Longest that a verb may take; `sync --now` of a long backlog is the longest one."""
CONNECTIONS_MAX = 64
CLOSE_GRACE_S = 0.2
_PROBE_TIMEOUT_S = 1.0
_BACKLOG = 16

log = structlog.get_logger("control")


class ControlServer:
    """Listens on the control socket. The caller holds the instance lock, so whatever lies at the path is stale."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self.path = path
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._is_closing = False

    async def start(self) -> None:
        """Bind and listen; raise AlreadyRunning if somebody answers there, MetricsdError if the folder is not private."""
        listener = _bind(self.path)
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=REQUEST_BYTES_MAX)

    async def close(self) -> None:
        """Stop listening, remove the socket, and give open requests up."""
        if self._server is None:
            return
        self._server.close()
        self.path.unlink(missing_ok=True)
        if self._open:
            # Whoever asked for the stop is still to be answered.
            await asyncio.wait(self._open, timeout=CLOSE_GRACE_S)
        self._is_closing = True
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("connections are served in tasks")
        self._open.add(task)
        try:
            connection = writer.get_extra_info("socket")
            if len(self._open) <= CONNECTIONS_MAX and peer_uid(connection) == os.getuid():
                await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            # The client went away or was too slow; it has nobody to blame but itself.
            log.debug("request.abandoned")
        except asyncio.CancelledError:
            # Python 3.11 logs the cancelled task of a connection as a fault; at our own end it is none.
            if not self._is_closing:
                raise
        finally:
            self._open.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), READ_TIMEOUT_S)
        except ValueError:
            reply = _failure(UsageError(f"the request is longer than {REQUEST_BYTES_MAX} bytes"))
        else:
            reply = await self._answer(line)
        writer.write(json.dumps({"v": CONTROL_VERSION, "version": __version__, **reply}).encode() + b"\n")
        await asyncio.wait_for(writer.drain(), READ_TIMEOUT_S)

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _failure(UsageError("the request is not one line of JSON"))
        if not isinstance(request, dict) or request.get("v") != CONTROL_VERSION:
            return _failure(
                UsageError(f"this daemon ({__version__}) speaks control version {CONTROL_VERSION}: restart it")
            )
        handler = self._handlers.get(str(request.get("verb")))
        if handler is None:
            return _failure(
                UsageError(f"this daemon ({__version__}) does not know {request.get('verb')!r}: restart it")
            )
        try:
            return {"ok": True, "result": await asyncio.wait_for(handler(request), ANSWER_TIMEOUT_S)}
        except MetricsdError as error:
            return _failure(error)
        except TimeoutError:
            return _failure(MetricsdError(f"not done within {ANSWER_TIMEOUT_S:g} s; see `metricsd logs`"))
        except Exception as error:
            # The loop's edge: one bad request must not end the daemon.
            log.exception("request.failed", verb=str(request.get("verb")))
            return _failure(MetricsdError(f"the daemon failed ({type(error).__name__}); see `metricsd logs`"))


def _failure(error: MetricsdError) -> dict[str, Any]:
    return {"ok": False, "error": {"kind": type(error).__name__, "message": str(error), "exit_code": error.exit_code}}


def _bind(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_folder(path.parent)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        # Between bind and chmod the 0700 folder keeps others out.
        path.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise MetricsdError(f"{path}: cannot listen there ({error.strerror}): check the disk and the folder") from error
    return listener


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        if path.exists():
            raise MetricsdError(f"{path}: is not a socket: remove it")
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise AlreadyRunning(f"{path}: a process listens there without holding the lock: stop it first")
