"""Sends captures straight to the cloud while the store cannot be written (mode remote_only).

A capture gets the id that the tail will give it later and leaves in the wire form that `sync/outgoing.py` makes, so
that the cloud knows the event when it comes again in its place of the stream, and answers `duplicate`. The capture
stays in the spool: only the tail lets go of it. What was sent is remembered in bounded memory; what is forgotten is
sent again, which changes nothing. Nothing is sent twice for one fact that two hooks captured.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import structlog

from metricsd import identity, spool
from metricsd.client import CloudClient
from metricsd.clock import Clock
from metricsd.config import Config, Paths, Sync
from metricsd.decode import decode_line, parse_line
from metricsd.decode.repository import Repositories
from metricsd.errors import CloudRefused, CloudUnreachable, LineRejected, StoreUnavailable
from metricsd.identity import Credentials
from metricsd.ids import EventId, capture_id
from metricsd.model import Event
from metricsd.store.recent import CallKey
from metricsd.sync.outgoing import Outgoing
from metricsd.sync.plan import halves

CAPTURES_PER_TICK = 500
BYTES_PER_TICK = 8 * 1024 * 1024
"""Captures that one tick reads: it is built in memory."""
BATCH_ITEMS = 50
BATCH_BYTES_MAX = 512 * 1024
"""One request, below what every server allows: a smaller limit of its own is found by halving."""
BAD_BATCH = frozenset((400, 413, 422))
SENT_MAX = 200_000
"""Captures that are remembered as sent: about 20 MB; beyond, the oldest are sent again."""
CALLS_MAX = 4096
"""Natural keys that are remembered, as in store/recent.py."""
EPOCH = 1

_encode = msgspec.json.Encoder().encode

log = structlog.get_logger("direct")


class Sent(NamedTuple):
    """What a tick did. stored: new to the cloud; known: it had them; left: captures that still wait for a tick."""

    stored: int = 0
    known: int = 0
    left: int = 0


class _Ready(NamedTuple):
    """A capture in its wire form; `mark` is what it is remembered by."""

    mark: bytes
    data: bytes


class Direct:
    """Sends the captures of one home to the cloud that it is logged in to."""

    def __init__(
        self,
        paths: Paths,
        config: Config,
        clock: Clock,
        *,
        connect: Callable[[str, str, Sync], CloudClient] = CloudClient,
    ) -> None:
        """`connect(url, token, settings)` makes clients. Raises ConfigError when there is no identity."""
        self._paths = paths
        self._config = config
        self._clock = clock
        self._connect = connect
        self._key = identity.load_identity(paths).installation_key
        self._repositories = Repositories(clock)
        self._client: CloudClient | None = None
        self._login: Credentials | None = None
        self._sent: OrderedDict[bytes, None] = OrderedDict()
        self._calls: OrderedDict[CallKey, EventId] = OrderedDict()

    async def tick(self) -> Sent:
        """Send one bounded round of complete captures that were not sent yet, the newest ones.

        Raises AuthError without a login, and CloudError as the client does; what the cloud had settled by then stays
        settled. A capture that the cloud or a decoder refuses is left to the tail, which quarantines it.
        """
        login = identity.get_credentials(self._paths)
        client = await self._client_for(login)
        outgoing = Outgoing(login.tenant_key, self._config.sync)
        ready, left = await asyncio.to_thread(self._read, outgoing)
        done = Sent(left=left)
        for batch in _batches(ready):
            stored, known = await self._send(client, login, batch)
            done = Sent(done.stored + stored, done.known + known, left)
        return done

    def calls(self) -> dict[CallKey, EventId]:
        """Return the natural keys of what was sent: the tail keeps the same one of two captures of one fact."""
        return dict(self._calls.copy())

    def forget(self) -> None:
        """Forget what was sent: the store has taken it in."""
        self._sent.clear()

    async def close(self) -> None:
        """Close the connection to the cloud."""
        if self._client is not None:
            await self._client.close()
            self._client = self._login = None

    async def _client_for(self, login: Credentials) -> CloudClient:
        if self._client is None or self._login != login:
            await self.close()
            self._client, self._login = self._connect(login.url, login.token, self._config.sync), login
        return self._client

    def _read(self, outgoing: Outgoing) -> tuple[list[_Ready], int]:
        """Return the next captures in their wire form, and how many wait behind them. Runs in a thread."""
        waiting = 0

        def unsent() -> Iterable[tuple[int, str]]:
            nonlocal waiting
            for capture in spool.scan_captures(self._paths.spool):
                if _mark(capture.name, capture.mtime_ns) not in self._sent:
                    waiting += 1
                    yield capture.mtime_ns, capture.name

        try:
            # The newest first, or what is sent again because it was forgotten would hold up what is new for ever. Among
            # them the order of the tail: of two captures of one fact both keep the same one.
            chosen = sorted(heapq.nlargest(CAPTURES_PER_TICK, unsent()))
        except OSError as error:
            raise StoreUnavailable(
                f"{self._paths.spool}: cannot be read ({error.strerror}): check the folder's permissions"
            ) from error
        ready: list[_Ready] = []
        size = taken = 0
        for mtime_ns, name in chosen:
            if size >= BYTES_PER_TICK:
                break
            taken += 1
            try:
                loaded = spool.load_capture(self._paths.spool, name, self._config.tail.line_bytes_max)
            except (FileNotFoundError, LineRejected):
                continue
            size += loaded.size
            mark = _mark(name, mtime_ns)
            if loaded.data.endswith(b"\n") and (wire := self._wire(outgoing, name, loaded)) is not None:
                ready.append(_Ready(mark, wire))
            elif loaded.data.endswith(b"\n"):
                self._remember(mark)
        return ready, waiting - taken

    def _wire(self, outgoing: Outgoing, name: str, loaded: spool.LoadedCapture) -> bytes | None:
        """Return a capture's event as it travels; None for one that the tail will refuse or drop."""
        try:
            line = parse_line(loaded.data)
            if spool.is_probe(line.app, line.event):
                return None
            if spool.is_probe(line.app, line.event):
                return None
            event = decode_line(line, spool.event_time_us(line.s, loaded.mtime_ns), self._repositories)
        except LineRejected:
            return None
        event_id = capture_id(line.s or 0, name, loaded.data, self._key)
        if not self._is_first(event, event_id):
            return None
        return _encode(outgoing.event(event_id, 0, event))

    def _is_first(self, event: Event, event_id: EventId) -> bool:
        """Return whether this is the first capture of its fact, by the rule of store/recent.py."""
        if event.call is None:
            return True
        first = self._calls.setdefault((event.app, event.session, event.call, event.name), event_id)
        while len(self._calls) > CALLS_MAX:
            self._calls.popitem(last=False)
        return first == event_id

    async def _send(self, client: CloudClient, login: Credentials, batch: Sequence[_Ready]) -> tuple[int, int]:
        """Send a batch, halving one that is refused as a whole; return how many were new and how many known."""
        head = _encode({"device_id": login.device_id, "epoch": EPOCH, "base_seq": 0})
        body = b"".join((head[:-1], b',"events":[', b",".join([item.data for item in batch]), b"]}"))
        try:
            reply = await client.push_unsequenced(body)
        except CloudRefused as error:
            if error.status not in BAD_BATCH:
                raise
            if len(batch) == 1:
                log.warning("capture.refused", status=error.status, code=error.code)
                self._remember(batch[0].mark)
                return 0, 0
            first, second = [await self._send(client, login, half) for half in halves(batch)]
            return first[0] + second[0], first[1] + second[1]
        if len(reply.results) != len(batch):
            raise CloudUnreachable(f"{client.url} gave an answer that does not fit the events that were sent")
        for item in batch:
            self._remember(item.mark)
        statuses = [result.status for result in reply.results]
        return statuses.count("stored"), statuses.count("duplicate")

    def _remember(self, mark: bytes) -> None:
        self._sent[mark] = None
        while len(self._sent) > SENT_MAX:
            self._sent.popitem(last=False)


def _mark(name: str, mtime_ns: int) -> bytes:
    return blake2b(f"{mtime_ns} {name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _batches(items: Sequence[_Ready]) -> Iterator[list[_Ready]]:
    """Cut into requests of at most BATCH_ITEMS items and, beyond the first, BATCH_BYTES_MAX bytes."""
    batch: list[_Ready] = []
    size = 0
    for item in items:
        if batch and (len(batch) == BATCH_ITEMS or size + len(item.data) > BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item.data) + 1
    if batch:
        yield batch
