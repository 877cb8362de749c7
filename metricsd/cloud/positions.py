"""A device's stream of events, as every backend sees it: what a push continues, and what a replay is told.

A stream is (device, epoch); its positions only grow. Every settled position keeps the event id it was settled with, so
that a replay answers as the first time did and a clone of the device is told from a replay. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from metricsd.cloud.backend import EventBatch, EventItem
from metricsd.cloud.problems import Refused, refuse
from metricsd.cloud.wiretext import event_id_text
from metricsd.protocol import EventResult, HelloReply, HelloRequest


class Stream(NamedTuple):
    """Where a stream stands: settled up to `last_seq`, whose item had the id `last_id`."""

    epoch: int
    last_seq: int
    last_id: bytes | None


class Bound(NamedTuple):
    """What a settled position holds; `reason` when it was rejected."""

    key: bytes
    reason: str | None


def continued(newest: Stream | None, batch: EventBatch) -> Stream:
    """Return the stream that the batch continues; a new epoch starts at the batch's base. Raise 409."""
    if newest is None or batch.epoch > newest.epoch:
        return Stream(batch.epoch, batch.base_seq, None)
    if batch.epoch < newest.epoch:
        raise refuse(409, "stream_fork", f"this device already writes epoch {newest.epoch}", last_seq=newest.last_seq)
    if batch.base_seq > newest.last_seq:
        raise refuse(409, "gap", f"positions after last_seq={newest.last_seq} are missing", last_seq=newest.last_seq)
    return newest


def replayed(
    old: Sequence[EventItem],
    stream: Stream,
    bounds: Mapping[int, Bound | None],
    owners: Mapping[bytes, str],
    device: str,
) -> list[EventResult]:
    """Return what the first push of these positions was told, with `stored` turned into `duplicate`.

    Raise 409 `stream_fork` when one is settled with another id than the one offered now, or was passed over.
    """
    results = []
    for item in old:
        bound = bounds.get(item.seq)
        if bound is None or bound.key != item.key:
            raise refuse(
                409, "stream_fork", f"position {item.seq} is settled with another event", last_seq=stream.last_seq
            )
        if bound.reason is not None:
            results.append(EventResult(status="rejected", reason=bound.reason))
        else:
            results.append(duplicate(owners.get(item.key, device), device))
    return results


def duplicate(owner: str, device: str) -> EventResult:
    """Return the result for an event that is here already; it names the device whose event it is, if another's."""
    return EventResult(status="duplicate", device=None if owner == device else owner)


def device_erased() -> Refused:
    """Return the refusal of a write by a device whose data was taken back."""
    return refuse(403, "device_erased", "this device's data was taken back: log in again to make it a new device")


def hello_reply(
    request: HelloRequest, newest: Stream | None, at_acked: bytes | None, *, cursor_ok: bool, now: int
) -> HelloReply:
    """Return what a hello is told of the device's newest stream. For an epoch not seen before, that is nothing.

    `at_acked` is the id that position `acked_seq` of the request's epoch is settled with.
    """
    if newest is None or newest.epoch < request.epoch:
        return HelloReply(server_time=now, epoch=request.epoch, last_seq=0, cursor_ok=cursor_ok)
    return HelloReply(
        server_time=now,
        epoch=newest.epoch,
        last_seq=newest.last_seq,
        last_id="" if newest.last_id is None else event_id_text(newest.last_id, request.acked_id),
        id_at_acked=None if at_acked is None else event_id_text(at_acked, request.acked_id),
        cursor_ok=cursor_ok,
    )
