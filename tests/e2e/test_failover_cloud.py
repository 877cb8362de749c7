"""A cloud that dies, hangs, fails, asks for patience or is somebody else: mode, detection, recovery; nothing lost.

Real processes with all time limits at a twentieth; `make soak` runs the same at full size. After each fault all is
well again: every event is in the store and in the cloud exactly once.
"""

from __future__ import annotations

import signal
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.failing import DETECT_S, RECOVER_S, SHARE, CloudProcess, Pace, Setup, now, setup
from tests.e2e.gate import Answering, Gate, Open, Refusing, Resetting, Silent, Slow
from tests.homes import until

OURS = Path(__file__).resolve().parents[1] / "sync" / "loopback.pem"
STRANGER = Path(__file__).with_name("stranger.pem")
PORTAL = Answering(200, b"<html><body>Sign in to this network</body></html>", "content-type: text/html")
AT_ONCE_S = 1.0
"""In band: as fast as the machine is."""


class Case(NamedTuple):
    """One fault: how it begins and ends, what mode it calls for, and how soon (seconds at full size)."""

    name: str
    begin: Callable[[Setup], None]
    end: Callable[[Setup], None]
    mode: str
    reason: str
    detect_s: float


def _killed(run: Setup) -> None:
    run.cloud.kill()


def _restarted(run: Setup) -> None:
    run.cloud.start()


def _open(run: Setup) -> None:
    run.gate.turn(Open())


CASES = [
    Case("killed", _killed, _restarted, "local_only", "unreachable", AT_ONCE_S),
    Case(
        "stopped", lambda run: run.cloud.signal(signal.SIGSTOP), lambda run: run.cloud.signal(signal.SIGCONT),
        "local_only", "unreachable", DETECT_S,
    ),
    Case("refused", lambda run: run.gate.turn(Refusing()), _open, "local_only", "unreachable", AT_ONCE_S),
    Case("reset", lambda run: run.gate.turn(Resetting()), _open, "local_only", "unreachable", 2 * DETECT_S / 10),
    Case("silent", lambda run: run.gate.turn(Silent()), _open, "local_only", "unreachable", DETECT_S),
    Case("500", lambda run: run.gate.turn(Answering(500, b"oops")), _open, "local_only", "unreachable", 2 * DETECT_S / 10),
    Case("503 of a proxy", lambda run: run.gate.turn(Answering(503, b"<h1>Bad gateway</h1>")), _open, "local_only",
         "unreachable", 2 * DETECT_S / 10),
    Case("captive portal", lambda run: run.gate.turn(PORTAL), _open, "local_only", "unreachable", AT_ONCE_S),
]  # fmt: skip


def play(run: Setup, case: Case) -> None:
    """Let the fault begin and end; hold detection, mode and recovery to their limits."""
    pace = run.pace
    run.await_calm()
    began = now()
    case.begin(run)
    run.capture(3)
    run.await_mode(case.mode, pace.within(case.detect_s), reason=case.reason, after=began)
    run.capture(3)
    until(lambda: run.stored().total() == len(run.written), 20.0)
    case.end(run)
    ended = now()
    run.await_mode("hybrid", pace.within(RECOVER_S), after=ended)
    run.settle()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """One cloud, one gate and one daemon for all faults of this file."""
    with setup(tmp_path_factory.mktemp("cloud-faults"), Pace(SHARE)) as made:
        yield made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_dead_cloud_is_noticed_and_its_return_too(run: Setup, case: Case) -> None:
    """The store takes in meanwhile, nothing but probes is sent, and everything is sent once afterwards."""
    play(run, case)


def test_a_cloud_that_asks_for_patience_is_no_failure(run: Setup) -> None:
    """429 with Retry-After: the mode stays, nothing is hammered, and what waits is sent later."""
    run.await_calm()
    before = len(run.history())
    run.gate.turn(Answering(429, b"", "content-type: text/plain\r\nretry-after: 2"))
    run.gate.requests.clear()
    run.capture(5)
    until(lambda: run.gate.requests.total() > 0)
    time.sleep(2.0)  # the quiet in this span is what is tested
    assert run.mode()[0] == "hybrid"
    assert len(run.history()) == before
    assert run.gate.requests.total() < 30, run.gate.requests
    run.gate.turn(Open())
    run.settle()


