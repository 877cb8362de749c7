"""Towards a cloud that struggles: smaller requests, twice the interval, and what each round says about it."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import msgspec
import pytest

from metricsd.errors import Fault
from metricsd.health import Outcome, Verdict
from metricsd.protocol import PushEventsReply
from metricsd.store import state
from metricsd.sync.engine import NEXT, Engine
from tests.sync.world import SETTINGS, Device, World

EVENTS = 200


async def _engine(world: World, gentle: list[bool], outcomes: list[Outcome]) -> tuple[Device, Engine]:
    device = await world.device("laptop")
    device.record(EVENTS)
    engine = Engine(
        device.paths, device.store, SETTINGS, clock=device.clock, rng=Random(1), connect=world.connect,
        is_gentle=lambda: gentle[0], on_outcome=outcomes.append,
    )  # fmt: skip
    return device, engine


def _count_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from metricsd.client import CloudClient

    sizes: list[int] = []
    push = CloudClient.push_events

    async def counted(client: CloudClient, body: bytes) -> PushEventsReply:
        sizes.append(len(msgspec.json.decode(body)["events"]))
        return await push(client, body)

    monkeypatch.setattr(CloudClient, "push_events", counted)
    return sizes


@pytest.mark.parametrize("is_gentle", [False, True])
async def test_batches_grow_unless_the_cloud_is_to_be_spared(
    world: World, monkeypatch: pytest.MonkeyPatch, is_gentle: bool
) -> None:
    """All of it arrives either way; gently no request ever holds more than half of the first one else."""
    sizes = _count_batches(monkeypatch)
    device, engine = await _engine(world, [is_gentle], [])
    assert (await engine.tick()).pushed_events == EVENTS
    assert sum(sizes) == EVENTS
    assert (max(sizes) <= SETTINGS.batch_size // 2) is is_gentle
    await engine.close()
    assert len(world.event_ids()) == EVENTS
    assert device.store.is_open


async def test_the_interval_is_doubled_and_comes_back(world: World) -> None:
    """The next regular round lies on the grid of twice the interval, for as long as the mode is degraded."""
    gentle = [True]
    device, engine = await _engine(world, gentle, [])
    gaps: list[set[int]] = []
    for gentle[0] in (True, False):
        planned: list[int] = []
        for _ in range(4):
            await engine.tick()
            planned.append(state.get_int(device.store, NEXT))
            device.clock.advance((planned[-1] - device.clock.now_us()) / 1e6 + 0.001)
        # The first plan may be left of the grid before.
        gaps.append({round((later - sooner) / 1e6) for sooner, later in pairwise(planned[1:])})
    await engine.close()
    assert gaps == [{2 * SETTINGS.interval_s}, {SETTINGS.interval_s}]


async def test_a_round_says_how_the_cloud_answered(world: World) -> None:
    """A whole round is several good answers; one that found nobody says how it failed."""
    outcomes: list[Outcome] = []
    device, engine = await _engine(world, [False], outcomes)
    await engine.tick()
    await world.stop()
    await engine.tick()
    device.paths.credentials.unlink()
    await engine.tick()
    await engine.close()
    whole, broken, refused = outcomes
    assert whole.verdict is Verdict.GOOD
    assert whole.answers >= 3
    assert (broken.verdict, broken.answers, broken.fault) == (Verdict.BAD, 0, Fault.REFUSED)
    assert refused.verdict is Verdict.AUTH
