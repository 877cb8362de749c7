"""The mode in force: entered by evidence or by hand, kept through restarts, never flapping."""

from __future__ import annotations

import gc
import os
import tempfile

import pytest
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from metricsd import modes
from metricsd.config import Failover, Paths, find_paths
from metricsd.errors import AuthError, CloudError, CloudUnreachable, Fault, StoreUnavailable
from metricsd.failover import BY_HAND, Mode, Reason
from metricsd.governor import Governor
from metricsd.health import outcome_of
from metricsd.identity import Credentials, save_login
from metricsd.ids import DeviceId
from metricsd.modes import HISTORY_MAX, Change
from tests.fakes import FakeClock

REFUSED = CloudUnreachable("refused", Fault.REFUSED)
SETTINGS = Failover()


def log_in(home: Paths, token: str = "t") -> None:
    save_login(home, Credentials("http://127.0.0.1:9", token, b"k" * 32, "t", "u", DeviceId("d" * 32)), parent=None)


class Governed:
    """A governor on a clock that obeys."""

    def __init__(self, home: Paths, clock: FakeClock) -> None:
        self.home = home
        self.clock = clock
        self.entered: list[Change] = []
        self.restart()

    def restart(self) -> None:
        self.governor = Governor(self.home, SETTINGS, self.clock, on_enter=lambda before, now: self.entered.append(now))

    def met(self, error: CloudError | None, answers: int = 0, after_s: float = 0.0) -> tuple[Mode, Reason]:
        self.clock.advance(after_s)
        self.governor.note(outcome_of(error, at_s=self.clock.monotonic(), took_s=0.1, answers=answers))
        return self.governor.now.mode, self.governor.now.reason

    def round(self, after_s: float = 0.0) -> tuple[Mode, Reason]:
        return self.met(None, 4, after_s)

    def probe(self, after_s: float = 0.0) -> tuple[Mode, Reason]:
        return self.met(None, 1, after_s)


@pytest.fixture
def there(home: Paths, clock: FakeClock) -> Governed:
    log_in(home)
    return Governed(home, clock)


def test_a_first_start_knows_nothing_and_says_so(there: Governed) -> None:
    """With a login it counts on the cloud; without one there is none."""
    assert there.governor.now[1:3] == (Mode.HYBRID, Reason.NOT_YET)
    there.home.credentials.unlink()
    there.restart()
    assert there.governor.now[1:3] == (Mode.LOCAL_ONLY, Reason.NO_LOGIN)
    assert not there.governor.allows_rounds


def test_an_outage_and_its_end(there: Governed) -> None:
    """Refused is seen at once; one good probe is not enough, two within the dwell are not either."""
    assert there.round() == (Mode.HYBRID, Reason.SYNCED)
    assert there.met(REFUSED, after_s=60.0) == (Mode.LOCAL_ONLY, Reason.UNREACHABLE)
    assert not there.governor.allows_rounds
    assert there.probe(after_s=1.0) == (Mode.LOCAL_ONLY, Reason.UNREACHABLE)
    assert there.probe(after_s=1.0) == (Mode.LOCAL_ONLY, Reason.UNREACHABLE)
    there.clock.advance(3.1)
    assert there.governor.step()
    assert there.governor.now[1:3] == (Mode.HYBRID, Reason.SYNCED)
    assert [change.reason for change in there.entered] == [Reason.SYNCED, Reason.UNREACHABLE, Reason.SYNCED]


def test_it_says_when_the_dwell_ends_that_holds_a_change_back(there: Governed) -> None:
    """Nobody has to ask again and again; when nothing is held back there is no such time."""
    there.round()
    assert there.governor.seconds_to_step() is None
    there.met(REFUSED, after_s=60.0)
    assert there.governor.seconds_to_step() is None
    there.probe(after_s=1.0)
    there.probe(after_s=1.0)
    assert there.governor.seconds_to_step() == pytest.approx(3.0)
    there.clock.advance(3.0)
    assert there.governor.step()


def test_a_login_takes_effect_at_once_and_forgets_what_the_other_one_met(there: Governed) -> None:
    """Whoever logs in again does not wait for a dwell."""
    there.round()
    there.clock.advance(60.0)
    assert there.met(AuthError("revoked")) == (Mode.LOCAL_ONLY, Reason.AUTH)
    there.governor.look_at_login()
    assert there.governor.mode is Mode.LOCAL_ONLY
    log_in(there.home, "another")
    there.governor.look_at_login()
    assert there.governor.now[1:3] == (Mode.HYBRID, Reason.NOT_YET)