def test_a_slow_cloud_is_spared_until_it_is_fast_again(tmp_path: Path) -> None:
    """Answers beyond the limit degrade, with the reason; nothing is given up. At a tenth: a probe has its own limit."""
    with setup(tmp_path, Pace(10.0), METRICSD_SYNC_INTERVAL_S="1") as run:
        run.await_calm()
        run.gate.turn(Slow(0.6))

        def is_noticed() -> bool:
            if len(run.written) < 200:
                run.capture(1)
            return run.mode()[0] != "hybrid"

        until(is_noticed, 60.0)
        mode, reason = run.mode()
        assert mode == "degraded", run.history()
        assert "slow" in reason
        run.gate.turn(Open())
        until(lambda: run.mode()[0] == "hybrid", 60.0)
        run.settle()


def test_a_revoked_login_ends_traffic_until_the_next_one(run: Setup) -> None:
    """The mode is local_only for `auth`, `status` exits 5, nothing is asked any more; a login brings everything back."""
    run.await_calm()
    began = now()
    run.cloud.revoke_devices()
    run.capture(2)
    run.await_mode("local_only", run.pace.within(DETECT_S) + 5.0, reason="auth", after=began)
    assert run.device.run("status").returncode == 5
    run.gate.requests.clear()
    run.capture(3)
    until(lambda: run.stored().total() == len(run.written), 20.0)
    time.sleep(1.5)  # several probe intervals: the quiet is what is tested
    assert run.gate.requests.total() == 0, run.gate.requests
    run.login()
    run.await_mode("hybrid", run.pace.within(RECOVER_S) + 5.0, after=now())
    run.settle()


def test_a_strangers_certificate_is_no_cloud(tmp_path: Path) -> None:
    """Whoever sits in between without the right certificate gets neither token nor events."""
    pace = Pace(SHARE)

    def context(pem: Path) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(pem)
        return made

    cloud = CloudProcess(tmp_path / "cloud", pace)
    cloud.home.ok("cloud", "tenant", "create", "team")
    cloud.start()
    ours, stranger = context(OURS), context(STRANGER)
    try:
        with Gate(cloud.port, tls=ours) as gate:
            run = Setup(tmp_path, pace, cloud, gate)
            run.device.env["METRICSD_SYNC_CA_FILE"] = str(OURS)
            try:
                run.device.ok("login", f"https://127.0.0.1:{gate.port}", "--token-stdin", stdin=cloud.token())
                run.start()
                until(lambda: run.mode()[0] == "hybrid")
                run.capture(3)
                run.settle()
                case = Case(
                    "stranger", lambda run: run.gate.turn(Open(), tls=stranger),
                    lambda run: run.gate.turn(Open(), tls=ours), "local_only", "certificate", AT_ONCE_S,
                )  # fmt: skip
                gate.requests.clear()
                play(run, case)
            finally:
                run.close()
    finally:
        cloud.kill()
        cloud.home.close()


def test_a_stop_does_not_wait_for_a_silent_cloud(run: Setup) -> None:
    """SIGTERM to exit takes less than 5 s while requests hang; what waits is sent after the next start."""
    run.await_calm()
    run.gate.turn(Silent())
    run.capture(3)
    began = time.monotonic()
    assert run.daemon is not None
    process = run.daemon
    run.stop()
    assert time.monotonic() - began < 5.0
    assert process.returncode == 0
    run.gate.turn(Open())
    run.start()
    run.settle()


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_the_promised_times_hold_at_full_size(tmp_path: Path) -> None:
    """Each fault with the times that ship: refused at once, a black hole within 20 s, back within 15 s."""
    with setup(tmp_path, Pace(1.0)) as run:
        for case in CASES:
            play(run, case)
