"""The device's end of the stream of news: over a real socket, through proxies and breaks, and in hostile hands."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random

import pytest

from metricsd.client import CloudClient
from metricsd.cloud.tenants import revoke_token
from metricsd.config import Paths, Sync
from metricsd.errors import CloudUnreachable
from metricsd.identity import Credentials, forget_login, save_login
from metricsd.ids import DeviceId
from metricsd.sync import realtime
from metricsd.sync.engine import NEWS
from metricsd.sync.realtime import LIVE, NOT_WANTED, OFF, Live, News, Realtime, events_of, find_obstacle
from tests.cloud.support import Device
from tests.cloud.test_streams import QUICK, Served
from tests.holding_proxy import HoldingProxy
from tests.sync.world import World

SETTINGS = Sync(backoff_max_s=0.2, connect_timeout_s=2.0, request_timeout_s=5.0)
WITHIN_S = 10.0


async def until(fact: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not fact():
        assert time.monotonic() < deadline, f"not within {WITHIN_S} s: {what}"
        await asyncio.sleep(0.01)


class Listening:
    """A Realtime whose loop runs, and what it was told."""

    def __init__(self, home: Paths, settings: Sync = SETTINGS) -> None:
        self.news: list[News] = []
        self.connections = 0
        self.realtime = Realtime(home, settings, self.news.append, rng=Random(1), connect=self._connect)

    def _connect(self, url: str, token: str, settings: Sync) -> CloudClient:
        self.connections += 1
        return CloudClient(url, token, settings)

    @property
    def opened(self) -> int:
        return sum(news.connected for news in self.news)

    @property
    def changes(self) -> int:
        return sum(not news.connected for news in self.news)

    @property
    def live(self) -> bool:
        return self.realtime.state.live

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Listening]:
        task = asyncio.create_task(self.realtime.loop())
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with Served(tmp_path / "cloud", QUICK) as made:
        yield made


async def logged_in(served: Served, home: Paths, url: str = "") -> tuple[Device, Device]:
    """Log this home in as one device; return it and another device of the same user."""
    mine, other = [await served.cloud.device(name=name) for name in ("mine", "other")]
    log_in(home, url or served.url, mine)
    return mine, other


def log_in(home: Paths, url: str, device: Device) -> None:
    save_login(home, Credentials(url, device.token, b"k" * 32, "acme", "ann", DeviceId(device.id)), parent=None)


async def test_news_of_another_device_arrive_and_opening_counts_as_news(served: Served, home: Paths) -> None:
    """A pull at once after connecting, because anything may have been missed; then one for each change of others."""
    mine, other = await logged_in(served, home)
    async with Listening(home).running() as listening:
        await until(lambda: listening.live, "live")
        assert listening.news == [News(0.0, connected=True)]
        await served.push(other)
        await until(lambda: listening.changes, "told of the change")
        await served.push(mine)
        await asyncio.sleep(0.2)
        assert listening.changes == 1
    assert listening.realtime.state.reason == LIVE


async def test_a_quiet_stream_stays_open(tmp_path: Path, home: Paths) -> None:
    """Heartbeats alone keep it alive, beyond the silence that would end it."""
    heartbeat_s = 1.5  # longer than elsewhere: a stall of a busy machine must not look like silence
    async with Served(tmp_path / "cloud", QUICK._replace(heartbeat_s=heartbeat_s)) as served:
        await logged_in(served, home)
        async with Listening(home).running() as listening:
            await until(lambda: listening.live, "live")
            await asyncio.sleep(2.5 * heartbeat_s)
            assert listening.live and (listening.opened, listening.connections) == (1, 1)


async def test_a_proxy_that_holds_the_stream_back_is_noticed_and_said(served: Served, home: Paths) -> None:
    """Not live, with a sentence that names what to look at; when the proxy lets go, real time comes by itself."""
    async with HoldingProxy(served.url) as proxy:
        await logged_in(served, home, proxy.url)
        async with Listening(home).running() as listening:
            await until(lambda: "heartbeat" in listening.realtime.state.reason, "silence noticed")
            assert not listening.live and listening.news == []
            assert "proxy" in listening.realtime.state.reason and "every 300 s" in listening.realtime.state.reason
            assert proxy.held > 0
            proxy.holding = False
            await until(lambda: listening.live, "live once nothing is held")


async def test_a_stream_that_falls_silent_is_given_up(served: Served, home: Paths) -> None:
    """It beat before; what comes after two missed heartbeats is a new connection and a pull."""
    async with HoldingProxy(served.url) as proxy:
        proxy.holding = False
        await logged_in(served, home, proxy.url)
        async with Listening(home).running() as listening:
            await until(lambda: listening.live, "live")
            proxy.cut()
            await until(lambda: listening.opened == 2, "connected again")
            assert listening.live


async def test_a_change_while_disconnected_is_not_missed(served: Served, home: Paths) -> None:
    """Whatever was stored meanwhile is pulled because connecting again is news by itself."""
    async with HoldingProxy(served.url) as proxy:
        proxy.holding = False
        _, other = await logged_in(served, home, proxy.url)
        async with Listening(home).running() as listening:
            await until(lambda: listening.live, "live")
            proxy.holding = True
            proxy.cut()
            await served.push(other)
            proxy.holding = False
            await until(lambda: listening.opened >= 2, "connected again")


async def test_a_stop_of_the_cloud_is_followed_by_a_new_stream(tmp_path: Path, home: Paths) -> None:
    """The device comes back by itself when the cloud does, on the same address."""
    async with Served(tmp_path / "cloud", QUICK) as served:
        await logged_in(served, home)
        port = int(served.url.rsplit(":", 1)[1])
        async with Listening(home).running() as listening:
            await until(lambda: listening.live, "live")
            await served.server.stop()
            await until(lambda: not listening.live, "the end was noticed")
            from metricsd.cloud.app import create_app
            from metricsd.cloud.serve import CloudServer

            again = CloudServer(create_app(served.cloud.backend, QUICK), QUICK, port=port)
            await again.start()
            await until(lambda: listening.opened == 2, "connected again")
            await again.stop()


async def test_a_round_that_reaches_the_cloud_again_ends_the_pause(served: Served, home: Paths) -> None:
    """After a long outage the pause is minutes; nobody waits for its end when the cloud is known to be back."""
    async with HoldingProxy(served.url) as proxy:
        mine, _ = await logged_in(served, home, "http://127.0.0.1:9")
        async with Listening(home, SETTINGS._replace(backoff_max_s=3600.0)).running() as listening:
            listening.realtime._failures = 20
            await until(lambda: "cannot be reached" in listening.realtime.state.reason, "unreachable")
            proxy.holding = False
            log_in(home, proxy.url, mine)
            listening.realtime.note_recovery()
            await until(lambda: listening.live, "live")
            listening.realtime.note_recovery()
            await asyncio.sleep(0.2)
            assert listening.live and listening.opened == 1


async def test_a_revoked_token_stops_and_a_new_login_starts(served: Served, home: Paths) -> None:
    """No connection is tried with a token that the cloud refused, until the login changes."""
    mine, other = await logged_in(served, home)
    [row] = [token for token in await served.cloud.backend.directory.list_tokens(None) if token.device == mine.id]
    async with Listening(home).running() as listening:
        await until(lambda: listening.live, "live")
        await revoke_token(served.cloud.backend.directory, row.id, served.cloud.clock, actor="test")
        await until(lambda: "login" in listening.realtime.state.reason, "refused")
        tried = listening.connections
        listening.realtime.notice_login()
        await asyncio.sleep(1.0)
        assert (listening.connections, listening.live) == (tried, False)
        log_in(home, served.url, other)
        listening.realtime.notice_login()
        await until(lambda: listening.live, "live with the new login")


async def test_a_logout_ends_the_stream(served: Served, home: Paths) -> None:
    """And says so; the cloud has no open stream of this device any more."""
    await logged_in(served, home)
    async with Listening(home).running() as listening:
        await until(lambda: listening.live, "live")
        forget_login(home)
        listening.realtime.notice_login()
        await until(lambda: listening.realtime.state == Live(False, realtime.NOT_LOGGED_IN), "not logged in")
        await served.until_streams(0)


async def test_two_copies_of_a_home_do_not_fight(
    served: Served, home: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one has the stream; the earlier says so and waits much longer than after a break."""
    monkeypatch.setattr(realtime, "FAILURES_REPLACED", 20)
    mine, _ = await logged_in(served, home)
    twin = home._replace(config_dir=tmp_path / "twin" / "config", state_dir=tmp_path / "twin" / "state")
    log_in(twin, served.url, mine)
    patient = SETTINGS._replace(backoff_max_s=3600.0)
    async with Listening(home, patient).running() as first:
        await until(lambda: first.live, "live")
        async with Listening(twin, patient).running() as second:
            await until(lambda: second.live and not first.live, "taken over")
            assert "copied" in first.realtime.state.reason
            await asyncio.sleep(0.5)
            assert second.live and (first.connections, second.connections) == (1, 1)
            assert first.realtime._failures > realtime.FAILURES_REPLACED


