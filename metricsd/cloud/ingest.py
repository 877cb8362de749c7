"""From bytes on the wire to checked structs: the only place of the cloud that looks at what a client sent.

Every body is bounded before it is held: as received, inflated, in depth and in items. A batch that is wrong as a whole
is refused with the name of the limit or rule; a single wrong item is rejected with a reason and never takes its
neighbours with it. Behind this module nothing is checked again.
"""

from __future__ import annotations

import threading
import zlib
from typing import Any, TypeVar

import msgspec
import zstandard
from litestar.types import Receive

from metricsd.cloud.backend import EventBatch, EventItem, RecordBatch, RecordItem
from metricsd.cloud.budget import Share
from metricsd.cloud.checked import CheckedBatch
from metricsd.cloud.problems import refuse, too_large
from metricsd.cloud.rules import NUMBER_MAX, change_fault, event_fault
from metricsd.cloud.shape import check_shape
from metricsd.cloud.wiretext import event_key
from metricsd.config import Cloud
from metricsd.ids import EVENT_ID_BYTES
from metricsd.protocol import EnrolRequest, HelloRequest, RecordChange, WireEvent

S = TypeVar("S", EnrolRequest, HelloRequest)

INFLATE_STEP_BYTES = 64 * 1024
ZSTD_WINDOW_BYTES_MAX = 8 * 1024 * 1024
"""What RFC 8878 asks every decoder to support; more would let a few bytes claim gigabytes."""
_LOCAL = threading.local()
DISCARDED_BODIES = 4
"""A body above the limit is read on up to this many times the limit, so that its sender gets to read the answer."""


class _Envelope(msgspec.Struct):
    device_id: str
    epoch: int
    base_seq: int
    events: list[msgspec.Raw]


class _Position(msgspec.Struct):
    seq: int
    id: msgspec.Raw = msgspec.Raw(b"null")


class _Records(msgspec.Struct):
    device_id: str
    changes: list[msgspec.Raw]


_DECODE_CHECKED = msgspec.json.Decoder(CheckedBatch).decode
_DECODE_ENVELOPE = msgspec.json.Decoder(_Envelope).decode
_DECODE_RECORDS = msgspec.json.Decoder(_Records).decode
_DECODE_POSITION = msgspec.json.Decoder(_Position).decode
_DECODE_EVENT = msgspec.json.Decoder(WireEvent).decode
_DECODE_TEXT = msgspec.json.Decoder(str).decode
_DECODE_CHANGE = msgspec.json.Decoder(RecordChange).decode


async def read_raw(receive: Receive, declared: int | None, settings: Cloud, share: Share) -> bytes:
    """Return the body as received; raise 413 above `body_bytes_max`, 503 when this process holds too many."""
    limit = settings.body_bytes_max
    if declared is not None and declared > limit * DISCARDED_BODIES:
        raise too_large("body_bytes_max", limit)
    parts: list[bytes] = []
    size, more = 0, True
    while more and size <= limit * DISCARDED_BODIES:
        message = await receive()
        if message["type"] != "http.request":
            raise refuse(400, "hung_up", "the client hung up before its body had arrived")
        chunk, more = message["body"], message["more_body"]
        size += len(chunk)
        if size > limit:
            parts.clear()
            continue
        share.take(len(chunk))
        parts.append(chunk)
    if size > limit:
        raise too_large("body_bytes_max", limit)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def is_small(raw: bytes, encoding: str, limit: int) -> bool:
    """Return whether a body is certainly not longer than `limit` once inflated, by what its head declares."""
    match encoding.strip().lower():
        case "" | "identity":
            return len(raw) < limit
        case "zstd":
            try:
                # -1: the frame does not say. One that lies is stopped by the decoder.
                return len(raw) < limit and 0 <= zstandard.frame_content_size(raw) < limit
            except zstandard.ZstdError:
                return False
        case _:
            return False


