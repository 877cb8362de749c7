"""Lets every part of the daemon follow the mode, and the mode follow what the parts meet.

Outcomes, the store's troubles, logins, changes of the network and sleep go to the governor; what it enters goes to
sync, stream, prober and deliveries. Only here does one part's news become another part's work, so that no part knows
the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import structlog

from metricsd.direct import Direct
from metricsd.errors import StoreError
from metricsd.failover import Mode, Reason
from metricsd.governor import Governor
from metricsd.health import Outcome
from metricsd.modes import Change
from metricsd.prober import Prober
from metricsd.schedule import Schedule
from metricsd.store import outbox
from metricsd.storekeeper import StoreKeeper
from metricsd.sync.realtime import NOT_LOGGED_IN, Realtime
from metricsd.sync.report import Report
from metricsd.syncing import Syncing
from metricsd.writer import Writer

T = TypeVar("T")

log = structlog.get_logger("failover")


class Steered(NamedTuple):
    """The parts that follow."""

    governor: Governor
    syncing: Syncing
    realtime: Realtime
    prober: Prober
    direct: Direct


class Steering:
    """The joints between the mode and the parts of one daemon. Call `begin` before anything happens."""

    def __init__(self, keeper: StoreKeeper, writer: Writer, schedule: Schedule) -> None:
        self._keeper = keeper
        self._writer = writer
        self._schedule = schedule
        self._steered: Steered | None = None
        self._could_sync = False
        self._sync_failed = False
        self._has_turned = False

    def begin(self, steered: Steered) -> None:
        """Follow from now on, beginning with how the store stands."""
        self._steered = steered
        self._could_sync = steered.governor.allows_rounds
        self.note_store()
        steered.governor.step()

    @property
    def _parts(self) -> Steered:
        if self._steered is None:
            raise RuntimeError("begin() comes first")
        return self._steered

    def has_turned(self) -> bool:
        """Return whether the mode is another one since this was last asked."""
        turned, self._has_turned = self._has_turned, False
        return turned

    async def run(self, work: Callable[..., T], /, *args: object) -> T:
        """Do what uses the store in its thread; a store that fails there changes the mode."""
        try:
            return await self._writer.run(self._keeper.call, work, *args)
        finally:
            self.note_store()

    def note_store(self) -> None:
        """Let the mode follow the store."""
        if self._steered is not None:
            trouble = self._keeper.trouble
            self._steered.governor.note_store(None if trouble is None else trouble.reason)
            self._look_at_gate()

    def on_outcome(self, outcome: Outcome) -> None:
        """Take in what an exchange says about the cloud."""
        self._parts.governor.note(outcome)
        self._look_at_gate()
        self._parts.prober.look_again()

    def on_heard(self) -> None:
        """Take in that something came from the cloud."""
        self._parts.governor.note_heard()

    def on_lost(self) -> None:
        """The stream is no more: ask at once whether the cloud is."""
        self._parts.prober.soon()

    async def after_round(self, report: Report) -> None:
        """Let the stream and the mode know how a round ended."""
        if report.ok and self._sync_failed:
            self._parts.realtime.note_recovery()
        self._sync_failed = not report.ok
        await self.measure_backlog()

    async def measure_backlog(self) -> None:
        """Tell how much waits, where that decides: at the end of an outage, and until the backlog is short."""
        governor = self._parts.governor
        if not governor.is_cut_off and governor.now.reason is not Reason.BACKLOG:
            return
        with contextlib.suppress(StoreError):
            governor.note_backlog(await self.run(outbox.pending_events, self._keeper.store))

    def on_enter(self, before: Change, now: Change) -> None:
        """Let every part behave by the new mode."""
        if self._steered is None:
            return
        if before.mode is not now.mode:
            self._has_turned = True
            if Mode.HYBRID in (before.mode, now.mode):
                self._steered.realtime.connect_anew()
            if before.mode is Mode.REMOTE_ONLY:
                self._steered.direct.forget()
        self._look_at_gate()
        self._steered.prober.look_again()

    def find_pause(self) -> str | None:
        """Return why there is no stream of news in this mode, None when there is one."""
        now = self._parts.governor.now
        if now.mode is Mode.HYBRID:
            return None
        return NOT_LOGGED_IN if now.reason is Reason.NO_LOGIN else f"paused: the mode is {now.mode.value}"

    def look_at_login(self) -> None:
        """Let everything follow a login, a logout or a renewed token."""
        self._parts.governor.look_at_login()
        self._parts.syncing.notice_login()
        self._parts.realtime.notice_login()
        self._look_at_gate()

    def on_network(self) -> None:
        """The network is another one: what was known of the cloud is about the one before."""
        log.debug("network.changed")
        self._parts.governor.note_network()
        self._parts.prober.soon(anew=True)
        self._parts.syncing.retry()

    def on_wake(self) -> None:
        """The machine slept, or its clock jumped."""
        self._schedule.look_again()
        self._parts.syncing.look_again()
        self._parts.governor.note_wake()
        # After sleep the connection is dead, and nobody would notice for two heartbeats.
        self._parts.realtime.connect_anew(slept=True)
        self._parts.prober.soon(anew=True)
        self._parts.syncing.retry()

    def _look_at_gate(self) -> None:
        """Sync at once when that is allowed again."""
        can_sync = self._parts.governor.allows_rounds
        if can_sync and not self._could_sync:
            self._parts.syncing.resume()
        self._could_sync = can_sync
