"""Simulated days of real daemons, real SQLite stores and the real cloud app, in one loop of virtual time.

Three machines capture events, edit, tag and delete sessions beside their daemons, which sync by the interval, and in
a quarter of the days at once over open streams. The network loses requests and answers, breaks off and is away for
hours, machines crash in the middle of a round, and clocks are wrong and jump. At midnight all is well again, and
everybody must hold the same.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from metricsd.config import Cloud
from metricsd.failover import Mode
from metricsd.protocol import FieldValue
from metricsd.store import conflict_log, records
from tests.sim.machines import Air, Machine, durations, make, virtual_machines
from tests.sim.virtual import VirtualLoop
from tests.sync.world import World

SEEDS = 64
PARTS = 8
SEEDS_SOAK = 4_000
DAY_S = 86_400.0
END_S = 4 * DAY_S
"""In virtual time: whoever waits for ever fails."""
ACTS = 14
"""Edits and batches of captures of one machine in a day."""
INTERVAL_S = 9_000.0
CALM_INTERVALS_MAX = 6
SESSIONS = ("claude-code/s-0", "claude-code/s-1")
SKEWS_S = (0.0, 0.0, -3_600.0, 200.0, 400.0, 10 * 365 * DAY_S)
TIMES: dict[str, dict[str, Any]] = {
    "sync": {"interval_s": INTERVAL_S, "backoff_max_s": INTERVAL_S},
    "failover": {"detect_s": 7_200.0, "probe_s": 300.0, "probe_late_s": 1_800.0, "late_after_s": 3_600.0},
    "sessions": {"idle_end_s": 28_800.0},
    "store": {"check_s": 7_200.0},
    "tail": {"rescan_s": 7_200.0, "watch": "events", "older_hooks": ()},
}
"""Much slower than what ships, so that a day is a hundred requests of each machine."""
CLOUD = Cloud(commit_delay_ms=0.0, heartbeat_s=300.0, stream_poll_s=3_600.0)


class Day:
    """One seed's day."""

    def __init__(self, seed: int, world: World, loop: VirtualLoop) -> None:
        self.rng = Random(seed)
        self.loop = loop
        self.world = world
        self.calm = False
        self.cursors: dict[str, int] = {}
        times = {**TIMES, "sync": {**TIMES["sync"], "realtime": seed % 4 == 0}}
        self.machines = [
            Machine(world, name, loop, number, **times) for number, name in enumerate(("one", "two", "three"))
        ]

    async def play(self) -> None:
        """Live the day, then judge."""
        with self.loop.working():
            await self.world.start()
        for machine in self.machines:
            await make(self.world, machine)
            machine.clock.skew_s = self.rng.choice(SKEWS_S)
        try:
            self.world.network.fault = self._fault
            async with asyncio.TaskGroup() as group:
                for machine in self.machines:
                    group.create_task(self._live(machine, Random(self.rng.random())))
            self.calm = True
            for machine in self.machines:
                machine.set_online(True)
            await self._settle()
            await self._say_last_words()
            for machine in self.machines:
                assert machine.mode is Mode.HYBRID, f"{machine.name}: {machine.governor.history[-3:]}"
            for machine in self.machines:
                await machine.stop()
            self._judge()
        finally:
            for machine in self.machines:
                await machine.close()
            with self.loop.working():
                await self.world.close()

    async def _live(self, machine: Machine, rng: Random) -> None:
        """Act at random moments of the day."""
        acts = sorted(self.loop.time() + rng.random() * DAY_S for _ in range(ACTS))
        for at in acts:
            await asyncio.sleep(max(at - self.loop.time(), 0))
            await self._act(machine, rng)
            self._watch_cursor(machine)

    async def _act(self, machine: Machine, rng: Random) -> None:
        session = rng.choice(SESSIONS)
        if rng.random() < 0.25:
            machine.set_online(not machine.online)
        if rng.random() < 0.05:
            machine.clock.skew_s = rng.choice(SKEWS_S)
        share = rng.random()
        if share < 0.4:
            event = "PostToolUseFailure" if rng.random() < 0.2 else "PostToolUse"
            machine.capture(rng.randint(1, 40), session.partition("/")[2], event=event)
        elif share < 0.9:
            fields, delete = self._edit(machine, session, rng)
            machine.edit(session, fields, delete=delete)
        else:
            await self._crash(machine, rng)

    def _edit(self, machine: Machine, session: str, rng: Random) -> tuple[dict[str, FieldValue], bool]:
        """Return the fields to set, or that it is to be deleted."""
        with machine.opened() as store:
            record = records.get(store, "session", session)
        share = rng.random()
        if share < 0.5 or record is None:
            return {"description": f"{machine.name} at {self.loop.time():.0f}"}, False
        if share < 0.85:
            known = record.version.fields.get("tags")
            tags = list(known) if isinstance(known, list) else []
            return {"tags": tags[1:] if len(tags) > 2 else [*tags, f"t{rng.getrandbits(40)}"]}, False
        return {}, True

    async def _crash(self, machine: Machine, rng: Random) -> None:
        """Pull the plug somewhere in the middle of a round."""
        asked = asyncio.ensure_future(machine.sync())
        for _ in range(rng.randint(1, 150)):
            await asyncio.sleep(0)
        await machine.crash(asked)

    def _watch_cursor(self, machine: Machine) -> None:
        number = machine.cursor()
        assert number >= self.cursors.get(machine.name, 0), f"{machine.name}: the cursor went back"
        self.cursors[machine.name] = number

    def _fault(self, _: httpx.Request) -> str | None:
        if self.calm or self.rng.random() >= 0.1:
            return None
        if self.rng.random() < 0.1:
            assert isinstance(self.world.network, Air)
            self.world.network.cut()
        return self.rng.choice(("before", "after", "twice", "503", "html"))

    async def _settle(self) -> None:
        """Wait until all are equal: the daemons come to that by themselves, at their interval."""
        for _ in range(CALM_INTERVALS_MAX):
            await asyncio.sleep(INTERVAL_S)
            if self._difference() is None:
                return

    async def _say_last_words(self) -> None:
        """Delete and edit once more, having seen everything: that must stand."""
        first, last = self.machines[0], self.machines[-1]
        first.edit(SESSIONS[1], {}, delete=True)
        last.edit(SESSIONS[0], {"description": "the last word"})
        await self._settle()
        for machine in self.machines:
            held = _records_of(machine)
            assert held[SESSIONS[1]] is None, f"{machine.name}: what was deleted came back: {held}"
            said = held[SESSIONS[0]]
            assert said is not None and said["description"] == "the last word", f"{machine.name}: {held}"

    def _difference(self) -> str | None:
        """Return what two replicas hold differently; None when all are equal."""
        cloud = self.world.event_ids()
        first = _records_of(self.machines[0])
        for machine in self.machines:
            with machine.opened() as store:
                ids = Counter(row[0] for row in store.db.execute("SELECT id FROM event"))
                waits = records.pending_count(store) + conflict_log.count_open(store)
            if ids != cloud:
                return f"{machine.name}: other events than the cloud"
            if waits:
                return f"{machine.name}: something waits or is open"
            if (held := _records_of(machine)) != first:
                return f"{machine.name}: other records than {self.machines[0].name}: {held} {first}"
        return None

    def _judge(self) -> None:
        """All are equal, and nothing is lost or doubled, neither as rows nor in any sum."""
        difference = self._difference()
        assert difference is None, difference
        wanted = Counter(number for machine in self.machines for number in machine.captures)
        assert durations(list(self.world.folder.glob("t_*.db"))) == wanted, "events were lost, or came from nowhere"
        assert self.world.counted() == wanted.total()
        for machine in self.machines:
            assert durations([machine.paths.store]) == wanted, machine.name
            assert not any((machine.paths.spool / "new").iterdir()), machine.name
            with machine.opened() as store:
                sums = "SELECT (SELECT sum(events) FROM session_counters), (SELECT sum(n) FROM rollup)"
                assert store.db.execute(sums).fetchone() == (wanted.total(), wanted.total()), machine.name


