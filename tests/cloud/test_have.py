"""`POST /have`: what is here already, so that a bulk upload goes on where it was cut off."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import pytest

from metricsd.cloud.have import RANGES_MAX
from tests.cloud.support import CloudUnderTest, Device, Json, event, ok, problem

LOW, HIGH = "0" * 32, "f" * 32


async def ask(device: Device, **asked: Any) -> Json:
    return ok(await device.cloud.post("/have", {"device_id": device.id, **asked}, device.token))


def digest(ids: list[str]) -> str:
    """The rule, said once more: BLAKE2b of 16 bytes over the ids in ascending order."""
    return blake2b(b"".join(sorted(bytes.fromhex(text) for text in ids)), digest_size=16).hexdigest()


def ids_at(*numbers: int) -> list[str]:
    """Return ids whose time prefix is a number."""
    return [f"{number:012x}{'a' * 20}" for number in numbers]


async def test_ids_that_are_not_here_are_named(cloud: CloudUnderTest) -> None:
    """In the order asked; upper case is the same id."""
    device = await cloud.device()
    held = ids_at(*range(10))
    await device.push([event(seq, id=text) for seq, text in enumerate(held, 1)])
    asked = [ids_at(99)[0], held[3].upper(), ids_at(98)[0]]
    assert await ask(device, ids=asked) == {"missing": [asked[0], asked[2]], "ranges": []}
    assert await ask(device) == {"missing": [], "ranges": []}


async def test_a_range_is_compared_by_count_and_digest(cloud: CloudUnderTest) -> None:
    """Both ends belong to it; an empty one has the digest of nothing."""
    device = await cloud.device()
    held = ids_at(*range(10))
    await device.push([event(seq, id=text) for seq, text in enumerate(reversed(held), 1)])
    wanted = [{"first": held[2], "last": held[5]}, {"first": LOW, "last": HIGH}, {"first": HIGH, "last": LOW}]
    assert (await ask(device, ranges=wanted))["ranges"] == [
        {"count": 4, "digest": digest(held[2:6])},
        {"count": 10, "digest": digest(held)},
        {"count": 0, "digest": digest([])},
    ]


async def test_only_the_users_own_events_count(cloud: CloudUnderTest) -> None:
    """All devices of the user, nobody else's of the tenant, and nothing of another tenant."""
    mine, also_mine, colleagues, rivals = (
        await cloud.device(), await cloud.device(), await cloud.device(user="bob"), await cloud.device(tenant="rival"),
    )  # fmt: skip
    held = ids_at(*range(4))
    for device, text in zip((mine, also_mine, colleagues, rivals), held, strict=True):
        await device.push([event(1, id=text)])
    reply = await ask(mine, ids=held, ranges=[{"first": LOW, "last": HIGH}])
    assert reply == {"missing": held[2:], "ranges": [{"count": 2, "digest": digest(held[:2])}]}


async def test_a_question_about_much_is_answered_in_parts(
    cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`through` says how far the answer reaches; asking on behind it comes to the end, and each part is right."""
    from metricsd.cloud import device_routes

    monkeypatch.setattr(device_routes, "ROWS_MAX", 7)
    device, other = await cloud.device(), await cloud.device(user="bob")
    held = ids_at(*range(40))
    await device.push([event(seq, id=text) for seq, text in enumerate(held[::2], 1)])
    await other.push([event(seq, id=text) for seq, text in enumerate(held[1::2], 1)])
    first, seen, parts = LOW, 0, 0
    while True:
        parts += 1
        reply = await ask(device, ranges=[{"first": first, "last": HIGH}, {"first": LOW, "last": HIGH}])
        [answer, *more] = reply["ranges"]
        through = answer.get("through")
        inside = [text for text in held[::2] if first <= text <= (through or HIGH)]
        assert (answer["count"], answer["digest"]) == (len(inside), digest(inside))
        assert through is None or not more
        seen += answer["count"]
        if through is None:
            break
        first = f"{int(through, 16) + 1:032x}"
    assert seen == 20 and parts > 2


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"ids": ["short"]}, (400, "bad_request")),
        ({"ids": [LOW], "ranges": [{"first": LOW}]}, (400, "bad_request")),
        ({"ranges": [{"first": LOW, "last": "z" * 32}]}, (400, "bad_request")),
        ({"ids": "x"}, (400, "bad_request")),
        ({"ids": [LOW] * 5001}, (413, "too_large")),
        ({"ranges": [{"first": LOW, "last": HIGH}] * (RANGES_MAX + 1)}, (413, "too_large")),
        ({"device_id": "0" * 32}, (403, "wrong_device")),
    ],
)
async def test_other_questions_are_refused(cloud: CloudUnderTest, asked: Json, expected: tuple[int, str]) -> None:
    """With what is wrong, never with a failure."""
    device = await cloud.device()
    reply = await cloud.post("/have", {"device_id": device.id, **asked}, device.token)
    assert problem(reply) == expected


async def test_a_torn_or_deep_question_is_refused(cloud: CloudUnderTest) -> None:
    """Bytes that are no JSON, and JSON that nests too deep."""
    device = await cloud.device()
    for body, expected in (
        (b"{", (400, "bad_request")),
        (b"[" * 500, (400, "too_deep")),
        (b"\xff", (400, "bad_request")),
    ):
        reply = await cloud.http.post(
            "/sync/v1/have", content=body, headers={"authorization": f"Bearer {device.token}"}
        )
        assert problem(reply) == expected
