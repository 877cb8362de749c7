"""When the daemon syncs: what makes a round happen, what does not, and what several rounds add up to."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from metricsd.config import Paths
from metricsd.errors import StoreUnavailable
from metricsd.identity import Credentials, save_login
from metricsd.ids import DeviceId
from metricsd.store import state
from metricsd.store.connection import Store
from metricsd.sync.report import Conflicts, Failure, Rejected, Report
from metricsd.syncing import MODE, Syncing, added, remember_mode, until_done
from tests.fakes import FakeClock


class Rounds:
    """An engine whose rounds end as told."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.next_s = 300.0
        self.reports: list[Report] = []
        self.broken = False

    async def tick(self, *, reason: str = "interval") -> Report:
        if self.broken:
            raise StoreUnavailable
        self.reasons.append(reason)
        return self.reports.pop(0) if self.reports else Report(ok=True, mode="hybrid")

    async def seconds_to_next(self) -> float:
        return self.next_s


class Planner:
    """Remembers what was planned."""

    def __init__(self) -> None:
        self.planned: list[int] = []

    def sync_at(self, at_us: int) -> None:
        self.planned.append(at_us)


class Setup:
    """A Syncing whose loop runs, and its surroundings."""

    def __init__(self, home: Paths, clock: FakeClock) -> None:
        self.home = home
        self.clock = clock
        self.rounds = Rounds()
        self.planner = Planner()
        self.remembered: list[Report] = []
        self.syncing: Syncing | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Syncing]:
        async def remember(report: Report) -> None:
            self.remembered.append(report)

        self.syncing = Syncing(self.rounds, self.planner, self.home, self.clock, remember)
        task = asyncio.create_task(self.syncing.loop())
        await _settled()
        yield self.syncing
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _settled() -> None:
    """Let every task run until it waits."""
    for _ in range(50):
        await asyncio.sleep(0)


def _log_in(home: Paths, token: str = "t") -> None:
    save_login(home, Credentials("http://127.0.0.1:9", token, b"k" * 32, "t", "u", DeviceId("d" * 32)), parent=None)


@pytest.fixture
def setup(home: Paths, clock: FakeClock) -> Setup:
    return Setup(home, clock)


async def test_nothing_is_planned_without_a_login(setup: Setup) -> None:
    """An idle daemon of somebody who never logged in does nothing at all, however often it is asked."""
    setup.rounds.next_s = 0.0
    async with setup.running() as syncing:
        syncing.want()
        await _settled()
        syncing.notice_login()
        await _settled()
    assert (setup.rounds.reasons, setup.planner.planned, syncing.next_us) == ([], [], None)


async def test_a_login_is_noticed_at_once(setup: Setup) -> None:
    """The round after a login does not wait for the interval; without a change nothing more happens."""
    async with setup.running() as syncing:
        _log_in(setup.home)
        syncing.notice_login()
        await _settled()
        syncing.notice_login()
        await _settled()
    assert setup.rounds.reasons == ["login"]
    assert syncing.next_us == setup.clock.now_us() + 300_000_000


async def test_a_due_round_runs_and_the_next_is_planned(setup: Setup) -> None:
    """The schedule asks, a round runs, the engine says when to come again."""
    _log_in(setup.home)
    async with setup.running() as syncing:
        setup.rounds.next_s = 0.0
        syncing.want()
        await _settled()
    assert setup.rounds.reasons[:1] == ["interval"]
    assert len(setup.remembered) == 1
    assert setup.planner.planned[0] == setup.clock.now_us() + 300_000_000


async def test_a_round_that_was_slept_through_is_spread_once(setup: Setup) -> None:
    """After sleep the round waits for its jitter, and then runs though it is still late."""
    _log_in(setup.home)
    async with setup.running() as syncing:
        setup.rounds.next_s = 7.0
        syncing.want()
        await _settled()
        assert setup.rounds.reasons == []
        assert setup.planner.planned[-1] == setup.clock.now_us() + 7_000_000
        syncing.want()
        await _settled()
    assert setup.rounds.reasons == ["interval"]


