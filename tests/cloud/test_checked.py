"""The types that check events while decoding say the same as the rules that say what is wrong."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from metricsd.cloud.checked import CheckedEvent
from metricsd.cloud.ingest import parse_events
from metricsd.cloud.rules import AT_US_MAX, EXTRA_KEYS_MAX, NUMBER_MAX, NUMBER_MIN
from metricsd.config import Cloud
from metricsd.model import NAME_CHARS_MAX
from metricsd.protocol import WireEvent
from tests.cloud.support import event

LIMITS = Cloud()
SLOW = Cloud(item_bytes_max=256)
"""With items this small every body goes the long way, through the rules."""
numbers = st.sampled_from(
    [0, -1, NUMBER_MAX, NUMBER_MAX + 1, NUMBER_MIN, NUMBER_MIN - 1, AT_US_MAX - 1, AT_US_MAX, 1.5]
)
texts = st.sampled_from(["", "a", "é" * NAME_CHARS_MAX, "x" * NAME_CHARS_MAX, "x" * (NAME_CHARS_MAX + 1)])
ids = st.sampled_from(["0" * 32, "F" * 32, "g" * 32, "0" * 31, "0" * 33, "00 " * 10 + "00", " " * 32, ""])
extras = st.dictionaries(texts, numbers | texts, max_size=3) | st.just(
    {str(number): 1 for number in range(EXTRA_KEYS_MAX + 1)}
)
values = numbers | texts | st.none() | st.booleans()
wild = st.dictionaries(st.sampled_from(WireEvent.__struct_fields__), values, max_size=3)


def test_they_have_the_same_fields_and_defaults() -> None:
    """A field that is added to the wire is checked too."""
    mine, wire = msgspec.structs.fields(CheckedEvent), msgspec.structs.fields(WireEvent)
    assert {field.name: field.default for field in mine} == {field.name: field.default for field in wire}
    # A position is bounded by the order of the batch, and means nothing without one.
    assert set(CheckedEvent.__annotations__) == {field.name for field in wire} - {"seq"}


@given(wild, ids | st.none(), extras | st.none())
def test_they_accept_the_same_events(
    fields: dict[str, Any], event_id: str | None, extra: dict[str, Any] | None
) -> None:
    """Whichever way a batch goes, the same items of it are taken, under the same keys, for the same reasons."""
    item = {**event(1), "id": "0" * 32, **fields, "seq": 1}
    if event_id is not None:
        item["id"] = event_id
    if extra is not None:
        item["extra"] = extra
    body = json.dumps({"device_id": "d", "epoch": 1, "base_seq": 0, "events": [item, event(2)]}).encode()
    fast = parse_events(body, LIMITS, sequenced=True)
    slow = parse_events(body, SLOW._replace(item_bytes_max=len(body) - 1), sequenced=True)
    for one, other in zip(fast.items, slow.items, strict=True):
        assert (one.seq, one.key, one.reason) == (other.seq, other.key, other.reason)
        assert (one.event is None) == (other.event is None)
        if one.event is not None and other.event is not None:
            assert msgspec.to_builtins(one.event) == msgspec.to_builtins(other.event)


def test_fields_of_a_later_version_are_left_out_whichever_way() -> None:
    """They go the long way, which is why their depth is looked at."""
    batch = parse_events(
        json.dumps({"device_id": "d", "epoch": 1, "base_seq": 0, "events": [event(1, later=[1])], "more": {}}).encode(),
        LIMITS,
        sequenced=True,
    )
    assert batch.items[0].event is not None and not hasattr(batch.items[0].event, "later")


def test_a_limit_of_items_holds_on_the_fast_way() -> None:
    """One more than `items_max` is refused whichever way it goes."""
    body = {"device_id": "d", "epoch": 1, "base_seq": 0, "events": [event(seq) for seq in (1, 2, 3)]}
    assert len(parse_events(json.dumps(body).encode(), Cloud(items_max=3), sequenced=True).items) == 3
    try:
        parse_events(json.dumps(body).encode(), Cloud(items_max=2), sequenced=True)
    except Exception as error:
        assert "too_large" in str(error)
    else:
        raise AssertionError("taken")
