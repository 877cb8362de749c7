"""Where a request enters the cloud: routes, and nothing else that another file could know.

A handler authenticates, bounds and decodes the body, asks the backend and answers with a struct. Handlers of the hot
routes take the raw body; letting the framework decode costs 2.7 times the CPU. The app keeps no state of its own, so
any number of processes can serve one database. It sends no CORS headers: no web page may call it.
"""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
from litestar import Litestar, Request, Response, get
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.response.base import ASGIResponse

import metricsd
from metricsd.clock import Clock, SystemClock
from metricsd.cloud.backend import Backend, Scope
from metricsd.cloud.cloudlet import Cloudlet
from metricsd.cloud.device_routes import devices, erase_device_data, have
from metricsd.cloud.direct import Direct
from metricsd.cloud.event_stream import EventStream
from metricsd.cloud.older_mount import OlderMount
from metricsd.cloud.openapi import document
from metricsd.cloud.problems import MEDIA_TYPE, Refused, body_of, headers_of, refuse
from metricsd.cloud.shell import Shell
from metricsd.config import Cloud
from metricsd.protocol import (
    PREFIX,
    PROTOCOL_VERSION,
    Capabilities,
    PolicyReply,
    Problem,
)

Req = Request[Any, Any, State]

FEATURES = ["zstd", "gzip", "unsequenced", "stream", "policy", "have", "erase"]

log = structlog.get_logger("cloud")


def create_app(backend: Backend, settings: Cloud, clock: Clock | None = None) -> Shell:
    """Return the ASGI app that serves `backend`. Opening and closing the backend is the caller's.

    Call its `drain()` before stopping, so that streams end by themselves.
    """
    cloudlet = Cloudlet(backend, settings, clock or SystemClock())
    inner = Litestar(
        route_handlers=[
            capabilities,
            devices,
            have,
            erase_device_data,
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
    return Shell(Direct(OlderMount(inner, cloudlet), cloudlet), cloudlet.metrics, on_drain=cloudlet.drain)


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
    """The database answers, and the process is not about to stop."""
    await _cloudlet(request).ready()
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


def _answer(reply: msgspec.Struct) -> Response[bytes]:
    return Response(msgspec.json.encode(reply), media_type="application/json")


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
    extra = {**headers_of(problem), **(headers or {})}
    return Response(body_of(problem), media_type=MEDIA_TYPE, status_code=problem.status, headers=extra)
