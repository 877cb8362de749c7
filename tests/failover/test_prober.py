"""Probes: how soon a dead cloud is noticed, how soon a living one is believed, and how little that costs."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

import pytest
import structlog

from metricsd.config import Failover, Paths
from metricsd.errors import AuthError, CloudBusy, CloudError, CloudUnreachable, ConfigError, Fault, MetricsdError
from metricsd.failover import CloudHealth, Mode, Reason
from metricsd.governor import Governor
from metricsd.health import outcome_of
from metricsd.prober import Kind, Prober
from tests.failover.test_governor import log_in
from tests.fakes import FakeClock

SETTINGS = Failover()
REFUSED = CloudUnreachable("refused", Fault.REFUSED)
SILENT = CloudUnreachable("no answer", Fault.TIMEOUT)


class World:
    """A cloud that answers as told after some time, and everything around the prober on one clock."""

    def __init__(self, home: Paths, clock: FakeClock, settings: Failover = SETTINGS) -> None:
        log_in(home)
        self.clock = clock
        self.error: MetricsdError | None = None
        self.takes_s = 0.05
        self.beat: float | None = None
        self.asked: list[tuple[float, Kind]] = []
        self.measured = 0
        self.began = clock.monotonic()
        self.governor = Governor(home, settings, clock)
        self.prober = Prober(
            self.governor, self, settings, clock, beat_s=lambda: self.beat, before_good=self._measure, rng=Random(7)
        )

    async def ask(self, kind: Kind, timeout_s: float) -> None:
        self.asked.append((self.now_s, kind))
        is_silent = self.error is SILENT
        self.clock.advance(timeout_s if is_silent else min(self.takes_s, timeout_s))
        if self.error is not None:
            raise self.error
        if self.takes_s > timeout_s:
            raise SILENT

    async def close(self) -> None:
        self.asked.clear()

    async def _measure(self) -> None:
        self.measured += 1

    @property
    def now_s(self) -> float:
        return self.clock.monotonic() - self.began

    @property
    def mode(self) -> Mode:
        return self.governor.mode

    def round(self, error: CloudError | None = None) -> None:
        """A round of sync ends so."""
        answers = 0 if error else 4
        self.governor.note(outcome_of(error, at_s=self.clock.monotonic(), took_s=0.1, answers=answers))

    async def until_s(self, end_s: float) -> None:
        """Let the prober do what it does until then."""
        while self.now_s < end_s:
            await self.prober.tick()
            self.clock.advance(min(max(self.prober.wait_s(), 0.001), max(end_s - self.now_s, 0.001)))
            if self.beat is not None and self.error is None:
                self.governor.note_heard()

    async def seconds_until(self, mode: Mode, within_s: float) -> float:
        """Return how long it takes until the mode is that."""
        began = self.now_s
        while self.mode is not mode:
            assert self.now_s - began <= within_s, (self.mode, self.governor.now)
            await self.until_s(self.now_s + 0.1)
        return self.now_s - began


@pytest.fixture
def world(home: Paths, clock: FakeClock) -> World:
    made = World(home, clock)
    made.round()
    return made


async def test_silence_is_probed_cheaply_and_traffic_is_not(world: World) -> None:
    """A quiet cloud costs a cheap probe now and then; one that is talked with costs none."""
    await world.until_s(120.0)
    assert {kind for _, kind in world.asked} == {Kind.CHEAP}
    assert 8 <= len(world.asked) <= 12
    world.asked.clear()
    for _ in range(30):
        world.round()
        await world.until_s(world.now_s + 5.0)
    assert world.asked == []


async def test_a_stream_that_beats_needs_no_probe(home: Paths, clock: FakeClock) -> None:
    """Its heartbeat comes every 15 s, and that is proof enough."""
    world = World(home, clock)
    world.round()
    world.beat = 15.0
    for _ in range(40):
        await world.until_s(world.now_s + 15.0)
    assert world.asked == []


@pytest.mark.parametrize("beat", [None, 1.0, 15.0, 60.0])
async def test_a_black_hole_is_seen_in_time_whenever_it_begins(
    home: Paths, clock: FakeClock, beat: float | None
) -> None:
    """Without any traffic of ours, within `detect_s`, with a stream and without."""
    for start_s in (60.0, 63.7, 68.9, 71.2, 74.999):
        world = World(home, clock)
        world.round()
        world.beat = beat
        while world.now_s < start_s:
            await world.until_s(min(world.now_s + (beat or 5.0), start_s))
        world.error = SILENT
        took_s = await world.seconds_until(Mode.LOCAL_ONLY, 30.0)
        assert took_s <= SETTINGS.detect_s
        assert world.governor.now.reason is Reason.UNREACHABLE
        home.mode.unlink()


async def test_a_failed_round_is_followed_by_probes_at_once(world: World) -> None:
    """One 500 is no outage; if the probes find the same it is one, seconds later."""
    await world.until_s(10.0)
    world.error = CloudUnreachable("500", Fault.SERVER)
    world.round(CloudUnreachable("500", Fault.SERVER))
    assert world.mode is Mode.HYBRID
    assert await world.seconds_until(Mode.LOCAL_ONLY, 5.0) < 3.0
    assert world.asked[-1][1] is Kind.FULL


async def test_a_round_that_failed_by_itself_is_forgotten(world: World) -> None:
    """The probe finds the cloud well, and nothing changes."""
    await world.until_s(10.0)
    world.round(CloudUnreachable("reset", Fault.RESET))
    await world.until_s(13.0)
    assert world.asked[-1][1] is Kind.FULL
    assert world.mode is Mode.HYBRID
    assert not world.governor.is_suspect


@pytest.mark.parametrize(
    ("outage_s", "within_s"), [(6.0, 15.0), (60.0, 15.0), (590.0, 15.0), (700.0, 60.0), (7200.0, 60.0)]
)
@pytest.mark.parametrize("error", [REFUSED, SILENT])
async def test_a_cloud_that_is_back_is_believed_in_time(
    world: World, outage_s: float, within_s: float, error: CloudError
) -> None:
    """Hybrid again within 15 s after a short outage, within 60 s after a long one."""
    await world.until_s(20.0)
    world.error = error
    world.round(REFUSED)
    assert world.mode is Mode.LOCAL_ONLY
    await world.until_s(world.now_s + outage_s)
    world.error = None
    assert await world.seconds_until(Mode.HYBRID, within_s) <= within_s
    assert world.measured >= 2


async def test_a_change_of_the_network_makes_a_long_outage_a_new_one(world: World) -> None:
    """The laptop came home: 15 s, not 60; and the old network's probe is given up."""
    world.error = REFUSED
    world.round(REFUSED)
    await world.until_s(3600.0)
    world.governor.note_network()
    world.prober.soon(anew=True)
    world.error = None
    assert await world.seconds_until(Mode.HYBRID, 15.0) <= 15.0


