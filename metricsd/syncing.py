"""When the daemon syncs: on its schedule, after a login, when the cloud is back, on demand, and within a second when
somebody should hear of something; never two rounds at a time, and of the last sort never more than one a second.

The engine decides how a round goes and when the next one is due, the failover mode whether there are rounds at all;
this only waits and asks. A demand always goes through, except when a person wants nothing sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from metricsd.clock import US_PER_S, Clock
from metricsd.config import Paths
from metricsd.errors import ModeForced, StoreUnavailable
from metricsd.failover import Mode
from metricsd.identity import find_login_mark
from metricsd.sync.engine import NEWS
from metricsd.sync.report import Report

MORE_ROUNDS_MAX = 10_000
"""Rounds that one `sync --now` may add while a round says that there is more; a backlog of any size is far below."""
STORE_PAUSE_S = 5.0
HURRY_GAP_S = 1.0
"""Between the starts of two rounds that something here asked for: a hundred failures in a second are one push."""
NEWS_GAP_S = 0.25
"""Between the starts of two rounds that news asked for: a round of another device is told in two or three words."""
HURRY_STEP_S = 0.25
"""How soon an earlier time takes effect while a later one is waited for."""
FULL = "hurry"
REGULAR = "interval"

log = structlog.get_logger("sync")


class Rounds(Protocol):
    """The engine, as far as this needs it."""

    async def tick(self, *, reason: str = ...) -> Report:
        """Run one round; raises StoreError only."""
        ...

    async def seconds_to_next(self) -> float:
        """Return how long to wait for the next round."""
        ...


class Planner(Protocol):
    """Who calls back at a time."""

    def sync_at(self, at_us: int) -> None:
        """Plan the next round."""
        ...


class Gate(Protocol):
    """The failover mode, as far as this needs it."""

    @property
    def mode(self) -> Mode:
        """The mode in force."""
        ...

    @property
    def allows_rounds(self) -> bool:
        """Whether rounds may run by themselves."""
        ...

    @property
    def is_silent_by_hand(self) -> bool:
        """Whether not even a demand goes through."""
        ...

    @property
    def is_convalescent(self) -> bool:
        """Whether one more good round would end an impairment."""
        ...


class Syncing:
    """The daemon's sync task."""

    def __init__(
        self,
        rounds: Rounds,
        planner: Planner,
        paths: Paths,
        clock: Clock,
        gate: Gate,
        *,
        confirm_s: float,
        after_round: Callable[[Report], Awaitable[None]],
    ) -> None:
        """`confirm_s` is the pause before the round that would end an impairment."""
        self._rounds = rounds
        self._planner = planner
        self._paths = paths
        self._clock = clock
        self._gate = gate
        self._confirm_s = confirm_s
        self._after_round = after_round
        self._wanted = asyncio.Event()
        self._busy = asyncio.Lock()
        self._login = find_login_mark(paths)
        self._put_off = False
        self._failing = False
        self._is_back = False
        self._is_stale = False
        self._told: str | None = None
        self._hurried = asyncio.Event()
        self._hurry_at = 0.0
        self._hurry_kind = FULL
        self._hurry_began = -HURRY_GAP_S
        self.next_us: int | None = None

    def want(self) -> None:
        """Ask for a round because its time has come."""
        self._wanted.set()

    def resume(self) -> None:
        """Ask for a round now and forget earlier failures: rounds are allowed again, or the network is another one.

        A round that is under way is that round already.
        """
        if not self._busy.locked():
            self._is_back = True
            self._wanted.set()

    def retry(self) -> None:
        """Do so if rounds failed lately."""
        if self._failing:
            self.resume()

    def look_again(self) -> None:
        """Plan the next round anew, because the clock was set: by the wrong one it may lie years ahead."""
        self._is_stale = True
        self._wanted.set()

    def hurry(self) -> None:
        """Ask for a round now, because something here should be sent; one a second at most, and the schedule stays.

        While rounds fail the schedule alone decides: what happens here cannot get around its pauses.
        """
        if not self._failing:
            self._hurry(self._clock.monotonic(), HURRY_GAP_S, FULL)

    def hear(self, *, after_s: float = 0.0, connected: bool = False) -> None:
        """Ask for a round that only fetches, `after_s` from now, because another device has stored something.

        It sends nothing of what waits for the interval. While rounds fail there is none, unless the stream has just
        `connected`: then the cloud is back, and a whole round sends what has waited for it.
        """
        if connected or not self._failing:
            self._hurry(self._clock.monotonic() + after_s, NEWS_GAP_S, FULL if self._failing else NEWS)

    def _hurry(self, at: float, gap_s: float, kind: str) -> None:
        at = max(at, self._hurry_began + gap_s)
        if self._hurried.is_set():
            at = min(at, self._hurry_at)
            kind = FULL if FULL in (kind, self._hurry_kind) else NEWS
        self._hurry_at, self._hurry_kind = at, kind
        self._hurried.set()

    async def hurry_loop(self) -> None:
        """Run the rounds that were asked for in a hurry, for ever."""
        while True:
            await self._hurried.wait()
            # Somebody else may ask for an earlier time meanwhile.
            while (wait_s := self._hurry_at - self._clock.monotonic()) > 0:
                await self._clock.sleep(min(wait_s, HURRY_STEP_S))
            self._hurried.clear()
            kind = self._hurry_kind
            self._hurry_began = self._clock.monotonic()
            if not self._gate.allows_rounds:
                continue
            try:
                await self._round(kind)
                await self._plan()
            except StoreUnavailable as error:
                # The round on the schedule finds the same and says so.
                log.debug("hurry.postponed", reason=str(error))

    def notice_login(self) -> None:
        """Ask for a round if the login changed since the last one."""
        login = find_login_mark(self._paths)
        if login is not None and login != self._login:
            self._wanted.set()

    async def loop(self) -> None:
        """Sync when asked, for ever."""
        await self._or_later(self._plan)
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._or_later(self._turn)

    async def _or_later(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do what needs the store, or plan to come again when it cannot be used."""
        try:
            await work()
        except StoreUnavailable as error:
            log.debug("round.postponed", reason=str(error))
            self._plan_in(STORE_PAUSE_S)

    async def _turn(self) -> None:
        """Do what is due now: a round, or another time for one."""
        only_plans, self._is_stale = self._is_stale and not self._is_back, False
        if only_plans:
            await self._plan()
            return
        if self._gate.allows_rounds:
            reason = self._reason()
            if reason == REGULAR and not self._gate.is_convalescent and await self._puts_off():
                return
            self._is_back = False
            await self._round(reason)
        await self._plan()

    def _reason(self) -> str:
        if find_login_mark(self._paths) != self._login:
            return "login"
        return "recovered" if self._is_back else REGULAR

    async def _puts_off(self) -> bool:
        """Return whether the round must wait, and plan it then: it was slept through, or the clock was set back.

        Once only: the one round after a sleep is spread over some seconds, not put off for ever.
        """
        pause_s = await self._rounds.seconds_to_next()
        if pause_s <= 0 or self._put_off:
            self._put_off = False
            return False
        self._put_off = True
        self._plan_in(pause_s)
        return True

    async def now(self) -> Report:
        """Sync at once, whatever was planned, until nothing more is to be done; return what happened in all.

        Raises ModeForced when a person wants nothing sent.
        """
        if self._gate.is_silent_by_hand:
            raise ModeForced
        total = await until_done(lambda: self._round("demand"))
        await self._plan()
        return total

    async def _round(self, reason: str) -> Report:
        async with self._busy:
            login = find_login_mark(self._paths)
            report = await self._rounds.tick(reason=reason)
            self._failing = report.error is not None
            self._login = login
            await self._after_round(report)
            report.mode = self._gate.mode.value
        self._log_round(report)
        return report

    async def _plan(self) -> None:
        if not self._gate.allows_rounds:
            # Whoever changes the mode asks for the next round; until then nothing is due.
            self.next_us = None
            return
        pause_s = max(await self._rounds.seconds_to_next(), 0.0)
        self._plan_in(min(pause_s, self._confirm_s) if self._gate.is_convalescent else pause_s)

    def _log_round(self, report: Report) -> None:
        """Log what a round moved, and its failure once: the next ones like it are attempts."""
        if report.error is not None:
            is_new = self._told != report.error.code
            self._told = report.error.code
            write = log.warning if is_new else log.debug
            write("round.failed", code=report.error.code, reason=report.error.message)
            return
        self._told = None
        moved = report.pushed_events + report.pushed_records + report.pulled_events + report.pulled_records
        write = log.info if moved or report.rejected else log.debug
        write(
            "round.done",
            pushed_events=report.pushed_events,
            pushed_records=report.pushed_records,
            pulled_events=report.pulled_events,
            pulled_records=report.pulled_records,
            rejected=len(report.rejected),
            took_ms=report.duration_ms,
        )

    def _plan_in(self, seconds: float) -> None:
        self.next_us = self._clock.now_us() + int(seconds * US_PER_S)
        self._planner.sync_at(self.next_us)


async def until_done(do_round: Callable[[], Awaitable[Report]]) -> Report:
    """Run rounds until one fails or nothing more is to be done; return what happened in all."""
    total = await do_round()
    for _ in range(MORE_ROUNDS_MAX):
        if not (total.ok and total.more):
            break
        total = added(total, await do_round())
    return total


def added(one: Report, other: Report) -> Report:
    """Return the sum of two rounds that followed each other; state (mode, open conflicts, error) is the later one's."""
    other.pushed_events += one.pushed_events
    other.pushed_records += one.pushed_records
    other.pulled_events += one.pulled_events
    other.pulled_records += one.pulled_records
    other.duration_ms += one.duration_ms
    other.conflicts.add(one.conflicts.by_strategy)
    other.rejected = [*one.rejected, *other.rejected]
    other.notes = list(dict.fromkeys([*one.notes, *other.notes]))
    return other
