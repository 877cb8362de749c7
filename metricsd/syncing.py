"""When the daemon syncs: on its schedule, after a login, on demand, and within a second when somebody should hear of
something; never two rounds at a time, and of the last sort never more than one a second.

The engine decides how a round goes and when the next one is due; this only waits, asks and remembers since when sync
has been as it is. Without a login, or with one that the cloud refused, nothing is sent until the login changes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

import structlog

from metricsd.clock import US_PER_S, Clock
from metricsd.config import Paths
from metricsd.errors import StoreUnavailable
from metricsd.identity import LoginMark, find_login_mark
from metricsd.store import state
from metricsd.store.connection import Store
from metricsd.sync.engine import NEWS
from metricsd.sync.report import Report

MODE = "sync_mode"
"""State key: JSON {"current", "reason", "since": microseconds} of what the last round met."""
MORE_ROUNDS_MAX = 10_000
"""Rounds that one `sync --now` may add while a round says that there is more; a backlog of any size is far below."""
STORE_PAUSE_S = 5.0
HURRY_GAP_S = 1.0
"""Between the starts of two rounds that something here asked for: a hundred failures in a second are one push."""
NEWS_GAP_S = 0.25
"""Between the starts of two rounds that news asked for: a round of another device is told in two or three words."""
HURRY_STEP_S = 0.25
"""How soon an earlier time takes effect while a later one is waited for."""
AUTH = "auth"
FULL = "hurry"

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


class _Seen(NamedTuple):
    """The login that the last round used, and whether the cloud refused it."""

    login: LoginMark | None
    refused: bool


class Syncing:
    """The daemon's sync task."""

    def __init__(
        self,
        rounds: Rounds,
        planner: Planner,
        paths: Paths,
        clock: Clock,
        remember: Callable[[Report], Awaitable[None]],
    ) -> None:
        self._rounds = rounds
        self._planner = planner
        self._paths = paths
        self._clock = clock
        self._remember = remember
        self._wanted = asyncio.Event()
        self._busy = asyncio.Lock()
        self._seen = _Seen(find_login_mark(paths), refused=False)
        self._put_off = False
        self._failing = False
        self._hurried = asyncio.Event()
        self._hurry_at = 0.0
        self._hurry_kind = FULL
        self._hurry_began = -HURRY_GAP_S
        self.next_us: int | None = None

    def want(self) -> None:
        """Ask for a round because its time has come."""
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
            if not self._is_useful():
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
        if login is not None and login != self._seen.login:
            self._wanted.set()

    async def loop(self) -> None:
        """Sync when asked, for ever."""
        await self._plan()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._turn()
            except StoreUnavailable as error:
                log.warning("round.postponed", reason=str(error))
                self._plan_in(STORE_PAUSE_S)

    async def _turn(self) -> None:
        """Do what is due now: a round, or a later time for one."""
        if self._is_useful():
            new_login = find_login_mark(self._paths) != self._seen.login
            if not new_login and await self._puts_off():
                return
            await self._round("login" if new_login else "interval")
        await self._plan()

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
        """Sync at once, whatever was planned, until nothing more is to be done; return what happened in all."""
        total = await until_done(lambda: self._round("demand"))
        await self._plan()
        return total

    def _is_useful(self) -> bool:
        """Return whether a round could do anything: there is a login, and the cloud has not refused this one."""
        login = find_login_mark(self._paths)
        return login is not None and not (self._seen.refused and login == self._seen.login)

    async def _round(self, reason: str) -> Report:
        async with self._busy:
            login = find_login_mark(self._paths)
            report = await self._rounds.tick(reason=reason)
            self._failing = report.error is not None
            self._seen = _Seen(login, refused=report.error is not None and report.error.code == AUTH)
            if login is not None:
                await self._remember(report)
        _log_round(report)
        return report

    async def _plan(self) -> None:
        if self._is_useful():
            self._plan_in(max(await self._rounds.seconds_to_next(), 0.0))
        else:
            # A new login is noticed by itself; until then nothing is due.
            self.next_us = None

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


def remember_mode(store: Store, report: Report) -> None:
    """Keep since when sync has been as the round found it; a round like the one before changes nothing."""
    reason = "synced" if report.error is None else _reason(report.error.code, report.error.message)
    before = state.get_text(store, MODE)
    found = json.loads(before) if before else {}
    if (found.get("current"), found.get("reason")) == (report.mode, reason):
        return
    now = {"current": report.mode, "reason": reason, "since": store.clock.now_us()}
    with store.transaction():
        state.put(store, MODE, json.dumps(now))


def _reason(code: str, message: str) -> str:
    return AUTH if code == AUTH else f"{code}: {message}"


def _log_round(report: Report) -> None:
    if report.error is not None:
        log.warning("round.failed", code=report.error.code, reason=report.error.message)
        return
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
