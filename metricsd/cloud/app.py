"""Where a request enters the cloud: routes, and nothing else that another file could know.

A handler authenticates, bounds and decodes the body, asks the backend and answers with a struct. Handlers of the hot
routes take the raw body; letting the framework decode costs 2.7 times the CPU. The app keeps no state of its own, so
any number of processes can serve one database. It sends no CORS headers: no web page may call it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import structlog
from litestar import Litestar, Request, Response, get, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.response.base import ASGIResponse

import metricsd
from metricsd.clock import Clock, SystemClock
from metricsd.cloud import ingest, tenants
from metricsd.cloud.auth import authenticate, check_device
from metricsd.cloud.backend import Backend, FeedQuery, Scope, Token, Writer
from metricsd.cloud.budget import Budget, Share
from metricsd.cloud.event_stream import EventStream
from metricsd.cloud.metrics import Metrics
from metricsd.cloud.openapi import document
from metricsd.cloud.problems import MEDIA_TYPE, Refused, body_of, refuse
from metricsd.cloud.shell import Shell
from metricsd.cloud.streams import Streams
from metricsd.config import Cloud
from metricsd.protocol import (
    PREFIX,
    PROTOCOL_VERSION,
    Capabilities,
    EnrolRequest,
    HelloRequest,
    PolicyReply,
    Problem,
    PushEventsReply,
    PushRecordsReply,
)

Req = Request[Any, Any, State]

BODY_TIMEOUT_S = 30.0
"""A body must have arrived by then: 4 MB at 140 KB/s."""
INFLATE_ASIDE_BYTES = 64 * 1024
"""Larger bodies are inflated and decoded in a thread, so that they do not hold up the others."""
INFLATING_MAX = 2
"""Bodies that are inflated at once: bounds what hostile ones can claim to two times `inflated_bytes_max`."""
FEATURES = ["zstd", "gzip", "unsequenced", "stream", "policy"]
CURSOR_CHARS_MAX = 64

log = structlog.get_logger("cloud")


class Cloudlet:
    """What the handlers share: backend, limits, clock, budget, open streams and counters of one process."""

    def __init__(self, backend: Backend, settings: Cloud, clock: Clock) -> None:
        self.backend = backend
        self.settings = settings
        self.clock = clock
        self.budget = Budget()
        self.metrics = Metrics()
        self.inflating = asyncio.Semaphore(INFLATING_MAX)
        self.streams = Streams(backend, settings, clock)

    async def token(self, request: Req, *scopes: Scope) -> Token:
        """Return the request's token if it is valid and of one of `scopes`."""
        authorization = request.headers.get("authorization")
        return await authenticate(self.backend.directory, authorization, self.clock.now_us(), *scopes)

    async def body(self, request: Req, share: Share) -> bytes:
        """Return the inflated body, held in `share`."""
        length = request.headers.get("content-length", "")
        declared = int(length) if length.isdecimal() and len(length) < 20 else None
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                raw = await ingest.read_raw(request.stream(), declared, self.settings, share)
        except TimeoutError:
            raise refuse(408, "slow_body", f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
        self.metrics.received(len(raw))
        encoding = request.headers.get("content-encoding", "")
        if len(raw) < INFLATE_ASIDE_BYTES and not encoding:
            return ingest.inflate(raw, encoding, self.settings, share)
        async with self.inflating:
            return await asyncio.to_thread(ingest.inflate, raw, encoding, self.settings, share)


def create_app(backend: Backend, settings: Cloud, clock: Clock | None = None) -> Shell:
    """Return the ASGI app that serves `backend`. Opening and closing the backend is the caller's.

    Call its `drain()` before stopping, so that streams end by themselves.
    """
    cloudlet = Cloudlet(backend, settings, clock or SystemClock())
    inner = Litestar(
        route_handlers=[
            capabilities,
            devices,
            hello,
            push_events,
            push_records,
            changes,
            stream_changes,
            policy,
            healthz,
            readyz,
            metrics,
            openapi,
        ],
        state=State({"cloudlet": cloudlet}),
        exception_handlers={Refused: _on_refused, HTTPException: _on_http, Exception: _on_fault},
        openapi_config=None,
        logging_config=None,
        # Bodies are bounded by our own limit, which is a setting.
        request_max_body_size=None,
    )
    return Shell(inner, cloudlet.metrics, on_drain=cloudlet.streams.drain)


@get(f"{PREFIX}/capabilities")
async def capabilities(request: Req) -> Response[bytes]:
    """Limits and features; the client adapts to them."""
    cloudlet = _cloudlet(request)
    token = await cloudlet.token(request, *Scope)
    limits = cloudlet.settings
    async with cloudlet.backend.tenant(token.tenant) as store:
        in_force = await store.find_policy()
    return _answer(
        Capabilities(
            protocol=PROTOCOL_VERSION,
            version=metricsd.__version__,
            server_time=cloudlet.clock.now_us(),
            items_max=limits.items_max,
            body_bytes_max=limits.body_bytes_max,
            inflated_bytes_max=limits.inflated_bytes_max,
            item_bytes_max=limits.item_bytes_max,
            page_max=limits.page_max,
            features=FEATURES,
            policy_hash=None if in_force is None else in_force.sha256,
            heartbeat_s=limits.heartbeat_s,
        )
    )


@post(f"{PREFIX}/devices", status_code=200)
async def devices(request: Req) -> Response[bytes]:
    """Enrol a device."""
    cloudlet = _cloudlet(request)
    token = await cloudlet.token(request, Scope.ENROL, Scope.DEVICE)
    with cloudlet.budget.share() as share:
        body = await cloudlet.body(request, share)
        wanted = ingest.parse_small(body, EnrolRequest, cloudlet.settings)
    return _answer(await tenants.enrol(cloudlet.backend.directory, token, wanted))


@post(f"{PREFIX}/hello", status_code=200)
async def hello(request: Req) -> Response[bytes]:
    """Compare what the device and the cloud know of the device's stream."""
    cloudlet = _cloudlet(request)
    token = await cloudlet.token(request, Scope.DEVICE)
    with cloudlet.budget.share() as share:
        body = await cloudlet.body(request, share)
        said = ingest.parse_small(body, HelloRequest, cloudlet.settings)
    check_device(token, said.device_id)
    ingest.check_hello(said)
    async with cloudlet.backend.tenant(token.tenant) as store:
        return _answer(await store.hello(_writer(token), said, cloudlet.clock.now_us()))


@post(f"{PREFIX}/events", status_code=200)
async def push_events(request: Req) -> Response[bytes]:
    """Store events of the device's stream, or unsequenced ones."""
    cloudlet = _cloudlet(request)
    token = await cloudlet.token(request, Scope.DEVICE)
    sequenced = not _flag(request, "unsequenced")
    with cloudlet.budget.share() as share:
        body = await cloudlet.body(request, share)
        batch = await _aside(len(body), ingest.parse_events, body, cloudlet.settings, sequenced)
        check_device(token, batch.device_id)
        async with cloudlet.backend.tenant(token.tenant) as store:
            outcome = await store.push_events(_writer(token), batch)
    cloudlet.streams.wake(token.tenant)
    cloudlet.metrics.items("events", (result.status for result in outcome.results))
    now = cloudlet.clock.now_us()
    return _answer(PushEventsReply(results=outcome.results, acked_through=outcome.acked_through, server_time=now))


@post(f"{PREFIX}/records", status_code=200)
async def push_records(request: Req) -> Response[bytes]:
    """Compare and set records."""
    cloudlet = _cloudlet(request)
    token = await cloudlet.token(request, Scope.DEVICE)
    with cloudlet.budget.share() as share:
        body = await cloudlet.body(request, share)
        batch = await _aside(len(body), ingest.parse_records, body, cloudlet.settings)
        check_device(token, batch.device_id)
        now = cloudlet.clock.now_us()
        async with cloudlet.backend.tenant(token.tenant) as store:
            results = await store.push_records(_writer(token), batch, now)
    cloudlet.streams.wake(token.tenant)
    cloudlet.metrics.items("records", (result.status for result in results))
    return _answer(PushRecordsReply(results=results, server_time=now))


@get(f"{PREFIX}/changes")
async def changes(request: Req) -> Response[bytes]:
    """Return the next page of what the user's other devices changed."""
    cloudlet = _cloudlet(request)
    token = await cloudlet.token(request, Scope.DEVICE, Scope.READ, Scope.ADMIN)
    query = _feed_query(request, cloudlet.settings.page_max)
    async with cloudlet.backend.tenant(token.tenant) as store:
        return _answer(await store.changes(_writer(token), query, cloudlet.clock.now_us()))


@get(f"{PREFIX}/changes/stream")
async def stream_changes(request: Req) -> ASGIResponse:
    """Say when the user's other devices have stored something, for as long as the device listens."""
    cloudlet = _cloudlet(request)
    token = await cloudlet.token(request, Scope.DEVICE)
    if token.device is None:
        raise refuse(403, "wrong_device", "the token has no device")
    return EventStream(cloudlet.streams, await cloudlet.streams.enter(token, token.device))


@get(f"{PREFIX}/policy", status_code=200)
async def policy(request: Req) -> Response[bytes]:
    """Return the tenant's conflict policy; 304 when the caller has it already."""
    cloudlet = _cloudlet(request)
    token = await cloudlet.token(request, Scope.DEVICE, Scope.READ, Scope.ADMIN)
    async with cloudlet.backend.tenant(token.tenant) as store:
        found = await store.find_policy()
    if found is None:
        raise refuse(404, "no_policy", "this tenant has no conflict policy")
    tag = f'"{found.version}-{found.sha256}"'
    known = (part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(","))
    if tag in known:
        return Response(b"", status_code=304, headers={"etag": tag})
    reply = _answer(PolicyReply(version=found.version, sha256=found.sha256, text=found.text))
    reply.headers["etag"] = tag
    return reply


@get("/healthz")
async def healthz() -> Response[bytes]:
    """The process runs."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@get("/readyz")
async def readyz(request: Req) -> Response[bytes]:
    """The database answers."""
    await _cloudlet(request).backend.directory.ready()
    return Response(b'{"status":"ok"}', media_type="application/json")


@get("/metrics")
async def metrics(request: Req) -> Response[bytes]:
    """Figures for Prometheus. They are sums over all tenants and name none."""
    cloudlet = _cloudlet(request)
    gauges = {**cloudlet.backend.gauges(), "in_flight_bytes": cloudlet.budget.used, "streams": len(cloudlet.streams)}
    return Response(cloudlet.metrics.text(gauges).encode(), media_type="text/plain; version=0.0.4; charset=utf-8")


@get("/schema/openapi.json")
async def openapi() -> Response[bytes]:
    """Describe this API."""
    return Response(document(), media_type="application/json")


def _cloudlet(request: Req) -> Cloudlet:
    cloudlet: Cloudlet = request.app.state["cloudlet"]
    return cloudlet


def _writer(token: Token) -> Writer:
    return Writer(token.user, token.device)


def _answer(reply: msgspec.Struct) -> Response[bytes]:
    return Response(msgspec.json.encode(reply), media_type="application/json")


async def _aside(size: int, parse: Any, body: bytes, settings: Cloud, sequenced: bool | None = None) -> Any:
    """Decode a large body in a thread, a small one here."""
    options = {} if sequenced is None else {"sequenced": sequenced}
    if size < INFLATE_ASIDE_BYTES:
        return parse(body, settings, **options)
    return await asyncio.to_thread(parse, body, settings, **options)


def _flag(request: Req, name: str) -> bool:
    value = request.query_params.get(name, "0")
    if value not in ("0", "1"):
        raise refuse(400, "bad_request", f"{name} is 0 or 1")
    return bool(value == "1")


def _feed_query(request: Req, page_max: int) -> FeedQuery:
    cursor = request.query_params.get("cursor", "")
    limit = request.query_params.get("limit", str(page_max))
    only = request.query_params.get("only")
    # A longer number than 18 digits is cut, not converted: it is above every bound anyway.
    if not (limit.isascii() and limit.isdecimal() and (wanted := int(limit[:18])) > 0):
        raise refuse(400, "bad_request", "limit is a number from 1", limit="page_max")
    if only not in (None, "records"):
        raise refuse(400, "bad_request", "only is records, or not given")
    return FeedQuery(cursor[:CURSOR_CHARS_MAX], min(wanted, page_max), only == "records")


def _on_refused(_: Req, error: Refused) -> Response[bytes]:
    return _problem(error.problem)


def _on_http(_: Req, error: HTTPException) -> Response[bytes]:
    match error.status_code:
        case 404:
            problem = refuse(404, "not_found", "there is no such path; see /schema/openapi.json").problem
        case 405:
            problem = refuse(405, "method_not_allowed").problem
        case status if 400 <= status < 500:
            problem = refuse(400, "bad_request").problem
        case _:
            problem = refuse(500, "internal").problem
    allowed = {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
    return _problem(problem, allowed)


def _on_fault(request: Req, error: Exception) -> Response[bytes]:
    # The client learns nothing of the fault; the log has it. Nothing of the request is logged but its route.
    log.error(
        "cloud.failed", method=request.method, path=request.url.path[:100], error=type(error).__name__, exc_info=error
    )
    return _problem(refuse(500, "internal").problem)


def _problem(problem: Problem, headers: dict[str, str] | None = None) -> Response[bytes]:
    extra = dict(headers or {})
    if problem.retry_after_s is not None:
        extra["retry-after"] = str(max(1, round(problem.retry_after_s)))
    if problem.status == 401:
        extra["www-authenticate"] = "Bearer"
    return Response(body_of(problem), media_type=MEDIA_TYPE, status_code=problem.status, headers=extra)