async def test_probes_are_few_and_spread(world: World) -> None:
    """At most every 5 s for ten minutes, then every 25 s; each pause is another one."""
    world.error = REFUSED
    world.round(REFUSED)
    await world.until_s(600.0)
    early = len(world.asked)
    assert 120 <= early <= 210
    await world.until_s(4200.0)
    assert 144 <= len(world.asked) - early <= 250
    pauses = {round(later[0] - sooner[0], 3) for sooner, later in zip(world.asked, world.asked[1:], strict=False)}
    assert len(pauses) > 100


async def test_nobody_is_asked_without_a_login_or_against_a_persons_will(world: World, home: Paths) -> None:
    """A refused login, no login, a forced local_only: not one probe in an hour."""
    world.round(AuthError("revoked"))
    await world.until_s(3600.0)
    assert world.asked == []
    home.credentials.unlink()
    world.governor.look_at_login()
    world.prober.soon()
    await world.until_s(7200.0)
    assert world.asked == []
    log_in(home)
    world.governor.look_at_login()
    world.governor.force(Mode.LOCAL_ONLY)
    world.prober.soon(anew=True)
    await world.until_s(10_800.0)
    assert world.asked == []
    world.governor.release()
    await world.until_s(10_900.0)
    assert world.asked


async def test_a_revoked_login_is_found_by_a_probe_too(world: World) -> None:
    """During an outage the token was revoked: no round is needed to find out."""
    world.round(REFUSED)
    world.error = AuthError("revoked")
    await world.until_s(60.0)
    assert world.governor.cloud is CloudHealth.AUTH
    assert len(world.asked) == 1


