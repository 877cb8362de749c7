"""Rounds in a hurry: within a second of what others should hear of, and never more often than that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from metricsd.config import Paths
from metricsd.errors import AuthError
from metricsd.ids import line_id
from metricsd.model import Event, Kind, Outcome
from metricsd.sink import NOTHING, both, plus, ticked
from metricsd.store.connection import Store
from metricsd.store.events import Identified
from metricsd.store.ingest import Ingest, Taken
from metricsd.sync.engine import NEWS
from metricsd.sync.report import Failure, Report
from metricsd.syncing import HURRY_GAP_S, NEWS_GAP_S
from tests.daemon.test_syncing import Setup, _log_in, _settled
from tests.fakes import FakeClock


@pytest.fixture
def setup(home: Paths, clock: FakeClock) -> Setup:
    _log_in(home)
    return Setup(home, clock)


@contextlib.asynccontextmanager
async def hurrying(setup: Setup) -> AsyncIterator[None]:
    """Run both loops."""
    async with setup.running() as syncing:
        task = asyncio.create_task(syncing.hurry_loop())
        await _settled()
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_critical_change_is_sent_at_once_and_the_schedule_stays(setup: Setup) -> None:
    """No waiting for the interval; the next regular round is planned as the engine says."""
    async with hurrying(setup):
        began = setup.clock.monotonic()
        assert setup.syncing is not None
        setup.syncing.hurry()
        await _settled()
        assert setup.rounds.reasons == ["hurry"]
        assert setup.clock.monotonic() == began
        assert setup.syncing.next_us == setup.clock.now_us() + 300_000_000


async def test_a_burst_of_changes_is_one_push_a_second(setup: Setup) -> None:
    """A hundred failures: the first goes at once, all others together a second later."""
    async with hurrying(setup):
        assert setup.syncing is not None
        began = setup.clock.monotonic()
        setup.syncing.hurry()
        await _settled()
        for _ in range(100):
            setup.syncing.hurry()
        await _settled()
        assert len(setup.rounds.reasons) == 2
        assert setup.clock.monotonic() - began == pytest.approx(HURRY_GAP_S)


async def test_news_are_pulled_sooner_than_pushes_repeat(setup: Setup) -> None:
    """A round of another device is told in two or three words; the later ones are pulled together, and soon."""
    async with hurrying(setup):
        assert setup.syncing is not None
        began = setup.clock.monotonic()
        for _ in range(3):
            setup.syncing.hear()
            await _settled()
        assert setup.clock.monotonic() - began == pytest.approx(2 * NEWS_GAP_S)
        assert setup.rounds.reasons == [NEWS] * 3


async def test_a_spread_is_waited_for_and_does_not_hold_up_what_is_urgent(setup: Setup) -> None:
    """News for a large fleet come late on purpose; an own change meanwhile goes at its own time."""
    async with hurrying(setup):
        assert setup.syncing is not None
        began = setup.clock.monotonic()
        setup.syncing.hear(after_s=20.0)
        setup.syncing.hurry()
        await _settled()
        assert setup.rounds.reasons == ["hurry"]
        assert setup.clock.monotonic() == began
        setup.syncing.hear(after_s=20.0)
        for _ in range(10):
            await _settled()
        assert len(setup.rounds.reasons) == 2
        assert setup.clock.monotonic() == pytest.approx(began + 20.0)


async def test_while_rounds_fail_only_the_schedule_asks(setup: Setup) -> None:
    """A failing tool a second must not hammer a cloud that is down; a stream that opened says that it is back."""
    async with hurrying(setup):
        assert setup.syncing is not None
        setup.rounds.reports = [Report(error=Failure("unreachable", "gone"))]
        setup.syncing.hurry()
        await _settled()
        for _ in range(5):
            setup.syncing.hurry()
            setup.syncing.hear()
            await _settled()
        assert len(setup.rounds.reasons) == 1
        setup.syncing.hear(connected=True)
        await _settled()
        setup.syncing.hurry()
        await _settled()
        assert setup.rounds.reasons == ["hurry"] * 3


async def test_a_refused_login_is_not_hurried(setup: Setup) -> None:
    """Nothing is sent with it, however urgent."""
    async with hurrying(setup):
        assert setup.syncing is not None
        setup.rounds.errors = [AuthError("no")]
        setup.syncing.hurry()
        await _settled()
        setup.syncing.hear(connected=True)
        await _settled()
        assert len(setup.rounds.reasons) == 1


async def test_a_store_that_cannot_be_used_does_not_end_the_task(setup: Setup) -> None:
    """The next one is tried as before."""
    async with hurrying(setup):
        assert setup.syncing is not None
        setup.rounds.broken = True
        setup.syncing.hurry()
        await _settled()
        setup.rounds.broken = False
        setup.syncing.hurry()
        await _settled()
        assert setup.rounds.reasons == ["hurry"]


@pytest.mark.parametrize(
    ("kind", "outcome", "critical"),
    [
        (Kind.SESSION_ENDED, None, True),
        (Kind.TURN_FAILED, None, True),
        (Kind.TOOL_USED, Outcome.FAILED, True),
        (Kind.TOOL_USED, Outcome.OK, False),
        (Kind.TOOL_DENIED, Outcome.DENIED, False),
        (Kind.SESSION_STARTED, None, False),
        (Kind.PROMPT_SUBMITTED, None, False),
    ],
)
def test_the_store_says_what_is_critical(store: Store, kind: Kind, outcome: Outcome | None, critical: bool) -> None:
    """An ended session, a failed tool or turn; a second look at the same line is none."""
    event = Event(at=store.clock.now_us(), kind=kind, name="x", app="claude-code", session="s", outcome=outcome)
    item = Identified(line_id(b"x", event.at // 1000, 0), event)
    ingest = Ingest(store)
    assert ingest.take([item]).critical is critical
    assert ingest.take([item]).critical is False


def test_criticality_survives_adding_up() -> None:
    """One critical event in a round of many makes the round critical."""
    one, none = Taken(1, 0, 0, 0, critical=True), Taken(1, 0, 0, 0)
    assert plus(one, none).critical and plus(none, one).critical and not plus(none, none).critical
    assert both(ticked(one), NOTHING).critical and both(NOTHING, ticked(one)).critical
    assert not both(ticked(none), NOTHING).critical
