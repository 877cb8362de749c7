"""What the daemon does when it is asked over the control socket: one method a verb.

Every answer is made of what the parts already know; what takes long (a sync) is awaited, never polled. Arguments come
from another process and are checked here.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from metricsd import modes
from metricsd.clock import Clock
from metricsd.control_server import Handler
from metricsd.delivering import Delivering
from metricsd.errors import MetricsdError, ModeForced, StoreUnavailable, UsageError
from metricsd.failover import Mode
from metricsd.governor import Governor
from metricsd.storekeeper import StoreKeeper
from metricsd.sync.realtime import Realtime
from metricsd.sync.report import Report
from metricsd.syncing import Syncing

AUTO = "auto"
RATE_FRESH_S = 10.0
"""The rate at which a backlog is taken in is told for this long after the last captures came in."""


class Parts(NamedTuple):
    """What the verbs are about."""

    keeper: StoreKeeper
    governor: Governor
    syncing: Syncing
    realtime: Realtime
    delivering: Delivering
    clock: Clock


class Host(Protocol):
    """The daemon itself."""

    @property
    def ready(self) -> bool:
        """Whether everything is up."""
        ...

    @property
    def spool_trouble(self) -> str | None:
        """Why captures that are stored cannot be deleted."""
        ...

    async def take_all(self) -> None:
        """Take in, or send, what lies in the spool."""
        ...

    def hurry(self) -> None:
        """Send soon what others should hear of."""
        ...

    def stop(self) -> None:
        """Begin the orderly end."""
        ...


class Verbs:
    """The control socket's verbs."""

    def __init__(self, host: Host, parts: Parts) -> None:
        self._host = host
        self._parts = parts

    def handlers(self) -> dict[str, Handler]:
        """Return every verb with what answers it."""
        known: dict[str, Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]] = {
            "ping": self._ping,
            "status": self._status,
            "sync": self._sync,
            "mode": self._mode,
            "edited": self._edited,
            "stop": self._stop,
        }
        return known

    async def _ping(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"ready": self._host.ready, "pid": os.getpid()}

    async def _status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Say what only the living daemon knows."""
        parts = self._parts
        stream, progress, trouble = parts.realtime.state, parts.keeper.progress, parts.keeper.trouble
        is_taking = progress.left > 0 and parts.clock.monotonic() - progress.at < RATE_FRESH_S
        return {
            "ready": self._host.ready,
            "pid": os.getpid(),
            "mode": self._told_mode(),
            "store_trouble": self._host.spool_trouble if trouble is None else trouble.reason,
            "taking_per_s": round(progress.per_s, 1) if is_taking else None,
            "next_sync_us": parts.syncing.next_us,
            "realtime": stream.live,
            "realtime_reason": stream.reason,
        }

    async def _sync(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Take in what lies in the spool and sync it; without a store, send it."""
        if not self._host.ready:
            raise MetricsdError("the daemon is still starting: try again in a moment")
        if self._parts.governor.is_silent_by_hand:
            raise ModeForced
        self._parts.governor.look_at_login()
        await self._host.take_all()
        report = await self._report()
        done: dict[str, Any] = msgspec.to_builtins(report)
        return {**done, "exit_code": report.exit_code}

    async def _report(self) -> Report:
        parts = self._parts
        if parts.governor.mode is Mode.REMOTE_ONLY:
            stored = await parts.delivering.deliver()
            return Report(ok=True, mode=parts.governor.mode.value, pushed_events=stored)
        if parts.keeper.trouble is not None:
            raise StoreUnavailable(parts.keeper.trouble.reason)
        return await parts.syncing.now()

    async def _mode(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Say the mode; with `mode` force one first, or let the evidence decide again (`auto`)."""
        wanted, until_us = request.get("mode"), request.get("until_us")
        if wanted == AUTO:
            self._parts.governor.release()
        elif wanted is not None:
            self._parts.governor.force(_mode_of(wanted), _until_of(until_us))
        return self._told_mode()

    def _told_mode(self) -> dict[str, Any]:
        governor = self._parts.governor
        return modes.section(governor.now, governor.forced)

    async def _edited(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send what a command edited in the store."""
        self._host.hurry()
        return {}

    async def _stop(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._host.stop()
        return {"pid": os.getpid()}


def _mode_of(wanted: object) -> Mode:
    try:
        return Mode(str(wanted))
    except ValueError as error:
        raise UsageError(f"{wanted!r} is no mode: {', '.join(Mode)} or {AUTO}") from error


def _until_of(until_us: object) -> int | None:
    if until_us is None or (type(until_us) is int and until_us > 0):
        return until_us
    raise UsageError(f"{until_us!r} is no time")
