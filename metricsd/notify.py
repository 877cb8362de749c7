"""Tells a service manager how the daemon stands: ready, its status line, a heartbeat, stopping (sd_notify).

Without NOTIFY_SOCKET everything here does nothing, so the daemon behaves the same under systemd, launchd, a container
or a terminal. The heartbeat is sent by the event loop itself: a loop that hangs stops sending, and systemd starts the
daemon anew. Telling must never fail or block the daemon: a manager that does not listen is its own problem.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, MutableMapping

import structlog

STATUS_INTERVAL_S = 5.0
"""How often the status line is looked at; it is sent only when it changed."""
STATUS_CHARS_MAX = 500
_US_PER_S = 1_000_000

log = structlog.get_logger("notify")


class Notifier:
    """The daemon's end of one service manager's notification socket."""

    def __init__(self, address: str = "", watchdog_us: int = 0) -> None:
        """`address` is a path or, with a leading `@`, an abstract name; empty means that nobody wants to know."""
        self._address = address
        self._watchdog_us = watchdog_us
        self._last_status = ""

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Return the notifier that this environment asks for, and take its variables out.

        Programs that the daemon starts (plug-ins) must not speak in its name, which inheriting them would allow.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        asked_us, asked_pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return cls()
        is_for_us = not asked_pid or asked_pid == str(os.getpid())
        return cls(address, int(asked_us) if asked_us.isdecimal() and is_for_us else 0)

    @property
    def listens(self) -> bool:
        """Whether a service manager wants to know."""
        return bool(self._address)

    @property
    def beat_s(self) -> float | None:
        """Seconds between two heartbeats: half of what the manager waits for. None when it wants none."""
        return self._watchdog_us / _US_PER_S / 2 if self._watchdog_us > 0 else None

    def ready(self) -> None:
        """Say that the daemon answers."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the daemon is ending."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows, if it is another one than before."""
        line = " ".join(text.split())[:STATUS_CHARS_MAX]
        if line and line != self._last_status:
            self._last_status = line
            self._send(f"STATUS={line}")

    def beat(self) -> None:
        """Say that the event loop turns."""
        self._send("WATCHDOG=1")

    async def loop(self, describe: Callable[[], str]) -> None:
        """Say ready, then beat and keep the status line true until cancelled. `describe` gives that line."""
        self.status(describe())
        self.ready()
        pause_s = min(self.beat_s or STATUS_INTERVAL_S, STATUS_INTERVAL_S)
        while True:
            if self.beat_s is not None:
                self.beat()
            self.status(describe())
            await asyncio.sleep(pause_s)

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # An abstract name starts with a NUL byte where its text form has an @.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.setblocking(False)
                channel.connect(address)
                channel.send(message.encode())
        except (OSError, ValueError) as error:
            log.debug("notify.failed", said=message.partition("=")[0], reason=str(error))
