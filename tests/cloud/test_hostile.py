"""Whatever a client sends: an answer with a known status, a problem document, and a cloud that goes on working."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd.cloud.ingest import parse_events, parse_records
from metricsd.cloud.problems import Refused
from metricsd.config import Cloud
from metricsd.protocol import WireEvent
from tests.cloud.support import CloudUnderTest, bearer, event, statuses

LIMITS = Cloud()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=10), part, max_size=4),
    max_leaves=20,
)
names = st.sampled_from([*WireEvent.__struct_fields__, "later"])
wild_events = st.dictionaries(names, json_values, max_size=8).map(lambda wild: {**event(1), **wild})
wild_bodies = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("device_id", "epoch", "base_seq", "events", "changes", "name"), json_values)
)


@given(wild_events)
def test_any_event_is_stored_or_rejected_by_itself(wild: dict[str, Any]) -> None:
    """A wild item next to a good one never takes it along, unless its position cannot be read."""
    body = {"device_id": "d", "epoch": 1, "base_seq": 0, "events": [{**wild, "seq": 1}, event(2)]}
    batch = parse_events(json.dumps(body).encode(), LIMITS, sequenced=True)
    assert [item.seq for item in batch.items] == [1, 2]
    assert batch.items[1].event is not None
    for item in batch.items:
        assert (item.event is None) == (item.reason is not None)
        assert item.event is None or len(item.key) == 16


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    """Parsing raises nothing but a refusal with status 4xx."""
    for parse in (lambda: parse_events(body, LIMITS, sequenced=True), lambda: parse_records(body, LIMITS)):
        try:
            parse()
        except Refused as refusal:
            assert 400 <= refusal.problem.status < 500


@given(st.lists(wild_events, max_size=6), st.booleans())
@settings(max_examples=20)
async def test_what_the_checks_let_through_can_be_stored(
    cloud_place: Path | str, wild: list[dict[str, Any]], sequenced: bool
) -> None:
    """No checked item makes the database fail: 64-bit numbers, any Unicode, NUL, empty texts."""
    async with CloudUnderTest(cloud_place) as cloud:
        device = await cloud.device()
        batch = [{**item, "id": event()["id"], "seq": number} for number, item in enumerate(wild, 1)]
        reply = await device.push(batch, query="" if sequenced else "?unsequenced=1")
        assert set(statuses(reply["results"])) <= {"stored", "rejected"}


@given(st.sampled_from(["/devices", "/hello", "/events", "/records"]), wild_bodies)
@settings(max_examples=20)
async def test_a_wild_body_is_never_a_fault_of_ours(cloud_place: Path | str, path: str, body: dict[str, Any]) -> None:
    """2xx or 4xx on every route, and the next request works."""
    async with CloudUnderTest(cloud_place) as cloud:
        device = await cloud.device()
        reply = await cloud.post(path, {"device_id": device.id, **body}, device.token)
        assert reply.status_code < 500, reply.text
        assert (await device.hello())["last_seq"] >= 0


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=20)
async def test_wild_queries_and_headers_are_refused(cloud_place: Path | str, cursor: str, header: str) -> None:
    """Cursors and tokens of any shape give 4xx."""
    async with CloudUnderTest(cloud_place) as cloud:
        device = await cloud.device()
        reply = await cloud.http.get(
            "/sync/v1/changes", params={"cursor": cursor or "x", "limit": 5}, headers=bearer(device.token)
        )
        assert reply.status_code == 410
        raw = b"Bearer " + header.encode("utf-8")
        if b"\r" not in raw and b"\n" not in raw and b"\0" not in raw:
            denied = await cloud.http.get("/sync/v1/changes", headers=[(b"authorization", raw)])
            assert denied.status_code == 401
