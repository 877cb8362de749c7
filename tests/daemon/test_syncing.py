"""When the daemon syncs: what makes a round happen, what does not, and what several rounds add up to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
import structlog

from metricsd.config import Failover, Paths
from metricsd.errors import AuthError, CloudError, CloudUnreachable, Fault, ModeForced, StoreUnavailable
from metricsd.failover import Mode
from metricsd.governor import Governor
from metricsd.health import outcome_of
from metricsd.identity import Credentials, save_login
from metricsd.ids import DeviceId
from metricsd.sync.report import Conflicts, Failure, Rejected, Report, failure_of
from metricsd.syncing import Syncing, added, until_done
from tests.fakes import FakeClock


class Rounds:
    """An engine whose rounds end as told."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.next_s = 300.0
        self.reports: list[Report] = []
        self.errors: list[CloudError | None] = []
        self.broken = False
        self.on_outcome: Callable[[CloudError | None], None] = lambda error: None

    async def tick(self, *, reason: str = "interval") -> Report:
        if self.broken:
            raise StoreUnavailable
        self.reasons.append(reason)
        if self.errors:
            error = self.errors.pop(0)
            self.on_outcome(error)
            return Report(ok=error is None, error=None if error is None else failure_of(error))
        self.on_outcome(None)
        return self.reports.pop(0) if self.reports else Report(ok=True)

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
        self.governor = Governor(home, Failover(), clock)
        self.rounds.on_outcome = self.note

    def note(self, error: CloudError | None) -> None:
        """Let the mode follow an outcome, as the daemon does."""
        answers = 0 if error else 4
        self.governor.note(outcome_of(error, at_s=self.clock.monotonic(), took_s=0.1, answers=answers))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Syncing]:
        async def remember(report: Report) -> None:
            self.remembered.append(report)

        self.governor.look_at_login()
        self.syncing = Syncing(
            self.rounds, self.planner, self.home, self.clock, self.governor, confirm_s=5.0, after_round=remember
        )
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
        setup.governor.look_at_login()
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


async def test_a_round_that_was_planned_by_a_wrong_clock_is_planned_anew(setup: Setup) -> None:
    """Ten years ahead, then set right: the next round comes in this interval, and nothing runs before its time."""
    _log_in(setup.home)
    async with setup.running() as syncing:
        setup.clock.jump(-10 * 365 * 86_400.0)
        assert syncing.next_us is not None and syncing.next_us > setup.clock.now_us() + 300_000_000
        syncing.look_again()
        await _settled()
        assert syncing.next_us == setup.planner.planned[-1] == setup.clock.now_us() + 300_000_000
        assert setup.rounds.reasons == []
        syncing.look_again()
        syncing.resume()
        await _settled()
    assert setup.rounds.reasons == ["recovered"], "a cloud that is back does not wait for the plan"


async def test_a_refused_login_is_not_tried_again_until_it_changes(setup: Setup) -> None:
    """Auth failure stops and says so; a new login starts again; `sync --now` may always try."""
    _log_in(setup.home)
    async with setup.running() as syncing:
        setup.rounds.next_s = 0.0
        setup.rounds.errors = [AuthError("no")]
        syncing.want()
        await _settled()
        for _ in range(3):
            syncing.want()
            syncing.notice_login()
            await _settled()
        assert setup.rounds.reasons == ["interval"]
        assert syncing.next_us is None
        _log_in(setup.home, "another")
        setup.governor.look_at_login()
        syncing.notice_login()
        await _settled()
        assert setup.rounds.reasons == ["interval", "login"]
        await syncing.now()
    assert setup.rounds.reasons[-1] == "demand"


async def test_in_local_only_there_are_no_rounds_but_demanded_ones(setup: Setup) -> None:
    """Neither the schedule nor a hurry nor news; a demand goes through, and its success brings the mode back."""
    _log_in(setup.home)
    async with setup.running() as syncing:
        hurry = asyncio.create_task(syncing.hurry_loop())
        setup.clock.advance(60.0)
        setup.rounds.next_s = 0.0
        setup.rounds.errors = [CloudUnreachable("gone", Fault.REFUSED)]
        syncing.want()
        await _settled()
        assert (setup.governor.mode, syncing.next_us) == (Mode.LOCAL_ONLY, None)
        syncing.want()
        syncing.hurry()
        syncing.hear(connected=True)
        await _settled()
        assert setup.rounds.reasons == ["interval"]
        setup.clock.advance(60.0)
        setup.rounds.next_s = 300.0
        report = await syncing.now()
        assert (report.ok, report.mode) == (True, "hybrid")
        assert syncing.next_us == setup.clock.now_us() + 300_000_000
        hurry.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await hurry
    assert setup.rounds.reasons == ["interval", "demand"]


async def test_when_the_cloud_is_back_a_round_follows_at_once(setup: Setup) -> None:
    """It does not wait for the interval, and it forgets the pause that failures had earned."""
    _log_in(setup.home)
    async with setup.running() as syncing:
        setup.clock.advance(60.0)
        setup.rounds.errors = [CloudUnreachable("gone", Fault.REFUSED)]
        await syncing.now()
        setup.clock.advance(60.0)
        setup.note(None)
        assert setup.governor.allows_rounds
        syncing.resume()
        await _settled()
    assert setup.rounds.reasons == ["demand", "recovered"]


async def test_a_forced_local_only_holds_against_a_demand(setup: Setup) -> None:
    """A person wants nothing sent, and is told how to end that."""
    _log_in(setup.home)
    async with setup.running() as syncing:
        setup.governor.force(Mode.LOCAL_ONLY)
        with pytest.raises(ModeForced, match="metricsd mode auto"):
            await syncing.now()
        setup.governor.release()
        assert (await syncing.now()).ok
    assert setup.rounds.reasons == ["demand"]


async def test_an_impairment_is_confirmed_to_be_over_soon(setup: Setup) -> None:
    """After one good round of an impaired cloud the next does not wait for twice the interval."""
    _log_in(setup.home)
    async with setup.running() as syncing:
        for _ in range(5):
            setup.governor.note(
                outcome_of(CloudUnreachable("500", Fault.SERVER), at_s=setup.clock.monotonic(), took_s=0.1, answers=1)
            )
            setup.clock.advance(2.0)
        setup.rounds.next_s = 600.0
        await syncing.now()
        assert syncing.next_us == setup.clock.now_us() + 5_000_000
        setup.clock.advance(5.0)
        syncing.want()
        await _settled()
        assert not setup.governor.is_gentle
    assert setup.rounds.reasons == ["demand", "interval"]


async def test_a_failure_is_logged_once(setup: Setup) -> None:
    """What fails the same way again is an attempt, and attempts are for debugging."""
    _log_in(setup.home)
    async with setup.running() as syncing:
        setup.rounds.errors = [CloudUnreachable("500", Fault.SERVER)] * 5
        with structlog.testing.capture_logs() as logs:
            for _ in range(6):
                await syncing.now()
    levels = [entry["log_level"] for entry in logs if entry["event"] == "round.failed"]
    assert levels == ["warning", *["debug"] * 4]


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