def inflate(raw: bytes, encoding: str, settings: Cloud, share: Share) -> bytes:
    """Return the body without its Content-Encoding; raise 413 above `inflated_bytes_max`, 415 for other encodings."""
    limit = settings.inflated_bytes_max
    match encoding.strip().lower():
        case "" | "identity":
            if len(raw) > limit:
                raise too_large("inflated_bytes_max", limit)
            return raw
        case "zstd":
            return _inflate_declared(raw, limit, share) or _inflate_zstd(raw, limit, share)
        case "gzip" | "x-gzip":
            return _inflate_gzip(raw, limit, share)
        case _:
            raise refuse(415, "unsupported_encoding", "send zstd, gzip or no Content-Encoding")


def _inflate_declared(raw: bytes, limit: int, share: Share) -> bytes | None:
    """Return the content of one small frame that says its length; None to go step by step."""
    try:
        size = zstandard.frame_content_size(raw)
        if not 0 < size <= min(limit, INFLATE_STEP_BYTES):
            return None
        share.take(size)
        body: bytes = _decompressor().decompress(raw, allow_extra_data=False)
    except zstandard.ZstdError:
        # More than one frame, or none: the long way says which.
        return None
    return body


def _decompressor() -> Any:
    """Return this thread's decompressor: making one costs as much as a small body does."""
    found = getattr(_LOCAL, "decompressor", None)
    if found is None:
        found = _LOCAL.decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
    return found


def _inflate_zstd(raw: bytes, limit: int, share: Share) -> bytes:
    body = bytearray()
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
        with decompressor.stream_reader(raw, read_across_frames=True) as reader:
            while chunk := reader.read(INFLATE_STEP_BYTES):
                _append(body, chunk, limit, share)
    except zstandard.ZstdError as error:
        raise refuse(400, "bad_encoding", "the body is not valid zstd") from error
    return bytes(body)


def _inflate_gzip(raw: bytes, limit: int, share: Share) -> bytes:
    body = bytearray()
    inflater = zlib.decompressobj(wbits=31)
    rest = raw
    try:
        while rest and not inflater.eof:
            _append(body, inflater.decompress(rest, INFLATE_STEP_BYTES), limit, share)
            rest = inflater.unconsumed_tail
        _append(body, inflater.flush(), limit, share)
    except zlib.error as error:
        raise refuse(400, "bad_encoding", "the body is not valid gzip") from error
    if not inflater.eof or inflater.unused_data:
        raise refuse(400, "bad_encoding", "the body is not one whole gzip member")
    return bytes(body)


def _append(body: bytearray, chunk: bytes, limit: int, share: Share) -> None:
    if len(body) + len(chunk) > limit:
        raise too_large("inflated_bytes_max", limit)
    share.take(len(chunk))
    body += chunk


def parse_small(body: bytes, kind: type[S], settings: Cloud) -> S:
    """Return a small body (enrolment, hello) as its struct; raise 400 that names what is wrong."""
    check_shape(body, settings)
    decoded: S = _decoded(msgspec.json.Decoder(kind).decode, body)
    return decoded


def check_hello(said: HelloRequest) -> None:
    """Raise 400 for numbers that no stream can have."""
    if not 0 <= said.epoch <= NUMBER_MAX or not 0 <= said.acked_seq <= NUMBER_MAX:
        raise refuse(400, "bad_request", "epoch and acked_seq are numbers from 0 to 2^63-1")


def parse_events(body: bytes, settings: Cloud, *, sequenced: bool) -> EventBatch:
    """Return a `PushEvents`, each item checked; raise 400 or 413 for what is wrong as a whole."""
    batch = _checked_batch(body, settings) or _mixed_batch(body, settings, sequenced)
    if not 0 <= batch.epoch <= NUMBER_MAX or not 0 <= batch.base_seq <= NUMBER_MAX:
        raise refuse(400, "bad_request", "epoch and base_seq are numbers from 0 to 2^63-1")
    if sequenced:
        _check_order(batch.base_seq, batch.items)
        return batch
    return msgspec.structs.replace(batch, sequenced=False)


