"""What comes before what in a round: a mark never moves ahead of what it stands for."""

from __future__ import annotations

import msgspec
import pytest

from metricsd.errors import StoreUnavailable
from metricsd.ids import DeviceId
from metricsd.protocol import PREFIX
from metricsd.store import events, feed, outbox, state
from metricsd.store.connection import Store
from tests.sync.test_feed import B, event
from tests.sync.world import World


def test_the_cursor_stays_when_the_page_cannot_be_stored(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cursor and rows are one transaction: a cursor alone would skip the page for ever."""
    outbox.enrol(store, DeviceId("a" * 32), "cloud")

    def failing(*_: object, **__: object) -> None:
        raise StoreUnavailable("disk full")

    monkeypatch.setattr(events, "insert", failing)
    with pytest.raises(StoreUnavailable):
        feed.apply(
            store, [msgspec.Raw(msgspec.json.encode(event(1, B)))], "9-x", origin="https://cloud", only_records=False
        )
    assert state.get_text(store, outbox.CURSOR) == ""


async def test_nothing_is_acknowledged_before_the_cloud_has_answered(world: World) -> None:
    """A push that fails on its way leaves the mark where it was."""
    device = await world.device("one")
    assert (await device.sync()).ok
    device.record(5)
    world.network.fault = lambda request: "before" if request.url.path == f"{PREFIX}/events" else None
    await device.sync()
    stream = outbox.find(device.store)
    assert stream is not None and stream.acked_seq == 0
    assert outbox.pending_events(device.store) == 5
