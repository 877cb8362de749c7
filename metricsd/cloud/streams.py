"""The streams of news that this process holds open: who listens, and when to tell them that there is something new.

A stream says only that something is new and carries nothing of it, so what is missed costs nothing: whoever connects
again pulls from its cursor. Each tenant with a listener has one watch, which reads the tenant's counter once a
second for what other processes stored, and at once for what this one did. A listener holds one number, whatever
happens meanwhile; there is one stream a device, and a bounded number of them. Tokens are looked at again each second.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine

import msgspec
import structlog

from metricsd.clock import Clock
from metricsd.cloud.backend import Backend, Tenant, Token
from metricsd.cloud.problems import Refused, refuse
from metricsd.config import Cloud
from metricsd.protocol import Announced, Ended, Opened

RETRY_AFTER_S = 60.0
"""When a device that found no room may ask again; meanwhile it syncs by its interval."""
LOOK_GAP_S = 0.05
"""Between two looks at one tenant, however many pushes wake it: twenty a second at most."""
SPREAD_MS_PER_STREAM = 5
"""A thousand devices of one user would otherwise all pull in the same moment."""
BEAT = b":\n\n"
REPLACED = "replaced"
REVOKED = "revoked"
DRAIN = "drain"

log = structlog.get_logger("cloud")


class Stream:
    """One device's open stream. `told` is the newest number that it knows of, `newest` the newest there is for it."""

    __slots__ = ("device", "ended", "moved", "newest", "token", "told")

    def __init__(self, token: Token, device: str, head: int) -> None:
        self.token = token
        self.device = device
        self.told = self.newest = head
        self.ended: str | None = None
        self.moved = asyncio.Event()

    def tell(self, change: int) -> None:
        """Note that something new for this device has this number."""
        if change > self.newest:
            self.newest = change
            self.moved.set()

    def end(self, reason: str) -> None:
        """Let the stream end; the first reason counts."""
        self.ended = self.ended or reason
        self.moved.set()


class _Watch:
    """The listeners of one tenant and the task that looks for news on their behalf."""

    def __init__(self, tenant: Tenant, head: int) -> None:
        self.tenant = tenant
        self.streams: dict[str, Stream] = {}
        self.head = head
        self.joined = False
        self.woken = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def listeners(self) -> Counter[str]:
        return Counter(stream.token.user for stream in self.streams.values())


