"""Hears at once that another device stored something: one open stream to the cloud, followed for ever.

The stream carries no data and promises nothing: whoever connects pulls from its cursor, so a dropped connection
loses no change, and everything also comes by the interval. A stream on which nothing arrives in two heartbeats (a
proxy that collects what it should pass on, a laptop that slept) is given up, said in `status`, and tried again after
a pause with full jitter. One installation never has more than one stream open.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import NamedTuple, TypeVar

import msgspec
import structlog

from metricsd import identity
from metricsd.client import CloudClient
from metricsd.config import Paths, Sync
from metricsd.errors import AuthError, CloudBusy, CloudError, CloudUnreachable, ConfigError, UsageError
from metricsd.identity import Credentials
from metricsd.protocol import Announced, Ended, Opened
from metricsd.sync import plan

T = TypeVar("T")

FEATURE = "stream"
SILENT_BEATS = 2
HEARTBEAT_S_MAX = 300.0
HEARTBEAT_S_MIN = 0.02
"""Whatever a cloud says: below, a slow answer would count as silence."""
SPREAD_S_MAX = 30.0
FAILURES_FIRST = 2
"""A first pause of up to 4 s: when a cloud starts again, all its devices come back at once."""
FAILURES_REPLACED = 5
"""When another process took the stream over, it has it for a while before this one tries again (up to 64 s)."""
LINE_BYTES_MAX = 16 * 1024
NO_STREAM_RETRY_S = 3600.0
OFF = "switched off (sync.realtime)"
NOT_WANTED = "not needed: nothing is pulled"
NOT_LOGGED_IN = "not logged in"
CONNECTING = "connecting"
LIVE = "live"

log = structlog.get_logger("realtime")

Connect = Callable[[str, str, Sync], CloudClient]


class Live(NamedTuple):
    """Whether the stream lives and beats, and in words how it stands."""

    live: bool
    reason: str


class News(NamedTuple):
    """What the daemon is told: pull after a random part of `spread_s`; `connected` when the stream has just opened."""

    spread_s: float
    connected: bool


class _Pause(NamedTuple):
    """Why there is no stream now, and for how long; `seconds` None waits for another login."""

    reason: str
    seconds: float | None


def find_obstacle(settings: Sync) -> str | None:
    """Return why a stream would be of no use with these settings, None if it is of use. Pure."""
    if not settings.realtime:
        return OFF
    return NOT_WANTED if settings.direction == "local_first" or settings.pull == "none" else None


class Realtime:
    """The stream of one installation. `on_news` is called when there is something to pull."""

    def __init__(
        self,
        paths: Paths,
        settings: Sync,
        on_news: Callable[[News], None],
        *,
        rng: Random | None = None,
        connect: Connect = CloudClient,
        find_pause: Callable[[], str | None] = lambda: None,
        on_heard: Callable[[], None] = lambda: None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """`find_pause` says why there is to be no stream now, None when there may be one.

        `on_heard` is called for whatever comes, heartbeats included, `on_lost` when a stream that lived is no more.
        """
        self._paths = paths
        self._settings = settings
        self._on_news = on_news
        self._find_pause = find_pause
        self._on_heard = on_heard
        self._on_lost = on_lost
        self._rng = rng or Random()  # noqa: S311  it spreads load, it keeps no secret
        self._connect = connect
        self._restart = asyncio.Event()
        self._mark = identity.find_login_mark(paths)
        self._failures = 0
        self._jitter_s = 0.0
        self._beat_s: float | None = None
        self.state = Live(False, find_obstacle(settings) or CONNECTING)

    @property
    def beat_s(self) -> float | None:
        """Return how often the stream is heard of at least; None while there is none."""
        return self._beat_s if self.state.live else None

    def notice_login(self) -> None:
        """Connect anew if the login changed since the last look."""
        mark = identity.find_login_mark(self._paths)
        if mark != self._mark:
            self._mark = mark
            self.connect_anew()

    def connect_anew(self, *, slept: bool = False) -> None:
        """Drop the connection and make another: the login changed, or the machine slept and the old one is dead.

        After sleep with the jitter that the round has, because everybody in an office opens the lid at nine.
        """
        self._failures = 0
        self._jitter_s = plan.wake_jitter_s(self._settings.interval_s, self._rng) if slept else 0.0
        self._restart.set()

    def note_recovery(self) -> None:
        """Try at once if there is no stream: a round has just reached the cloud after some that did not."""
        if not self.state.live:
            self.connect_anew()

    async def loop(self) -> None:
        """Follow the stream for ever."""
        while True:
            self._restart.clear()
            await asyncio.sleep(self._jitter_s)
            self._jitter_s = 0.0
            pause = await self._unless_restarted(self._follow())
            self._say(Live(False, CONNECTING if pause is None else pause.reason))
            if pause is not None:
                await self._unless_restarted(_wait(pause.seconds))

    async def _follow(self) -> _Pause:
        """Listen until the stream ends, and return why it did."""
        paused = self._find_pause()
        if paused is not None:
            # Whoever wants the stream back restarts it.
            return _Pause(paused, None)
        try:
            credentials = identity.find_credentials(self._paths)
            if credentials is None:
                return _Pause(NOT_LOGGED_IN, None)
            return await self._listen(credentials)
        except AuthError as error:
            return _Pause(str(error), None)
        except CloudBusy as error:
            return self._failed(str(error), error.retry_after_s)
        except (CloudError, ConfigError, UsageError) as error:
            return self._failed(str(error))

    async def _listen(self, credentials: Credentials) -> _Pause:
        async with self._connect(credentials.url, credentials.token, self._settings) as client:
            capabilities = await client.capabilities()
            if FEATURE not in capabilities.features:
                return _Pause("this cloud offers no stream", NO_STREAM_RETRY_S)
            heartbeat_s = min(max(capabilities.heartbeat_s, HEARTBEAT_S_MIN), HEARTBEAT_S_MAX)
            try:
                async with client.listen(SILENT_BEATS * heartbeat_s) as chunks:
                    return await self._hear(chunks, heartbeat_s, client.url)
            except TimeoutError:
                said = (
                    f"no heartbeat within {SILENT_BEATS * heartbeat_s:g} s: something on the way to {client.url} "
                    f"(a proxy?) holds the stream back; syncing every {self._settings.interval_s:g} s"
                )
                return self._failed(said)

    async def _hear(self, chunks: AsyncIterator[bytes], heartbeat_s: float, url: str) -> _Pause:
        """Act on each event until there are no more."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._beat_s = heartbeat_s
        try:
            async for name, data in events_of(self._heard(chunks), url):
                match name:
                    case "open":
                        _decoded(data, Opened, url)
                        self._say(Live(True, LIVE))
                        self._on_news(News(0.0, connected=True))
                    case "change":
                        spread_s = _decoded(data, Announced, url).spread_ms / 1000
                        self._on_news(News(min(max(spread_s, 0.0), SPREAD_S_MAX), connected=False))
                    case "end":
                        return self._ended(_decoded(data, Ended, url).reason)
                    case _:
                        # A newer cloud may say more.
                        continue
        finally:
            # Only a stream that lasted forgives: one that opens and breaks must not be tried without pause.
            if self.state.live and loop.time() - began > heartbeat_s:
                self._failures = 0
        return self._failed("the stream broke off")

    async def _heard(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self._on_heard()
            yield chunk

    def _ended(self, reason: str) -> _Pause:
        if reason == "replaced":
            self._failures = max(self._failures, FAILURES_REPLACED)
            return self._failed("another process listens as this device: was this home copied?")
        return self._failed(f"the cloud ended the stream ({reason[:40]!r})")

    def _failed(self, reason: str, retry_after_s: float | None = None) -> _Pause:
        self._failures += 1
        count = self._failures + FAILURES_FIRST - 1
        return _Pause(reason, plan.backoff_s(count, self._settings.backoff_max_s, retry_after_s, self._rng))

    def _say(self, state: Live) -> None:
        """Keep how it stands, and log a change of it once."""
        is_lost = self.state.live and not state.live and state.reason != CONNECTING
        if state.live != self.state.live:
            log.info("stream.opened" if state.live else "stream.closed", reason=state.reason)
        self.state = state
        if is_lost:
            self._on_lost()

    async def _unless_restarted(self, work: Awaitable[T]) -> T | None:
        """Return what `work` does, or None if it was cut off by a restart."""
        task = asyncio.ensure_future(work)
        restarted = asyncio.ensure_future(self._restart.wait())
        try:
            await asyncio.wait({task, restarted}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            restarted.cancel()
            await asyncio.gather(task, restarted, return_exceptions=True)


async def events_of(chunks: AsyncIterator[bytes], url: str) -> AsyncIterator[tuple[str, bytes]]:
    """Yield the events of a stream as (name, data); comments are passed over (HTML standard, 9.2.6).

    Raises CloudUnreachable for a line longer than LINE_BYTES_MAX: memory stays bounded whatever is sent.
    """
    rest, name = b"", ""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise CloudUnreachable(f"{url} sent something else than a stream of news: check the address")
        for line in lines:
            key, _, value = line.rstrip(b"\r").partition(b":")
            if key == b"event":
                name = value.strip().decode("utf-8", "replace")
            elif key == b"data":
                yield name, value.strip()
            elif not line.strip():
                name = ""


def _decoded(data: bytes, kind: type[T], url: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CloudUnreachable(f"{url} sent an event that is not of metricsd's protocol ({error})") from error


async def _wait(seconds: float | None) -> None:
    if seconds is None:
        await asyncio.Event().wait()
    else:
        await asyncio.sleep(seconds)