async def test_a_forced_mode_ends_in_time_though_nothing_happens(world: World) -> None:
    """The prober's clock is the mode's clock."""
    world.governor.force(Mode.LOCAL_ONLY, world.clock.now_us() + 60_000_000)
    await world.until_s(59.0)
    assert world.governor.forced is not None
    assert await world.seconds_until(Mode.HYBRID, 2.0) <= 1.2


async def test_being_busy_or_misconfigured_is_no_outage(world: World) -> None:
    """429 to a probe, or a certificate file of ours that is gone: neither says that the cloud is away."""
    await world.until_s(20.0)
    for error in (CloudBusy("later", 3.0), ConfigError("sync.ca_file")):
        world.error = error
        await world.until_s(world.now_s + 300.0)
        assert world.mode is Mode.HYBRID


async def test_a_busy_cloud_is_not_probed_harder_for_what_came_before(world: World) -> None:
    """A cut connection, or one good answer after an outage, and then 429 for ten minutes: probes keep their usual pauses."""
    await world.until_s(20.0)
    world.error = CloudBusy("later", 60.0)
    world.round(CloudUnreachable("reset", Fault.RESET))
    await world.until_s(620.0)
    assert [kind for _, kind in world.asked].count(Kind.FULL) == 1
    assert len(world.asked) < 60
    world.error = REFUSED
    world.round(REFUSED)
    await world.until_s(660.0)
    world.error = None
    while not world.governor.is_promising:
        await world.until_s(world.now_s + 0.1)
    world.error = CloudBusy("later", 60.0)
    asked = len(world.asked)
    await world.until_s(world.now_s + 300.0)
    assert 60 <= len(world.asked) - asked <= 110


async def test_while_store_and_cloud_fail_probes_find_the_way_back(world: World) -> None:
    """Nothing else goes out then: two good answers, and captures go straight to the cloud."""
    await world.until_s(10.0)
    for _ in range(6):
        world.governor.note(
            outcome_of(CloudUnreachable("500", Fault.SERVER), at_s=world.clock.monotonic(), took_s=0.1, answers=1)
        )
    world.governor.note_store("full")
    assert world.governor.now[1:3] == (Mode.DEGRADED, Reason.STORE_AND_CLOUD)
    assert await world.seconds_until(Mode.REMOTE_ONLY, 15.0) <= 15.0


async def test_a_weekend_offline_is_a_few_lines_in_the_log(world: World) -> None:
    """Sixty hours without a network, the lid closed at night: transitions, no attempts, nothing that grows."""
    world.error = CloudUnreachable("no network", Fault.NAME)
    with structlog.testing.capture_logs() as logs:
        world.round(world.error)
        for hour in range(60):
            await world.until_s(world.now_s + 3600.0)
            if hour % 12 == 11:
                world.governor.note_wake()
                world.prober.soon(anew=True)
    written = [entry for entry in logs if entry["log_level"] != "debug"]
    assert len(written) < 10
    assert len(world.asked) > 5000
    assert len(world.governor.history) < 10
    world.error = None
    assert await world.seconds_until(Mode.HYBRID, 60.0) <= 60.0


class Hanging:
    """A cloud that never answers, and counts who asks."""

    def __init__(self) -> None:
        self.asked = 0
        self.open = 0

    async def ask(self, kind: Kind, timeout_s: float) -> None:
        self.asked += 1
        self.open += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.open -= 1

    async def close(self) -> None:
        assert self.open == 0


async def test_the_loop_gives_a_hanging_probe_up_for_another_network_and_ends_at_once(
    home: Paths, clock: FakeClock
) -> None:
    """One probe at a time; none is left behind by a stop."""
    log_in(home)
    governor = Governor(home, SETTINGS, clock)
    asker = Hanging()
    prober = Prober(governor, asker, SETTINGS, clock)
    prober.soon()
    task = asyncio.create_task(prober.loop())
    for wanted in (1, 2, 3):
        for _ in range(1000):
            await asyncio.sleep(0)
            if asker.asked == wanted:
                break
        assert (asker.asked, asker.open) == (wanted, 1)
        clock.advance(2.0)
        prober.soon(anew=True)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await prober.close()
    assert asker.open == 0