def _records_of(machine: Machine) -> dict[str, Mapping[str, FieldValue] | None]:
    """Return what each session says, in its wire form: None for a deleted one."""
    found: dict[str, Mapping[str, FieldValue] | None] = {}
    with machine.opened() as store:
        for session in SESSIONS:
            record = records.get(store, "session", session)
            if record is not None:
                version = record.version
                present = {name: value for name, value in version.fields.items() if value is not None}
                found[session] = None if version.deleted else present
    return found


def play(seed: int) -> None:
    """Live one day; the message of a failure names the seed."""
    # Crashes are of processes, not of machines: memory is as good as a disk, and days pass faster.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="metricsd-day-", dir=memory) as folder:
        loop = VirtualLoop()
        try:
            with capture_logs(), virtual_machines(loop, Path(folder), seed, CLOUD) as world:
                loop.run_until_complete(asyncio.wait_for(Day(seed, world, loop).play(), END_S))
        except BaseException as error:
            error.add_note(f"seed {seed}: tests.sim.test_days.play({seed})")
            raise
        finally:
            loop.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_days_end_well(part: int) -> None:
    """After a day of faults nothing is lost or doubled, and all replicas, counters and totals are equal."""
    for seed in range(part, SEEDS, PARTS):
        play(seed)


@pytest.mark.soak
def test_many_days_end_well() -> None:
    """The same for some hours."""
    for seed in range(SEEDS, SEEDS_SOAK):
        play(seed)