def test_a_refused_login_outlives_a_restart_and_ends_with_another(there: Governed) -> None:
    """Nothing is asked again until somebody logs in, not even by a new process."""
    os.utime(there.home.credentials, (1.0, 1.0))
    there.restart()
    there.clock.advance(60.0)
    there.met(AuthError("revoked"))
    there.restart()
    there.governor.step()
    assert there.governor.now[1:3] == (Mode.LOCAL_ONLY, Reason.AUTH)
    os.utime(there.home.credentials, (4e9, 4e9))
    there.restart()
    there.governor.step()
    assert there.governor.now[1:3] == (Mode.HYBRID, Reason.NOT_YET)


def test_an_outage_outlives_a_restart(there: Governed) -> None:
    """A new process does not begin with a round into the void; it probes."""
    there.met(REFUSED, after_s=60.0)
    there.restart()
    assert there.governor.now[1:3] == (Mode.LOCAL_ONLY, Reason.UNREACHABLE)
    assert there.probe(after_s=60.0)[0] is Mode.LOCAL_ONLY
    assert there.probe(after_s=1.0)[0] is Mode.HYBRID


@pytest.mark.parametrize("mode", Mode)
def test_a_forced_mode_survives_restarts_and_ends_when_told(there: Governed, mode: Mode) -> None:
    """Whatever the cloud does meanwhile; the end by time needs nobody."""
    governor = there.governor
    governor.force(mode, there.clock.now_us() + 7_200_000_000)
    assert governor.now[1:3] == (mode, Reason.FORCED)
    there.met(REFUSED)
    governor.note_store("full")
    there.restart()
    assert there.governor.now[1:3] == (mode, Reason.FORCED)
    assert there.governor.seconds_to_step() == pytest.approx(7200.0)
    there.clock.advance(7200.0)
    assert there.governor.step()
    assert there.governor.now[1:3] == (Mode.HYBRID, Reason.NOT_YET)
    there.restart()
    assert there.governor.forced is None


def test_auto_ends_a_force_at_once(there: Governed) -> None:
    """And the evidence that came in meanwhile counts."""
    there.governor.force(Mode.HYBRID)
    there.met(REFUSED)
    assert there.governor.mode is Mode.HYBRID
    there.governor.release()
    assert there.governor.now[1:3] == (Mode.LOCAL_ONLY, Reason.UNREACHABLE)


def test_a_force_that_cannot_be_kept_is_refused(there: Governed) -> None:
    """What would be gone after a restart is not said to be in force."""
    there.home.mode.mkdir(parents=True)
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        there.governor.force(Mode.LOCAL_ONLY)
    assert there.governor.mode is Mode.HYBRID


def test_a_mode_that_cannot_be_kept_is_in_force_all_the_same(there: Governed) -> None:
    """A full disk must not keep the daemon from doing the right thing; it is said once."""
    there.home.mode.mkdir(parents=True)
    with structlog.testing.capture_logs() as logs:
        assert there.met(REFUSED) == (Mode.LOCAL_ONLY, Reason.UNREACHABLE)
        there.probe(after_s=60.0)
        assert there.probe()[0] is Mode.HYBRID
    assert [entry["event"] for entry in logs].count("mode.not_kept") == 1


def test_what_is_wrong_now_is_told(there: Governed) -> None:
    """No network at first, and then one that shows a page: the mode is the same, what to do about it is not."""
    there.round()
    there.met(CloudUnreachable("no network", Fault.NAME), after_s=60.0)
    began, rows = there.governor.now.at, len(there.governor.history)
    there.met(CloudUnreachable("a page to log in", Fault.NOT_OURS), after_s=5.0)
    for _ in range(2):
        now = there.governor.now
        assert (now.at, now.reason, now.detail) == (began, Reason.UNREACHABLE, "a page to log in")
        assert len(there.governor.history) == rows
        there.restart()


def test_a_blocked_store_and_its_return(there: Governed) -> None:
    """Straight to the cloud, with the store's reason; with no cloud either it says both."""
    there.round()
    there.clock.advance(60.0)
    there.governor.note_store("no space left: free some disk space")
    assert there.governor.mode is Mode.REMOTE_ONLY
    assert modes.reason_text(there.governor.now) == "store: no space left: free some disk space"
    assert there.met(REFUSED, after_s=6.0) == (Mode.DEGRADED, Reason.STORE_AND_CLOUD)
    assert "refused" in there.governor.now.detail and "no space" in there.governor.now.detail
    assert not there.governor.allows_rounds
    there.clock.advance(6.0)
    there.governor.note_store(None)
    assert there.governor.now[1:3] == (Mode.LOCAL_ONLY, Reason.UNREACHABLE)