async def test_a_refused_login_is_not_tried_again_until_it_changes(setup: Setup) -> None:
    """Auth failure stops and says so; a new login starts again; `sync --now` may always try."""
    _log_in(setup.home)
    async with setup.running() as syncing:
        setup.rounds.next_s = 0.0
        setup.rounds.reports = [Report(error=Failure("auth", "no"))]
        syncing.want()
        await _settled()
        for _ in range(3):
            syncing.want()
            syncing.notice_login()
            await _settled()
        assert setup.rounds.reasons == ["interval"]
        assert syncing.next_us is None
        _log_in(setup.home, "another")
        syncing.notice_login()
        await _settled()
        assert setup.rounds.reasons == ["interval", "login"]
        await syncing.now()
    assert setup.rounds.reasons[-1] == "demand"


async def test_a_store_that_cannot_be_used_postpones(setup: Setup) -> None:
    """A full disk does not end the task; it tries again in a few seconds."""
    _log_in(setup.home)
    async with setup.running() as syncing:
        setup.rounds.next_s = 0.0
        setup.rounds.broken = True
        syncing.want()
        await _settled()
        assert setup.planner.planned[-1] == setup.clock.now_us() + 5_000_000
        setup.rounds.broken = False
        syncing.want()
        await _settled()
    assert setup.rounds.reasons == ["interval"]


async def test_rounds_go_on_while_there_is_more() -> None:
    """`sync --now` ends when nothing is left, and reports the sum."""
    rounds = Rounds()
    rounds.reports = [
        Report(ok=True, more=True, pushed_events=5),
        Report(ok=True, more=True, pushed_events=5),
        Report(ok=True, pushed_events=2),
    ]
    total = await until_done(rounds.tick)
    assert (total.pushed_events, total.more, len(rounds.reasons)) == (12, False, 3)


async def test_a_failed_round_ends_the_series() -> None:
    """What was pushed before the failure is still reported, with the failure."""
    rounds = Rounds()
    rounds.reports = [
        Report(ok=True, more=True, pushed_events=5),
        Report(more=True, error=Failure("unreachable", "gone")),
    ]
    total = await until_done(rounds.tick)
    assert (total.ok, total.pushed_events, len(rounds.reasons)) == (False, 5, 2)


def test_reports_add_up() -> None:
    """Every counter is summed; lists are joined; the state is the later round's."""
    one = Report(
        ok=True, pushed_events=1, pushed_records=2, pulled_events=3, pulled_records=4, duration_ms=5,
        conflicts=Conflicts(1, 1, {"latest_wins": 1}), rejected=[Rejected("a", "bad")], notes=["clock"],
    )  # fmt: skip
    other = Report(
        ok=True, mode="hybrid", pushed_events=10, pushed_records=20, pulled_events=30, pulled_records=40, duration_ms=50,
        conflicts=Conflicts(2, 7, {"latest_wins": 1, "merge_fields": 1}), notes=["clock"],
    )  # fmt: skip
    assert added(one, other) == Report(
        ok=True, mode="hybrid", pushed_events=11, pushed_records=22, pulled_events=33, pulled_records=44, duration_ms=55,
        conflicts=Conflicts(3, 7, {"latest_wins": 2, "merge_fields": 1}), rejected=[Rejected("a", "bad")], notes=["clock"],
    )  # fmt: skip


def test_mode_keeps_since_when_it_is_so(store: Store, clock: FakeClock) -> None:
    """The time is that of the change, not of the last round."""

    def since() -> tuple[str, int]:
        found = json.loads(state.get_text(store, MODE))
        return found["reason"], found["since"]

    began = clock.now_us()
    failed = Report(error=Failure("unreachable", "gone"))
    remember_mode(store, failed)
    clock.advance(60.0)
    remember_mode(store, failed)
    assert since() == ("unreachable: gone", began)
    remember_mode(store, Report(ok=True, mode="hybrid"))
    assert since() == ("synced", clock.now_us())