async def test_no_room_means_the_interval(tmp_path: Path, home: Paths) -> None:
    """A cloud that has no stream to give asks to come back later, and that is honoured."""
    async with Served(tmp_path / "cloud", QUICK._replace(streams_max=0)) as served:
        await logged_in(served, home)
        async with Listening(home).running() as listening:
            await until(lambda: "streams_full" in listening.realtime.state.reason, "refused")
            await asyncio.sleep(0.5)
            assert listening.connections == 1


async def test_after_sleep_the_connection_is_made_anew(served: Served, home: Paths) -> None:
    """The old one is dead although nobody told; one stream is open afterwards, not two."""
    await logged_in(served, home)
    async with Listening(home, SETTINGS._replace(interval_s=2.0)).running() as listening:
        await until(lambda: listening.live, "live")
        listening.realtime.connect_anew(slept=True)
        await until(lambda: listening.opened == 2, "connected anew")
        await served.until_streams(1)


@pytest.mark.parametrize(
    ("settings", "obstacle"),
    [
        (Sync(), None),
        (Sync(direction="remote_first"), None),
        (Sync(pull="records"), None),
        (Sync(realtime=False), OFF),
        (Sync(direction="local_first"), NOT_WANTED),
        (Sync(pull="none"), NOT_WANTED),
    ],
)
def test_a_stream_is_opened_only_where_something_is_pulled(settings: Sync, obstacle: str | None) -> None:
    """Off by the setting, and without use where nothing would be fetched."""
    assert find_obstacle(settings) == obstacle


