"""A daemon's long life in virtual time: a weekend without a network, and three hundred outages in a row.

The whole daemon runs, with the failover times that ship; how often it looks at the store and the spool is slowed down,
because a look that finds nothing says nothing and would only cost real time.
"""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from structlog.testing import capture_logs

from metricsd.config import Cloud
from metricsd.failover import Mode
from tests.sim.machines import Machine, durations, make, virtual_machines
from tests.sim.virtual import VirtualLoop
from tests.sync.world import World

HOUR_S = 3_600.0
LINES_MAX = 100
OUTAGES = 300
WARM = 20
RECOVER_S, DWELL_S = 15.0, 5.0
OBJECTS_MAX = 1_000
"""Per three hundred outages; a task, a client or a timer that stays for each of them would be ten times as many."""
CLOUD = Cloud(commit_delay_ms=0.0, heartbeat_s=300.0, stream_poll_s=3_600.0)
PACE: dict[str, dict[str, Any]] = {
    "store": {"check_s": 60.0},
    "tail": {"rescan_s": 60.0, "watch": "events", "older_hooks": ()},
}
Logs = list[MutableMapping[str, Any]]


def live(life: Callable[[Machine, Logs], Awaitable[None]], *, realtime: bool = True) -> None:
    """Run one machine through a life in virtual time."""
    loop = VirtualLoop()

    async def run(world: World, logs: Logs) -> None:
        with loop.working():
            await world.start()
        machine = Machine(world, "one", loop, 0, **PACE, sync={"realtime": realtime})
        try:
            await make(world, machine)
            await reach(machine, Mode.HYBRID, 60.0)
            await life(machine, logs)
            await machine.stop()
        finally:
            await machine.close()
            with loop.working():
                await world.close()

    with tempfile.TemporaryDirectory(prefix="metricsd-life-") as folder, capture_logs() as logs:
        try:
            with virtual_machines(loop, Path(folder), 1, CLOUD) as world:
                loop.run_until_complete(run(world, logs))
        finally:
            loop.close()


async def reach(machine: Machine, mode: Mode, within_s: float) -> None:
    """Wait until a mode is in force, in virtual seconds."""
    end = machine.loop.time() + within_s
    while machine.mode is not mode:
        assert machine.loop.time() <= end, f"not {mode} within {within_s} s: {machine.governor.history[-4:]}"
        await asyncio.sleep(0.1)


def test_a_weekend_offline_writes_under_a_hundred_lines() -> None:
    """Friday evening to Monday morning: no network, portals, a closed lid; work goes on, and on Monday all is sent."""

    async def weekend(machine: Machine, logs: Logs) -> None:
        kinds = [None, "html", "503", "before"]

        def fault(_: httpx.Request) -> str | None:
            return kinds[int(machine.loop.time() / HOUR_S) % len(kinds)]

        logs.clear()
        machine.set_online(False)
        for hour in range(60):
            machine.capture(10, f"s-{hour}")
            machine.capture(1, f"s-{hour}", event="PostToolUseFailure")
            machine.edit(f"claude-code/s-{hour}", {"description": f"hour {hour}"})
            await asyncio.sleep(HOUR_S)
            if hour % 12 == 11:
                machine.clock.skew_s += 8 * HOUR_S  # the lid was closed: the wall clock went on, nothing else did
            if hour == 30:
                # A hotel: there is a network, and nothing of it is ours.
                machine.set_online(True)
                machine.world.network.fault = lambda request: fault(request) or "html"
        written = [entry for entry in logs if entry["log_level"] != "debug"]
        assert 0 < len(written) < LINES_MAX, "\n".join(map(str, written))
        assert machine.mode is Mode.LOCAL_ONLY
        machine.world.network.fault = lambda _: None
        await reach(machine, Mode.HYBRID, 60.0)
        await asyncio.sleep(30.0)
        assert durations(list(machine.world.folder.glob("t_*.db"))).total() == len(machine.captures) == 660

    live(weekend)


def test_what_waited_is_sent_as_soon_as_the_cloud_is_back() -> None:
    """Without a stream too: neither the interval nor the backoff of the outage is waited for."""

    async def outage(machine: Machine, _: Logs) -> None:
        machine.set_online(False)
        assert not (await machine.sync()).ok
        machine.capture(5, "s-1")
        await asyncio.sleep(400.0)
        assert machine.mode is Mode.LOCAL_ONLY
        machine.set_online(True)
        await reach(machine, Mode.HYBRID, RECOVER_S)
        await asyncio.sleep(1.0)
        assert durations(list(machine.world.folder.glob("t_*.db"))).total() == 5
        assert machine.rounds["recovered"] == 1

    live(outage, realtime=False)


def test_three_hundred_outages_leave_nothing_behind() -> None:
    """Each is noticed at once and over in time, with two changes of mode; no task, file or memory stays."""

    async def outages(machine: Machine, logs: Logs) -> None:
        loop = machine.loop
        switches: list[float] = []

        async def outage() -> None:
            machine.set_online(False)
            machine.capture(1, "s-1", event="PostToolUseFailure")
            await reach(machine, Mode.LOCAL_ONLY, 2.0)
            switches.append(loop.time())
            await asyncio.sleep(20.0)
            machine.set_online(True)
            await reach(machine, Mode.HYBRID, RECOVER_S)
            switches.append(loop.time())
            await asyncio.sleep(20.0)

        def left() -> tuple[int, int, int]:
            gc.collect()
            return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")), len(gc.get_objects())

        for _ in range(WARM):
            await outage()
        switches.clear()
        logs.clear()
        tasks, files, objects = left()
        for _ in range(OUTAGES):
            await outage()
        logs.clear()
        after = left()
        assert abs(after[0] - tasks) <= 1 and abs(after[1] - files) <= 1, (after, tasks, files)
        assert after[2] - objects < OBJECTS_MAX, f"{after[2] - objects} objects more"
        history = machine.governor.history
        times = [change.at / 1e6 for change in history]
        assert all(later - earlier >= DWELL_S for earlier, later in pairwise(times))
        assert {(one.mode, two.mode) for one, two in pairwise(history)} == {
            (Mode.HYBRID, Mode.LOCAL_ONLY),
            (Mode.LOCAL_ONLY, Mode.HYBRID),
        }, "no other change came in between"
        assert len(switches) == 2 * OUTAGES
        assert durations(list(machine.world.folder.glob("t_*.db"))).total() == len(machine.captures)

    live(outages)