def _checked_batch(body: bytes, settings: Cloud) -> EventBatch | None:
    """Return a batch in which nothing is wrong and nothing unknown, checked while it is decoded; else None."""
    large = len(body) > settings.item_bytes_max
    if large:
        # Below that no item can be too large, and no body hold too much.
        check_shape(body, settings)
    try:
        if large and _longest(body) > settings.item_bytes_max:
            return None
        push = _DECODE_CHECKED(body)
        items = [EventItem(event.seq, bytes.fromhex(event.id), event, None) for event in push.events]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    # fromhex() skips blanks, which then are missing in the length.
    if len(items) > settings.items_max or {len(item.key) for item in items} - {EVENT_ID_BYTES}:
        return None
    return EventBatch(device_id=push.device_id, epoch=push.epoch, base_seq=push.base_seq, items=items)


def _longest(body: bytes) -> int:
    """Return the bytes of the longest item of a batch of events."""
    return max((len(memoryview(raw)) for raw in _DECODE_ENVELOPE(body).events), default=0)


def _mixed_batch(body: bytes, settings: Cloud, sequenced: bool) -> EventBatch:
    """Return a batch with what is wrong with each of its items; raise 400 or 413 for what is wrong as a whole."""
    check_shape(body, settings)
    envelope = _decoded(_DECODE_ENVELOPE, body)
    if len(envelope.events) > settings.items_max:
        raise too_large("items_max", settings.items_max)
    items = [_event_item(raw, settings, sequenced) for raw in envelope.events]
    return EventBatch(device_id=envelope.device_id, epoch=envelope.epoch, base_seq=envelope.base_seq, items=items)


def parse_records(body: bytes, settings: Cloud) -> RecordBatch:
    """Return a `PushRecords`, each change checked; raise 400 or 413 for what is wrong as a whole."""
    check_shape(body, settings)
    pushed = _decoded(_DECODE_RECORDS, body)
    if len(pushed.changes) > settings.items_max:
        raise too_large("items_max", settings.items_max)
    return RecordBatch(device_id=pushed.device_id, items=[_record_item(raw, settings) for raw in pushed.changes])


def _event_item(raw: msgspec.Raw, settings: Cloud, sequenced: bool) -> EventItem:
    if len(memoryview(raw)) > settings.item_bytes_max:
        return _unread_item(raw, sequenced, "too_large")
    try:
        event = _DECODE_EVENT(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _unread_item(raw, sequenced, "malformed")
    reason = event_fault(event)
    return EventItem(event.seq, event_key(event.id), None if reason else event, reason)


def _unread_item(raw: msgspec.Raw, sequenced: bool, reason: str) -> EventItem:
    """Return an item of which only the position is looked at; whatever stands there as its id, it is bound under."""
    position = _position_of(raw, sequenced)
    try:
        text = _DECODE_TEXT(position.id)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = bytes(position.id).decode("utf-8", "replace")
    return EventItem(position.seq, event_key(text), None, reason)


def _position_of(raw: msgspec.Raw, sequenced: bool) -> _Position:
    """Return where a malformed item stands; without that nobody could say what is settled."""
    try:
        return _DECODE_POSITION(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if not sequenced:
            return _Position(0)
        raise refuse(400, "bad_request", "an item of events has no readable seq and id") from error


def _record_item(raw: msgspec.Raw, settings: Cloud) -> RecordItem:
    if len(memoryview(raw)) > settings.item_bytes_max:
        return RecordItem(None, "too_large")
    try:
        change = _DECODE_CHANGE(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return RecordItem(None, "malformed")
    reason = change_fault(change)
    return RecordItem(None if reason else change, reason)


def _check_order(base_seq: int, items: list[EventItem]) -> None:
    before = base_seq
    for item in items:
        if not before < item.seq <= NUMBER_MAX:
            raise refuse(400, "bad_order", "each seq must be greater than the one before it, the first than base_seq")
        before = item.seq


def _decoded(decode: Any, body: bytes) -> Any:
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise refuse(400, "bad_request", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refuse(400, "bad_json", "the body is not JSON in UTF-8") from error
