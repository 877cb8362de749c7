"""Captures that go straight to the cloud: once, in the same wire form, under the ids that the tail gives them later."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import zstandard

from metricsd import direct as module
from metricsd.config import Sync, load_config
from metricsd.direct import Direct
from metricsd.errors import AuthError, CloudUnreachable
from metricsd.identity import forget_login, load_identity
from metricsd.intake import make_tail
from metricsd.store import outbox
from tests.fakes import START_US
from tests.sync.world import Device, World


class Captures:
    """Lays captures into a device's spool; their durations are their numbers."""

    def __init__(self, device: Device) -> None:
        self.new = device.paths.spool / "new"
        self.new.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._numbers: Iterator[int] = iter(range(10**9))

    def write(self, count: int = 1, *, call: str | None = None, tool: str = "Bash", end: str = "\n") -> list[int]:
        numbers = [next(self._numbers) for _ in range(count)]
        for n in numbers:
            payload = {"session_id": "s", "tool_name": tool, "duration_ms": n, "tool_use_id": call or f"toolu_{n}"}
            second = START_US // 1_000_000
            line = {"v": 1, "s": second, "app": "claude-code", "event": "PostToolUse", "payload": payload}
            path = self.new / f"PostToolUse-{n}-1-0.jsonl"
            path.write_text(json.dumps(line) + end)
            os.utime(path, ns=(0, START_US * 1000 + n))
        return numbers


def make_direct(world: World, device: Device) -> Direct:
    config = load_config(device.paths, {}, system_file=Path("/none"))
    return Direct(device.paths, config, device.clock, connect=world.connect)


def take_in(device: Device, direct: Direct) -> None:
    """Take the spool into the store, as the daemon does once the store is back."""
    config = load_config(device.paths, {}, system_file=Path("/none"))
    ingest, tail = make_tail(device.store, device.paths, config, load_identity(device.paths))
    ingest.expect(direct.calls())
    while tail.tick().more:
        continue
    tail.close()


@pytest.fixture
async def device(world: World) -> Device:
    return await world.device("one")


@pytest.fixture
def captures(device: Device) -> Captures:
    return Captures(device)


async def test_sent_straight_then_stored_then_synced_each_event_is_in_the_cloud_once(
    world: World, device: Device, captures: Captures
) -> None:
    """The sequenced push is answered `duplicate` for what went before; both devices and all totals agree."""
    other = await world.device("two")
    device.record(7)
    assert (await device.sync()).ok
    direct = make_direct(world, device)
    captures.write(120)
    sent = await direct.tick()
    assert (sent.stored, sent.known, sent.left) == (120, 0, 0)
    assert len(list(captures.new.iterdir())) == 120, "captures stay: only the tail lets go of them"
    assert world.event_ids().total() == 127
    assert (await other.sync()).pulled_events == 127
    assert (await direct.tick()).stored == 0
    captures.write(5)
    take_in(device, direct)
    report = await device.sync()
    assert report.ok
    assert report.pushed_events == 5
    await other.sync()
    await other.sync()
    assert device.event_ids() == world.event_ids() == other.event_ids()
    assert max(world.event_ids().values()) == 1
    assert device.counted() == other.counted() == device.rolled_up() == other.rolled_up() == 132
    await direct.close()


async def test_what_is_sent_is_what_the_engine_would_send(world: World, device: Device, captures: Captures) -> None:
    """Names are hashed as ever: the event of a capture equals the one that is pushed from the store, field by field."""
    bodies: list[bytes] = []
    no_fault: str | None = None

    def keep(request: httpx.Request) -> str | None:
        if request.url.path.endswith("/events"):
            bodies.append(request.content)
        return no_fault

    captures.write(1, tool="mcp__secret_server__secret_tool")
    world.network.fault = keep
    direct = make_direct(world, device)
    await direct.tick()
    await direct.close()
    take_in(device, direct)
    await device.sync()
    first, second = [json.loads(body) for body in bodies]
    one, two = first["events"][0], second["events"][0]
    assert two.pop("seq") == 1
    assert one.pop("seq", 0) == 0
    assert one == two
    assert b"secret" not in b"".join(bodies)


async def test_a_restart_forgets_what_was_sent_and_doubles_nothing(
    world: World, device: Device, captures: Captures
) -> None:
    """Memory is all there is: the cloud knows the ids."""
    captures.write(30)
    for expected in ((30, 0), (0, 30)):
        direct = make_direct(world, device)
        sent = await direct.tick()
        assert (sent.stored, sent.known) == expected
        await direct.close()
    assert world.event_ids().total() == 30


@pytest.mark.parametrize("fault", ["before", "after", "twice", "html", "500"])
async def test_a_failing_cloud_loses_and_doubles_nothing(
    world: World, device: Device, captures: Captures, fault: str
) -> None:
    """The error leaves as the client's; the next tick sends what was not settled."""
    captures.write(120)
    direct = make_direct(world, device)
    calls = 0

    def second_fails(request: httpx.Request) -> str | None:
        nonlocal calls
        calls += 1
        return fault if calls == 2 else None

    world.network.fault = second_fails
    if fault == "twice":
        await direct.tick()
    else:
        with pytest.raises(CloudUnreachable):
            await direct.tick()
        await direct.tick()
    assert world.event_ids().total() == 120
    assert max(world.event_ids().values()) == 1
    await direct.close()


