"""The routes that laptops call all day, served without the framework, which would cost as much as their work does.

A direct handler takes a `Call` and returns the struct to answer with, or raises what is answered as a problem. It
obeys the same limits as every other handler, through the same `Cloudlet`. Everything else goes on to the inner app.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import parse_qs

import msgspec
import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from metricsd.cloud import ingest
from metricsd.cloud.auth import check_device
from metricsd.cloud.backend import FeedQuery, Token, Writer
from metricsd.cloud.backend import Scope as TokenScope
from metricsd.cloud.cloudlet import INFLATE_ASIDE_BYTES, Cloudlet
from metricsd.cloud.problems import MEDIA_TYPE, Refused, body_of, headers_of, refuse
from metricsd.protocol import PREFIX, HelloRequest, Problem, PushEventsReply, PushRecordsReply

T = TypeVar("T")

CURSOR_CHARS_MAX = 64
QUERY_CHARS_MAX = 4096
QUERY_FIELDS_MAX = 32

log = structlog.get_logger("cloud")


class Call(NamedTuple):
    """One request as a direct handler sees it."""

    scope: HTTPScope
    receive: Receive

    def query(self, name: str) -> str | None:
        """Return the last value of a query parameter, None without one."""
        raw = self.scope["query_string"]
        if not raw:
            return None
        if len(raw) > QUERY_CHARS_MAX:
            raise refuse(400, "bad_request", f"the query has more than {QUERY_CHARS_MAX} characters")
        try:
            # latin-1 takes every byte; escaped ones are decoded as UTF-8 behind it.
            found = parse_qs(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX)
        except ValueError as error:
            raise refuse(400, "bad_request", f"the query has more than {QUERY_FIELDS_MAX} fields") from error
        values = found.get(name)
        return None if values is None else values[-1]


Handler: TypeAlias = Callable[[Cloudlet, Call], Awaitable[msgspec.Struct]]


class Direct:
    """An ASGI app in front of another that answers the direct routes itself."""

    def __init__(self, inner: ASGIApp, cloudlet: Cloudlet) -> None:
        self._inner = inner
        self._cloudlet = cloudlet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = ROUTES.get(scope["path"]) if scope["type"] == ScopeType.HTTP else None
        if route is None:
            await self._inner(scope, receive, send)
            return
        asked: Any = scope
        status, headers, body = await self._answer(route, Call(asked, receive))
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer(self, route: Route, call: Call) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        try:
            if call.scope["method"] != route.method:
                return refusal_of(refuse(405, "method_not_allowed").problem, ("allow", route.method))
            reply = await route.handler(self._cloudlet, call)
        except Refused as refusal:
            return refusal_of(refusal.problem)
        except Exception as error:
            # The client learns nothing of the fault; the log has it. Nothing of the request is logged but its route.
            log.exception(
                "cloud.failed", method=route.method, path=call.scope["path"][:100], error=type(error).__name__
            )
            return refusal_of(refuse(500, "internal").problem)
        return 200, [(b"content-type", b"application/json")], msgspec.json.encode(reply)


async def hello(cloudlet: Cloudlet, call: Call) -> msgspec.Struct:
    """Compare what the device and the cloud know of the device's stream."""
    token = await cloudlet.token(call, TokenScope.DEVICE)
    with cloudlet.budget.share() as share:
        body = await cloudlet.body(call, share)
        said = ingest.parse_small(body, HelloRequest, cloudlet.settings)
    check_device(token, said.device_id)
    ingest.check_hello(said)
    async with cloudlet.backend.tenant(token.tenant) as store:
        return await store.hello(writer_of(token), said, cloudlet.clock.now_us())


