"""Depth and width of a body are counted exactly, whatever its strings hold and wherever the pieces are cut."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.cloud import shape
from metricsd.cloud.ingest import parse_events
from metricsd.cloud.problems import Refused
from metricsd.cloud.shape import VALUES_PER_ITEM, check_shape
from metricsd.config import Cloud
from tests.cloud.memory import PeakMemory

MIB = 1024 * 1024
texts = st.text() | st.text(alphabet='\\"[]{},a', max_size=12)
values = st.recursive(
    texts | st.integers() | st.none(),
    lambda part: st.lists(part, max_size=5) | st.dictionaries(texts, part, max_size=5),
)


def limit_hit(body: bytes, **limits: int) -> str | None:
    try:
        check_shape(body, Cloud(**limits))
    except Refused as refusal:
        return refusal.problem.limit
    return None


def depth(part: Any) -> int:
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(values, st.integers(1, 40), st.booleans())
def test_depth_is_counted_exactly(value: Any, piece_bytes: int, ascii_only: bool) -> None:
    """Brackets, commas and quotes inside strings do not count; the true depth passes and one less does not."""
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shape, "PIECE_BYTES", piece_bytes)
        patch.setattr(shape, "VALUES_FEW", 0)
        assert limit_hit(body, depth_max=depth(value)) is None
        if depth(value) > 0:
            assert limit_hit(body, depth_max=depth(value) - 1) == "depth_max"


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_values_are_counted(over: int) -> None:
    """As many values as `items_max` items can have are taken, one more is 413, whatever they are."""
    most = 10 * VALUES_PER_ITEM
    for value in (b"1", b"[]", b'","', b'"\\""'):
        body = b"[" + b",".join([value] * (most + over)) + b"]"
        # The list itself is one more when its items are lists: what opens is what is counted.
        brackets = 1 if value != b"[]" else most + over + 1
        commas = most + over - 1
        counted = brackets + commas
        assert limit_hit(body, items_max=10, depth_max=1000) == ("values_max" if counted > most else None)


HOSTILE = {
    "numbers": b"1,",
    "empty lists": b"[],",
    "empty strings": b'"",',
    "short strings": b'"ab","cd",',
    "deep lists": b"[" * 60 + b"]" * 60 + b",",
    "escaped quotes": b'"\\"\\"\\"\\"",',
    "backslashes": b'"\\\\\\\\",',
    "empty objects": b"{},",
    "one string": b"x",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_body_of_nothing_but_values_neither_fills_the_memory_nor_takes_long(kind: str) -> None:
    """16 MB of it, as events: refused, or read, within the memory of the body itself and within seconds."""
    filling = HOSTILE[kind] * (16 * MIB // len(HOSTILE[kind]))
    filling = b'"' + filling + b'"' if kind == "one string" else filling[:-1]
    body = b'{"device_id":"d","epoch":1,"base_seq":0,"events":[' + filling + b"]}"
    began = time.thread_time()
    with PeakMemory() as memory, pytest.raises(Refused) as refused:
        parse_events(body, Cloud(), sequenced=True)
    assert refused.value.problem.status in (400, 413)
    assert time.thread_time() - began < 3
    assert memory.grown_mib < 64
