"""Whatever a payload holds, the result is an event that fits its contract, or LineRejected."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd.decode import decode_line, parse_line
from metricsd.decode.claude_code import EVENTS
from metricsd.decode.names import whole_number
from metricsd.decode.payload import Payload
from metricsd.decode.repository import Repositories
from metricsd.errors import LineRejected
from metricsd.model import NAME_CHARS_MAX, Event
from tests.decode.support import AT_US, line_bytes
from tests.fakes import FakeClock
from tests.secrets import Json

_TEXTS = st.text(st.characters(exclude_categories=()), max_size=30) | st.sampled_from(
    ["Bash", "Edit", "Write", "Agent", "create", "/", "/tmp", "~", "\x00", "../..", "x" * 5000, "Exit code 9", "true"]
)
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS
_INNER_KEYS = st.sampled_from(
    """command file_path notebook_path subagent_type interrupted type content structuredPatch lines agentId
    resolvedModel totalTokens totalToolUseCount level""".split()  # noqa: SIM905
)


def _containers(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    return st.lists(inner, max_size=4) | st.dictionaries(_INNER_KEYS | _TEXTS, inner, max_size=6)


_JSON: st.SearchStrategy[Json] = st.recursive(_LEAVES, _containers, max_leaves=12)
_PAYLOADS = st.dictionaries(st.sampled_from(Payload.__struct_fields__) | _TEXTS, _JSON, max_size=12)
_NUMBERS = ("duration_ms", "input_bytes", "output_bytes", "lines_added", "lines_removed")
_NAMES = (
    "name",
    "app",
    "session",
    "tool",
    "outcome",
    "call",
    "project",
    "branch",
    "model",
    "agent",
    "subject",
    "reason",
)


def _is_clean(text: str) -> bool:
    return not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in text)


def _assert_fits(event: Event) -> None:
    assert msgspec.json.decode(msgspec.json.encode(event), type=Event) == event
    for field in _NUMBERS:
        number = getattr(event, field)
        assert number is None or (type(number) is int and 0 <= number < 2**63)
    for field in _NAMES:
        text = getattr(event, field)
        assert text is None or (type(text) is str and 0 < len(text) <= NAME_CHARS_MAX and _is_clean(text))
    extra = event.extra if event.extra is not None else {"some": 1}
    assert 0 < len(extra) <= 16
    for value in extra.values():
        assert (type(value) is int and 0 <= value < 2**63) or (type(value) is str and 0 < len(value) <= NAME_CHARS_MAX)


@settings(max_examples=300)
@given(
    _PAYLOADS,
    st.sampled_from(sorted(EVENTS)) | st.text(min_size=1, max_size=20),
    st.sampled_from(["claude-code", "codex", "ä"]),
)
def test_any_object_becomes_an_event_that_fits(payload: dict[str, Json], event: str, app: str) -> None:
    """Any JSON value in any field: never another error than LineRejected, never a value outside the contract."""
    try:
        line = parse_line(line_bytes(payload, event, app))
    except LineRejected:
        return
    _assert_fits(decode_line(line, AT_US, Repositories(FakeClock())))


@pytest.mark.parametrize("payload", [None, 1, True, "text", [], [{}]])
def test_payload_that_is_no_object_is_refused(payload: Json) -> None:
    """The wrapper is good, the payload is not: the reason is stable."""
    with pytest.raises(LineRejected) as caught:
        decode_line(parse_line(line_bytes(payload)), AT_US, Repositories(FakeClock()))
    assert caught.value.reason == "bad_fields"


@pytest.mark.parametrize("field", ["tool_input", "tool_response", "effort", "error", "prompt", "unheard_of"])
def test_deep_field_costs_at_most_the_line(field: str) -> None:
    """Nesting at any depth ends in an event or in `too_deep`, never in a crash."""
    # The interpreter's limit counts the frames of the caller too; the sweep meets it in every layer of the decoder.
    for depth in (10, 300, *range(800, 1010), 5000, 200_000):
        nested = "[" * depth + "]" * depth
        data = line_bytes({"tool_name": "Bash", field: "NEST"}).replace(b'"NEST"', nested.encode())
        try:
            _assert_fits(decode_line(parse_line(data), AT_US, Repositories(FakeClock())))
        except LineRejected as rejected:
            assert rejected.reason == "too_deep"


def _deeper(frames: int, work: Callable[[], Event]) -> Event:
    return work() if frames == 0 else _deeper(frames - 1, work)


@pytest.mark.parametrize("field", ["tool_input", "tool_response", "unheard_of"])
def test_deep_payload_is_refused_wherever_the_stack_ends(field: str) -> None:
    """A line parsed near the top of the stack may be decoded deeper: still an event or `too_deep`."""
    nested = "[" * 800 + "]" * 800
    line = parse_line(line_bytes({"tool_name": "Bash", field: {"x": "NEST"}}).replace(b'"NEST"', nested.encode()))
    for frames in range(300):
        try:
            _assert_fits(_deeper(frames, lambda: decode_line(line, AT_US, Repositories(FakeClock()))))
        except LineRejected as rejected:
            assert rejected.reason == "too_deep"


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, 1e300, True, "1", None, 2**63])
def test_number_that_is_none(value: object) -> None:
    """Infinity and its like never become a number."""
    assert whole_number(value) is None


def test_same_key_twice_takes_the_last() -> None:
    """As every JSON reader of the tools themselves does."""
    data = line_bytes({}).replace(b"{}", b'{"tool_name":"Bash","tool_name":"Read"}')
    assert decode_line(parse_line(data), AT_US, Repositories(FakeClock())).tool == "Read"


def test_caches_hold_no_long_text() -> None:
    """A name of megabytes is cut before it is remembered, so hostile lines cannot fill the memory."""
    from metricsd.decode import names

    before = names._cached_id.cache_info().currsize, names._known_name.cache_info().currsize
    decode_line(
        parse_line(line_bytes({"session_id": "s" * 100_000, "tool_name": "t" * 100_000, "agent_type": "a" * 100_000})),
        AT_US,
        Repositories(FakeClock()),
    )
    assert (names._cached_id.cache_info().currsize, names._known_name.cache_info().currsize) == before
