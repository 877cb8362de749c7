"""The API's description (OpenAPI 3.1), made from the structs of the wire.

Handlers take raw bodies, so the framework could not know them; the structs do, and they are what both ends use.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

import metricsd
from metricsd.cloud.metrics import DEVICE_DATA
from metricsd.cloud.problems import MEDIA_TYPE
from metricsd.protocol import (
    PREFIX,
    Announced,
    Capabilities,
    ChangesReply,
    Ended,
    EnrolReply,
    EnrolRequest,
    EraseReply,
    HaveReply,
    HaveRequest,
    HelloReply,
    HelloRequest,
    Opened,
    PolicyReply,
    Problem,
    PushEvents,
    PushEventsReply,
    PushRecords,
    PushRecordsReply,
)

_STRUCTS = (
    Announced,
    Capabilities,
    ChangesReply,
    Ended,
    EnrolReply,
    EnrolRequest,
    EraseReply,
    HaveReply,
    HaveRequest,
    HelloReply,
    HelloRequest,
    Opened,
    PolicyReply,
    Problem,
    PushEvents,
    PushEventsReply,
    PushRecords,
    PushRecordsReply,
)
_UNSEQUENCED = {"name": "unsequenced", "in": "query", "required": False, "schema": {"enum": ["0", "1"]}}
_FEED = [
    {"name": "cursor", "in": "query", "required": False, "schema": {"type": "string"}},
    {"name": "limit", "in": "query", "required": False, "schema": {"type": "integer", "minimum": 1}},
    {"name": "only", "in": "query", "required": False, "schema": {"enum": ["records"]}},
    {"name": "own", "in": "query", "required": False, "schema": {"enum": ["1"]}},
]


@cache
def document() -> bytes:
    """Return the description as JSON."""
    _, components = msgspec.json.schema_components(_STRUCTS, ref_template="#/components/schemas/{name}")
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "metricsd cloud", "version": metricsd.__version__, "license": {"name": "MIT"}},
            "security": [{"token": []}],
            "paths": _paths(),
            "components": {
                "schemas": components,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _paths() -> dict[str, Any]:
    return {
        f"{PREFIX}/capabilities": {"get": _operation("Limits and features", reply=Capabilities)},
        f"{PREFIX}/devices": {"post": _operation("Enrol a device", body=EnrolRequest, reply=EnrolReply)},
        DEVICE_DATA: {"delete": _erase()},
        f"{PREFIX}/have": {"post": _operation("Ask what is here already", body=HaveRequest, reply=HaveReply)},
        f"{PREFIX}/hello": {"post": _operation("Compare the stream", body=HelloRequest, reply=HelloReply)},
        f"{PREFIX}/events": {
            "post": _operation("Push events", body=PushEvents, reply=PushEventsReply, parameters=[_UNSEQUENCED])
        },
        f"{PREFIX}/records": {"post": _operation("Push records", body=PushRecords, reply=PushRecordsReply)},
        f"{PREFIX}/changes": {"get": _operation("Pull changes", reply=ChangesReply, parameters=_FEED)},
        f"{PREFIX}/changes/stream": {"get": _stream()},
        f"{PREFIX}/policy": {"get": _policy()},
        "/healthz": {"get": _open_operation("Liveness", "application/json")},
        "/readyz": {"get": _open_operation("Readiness", "application/json")},
        "/metrics": {"get": _open_operation("Figures for Prometheus", "text/plain")},
        "/schema/openapi.json": {"get": _open_operation("This document", "application/json")},
    }


def _operation(
    summary: str,
    *,
    reply: type[msgspec.Struct],
    body: type[msgspec.Struct] | None = None,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": _content("Done", "application/json", _ref(reply)), "default": _problem()},
    }
    if body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    if parameters:
        made["parameters"] = parameters
    return made


def _stream() -> dict[str, Any]:
    events = "Events `open` (Opened), `change` (Announced) and `end` (Ended); a comment line is a heartbeat"
    return {
        "summary": "Hear of changes",
        "responses": {
            "200": {"description": events, "content": {"text/event-stream": {"schema": {"type": "string"}}}},
            "default": _problem(),
        },
    }


def _erase() -> dict[str, Any]:
    device = {"name": "device_id", "in": "path", "required": True, "schema": {"type": "string"}}
    made = _operation("Take a device's data back", reply=EraseReply, parameters=[device])
    made["description"] = (
        "A device token may name any device of its user, an admin token any of its tenant; any other is 404. The device is"
        " revoked and its events are removed; records that it alone wrote become empty tombstones, which other devices"
        " pull. May be repeated, also with the token that it ended."
    )
    return made


def _policy() -> dict[str, Any]:
    tag = {"name": "If-None-Match", "in": "header", "required": False, "schema": {"type": "string"}}
    made = _operation("The tenant's conflict policy", reply=PolicyReply, parameters=[tag])
    made["responses"]["304"] = {"description": "The caller has it"}
    return made


def _open_operation(summary: str, media_type: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "security": [],
        "responses": {"200": _content("Done", media_type, {}), "default": _problem()},
    }


def _problem() -> dict[str, Any]:
    return _content("Refused; `code` is stable and says why", MEDIA_TYPE, _ref(Problem))


def _content(description: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _ref(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{struct.__name__}"}
