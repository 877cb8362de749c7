"""Rounds against the real cloud app: what one device sends, another sees, whatever the network does."""

from __future__ import annotations

from tests.sync.world import World


async def test_what_one_device_records_the_cloud_and_another_device_have(world: World) -> None:
    """Events, counters and totals arrive once; a second round has nothing to do."""
    one, two = await world.device("one"), await world.device("two")
    ids = one.record(130)

    first, second = await one.sync(), await two.sync()

    assert (first.ok, first.error, first.pushed_events) == (True, None, 130)
    assert (second.ok, second.pulled_events) == (True, 130)
    assert world.event_ids() == one.event_ids() == two.event_ids() == dict.fromkeys(ids, 1)
    assert world.counted() == one.counted() == two.counted() == two.rolled_up() == 130
    again = await one.sync()
    assert (again.ok, again.pushed_events, again.pushed_records, again.pulled_events) == (True, 0, 0, 0)