async def test_two_captures_of_one_fact_are_one_event_everywhere(
    world: World, device: Device, captures: Captures
) -> None:
    """Whichever the tail meets first later, it keeps the one that the cloud has."""
    direct = make_direct(world, device)
    captures.write(1, call="toolu_twin")
    assert (await direct.tick()).stored == 1
    captures.write(1, call="toolu_twin")
    assert (await direct.tick()).stored == 0
    # The first one's file has the newer time now: the tail meets the second one first.
    os.utime(captures.new / "PostToolUse-0-1-0.jsonl", ns=(0, START_US * 1000 + 500))
    take_in(device, direct)
    await device.sync()
    assert device.event_ids() == world.event_ids()
    assert world.event_ids().total() == 1
    await direct.close()


async def test_what_cannot_be_sent_is_left_to_the_tail(world: World, device: Device, captures: Captures) -> None:
    """Torn, not JSON, a link, the doctor's own: passed over at no cost; a line that is finished later is sent then."""
    captures.write(1, end="")
    (captures.new / "Stop-1-1-0.jsonl").write_text("no json\n")
    (captures.new / "Stop-2-1-0.jsonl").symlink_to("/etc/passwd")
    (captures.new / "DoctorProbe-3-1-0.jsonl").write_text(
        '{"v":1,"s":1,"app":"metricsd","event":"DoctorProbe","payload":{}}\n'
    )
    captures.write(1)
    direct = make_direct(world, device)
    assert (await direct.tick()).stored == 1
    with (captures.new / "PostToolUse-0-1-0.jsonl").open("a") as file:
        file.write("\n")
    assert (await direct.tick()).stored == 1
    await direct.close()


async def test_an_event_that_the_cloud_refuses_holds_up_nothing(
    world: World, device: Device, captures: Captures
) -> None:
    """A batch refused as a whole is halved until the bad one is alone; it is not sent again and again."""

    def refuse_bad(request: httpx.Request) -> str | None:
        body = request.content
        if request.headers.get("content-encoding") == "zstd":
            body = zstandard.ZstdDecompressor().decompress(body, max_output_size=1 << 20)
        return "400" if b'"duration_ms":13,' in body else None

    world.network.canned["400"] = httpx.Response(
        400, headers={"content-type": "application/problem+json"},
        content=b'{"status":400,"title":"Bad Request","code":"bad_request"}',
    )  # fmt: skip
    world.network.fault = refuse_bad
    captures.write(40)
    direct = make_direct(world, device)
    assert (await direct.tick()).stored == 39
    before = len(world.network.requests)
    assert (await direct.tick()).stored == 0
    assert len(world.network.requests) == before
    await direct.close()


async def test_a_tick_and_its_memory_are_bounded(
    world: World, device: Device, captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long backlog goes in rounds; what is forgotten is sent again and known."""
    monkeypatch.setattr(module, "CAPTURES_PER_TICK", 20)
    monkeypatch.setattr(module, "SENT_MAX", 50)
    captures.write(70)
    direct = make_direct(world, device)
    rounds = [await direct.tick() for _ in range(4)]
    assert [sent.stored for sent in rounds] == [20, 20, 20, 10]
    assert [sent.left for sent in rounds] == [50, 30, 10, 0]
    captures.write(5)
    assert (await direct.tick()).stored == 5, "what is sent again does not hold up what is new"
    assert world.event_ids() == Counter(dict.fromkeys(world.event_ids(), 1))
    await direct.close()


async def test_without_a_login_it_says_so(world: World, device: Device, captures: Captures) -> None:
    """Nothing is read, nothing is sent."""
    captures.write(1)
    direct = make_direct(world, device)
    forget_login(device.paths)
    with pytest.raises(AuthError):
        await direct.tick()
    assert not world.network.requests[2:]


async def test_the_stream_goes_on_after_unsequenced_events(world: World, device: Device, captures: Captures) -> None:
    """What went straight does not move the stream's mark: hello finds both sides where they were."""
    device.record(3)
    await device.sync()
    direct = make_direct(world, device)
    captures.write(4)
    await direct.tick()
    report = await device.sync()
    assert report.ok
    stream = outbox.find(device.store)
    assert stream is not None
    assert (stream.acked_seq, stream.epoch) == (3, outbox.FIRST_EPOCH)
    take_in(device, direct)
    await device.sync()
    stream = outbox.find(device.store)
    assert stream is not None
    assert stream.acked_seq == 7
    await direct.close()


def test_batches_fit_the_default_limits_of_a_cloud() -> None:
    """A server that allows less is found by halving; the usual one never has to refuse."""
    assert Sync().batch_size >= module.BATCH_ITEMS
