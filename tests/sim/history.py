"""One seeded history: devices and a cloud, people who edit, a network and machines that fail; then quiet, then judgement.

A seed decides everything, so the same seed gives the same history for ever on the same code. Each history has some of
the faults only (swarm testing: A. Groce et al., "Swarm Testing", 2012), because all of them together hide each other.
"""

from __future__ import annotations

from random import Random
from typing import Any

from metricsd.conflict import same
from metricsd.protocol import FieldValue
from tests.sim.bugs import SOUND, Bug
from tests.sim.cloud import Cloud, version_of
from tests.sim.device import Device, Steps
from tests.sim.ghosts import Ghosts, Violation
from tests.sim.parts import ORDERED, POLICIES, Address

START_MS = 1_790_000_000_000
YEARS_MS = 10 * 365 * 86_400_000
STEPS_MIN, STEPS_MAX = 16, 60
SWEEPS_MAX = 8
"""Rounds of each device after the faults; three suffice without a fork or a restore, a few more with them."""

ONE: Address = ("session", "claude-code/one")
TWO: Address = ("session", "claude-code/two")
CALLS: Address = ("tool_metric", "claude-code/one/Read")

FAULTS = (
    "lose",
    "reorder",
    "crash",
    "skew",
    "partition",
    "policy",
    "cloud_back",
    "device_back",
    "clone",
    "cloud_crash",
)
EXACT_FAULTS = frozenset({"reorder", "skew", "crash"})
"""Faults under which sums and tags are known exactly at the end: none of them hides who has seen what.

A lost answer does: the device cannot tell whether another's version was made on top of its own.
"""


