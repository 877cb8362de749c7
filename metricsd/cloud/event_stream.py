"""The answer that stays open: server-sent events over one response, ended by either side.

The stream is left in every case: when it ended, when the client hung up, when it did not read for too long. Proxies
are told not to collect what they should pass on; one that does so all the same is noticed by the device.
"""

from __future__ import annotations

import asyncio

from litestar.response.base import ASGIResponse
from litestar.types import Receive, Send

from metricsd.cloud.streams import Stream, Streams

HEADERS = {"x-accel-buffering": "no"}


class EventStream(ASGIResponse):
    """One device's stream as a response."""

    _should_set_content_length = False

    def __init__(self, streams: Streams, stream: Stream) -> None:
        super().__init__(media_type="text/event-stream", headers=HEADERS, status_code=200)
        self._streams = streams
        self._stream = stream

    async def send_body(self, send: Send, receive: Receive) -> None:
        """Send events until the stream ends or the client is gone."""
        sending = asyncio.create_task(self._send_events(send), name="stream-send")
        gone = asyncio.create_task(_hung_up(receive), name="stream-gone")
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            gone.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def __call__(self, scope: object, receive: Receive, send: Send) -> None:
        """Answer; whatever happens, the stream is left."""
        try:
            await super().__call__(scope, receive, send)  # type: ignore[arg-type]
        finally:
            self._streams.leave(self._stream)

    async def _send_events(self, send: Send) -> None:
        async for event in self._streams.events(self._stream):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _hung_up(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        continue
