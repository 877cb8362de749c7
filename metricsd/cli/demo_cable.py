"""A network cable for the demo: forwards one loopback port to the cloud, and can be cut and mended."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from urllib.parse import urlsplit

CHUNK_BYTES = 65536
CONNECT_TIMEOUT_S = 5.0


class Cable:
    """Forwards `url` to the cloud. Its threads end with its sockets."""

    def __init__(self, cloud_url: str) -> None:
        parts = urlsplit(cloud_url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._port = 0
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        self.mend()

    @property
    def url(self) -> str:
        """Where to reach the cloud through the cable."""
        return f"http://127.0.0.1:{self._port}"

    def cut(self) -> None:
        """Drop every connection and refuse new ones."""
        if self._listener is not None:
            # shutdown() wakes the thread that waits in accept(); close() alone does not.
            _close(self._listener)
            self._listener = None
        with self._guard:
            for connection in self._open:
                _close(connection)
            self._open.clear()

    def mend(self) -> None:
        """Listen (again), on the same port."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        listener.listen()
        self._port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True, name="cable").start()

    def __enter__(self) -> Cable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, CONNECT_TIMEOUT_S)
            except OSError:
                _close(near)
                continue
            far.settimeout(None)
            with self._guard:
                self._open |= {near, far}
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=_forward, args=(source, target), daemon=True, name="cable").start()


def _forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            target.sendall(data)
    _close(source)
    _close(target)


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