class History:
    """One history; `run()` raises Violation when an invariant does not hold."""

    def __init__(self, seed: int, bug: Bug = SOUND) -> None:
        self.rng = Random(seed)
        self.bug = bug
        self.ghosts = Ghosts()
        self.now_ms = START_MS
        self.cloud: Cloud = bug.cloud(bug.parts, self.ghosts, self.rng)
        self.faults = frozenset(name for name in FAULTS if self.rng.random() < 0.25)
        if "device_back" in self.faults:
            # A history has one kind of restore: what is lost twice is lost.
            self.faults -= {"cloud_back"}
        if "clone" in self.faults:
            # Twins re-base one and the same edit each by its own clock; what was made after it may lose to it.
            self.faults -= {"skew", "cloud_back"}
        self.exact = self.faults <= EXACT_FAULTS
        self.devices: list[Device] = []
        self.skews: list[int] = []
        self.active: dict[Device, tuple[Steps, Any]] = {}
        self.late: list[Any] = []
        self.cut: set[Device] = set()
        self.must: set[str] = set()
        self.tags: set[str] = set()
        self.calls = self.counted = 0
        self.events = 0
        self.copies: dict[Device | None, Any] = {}
        for _ in range(self.rng.choice((2, 3, 3))):
            self._add(self.cloud.enrol())

    def run(self) -> None:
        """Play the history to its end and judge it."""
        for _ in range(self.rng.randint(STEPS_MIN, STEPS_MAX)):
            self._tick()
            share = self.rng.random()
            if share < 0.42:
                self._act(self.rng.choice(self.devices))
            elif share < 0.9 or not self.faults:
                self._sync(self.rng.choice(self.devices))
            else:
                self._fail()
        self._quiet()
        self._judge()

    def _add(self, login: str) -> Device:
        device: Device = self.bug.device(f"device {len(self.devices)}", login, self.bug.parts, self.ghosts)
        self.devices.append(device)
        self.skews.append(0)
        return device

    def _tick(self) -> None:
        self.now_ms += self.rng.choice((0, 1, 40, 2_000, 90_000))
        self._set_clocks()

    def _set_clocks(self) -> None:
        self.cloud.now_ms = self.now_ms
        for device, skew in zip(self.devices, self.skews, strict=True):
            device.wall_ms = self.now_ms + skew

    # What people do

    def _act(self, device: Device) -> None:
        share = self.rng.random()
        if share < 0.3:
            self.events += 1
            event = f"{self.events:032x}"
            device.take(event)
            self.must.add(event)
        elif share < 0.55:
            self._describe(device, self.rng.choice((ONE, ONE, TWO)))
        elif share < 0.8:
            self._tag(device)
        elif share < 0.93:
            self._count(device)
        else:
            self._delete(device, self.rng.choice((ONE, TWO)))

    def _describe(self, device: Device, address: Address) -> None:
        number = len(self.ghosts.past)
        text = f"edit {number}"
        self.ghosts.writer[text] = number
        device.edit(address, {"description": text})

    def _tag(self, device: Device) -> None:
        record = device.records.get(ONE)
        known = record.version.fields.get("tags") if record is not None else None
        tags = list(known) if isinstance(known, list) else []
        if tags and self.rng.random() < 0.45:
            gone = tags.pop(self.rng.randrange(len(tags)))
            self.tags.discard(gone)
        else:
            tags.append(f"t{len(self.ghosts.past)}")
            self.tags.add(tags[-1])
        device.edit(ONE, {"tags": tags})

    def _count(self, device: Device) -> None:
        record = device.records.get(CALLS)
        before: FieldValue = record.version.fields.get("execution_count") if record is not None else None
        # Equal totals would be one and the same change to a merge that sees values only.
        more = 1 << self.counted
        if isinstance(before, int) or not self.calls:
            # Two that make the record at once have no base to tell what each added.
            device.edit(CALLS, {"execution_count": (before if isinstance(before, int) else 0) + more})
            self.calls += more
            self.counted += 1

    def _delete(self, device: Device, address: Address) -> None:
        record = device.records.get(address)
        if record is not None and not record.version.deleted:
            # Two deletions of twins under one stamp could not be told apart here.
            self.now_ms += 1
            self._set_clocks()
            self.ghosts.buried.add(address)
            device.edit(address, {}, delete=True)

    # The network

    def _sync(self, device: Device) -> None:
        """Move a round on by some requests, or to its end."""
        if device not in self.active:
            self._begin(device, device.log_in() if device.locked_out else device.round())
        for _ in range(self.rng.choice((1, 1, 2, 3, 4, 40, 40, 40))):
            if device not in self.active or not self._step(device):
                return

    def _begin(self, device: Device, steps: Steps) -> None:
        self._send(device, steps, None)

    def _step(self, device: Device) -> bool:
        """Deliver one request; return False when something happened on the way."""
        steps, request = self.active[device]
        if request is None:
            self._send(device, steps, None)
            return True
        fault = self._fault(device)
        reply = None
        match fault:
            case "lost":
                pass
            case "late":
                self.late.append(request)
            case "answer lost":
                self.cloud.ask(request)
            case "twice":
                self.cloud.ask(request)
                reply = self.cloud.ask(request)
            case _:
                reply = self.cloud.ask(request)
        self._send(device, steps, reply)
        return fault == ""

    def _fault(self, device: Device) -> str:
        if device in self.cut:
            return "lost"
        share = self.rng.random()
        if "lose" in self.faults and share < 0.24:
            return "lost" if share < 0.08 else "answer lost"
        if "reorder" in self.faults and share > 0.8:
            return "late" if share > 0.95 and "lose" in self.faults else "twice"
        return ""

    def _send(self, device: Device, steps: Steps, reply: Any) -> None:
        try:
            self.active[device] = (steps, steps.send(reply))
        except StopIteration:
            self.active.pop(device, None)
            device.check()

    # Disasters

    def _fail(self) -> None:
        fault = self.rng.choice(sorted(self.faults))
        index = self.rng.randrange(len(self.devices))
        device = self.devices[index]
        match fault:
            case "lose" | "reorder":
                if self.late:
                    self.cloud.ask(self.late.pop(self.rng.randrange(len(self.late))))
            case "crash":
                self._kill(device)
            case "skew":
                self.skews[index] = self.rng.choice((-3_600_000, -200_000, 0, 200_000, 400_000, YEARS_MS))
            case "partition":
                self.cut ^= {device}
            case "policy":
                device.policy = self.rng.choice(list(POLICIES))
                self.ghosts.ordered &= device.policy in ORDERED
                self.ghosts.delete_wins &= device.policy != "latest_wins"
            case "cloud_back":
                self._back(None)
            case "device_back":
                self._back(device)
            case "clone":
                self._clone(device)
            case "cloud_crash":
                self.cloud.crash()
            case _:
                raise AssertionError(fault)

    def _kill(self, device: Device) -> None:
        entry = self.active.pop(device, None)
        if entry is not None:
            entry[0].close()

    def _back(self, device: Device | None) -> None:
        """Copy a disk, or put the copy back; what existed only after it is gone and nobody's fault."""
        copy = self.copies.pop(device, None)
        if copy is None:
            self.copies[device] = self.cloud.backup() if device is None else device.backup()
            return
        # Once: what is lost twice is lost.
        self.faults -= {"cloud_back"}
        self.ghosts.remembered = False
        if device is None:
            # It was stopped for that, which ends rounds; what a proxy held meets a cloud that knows less than its sender.
            for one, (_, request) in list(self.active.items()):
                self._kill(one)
                if request is not None:
                    self.late.append(request)
            self.cloud.restore(copy)
            while self.late and self.rng.random() < 0.7:
                self.cloud.ask(self.late.pop(self.rng.randrange(len(self.late))))
            self.ghosts.lost = True
        else:
            self._kill(device)
            device.restore(copy)
            # An edit of the copy that a wrong clock made is re-based to now: behind what this device itself made
            # later and lost. Which was first went with the disk; both are in the log.
            self.ghosts.ordered &= "skew" not in self.faults
        there = set(self.cloud.events).union(*(one.own for one in self.devices))
        self.must &= there

    def _clone(self, device: Device) -> None:
        if len(self.devices) > 3:
            return
        twin = self._add(device.login)
        self.ghosts.twins = True
        self.ghosts.remembered = False
        twin.restore(device.backup())
        twin.wall_ms = device.wall_ms
        twin.policy = device.policy

    # The end

    def _quiet(self) -> None:
        """No faults any more: everybody syncs until all are equal, within a bound."""
        self.cut.clear()
        for request in self.late:
            self.cloud.ask(request)
        for device in list(self.active):
            self._kill(device)
        self.faults = frozenset()
        for _ in range(SWEEPS_MAX):
            self._tick()
            for device in self.devices:
                for _ in range(2 if device.locked_out else 1):
                    self._begin(device, device.log_in() if device.locked_out else device.round())
                    while device in self.active:
                        self._step(device)
            if self._difference() is None:
                break

    def _judge(self) -> None:
        self.cloud.check()
        for device in self.devices:
            device.check()
        difference = self._difference()
        if difference is not None:
            raise Violation(f"after quiet: {difference}")
        lost = self.must - set(self.cloud.events)
        if lost:
            raise Violation(f"lost: {len(lost)} events")
        if self.exact:
            self._judge_exactly()

    def _judge_exactly(self) -> None:
        one, calls = self.cloud.records.get(ONE), self.cloud.records.get(CALLS)
        found = set() if one is None else set(_texts(one.fields.get("tags")))
        if ONE not in self.ghosts.buried and found != self.tags:
            raise Violation(f"tags are {sorted(found)}, not {sorted(self.tags)}")
        total = 0 if calls is None else calls.fields.get("execution_count")
        if total != self.calls:
            raise Violation(f"{total} calls are counted, not {self.calls}")

    def _difference(self) -> str | None:
        """Return what two replicas say differently; None when all are equal."""
        cloud = self.cloud
        for device in self.devices:
            if device.owner != cloud.events:
                return (
                    f"{device.name}: {len(device.owner)} events, the cloud has {len(cloud.events)}, or whose they are"
                )
            if device.records.keys() != cloud.records.keys():
                return f"{device.name}: {sorted(device.records)}, the cloud has {sorted(cloud.records)}"
            for address, record in device.records.items():
                if record.dirty or record.conflict is not None:
                    return f"{device.name} {address}: still {'open' if record.conflict is not None else 'unsent'}"
                if not same(record.version, version_of(cloud.records[address])):
                    return f"{device.name} {address}: says something else than the cloud"
        return None


def _texts(value: FieldValue) -> list[str]:
    return value if isinstance(value, list) else []


def play(seed: int, bug: Bug = SOUND) -> Violation | None:
    """Play one history; return what did not hold, None when all did."""
    try:
        History(seed, bug).run()
    except Violation as violation:
        return violation
    return None