def test_a_long_backlog_is_sent_gently_after_an_outage(there: Governed) -> None:
    """Degraded with the number until it is short enough."""
    there.met(REFUSED)
    there.governor.note_backlog(SETTINGS.backlog_events + 1)
    there.probe(after_s=60.0)
    assert there.probe() == (Mode.DEGRADED, Reason.BACKLOG)
    assert there.governor.is_gentle and there.governor.allows_rounds
    there.round(after_s=10.0)
    there.governor.note_backlog(0)
    assert there.governor.now[1:3] == (Mode.HYBRID, Reason.SYNCED)


def test_sleep_is_no_outage(there: Governed) -> None:
    """The lid was closed: what fails in the seconds after it was opened changes nothing, what fails later does."""
    there.round()
    there.clock.advance(3600.0)
    there.governor.note_wake()
    for _ in range(5):
        assert there.met(REFUSED, after_s=1.0)[0] is Mode.HYBRID
    assert there.met(REFUSED, after_s=SETTINGS.settle_s)[0] is Mode.LOCAL_ONLY


def test_a_cloud_that_fails_after_each_recovery_is_left_alone_longer_and_longer(there: Governed) -> None:
    """It answers probes and cannot do a round: the log is not filled with it, and one good round forgives all."""
    there.met(REFUSED, after_s=60.0)
    switches = len(there.entered)
    for _ in range(3600):
        there.probe(after_s=1.0)
        if there.governor.mode is Mode.HYBRID:
            there.met(CloudUnreachable("500", Fault.NOT_OURS), after_s=1.0)
    assert len(there.entered) - switches < 40
    there.clock.advance(700.0)
    there.probe()
    there.probe()
    assert there.round() == (Mode.HYBRID, Reason.SYNCED)
    there.met(REFUSED, after_s=60.0)
    there.probe(after_s=5.1)
    assert there.probe()[0] is Mode.HYBRID


def test_three_hundred_failures_and_recoveries_leave_nothing_behind(there: Governed) -> None:
    """Two changes each, one log line a change, a bounded file, no open file and no growing memory."""

    def cycle() -> None:
        assert there.met(REFUSED, after_s=30.0)[0] is Mode.LOCAL_ONLY
        there.probe(after_s=6.0)
        assert there.probe()[0] is Mode.HYBRID
        assert there.round() == (Mode.HYBRID, Reason.SYNCED)

    for _ in range(20):
        cycle()
    there.entered.clear()
    gc.collect()
    descriptors, objects = len(os.listdir("/proc/self/fd")), len(gc.get_objects())
    with structlog.testing.capture_logs() as logs:
        for _ in range(300):
            cycle()
    assert len(there.entered) == 600
    assert sum(entry["event"] == "mode.entered" for entry in logs) == 600
    assert len(there.governor.history) == HISTORY_MAX
    assert len(os.listdir("/proc/self/fd")) == descriptors
    logs.clear()
    there.entered.clear()
    gc.collect()
    assert len(gc.get_objects()) - objects < 1000


MODE_OF = {
    Reason.NOT_YET: Mode.HYBRID,
    Reason.SYNCED: Mode.HYBRID,
    Reason.NO_LOGIN: Mode.LOCAL_ONLY,
    Reason.AUTH: Mode.LOCAL_ONLY,
    Reason.UNREACHABLE: Mode.LOCAL_ONLY,
    Reason.STORE: Mode.REMOTE_ONLY,
    Reason.ERRORS: Mode.DEGRADED,
    Reason.SLOW: Mode.DEGRADED,
    Reason.BACKLOG: Mode.DEGRADED,
    Reason.STORE_AND_CLOUD: Mode.DEGRADED,
}
OF_A_BLOCKED_STORE = {Reason.STORE, Reason.STORE_AND_CLOUD}
OF_PEOPLE = {Reason.FORCED, Reason.NO_LOGIN, Reason.AUTH}
OUTAGE = {Reason.UNREACHABLE, Reason.STORE_AND_CLOUD}