async def push_events(cloudlet: Cloudlet, call: Call) -> msgspec.Struct:
    """Store events of the device's stream, or unsequenced ones."""
    token = await cloudlet.token(call, TokenScope.DEVICE)
    unsequenced = call.query("unsequenced")
    if unsequenced not in (None, "0", "1"):
        raise refuse(400, "bad_request", "unsequenced is 0 or 1")
    with cloudlet.budget.share() as share:
        body = await cloudlet.body(call, share)
        batch = await _aside(
            cloudlet, body, lambda: ingest.parse_events(body, cloudlet.settings, sequenced=unsequenced != "1")
        )
        check_device(token, batch.device_id)
        await cloudlet.quotas.check(token.tenant)
        async with cloudlet.backend.tenant(token.tenant) as store:
            outcome = await store.push_events(writer_of(token), batch)
    cloudlet.streams.wake(token.tenant)
    cloudlet.metrics.items("events", [result.status for result in outcome.results])
    now = cloudlet.clock.now_us()
    return PushEventsReply(results=outcome.results, acked_through=outcome.acked_through, server_time=now)


async def push_records(cloudlet: Cloudlet, call: Call) -> msgspec.Struct:
    """Compare and set records."""
    token = await cloudlet.token(call, TokenScope.DEVICE)
    with cloudlet.budget.share() as share:
        body = await cloudlet.body(call, share)
        batch = await _aside(cloudlet, body, lambda: ingest.parse_records(body, cloudlet.settings))
        check_device(token, batch.device_id)
        await cloudlet.quotas.check(token.tenant)
        now = cloudlet.clock.now_us()
        async with cloudlet.backend.tenant(token.tenant) as store:
            results = await store.push_records(writer_of(token), batch, now)
    cloudlet.streams.wake(token.tenant)
    cloudlet.metrics.items("records", [result.status for result in results])
    return PushRecordsReply(results=results, server_time=now)


async def changes(cloudlet: Cloudlet, call: Call) -> msgspec.Struct:
    """Return the next page of what the user's other devices changed."""
    token = await cloudlet.token(call, TokenScope.DEVICE, TokenScope.READ, TokenScope.ADMIN)
    query = _feed_query(call, cloudlet.settings.page_max)
    async with cloudlet.backend.tenant(token.tenant) as store:
        return await store.changes(writer_of(token), query, cloudlet.clock.now_us())


class Route(NamedTuple):
    """The one method of a path, and what serves it."""

    method: str
    handler: Handler


ROUTES = {
    f"{PREFIX}/hello": Route("POST", hello),
    f"{PREFIX}/events": Route("POST", push_events),
    f"{PREFIX}/records": Route("POST", push_records),
    f"{PREFIX}/changes": Route("GET", changes),
}


def writer_of(token: Token) -> Writer:
    """Return on whose behalf a token reads and writes."""
    return Writer(token.user, token.device)


def _feed_query(call: Call, page_max: int) -> FeedQuery:
    cursor, limit, only = call.query("cursor") or "", call.query("limit"), call.query("only")
    limit = str(page_max) if limit is None else limit
    # A longer number than 18 digits is cut, not converted: it is above every bound anyway.
    if not (limit.isascii() and limit.isdecimal() and (wanted := int(limit[:18])) > 0):
        raise refuse(400, "bad_request", "limit is a number from 1", limit="page_max")
    if only not in (None, "records"):
        raise refuse(400, "bad_request", "only is records, or not given")
    own = call.query("own")
    if own not in (None, "1"):
        raise refuse(400, "bad_request", "own is 1, or not given")
    return FeedQuery(cursor[:CURSOR_CHARS_MAX], min(wanted, page_max), only == "records", own is not None)


async def _aside(cloudlet: Cloudlet, body: bytes, parse: Callable[[], T]) -> T:
    """Decode a large body in a thread, few at a time, a small one here."""
    if len(body) < INFLATE_ASIDE_BYTES:
        return parse()
    async with cloudlet.inflating:
        return await asyncio.to_thread(parse)


def refusal_of(problem: Problem, *extra: tuple[str, str]) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body of a problem."""
    named = [("content-type", MEDIA_TYPE), *headers_of(problem).items(), *extra]
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in named]
    return problem.status, headers, body_of(problem)
