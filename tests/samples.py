"""Events for tests: a builder with defaults, and hypothesis strategies for any event."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from metricsd.ids import EventId, line_id
from metricsd.model import Event, Kind
from metricsd.store.events import Identified
from tests.fakes import START_US


def make_event(n: int = 0, **changes: Any) -> Event:
    """Return the n-th tool call of session `s`, one second after the one before."""
    values: dict[str, Any] = {
        "at": START_US + n * 1_000_000,
        "kind": Kind.TOOL_USED,
        "name": "PostToolUse",
        "app": "claude-code",
        "session": "s",
        "tool": "Bash",
        "outcome": "ok",
        "duration_ms": 10 + n,
    }
    return Event(**(values | changes))


def make_item(n: int = 0, **changes: Any) -> Identified:
    """Return `make_event` with an id that depends on n alone."""
    event = make_event(n, **changes)
    return Identified(line_id(b"sample%d" % n, event.at // 1000, 0), event)


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=30)
numbers = st.integers(0, 2**62)
small = st.integers(0, 10_000_000)


def any_events() -> st.SearchStrategy[Event]:
    """Any event that a decoder may return."""
    return st.builds(
        Event,
        at=st.integers(0, 4_000_000_000_000_000),
        kind=st.sampled_from([kind.value for kind in Kind]),
        name=names,
        app=st.sampled_from(["claude-code", "codex"]),
        session=st.none() | st.sampled_from(["a", "b", "c"]),
        tool=st.none() | st.sampled_from(["Bash", "Read", "mcp__x__y"]),
        outcome=st.none() | st.sampled_from(["ok", "failed", "interrupted", "denied", "from_the_future"]),
        duration_ms=st.none() | small,
        call=st.none() | st.from_regex(r"toolu_[0-9a-f]{4,24}", fullmatch=True) | names,
        project=st.none() | names,
        branch=st.none() | names,
        model=st.none() | names,
        agent=st.none() | names,
        subject=st.none() | names,
        reason=st.none() | names,
        input_bytes=st.none() | numbers,
        output_bytes=st.none() | numbers,
        lines_added=st.none() | small,
        lines_removed=st.none() | small,
        extra=st.none() | st.dictionaries(st.sampled_from(["mode", "n", "m"]), numbers | names, min_size=1, max_size=3),
        batch=st.none() | st.just("import-1"),
    )


def any_items() -> st.SearchStrategy[list[Identified]]:
    """Any list of events, with repeated ids among them."""
    return st.lists(st.tuples(st.integers(0, 40), any_events()), max_size=25).map(
        lambda pairs: [Identified(EventId(b"%016d" % n), event) for n, event in pairs]
    )