class Machine(RuleBasedStateMachine):
    """Any order of outcomes, logins, store faults, sleep, forces and restarts, on a clock that obeys."""

    def __init__(self) -> None:
        super().__init__()
        self.switches: list[tuple[float, bool]] = []
        self.by_hand = False
        self.blocked = False

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.home = find_paths({"METRICSD_HOME": self.folder.name})
        log_in(self.home)
        self.until_us: int | None = None
        self.forced: Mode | None = None
        self.start()

    def start(self) -> None:
        self.blocked = False
        self.governor = Governor(self.home, SETTINGS, self.clock, on_enter=self.entered)
        self.shown = self.governor.now

    def entered(self, before: Change, now: Change) -> None:
        assert before[:3] == self.shown[:3], "only what is known of the cause may have become more"
        assert now == self.governor.history[-1]
        self.check_edge(before, now)
        if before.mode is not now.mode:
            is_by_hand = self.by_hand or before.reason in BY_HAND or now.reason in BY_HAND
            if self.switches and not is_by_hand:
                assert self.clock.monotonic() - self.switches[-1][0] >= SETTINGS.dwell_s - 1e-6
            self.switches.append((self.clock.monotonic(), is_by_hand))
        self.shown = now

    def check_edge(self, before: Change, now: Change) -> None:
        """Hold an edge to what is allowed: each reason has its mode and its evidence, and some follow some alone."""
        if now.reason is Reason.FORCED:
            assert (now.mode, True) == (self.forced, self.by_hand)
            return
        assert now.mode is MODE_OF[now.reason]
        assert (now.reason is Reason.NO_LOGIN) == (not self.home.credentials.exists())
        if now.reason not in OF_PEOPLE:
            assert (now.reason in OF_A_BLOCKED_STORE) == self.blocked
        if now.reason is Reason.BACKLOG:
            assert before.reason in OUTAGE and self.governor._backlog > SETTINGS.backlog_events
        if before.reason is Reason.UNREACHABLE and now.reason is Reason.SYNCED:
            assert self.governor._watch.good_probes >= 2 and self.governor._backlog <= SETTINGS.backlog_events

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 5.0, 30.0, 700.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.governor.step()

    @rule(
        error=st.sampled_from(
            [None, None, REFUSED, AuthError("no"), CloudUnreachable("500", Fault.SERVER), CloudError("odd")]
        ),
        answers=st.integers(0, 4),
        took_s=st.sampled_from([0.1, 20.0]),
    )
    def outcome(self, error: CloudError | None, answers: int, took_s: float) -> None:
        self.note(error, answers, took_s)

    def note(self, error: CloudError | None, answers: int, took_s: float = 0.1) -> None:
        self.governor.note(outcome_of(error, at_s=self.clock.monotonic(), took_s=took_s, answers=answers))

    @rule(error=st.sampled_from([REFUSED, CloudUnreachable("500", Fault.SERVER)]), events=st.sampled_from([0, 10_000]))
    def fail_for_a_while(self, error: CloudError, events: int) -> None:
        """Rounds fail, with an answer before that or without, and work piles up: single steps hardly get there."""
        for _ in range(6):
            self.clock.advance(6.0)
            self.note(error, answers=0 if error is REFUSED else 1)
        self.governor.note_backlog(events)

    @rule()
    def answer_for_a_while(self) -> None:
        for _ in range(3):
            self.clock.advance(6.0)
            self.note(None, answers=1)

    @rule(reason=st.sampled_from([None, "full"]))
    def store(self, reason: str | None) -> None:
        self.blocked = reason is not None
        self.governor.note_store(reason)

    @rule(events=st.sampled_from([0, 10_000]))
    def backlog(self, events: int) -> None:
        self.governor.note_backlog(events)

    @rule()
    def wake(self) -> None:
        self.governor.note_wake()

    @rule(mode=st.sampled_from(Mode), seconds=st.none() | st.sampled_from([1.0, 60.0]))
    def force(self, mode: Mode, seconds: float | None) -> None:
        self.by_hand = True
        self.forced = mode
        self.until_us = None if seconds is None else self.clock.now_us() + int(seconds * 1e6)
        self.governor.force(mode, self.until_us)
        self.by_hand = False

    @rule()
    def release(self) -> None:
        self.by_hand = True
        self.forced = None
        self.governor.release()
        self.by_hand = False

    @rule(logged_in=st.booleans())
    def login(self, logged_in: bool) -> None:
        self.by_hand = True
        self.home.credentials.unlink(missing_ok=True)
        if logged_in:
            log_in(self.home)
        self.governor.look_at_login()
        self.by_hand = False

    @rule()
    def restart(self) -> None:
        self.by_hand = True
        self.start()
        self.governor.step()
        self.by_hand = False

    @invariant()
    def a_force_is_respected(self) -> None:
        if not hasattr(self, "governor") or self.forced is None:
            return
        if self.until_us is None or self.clock.now_us() < self.until_us:
            assert self.governor.now[1:3] == (self.forced, Reason.FORCED)

    @invariant()
    def what_is_in_force_is_in_the_file(self) -> None:
        if hasattr(self, "governor") and len(self.governor.history) > 1:
            found = modes.find_state(self.home.mode)
            assert found is not None
            assert found.now == self.governor.now

    def teardown(self) -> None:
        self.folder.cleanup()


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestMachine = Machine.TestCase
