"""Limits of a request at -1, 0 and +1, and bodies made to burst: memory stays bounded, the refusal names the limit."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import threading
import zlib
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard

from metricsd.cloud import cloudlet as cloudlet_module
from metricsd.cloud import ingest, sqlite_group
from metricsd.cloud.budget import Budget
from metricsd.cloud.problems import Refused
from metricsd.cloud.sqlite_tenant import SqliteTenant
from metricsd.config import Cloud
from tests.cloud.memory import PeakMemory
from tests.cloud.support import CloudUnderTest, Device, Json, bearer, event, events, ok, problem, statuses

# Bodies are refused before any database sees them.
pytestmark = pytest.mark.only_sqlite

ROOT = Path(__file__).resolve().parents[2]
CODE = ROOT / "metricsd" / "cloud"
MIB = 1024 * 1024
SMALL = Cloud(body_bytes_max=4096, inflated_bytes_max=16_384, items_max=10, item_bytes_max=1024, depth_max=8)


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[CloudUnderTest]:
    async with CloudUnderTest(tmp_path / "cloud", SMALL) as made:
        yield made


async def send(device: Device, body: bytes, **headers: str) -> httpx.Response:
    return await device.cloud.http.post(
        "/sync/v1/events", content=body, headers={**bearer(device.token), "content-type": "application/json", **headers}
    )


def body_of(device: Device, batch: list[Json], **extra: Any) -> bytes:
    return json.dumps({"device_id": device.id, "epoch": 1, "base_seq": 0, "events": batch, **extra}).encode()


def limit_of(reply: httpx.Response) -> tuple[int, str]:
    problem(reply)
    return reply.status_code, reply.json()["limit"]


def padded(body: bytes, size: int) -> bytes:
    assert len(body) <= size
    return body + b" " * (size - len(body))


@pytest.mark.parametrize("over", [-1, 0, 1])
async def test_the_body_as_received(small: CloudUnderTest, over: int) -> None:
    """`body_bytes_max` bytes are taken, one more is 413."""
    device = await small.device()
    reply = await send(device, padded(body_of(device, events(1)), SMALL.body_bytes_max + over))
    if over > 0:
        assert limit_of(reply) == (413, "body_bytes_max")
    else:
        assert ok(reply)["acked_through"] == 1


async def test_a_body_without_a_declared_length_is_bounded_too(small: CloudUnderTest) -> None:
    """Chunked bodies are counted as they come, however long they go on."""
    device = await small.device()
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1024
            yield b" " * 1024

    reply = await small.http.post("/sync/v1/events", content=chunks(), headers=bearer(device.token))
    assert limit_of(reply) == (413, "body_bytes_max")
    assert sent <= SMALL.body_bytes_max * (ingest.DISCARDED_BODIES + 1)


async def test_a_body_that_is_declared_far_too_long_is_not_read(small: CloudUnderTest) -> None:
    """The answer comes before the first byte is taken."""
    device = await small.device()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        raise AssertionError("the body was read")

    declared = str(SMALL.body_bytes_max * ingest.DISCARDED_BODIES + 1)
    reply = await small.http.post(
        "/sync/v1/events", content=chunks(), headers={**bearer(device.token), "content-length": declared}
    )
    assert limit_of(reply) == (413, "body_bytes_max")


@pytest.mark.parametrize("encoding", ["zstd", "gzip"])
@pytest.mark.parametrize("over", [-1, 0, 1])
async def test_the_body_inflated(small: CloudUnderTest, encoding: str, over: int) -> None:
    """`inflated_bytes_max` bytes are taken, one more is 413."""
    device = await small.device()
    body = padded(body_of(device, events(2)), SMALL.inflated_bytes_max + over)
    packed = zstandard.compress(body) if encoding == "zstd" else gzip.compress(body)
    reply = await send(device, packed, **{"content-encoding": encoding})
    if over > 0:
        assert limit_of(reply) == (413, "inflated_bytes_max")
    else:
        assert ok(reply)["acked_through"] == 2


@pytest.mark.parametrize("over", [-1, 0, 1])
async def test_items_of_events_and_records(small: CloudUnderTest, over: int) -> None:
    """`items_max` items are taken, one more is 413."""
    device = await small.device()
    count = SMALL.items_max + over
    pushed = await device.try_push(events(count))
    changes = [{"type": "session", "id": str(number)} for number in range(count)]
    put = await small.post("/records", {"device_id": device.id, "changes": changes}, device.token)
    if over > 0:
        assert limit_of(pushed) == limit_of(put) == (413, "items_max")
    else:
        assert ok(pushed)["acked_through"] == count and len(ok(put)["results"]) == count


@pytest.mark.parametrize("over", [-1, 0, 1])
async def test_a_single_item(small: CloudUnderTest, over: int) -> None:
    """An item above `item_bytes_max` is rejected alone, whatever fills it."""
    device = await small.device()

    def sized(item: Json) -> bytes:
        text = json.dumps(item).encode()
        return text[:-1] + b" " * (SMALL.item_bytes_max + over - len(text)) + b"}"

    body = body_of(device, [event(1)])
    fat = event(2)
    reply = ok(await send(device, body[:-2] + b"," + sized(fat) + b"]}"))
    expected = "rejected" if over > 0 else "stored"
    assert statuses(reply["results"]) == ["stored", expected]
    record = {"type": "session", "id": "a", "fields": {}}
    head = json.dumps({"device_id": device.id, "changes": []}).encode()[:-2]
    answer = await small.http.post(
        "/sync/v1/records", content=head + sized(record) + b"]}", headers=bearer(device.token)
    )
    assert ok(answer)["results"][0]["status"] == ("rejected" if over > 0 else "applied")
    if over > 0:
        assert reply["results"][1]["reason"] == ok(answer)["results"][0]["reason"] == "too_large"


@pytest.mark.parametrize("over", [-1, 0, 1])
async def test_depth(small: CloudUnderTest, over: int) -> None:
    """`depth_max` levels are taken in fields nobody knows, one more is 400."""
    device = await small.device()
    inner = SMALL.depth_max + over - 1
    body = body_of(device, events(1))[:-1] + b',"later":' + b"[" * inner + b"]" * inner + b"}"
    reply = await send(device, body)
    if over > 0:
        assert limit_of(reply) == (400, "depth_max")
    else:
        assert ok(reply)["acked_through"] == 1


async def test_a_hundred_thousand_levels_are_refused_quickly(cloud: CloudUnderTest) -> None:
    """No recursion error, no crash, in known and unknown places."""
    device = await cloud.device()
    deep = b"[" * 100_000 + b"]" * 100_000
    for body in (deep, b"[" * 100_000, body_of(device, [])[:-2] + deep + b"]}", b'{"x":' * 100_000):
        assert limit_of(await send(device, body)) == (400, "depth_max")


@cache
def bombs() -> dict[str, bytes]:
    """Bodies of under 4 MB that inflate to 1 GB."""
    piece = b" " * MIB
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    gz = b"".join([*(deflate.compress(piece) for _ in range(1024)), deflate.flush()])
    squeeze = zstandard.ZstdCompressor(level=3).compressobj()
    zst = b"".join([*(squeeze.compress(piece) for _ in range(1024)), squeeze.flush()])
    return {"gzip": gz, "zstd": zst}


async def test_bombs_burst_within_bounds(cloud: CloudUnderTest) -> None:
    """A gigabyte in a small body: refused, and the process grows by less than two inflated bodies and some."""
    device = await cloud.device()
    for encoding, bomb in bombs().items():
        assert len(bomb) < cloud.settings.body_bytes_max
        with PeakMemory() as memory:
            reply = await send(device, bomb, **{"content-encoding": encoding})
        assert limit_of(reply) == (413, "inflated_bytes_max")
        assert memory.grown_mib < 80


async def test_many_bombs_at_once_are_bounded_together(cloud: CloudUnderTest) -> None:
    """Twenty at the same moment cost what two cost: they wait for each other, or are told to come back."""
    device = await cloud.device()
    bomb = bombs()["zstd"]
    with PeakMemory() as memory:
        replies = await asyncio.gather(*[send(device, bomb, **{"content-encoding": "zstd"}) for _ in range(20)])
    assert {reply.status_code for reply in replies} <= {413, 503}
    assert memory.grown_mib < 200


async def test_a_window_of_gigabytes_is_not_granted(cloud: CloudUnderTest) -> None:
    """A zstd frame may not make us allocate more than 8 MB for its window."""
    device = await cloud.device()
    parameters = zstandard.ZstdCompressionParameters(window_log=27, compression_level=1)
    squeeze = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = squeeze.compress(b" " * 1000) + squeeze.flush()
    assert problem(await send(device, body, **{"content-encoding": "zstd"})) == (400, "bad_encoding")


@pytest.mark.parametrize(
    ("encoding", "body", "expected"),
    [
        ("br", b"x", (415, "unsupported_encoding")),
        ("gzip, zstd", b"x", (415, "unsupported_encoding")),
        ("zstd", b"not zstd", (400, "bad_encoding")),
        ("gzip", b"not gzip", (400, "bad_encoding")),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-4], (400, "bad_encoding")),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"tail", (400, "bad_encoding")),
        ("identity", b"{", (400, "bad_json")),
        ("identity", b"", (400, "bad_json")),
        ("identity", b"\xff\xfe", (400, "bad_json")),
        ("identity", b"[]", (400, "bad_request")),
    ],
)
async def test_what_cannot_be_read_is_refused(
    cloud: CloudUnderTest, encoding: str, body: bytes, expected: tuple[int, str]
) -> None:
    """With a stable code, before anything is stored."""
    device = await cloud.device()
    assert problem(await send(device, body, **{"content-encoding": encoding})) == expected


async def test_a_truncated_zstd_body_stores_nothing(cloud: CloudUnderTest) -> None:
    """Whatever part arrived is not a batch."""
    device = await cloud.device()
    packed = zstandard.compress(body_of(device, events(50)))
    for cut in (5, len(packed) // 2, len(packed) - 1):
        assert (await send(device, packed[:cut], **{"content-encoding": "zstd"})).status_code == 400
    assert (await device.hello())["last_seq"] == 0


async def test_a_body_that_does_not_come_is_given_up(cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """408 after the deadline."""
    monkeypatch.setattr(cloudlet_module, "BODY_TIMEOUT_S", 0.05)
    device = await cloud.device()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    reply = await cloud.http.post("/sync/v1/events", content=chunks(), headers=bearer(device.token))
    assert problem(reply) == (408, "slow_body") and reply.json()["limit"] == "body_timeout_s"


def test_a_budget_gives_back_what_a_refused_request_took() -> None:
    """Shares add up, a full budget refuses with 503, and leaving a share frees it."""
    budget = Budget(100)
    with budget.share() as first:
        first.take(60)
        with budget.share() as second:
            second.take(40)
            with pytest.raises(Refused) as refused:
                second.take(1)
            assert refused.value.problem.status == 503
            assert refused.value.problem.retry_after_s and refused.value.problem.limit == "in_flight_bytes_max"
        first.take(40)
    assert budget.used == 0


async def test_nothing_stays_in_the_budget(small: CloudUnderTest) -> None:
    """After good and bad requests alike, no byte is held, and the figures say so."""
    device = await small.device()
    await device.push(events(3))
    await send(device, b"x" * 9000)
    await send(device, zstandard.compress(b" " * 100_000), **{"content-encoding": "zstd"})
    text = (await small.http.get("/metrics")).text
    assert "metricsd_cloud_in_flight_bytes 0\n" in text
    assert 'items_total{kind="events",outcome="stored"} 3' in text
    assert "acme" not in text and device.id not in text


async def test_a_queue_of_two_seconds_work_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large batches that wait for one tenant are bounded by their items: who is let in is answered soon."""
    monkeypatch.setattr(sqlite_group, "QUEUE_ITEMS_MAX", 100)
    async with CloudUnderTest(tmp_path / "cloud") as cloud:
        devices = [await cloud.device() for _ in range(6)]
        held, go_on = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            held.set()
            assert go_on.wait(20)

        [tenant] = await cloud.backend.directory.list_tenants()
        async with cloud.backend.tenant(tenant) as store:
            assert isinstance(store, SqliteTenant)
            holding = asyncio.create_task(store.writer.write(hold, items=1))
            assert await asyncio.to_thread(held.wait, 20)
            pushes = [asyncio.create_task(device.try_push(events(40))) for device in devices]
            refused = [reply async for reply in _answered(pushes, 4)]
            go_on.set()
            await holding
        assert {problem(reply) for reply in refused} == {(503, "busy")}
        assert all(reply.headers["retry-after"] == "1" for reply in refused)
        assert {reply.json()["limit"] for reply in refused} == {"waiting_items_max"}
        replies = await asyncio.gather(*pushes)
        assert sorted(reply.status_code for reply in replies) == [200, 200, 503, 503, 503, 503]


def test_every_limit_that_a_refusal_names_is_documented_and_the_other_way_round() -> None:
    """A refusal's `limit` is a row of the table in docs/operations.md, with what to do about it."""
    sources = "".join(file.read_text() for file in sorted(CODE.glob("*.py")))
    named = set(re.findall(r'limit="(\w+)"', sources))
    named |= set(re.findall(r'too_large\("(\w+)"', sources))
    named |= {names for _, names in re.findall(r'busy\((f?"[^"]*"), "(\w+)"\)', sources)}
    named |= set(re.findall(r'self\._refusal\("(\w+)"', sources))
    table = (ROOT / "docs" / "operations.md").read_text().partition("\n## Limits\n")[2].partition("\n## ")[0]
    assert named == set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


async def _answered(tasks: list[asyncio.Task[httpx.Response]], count: int) -> AsyncIterator[httpx.Response]:
    """Yield the answers that come first."""
    for number, done in enumerate(asyncio.as_completed(tasks, timeout=20), 1):
        yield await done
        if number == count:
            return
