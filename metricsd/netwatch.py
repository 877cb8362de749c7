"""Says when the network changed: a link, an address or a route came or went (Linux, rtnetlink).

The kernel tells whoever listens; it costs nothing while nothing happens. Several messages of one change become one
call, a moment after the first one. Elsewhere, and where the socket is not to be had, nobody is told, and the next
regular look finds out. What the messages say is not read: any of them is a reason to look, none is to be trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable

SETTLE_S = 0.5
"""A change comes as a dozen messages: the link, its addresses, its routes."""
GAP_S = 5.0
"""Shortest time between two calls: where containers come and go, the network changes all day."""
_READ_BYTES = 65536
_READS_MAX = 64
_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV6_ADDRESS, _IPV6_ROUTE = 0x1, 0x10, 0x40, 0x100, 0x400
"""RTMGRP_* of linux/rtnetlink.h."""
_GROUPS = _LINK | _IPV4_ADDRESS | _IPV4_ROUTE | _IPV6_ADDRESS | _IPV6_ROUTE


class NetworkWatch:
    """Calls `on_change` in the event loop. Start it inside the loop, and close it."""

    def __init__(self, on_change: Callable[[], None], *, settle_s: float = SETTLE_S, gap_s: float = GAP_S) -> None:
        self._on_change = on_change
        self._settle_s = settle_s
        self._gap_s = gap_s
        self._not_before = 0.0
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> bool:
        """Listen; return whether that is possible here."""
        opened = open_socket()
        if opened is None:
            return False
        try:
            asyncio.get_running_loop().add_reader(opened.fileno(), self._read)
        except (NotImplementedError, OSError):
            opened.close()
            return False
        self._socket = opened
        return True

    def close(self) -> None:
        """Stop listening; a second call does nothing."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        # A full queue (ENOBUFS) means that much has changed, which is all that we want to know.
        with contextlib.suppress(OSError):
            for _ in range(_READS_MAX):
                if self._socket is None or not self._socket.recv(_READ_BYTES):
                    break
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time() + self._settle_s, self._not_before), self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._not_before = asyncio.get_running_loop().time() + self._gap_s
        self._on_change()


def open_socket() -> socket.socket | None:
    """Return a socket on which the kernel tells changes of the network, None where there is no such thing."""
    if sys.platform != "linux":
        return None
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    except OSError:
        return None
    try:
        opened.setblocking(False)
        opened.bind((0, _GROUPS))
    except OSError:
        opened.close()
        return None
    return opened
