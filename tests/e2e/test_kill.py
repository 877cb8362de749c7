"""kill -9, a hundred times: nothing lost, nothing doubled, in the store, in the cloud, on another device."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.support import Home, Writers, homes, wait_for
from tests.fault_proxy import FaultProxy

KILLS = 100
KILLS_WITH_CLOUD = 25
WRITERS = 4
REST = 7.0
"""Of writers in CI: four of them take half a core, and leave the rest to the daemon and to other tests."""
ANSWERS_LOST_MIN = 50
PUSHED_S = 300.0
"""For all that waits to go through a network that loses a fifth of the requests, on a busy machine."""


def grew(home: Home, before: int) -> bool:
    """Return whether something was stored since."""
    return home.newest() > before


def kill_often(home: Home, kills: int, seed: int) -> int:
    """Start and kill the daemon at random moments; return in how many of its lives it stored something.

    Three of four kills hit it at work, however slow the machine is; the others come while it starts.
    """
    rnd = random.Random(seed)
    lives = 0
    for kill in range(kills):
        before = home.newest()
        home.start()
        if kill % 4:
            wait_for(partial(grew, home, before), f"the daemon stores something: {home.output()}")
            time.sleep(rnd.uniform(0.0, 0.2))  # the moment of the kill is the random input of this test
        else:
            time.sleep(rnd.uniform(0.0, 0.6))
        home.end(signal.SIGKILL)
        lives += grew(home, before)
    return lives


def differences(found: list[int], wanted: list[int]) -> str:
    """Say what is lost and doubled; empty when nothing is."""
    lost, extra = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
    return (
        f"lost {sorted(lost)[:10]} ({lost.total()}), doubled {sorted(extra)[:10]} ({extra.total()})"
        if lost or extra
        else ""
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rest", [REST, pytest.param(0.0, marks=pytest.mark.soak)])
def test_a_hundred_kills_lose_nothing_and_double_nothing_in_the_store(tmp_path: Path, rest: float) -> None:
    """Four processes write captures and append to a shared file all the while."""
    with homes(tmp_path, "one") as (home,):
        writers = Writers(home, WRITERS, rest)
        try:
            lives = kill_often(home, KILLS, seed=1)
            wanted = writers.finish()
        finally:
            writers.abandon()
        home.start()
        wait_for(lambda: home.settled(len(wanted)), "everything that was written is stored")
        assert home.end() == 0
        assert differences(home.durations(), wanted) == ""
        assert home.query("PRAGMA integrity_check") == [("ok",)]
        assert home.status()["spool"]["quarantined"] == 0
        assert sum(row[0] for row in home.query("SELECT n FROM rollup")) == len(wanted)
        assert lives >= KILLS / 2, "most kills must hit a daemon at work, or this test proves nothing"


def pushed(home: Home) -> bool:
    """Return whether the cloud has every event."""
    return bool(home.status()["sync"]["pending_events"] == 0)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kills", "writing", "rest"),
    [(KILLS_WITH_CLOUD, 2, REST), pytest.param(KILLS, WRITERS, 0.0, marks=pytest.mark.soak)],
)
def test_kills_and_a_lossy_network_lose_nothing_in_the_cloud_and_on_a_second_device(
    tmp_path: Path, kills: int, writing: int, rest: float
) -> None:
    """A proxy cuts requests, loses answers after the commit and cuts answers, while the daemon is killed."""
    with homes(
        tmp_path, "cloud", "one", "two", sync_interval_s=0.2, sync_backoff_max_s=0.2, sync_request_timeout_s=5
    ) as (cloud, one, two):
        cloud.start_ready("--with-cloud")
        port = int(cloud.status()["sync"]["url"].rsplit(":", 1)[1])
        token = json.dumps(cloud.json("cloud", "token", "create", "--tenant", "local", "--user", "ann")["token"]).strip(
            '"'
        )
        with FaultProxy(port, seed=2, lose_request=0.05, lose_answer=0.1, cut_answer=0.05) as proxy:
            url = f"http://127.0.0.1:{proxy.port}"
            wait_for(
                lambda: one.run("login", url, "--token-stdin", stdin=token, check=False).returncode == 0,
                "device one is in",
            )
            writers = Writers(one, writing, rest)
            try:
                kill_often(one, kills, seed=3)
                wanted = writers.finish()
            finally:
                writers.abandon()
            one.start()
            wait_for(lambda: one.settled(len(wanted)), "everything that was written is stored", PUSHED_S)
            wait_for(lambda: proxy.faults["answers"] >= ANSWERS_LOST_MIN or pushed(one), "answers get lost", PUSHED_S)
            assert proxy.faults["answers"] > 0, "the proxy must have lost answers, or this test proves nothing"
            # A network that stays this bad makes the daemon patient: what is left of 100,000 events would take it minutes.
            proxy.calm()
            wait_for(lambda: pushed(one), "everything is pushed", PUSHED_S)
            two.run("login", url, "--token-stdin", stdin=token)
            for _ in range(2 * kills):
                two.json("sync", "--now")
                if len(two.durations()) >= len(wanted):
                    break
        one.end()
        assert differences(one.durations(), wanted) == ""
        assert differences(two.durations(), wanted) == ""
        assert one.query("SELECT sum(events) FROM session_counters") == two.query(
            "SELECT sum(events) FROM session_counters"
        )