class Streams:
    """All open streams of one process."""

    def __init__(self, backend: Backend, settings: Cloud, clock: Clock) -> None:
        self._backend = backend
        self._settings = settings
        self._clock = clock
        self._watches: dict[str, _Watch] = {}
        self._draining = False

    def __len__(self) -> int:
        return sum(len(watch.streams) for watch in self._watches.values())

    async def enter(self, token: Token, device: str) -> Stream:
        """Return a new stream of the device, ending its earlier one; raise 503 when there is no room. `leave` it."""
        self._check_room(token, device)
        # Read before the stream counts: what is behind this number is told, what is before it is pulled at `open`.
        head = (await self._backend.news(token.tenant, None, ())).head
        self._check_room(token, device)
        watch = self._watches.get(token.tenant.id) or self._begin(token.tenant, head)
        earlier = watch.streams.pop(device, None)
        if earlier is not None:
            earlier.end(REPLACED)
        stream = watch.streams[device] = Stream(token, device, head)
        watch.joined = True
        return stream

    def leave(self, stream: Stream) -> None:
        """Forget a stream; the tenant's watch ends with its last one."""
        watch = self._watches.get(stream.token.tenant.id)
        if watch is None or watch.streams.get(stream.device) is not stream:
            return
        del watch.streams[stream.device]
        if not watch.streams:
            del self._watches[watch.tenant.id]
            if watch.task is not None:
                watch.task.cancel()

    def wake(self, tenant: Tenant) -> None:
        """Look at a tenant now, because this process has stored something of it."""
        watch = self._watches.get(tenant.id)
        if watch is not None:
            watch.woken.set()

    def drain(self) -> None:
        """End every stream and take no new one: the process is about to stop."""
        self._draining = True
        for watch in self._watches.values():
            for stream in watch.streams.values():
                stream.end(DRAIN)

    async def events(self, stream: Stream) -> AsyncIterator[bytes]:
        """Yield what the device is sent, until the stream ends."""
        heartbeat_s = self._settings.heartbeat_s
        yield _event("open", Opened(change=stream.told, heartbeat_s=heartbeat_s))
        while stream.ended is None:
            try:
                async with asyncio.timeout(heartbeat_s):
                    await stream.moved.wait()
            except TimeoutError:
                yield BEAT
                continue
            stream.moved.clear()
            if stream.newest > stream.told and stream.ended is None:
                stream.told = stream.newest
                yield _event("change", Announced(change=stream.told, spread_ms=self._spread_ms(stream)))
        yield _event("end", Ended(reason=stream.ended))

    def _check_room(self, token: Token, device: str) -> None:
        if self._draining:
            raise refuse(503, "draining", "this process is about to stop", retry_after_s=1.0)
        watch = self._watches.get(token.tenant.id)
        replaces = watch is not None and device in watch.streams
        if len(self) >= self._settings.streams_max and not replaces:
            raise refuse(503, "streams_full", "sync by interval", limit="streams_max", retry_after_s=RETRY_AFTER_S)

    def _spread_ms(self, stream: Stream) -> int:
        watch = self._watches.get(stream.token.tenant.id)
        listeners = 1 if watch is None else watch.listeners()[stream.token.user]
        return SPREAD_MS_PER_STREAM * max(listeners - 1, 0)

    def _begin(self, tenant: Tenant, head: int) -> _Watch:
        watch = self._watches[tenant.id] = _Watch(tenant, head)
        watch.task = asyncio.create_task(self._watch(watch), name=f"stream-watch-{tenant.id}")
        return watch

    async def _watch(self, watch: _Watch) -> None:
        """Look for news and at tokens, for as long as somebody listens."""
        loop = asyncio.get_running_loop()
        checked = loop.time()
        while True:
            try:
                async with asyncio.timeout(self._settings.stream_poll_s):
                    await watch.woken.wait()
            except TimeoutError:
                pass
            watch.woken.clear()
            await self._attempt(self._look(watch))
            # Also when the tenant cannot be read: it may have been dropped, and then its streams must end.
            if loop.time() - checked >= self._settings.stream_poll_s:
                checked = loop.time()
                await self._attempt(self._check_tokens(watch))
            await asyncio.sleep(min(LOOK_GAP_S, self._settings.stream_poll_s))

    @staticmethod
    async def _attempt(work: Coroutine[None, None, None]) -> None:
        """Do one of the watch's works; what fails now is done with the next round."""
        try:
            await work
        except Refused as error:
            log.debug("stream.look_postponed", reason=str(error))
        except Exception as error:
            # The loop's edge: listeners would otherwise hear nothing more and not know it.
            log.exception("stream.look_failed", error=type(error).__name__)

    async def _look(self, watch: _Watch) -> None:
        """Tell each listener what other devices of its user have stored since the last look."""
        after, watch.joined = watch.head, False
        news = await self._backend.news(watch.tenant, after, watch.listeners().keys())
        # Nobody asked on behalf of a listener that came meanwhile; the next look reads the same again, with it.
        if watch.joined:
            watch.woken.set()
        else:
            watch.head = news.head
        if news.head < after:
            self._tell_of_lost_history(watch, news.head)
        for (user, device), change in news.writers.items():
            for stream in watch.streams.values():
                if stream.token.user == user and stream.device != device:
                    stream.tell(change)

    @staticmethod
    def _tell_of_lost_history(watch: _Watch, head: int) -> None:
        """Let everybody pull: the database was put back to an older state, and the pull's 410 says so."""
        for stream in watch.streams.values():
            stream.told = -1
            stream.newest = head
            stream.moved.set()

    async def _check_tokens(self, watch: _Watch) -> None:
        """End the streams whose token was revoked or has expired."""
        ids = [stream.token.id for stream in watch.streams.values()]
        live = await self._backend.directory.live_tokens(ids, self._clock.now_us())
        for stream in watch.streams.values():
            if stream.token.id in ids and stream.token.id not in live:
                stream.end(REVOKED)


def _event(name: str, data: msgspec.Struct) -> bytes:
    """Return one event in the form of server-sent events (HTML standard, 9.2); JSON holds no newline."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