async def _chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize("cut", range(1, 60, 7))
async def test_events_are_whole_wherever_they_are_cut(cut: int) -> None:
    """A proxy may cut and join as it likes; comments and unknown fields are passed over."""
    text = b':\n\nevent: change\nid: 4\ndata: {"change":1}\r\n\r\n:x\n\nevent: end\ndata: {"reason":"drain"}\n\n'
    parts = [text[start : start + cut] for start in range(0, len(text), cut)]
    found = [event async for event in events_of(_chunks(*parts), "http://x")]
    assert found == [("change", b'{"change":1}'), ("end", b'{"reason":"drain"}')]


async def test_an_endless_line_is_given_up() -> None:
    """Memory stays bounded whatever is sent."""
    with pytest.raises(CloudUnreachable, match="something else"):
        async for _ in events_of(_chunks(*[b"x" * 4096] * 100), "http://x"):
            raise AssertionError("no event is in there")


@pytest.mark.parametrize(
    "answer",
    [
        b"event: open\ndata: {}\n\n",
        b"event: change\ndata: [1]\n\n",
        b'event: change\ndata: {"change": 1, "spread_ms": "x"}\n\n',
        b"event: open\ndata: \xff\n\n",
        b"event: end\ndata: null\n\n",
    ],
)
async def test_events_of_another_kind_end_the_stream(home: Paths, answer: bytes) -> None:
    """They are refused with a sentence, and the next attempt waits."""
    listening = Listening(home)
    with pytest.raises(CloudUnreachable, match="not of metricsd's protocol"):
        await listening.realtime._hear(_chunks(answer), 15.0, "http://x")


async def test_a_wild_spread_is_bounded(home: Paths) -> None:
    """A hostile cloud cannot put pulls off for ever, nor make them come early."""
    listening = Listening(home)
    for spread_ms in (-(10**9), 10**12):
        await listening.realtime._hear(
            _chunks(b'event: change\ndata: {"change":1,"spread_ms":%d}\n\n' % spread_ms), 15.0, "http://x"
        )
    assert [news.spread_s for news in listening.news] == [0.0, realtime.SPREAD_S_MAX]


def test_status_knows_the_calm_reasons() -> None:
    """`status` cannot import this module within its 60 ms, so it repeats the reasons that need no attention."""
    from metricsd.cli import status_text

    assert set(status_text._REALTIME_CALM) == {OFF, NOT_WANTED, realtime.NOT_LOGGED_IN, realtime.CONNECTING}


async def test_a_round_for_news_fetches_and_sends_nothing_ordinary(world: World) -> None:
    """What waits for the interval goes on waiting; a decision that the fetched change called for is sent at once."""
    one, two = await world.device("one"), await world.device("two")
    one.record(3)
    await one.sync()
    two.record(2)
    report = await two.engine.tick(reason=NEWS)
    assert report.ok and (report.pushed_events, report.pushed_records, report.pulled_events) == (0, 0, 3)
    assert (await two.sync()).pushed_events == 2
