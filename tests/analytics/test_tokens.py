"""Tokens by local day and model are what the events say, in any zone and whatever was taken back."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd.store import token_totals
from metricsd.store.calendar import days_in
from metricsd.store.connection import Store
from metricsd.store.summary import ALL_DAYS, reading
from metricsd.store.token_totals import NUMBERS
from metricsd.totals import COUNTED_MAX
from tests.analytics.support import delete_session, item, put, set_batch
from tests.analytics.test_totals_equal_events import ZONES, times
from tests.fakes import START_US, FakeClock
from tests.homes import Home

used = st.fixed_dictionaries(
    {
        "at": times,
        "kind": st.sampled_from(["tokens_used", "tokens_used", "tool_used"]),
        "model": st.sampled_from(["opus", "haiku", None]),
        "session": st.sampled_from(["a", "b", None]),
        "batch": st.sampled_from(["import-1", None]),
        "extra": st.none()
        | st.dictionaries(st.sampled_from([*NUMBERS, "other"]), st.integers(0, 10**6) | st.just(2**62), max_size=4),
    }
)


@settings(max_examples=40)
@given(st.lists(used, max_size=15), st.booleans(), st.booleans(), st.sampled_from(ZONES))
def test_tokens_are_those_of_the_events(found: list[dict[str, Any]], delete: bool, retract: bool, zone: str) -> None:
    """A deleted session and a retracted import do not count; one hostile number adds no more than any may."""
    days = days_in(zone)
    expected: Counter[tuple[int, str | None, str]] = Counter()
    for one in found:
        if one["kind"] == "tokens_used" and not (delete and one["session"] == "a") and not (retract and one["batch"]):
            expected[days.of(one["at"]), one["model"], "requests"] += 1
            for name in NUMBERS:
                expected[days.of(one["at"]), one["model"], name] += min((one["extra"] or {}).get(name, 0), COUNTED_MAX)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        store = Store.open(path, clock=FakeClock())
        put(store, [item(number, **changes) for number, changes in enumerate(found)])
        if delete:
            delete_session(store, "a")
        set_batch(store, "import-1", active=not retract)
        store.close()
        with reading(path, days=days) as summary:
            day = summary.days.of(START_US)
            for span in (ALL_DAYS, (day, day)):
                counted = Counter(
                    {
                        (one.day, one.model, name): number
                        for one in token_totals.read(summary, span)
                        for name, number in zip(("requests", *NUMBERS), one[2:], strict=True)
                    }
                )
                assert +counted == +Counter(
                    {key: number for key, number in expected.items() if span[0] <= key[0] <= span[1]}
                )


def test_the_report_shows_tokens_to_people_and_programs(tmp_path: Path) -> None:
    """By day and model; events without any do not appear."""
    home = Home(tmp_path, TZ="UTC")
    store = Store.open(home.paths.store)
    extra = {"input_tokens": 1200, "output_tokens": 34, "cache_read_tokens": 5}
    put(store, [item(n, at=START_US, kind="tokens_used", model="opus", extra=extra) for n in range(2)])
    put(store, [item(9, at=START_US)])
    store.close()
    (row,) = json.loads(home.ok("report", "tokens", "--json"))
    assert row == {
        "day": "2026-09-21", "model": "opus", "requests": 2, "input_tokens": 2400, "output_tokens": 68,
        "cache_creation_tokens": 0, "cache_read_tokens": 10, "zone": "UTC",
    }  # fmt: skip
    assert "2,400" in home.ok("report", "tokens")
    assert home.ok("report", "tokens", "--csv").startswith("day,model,requests,input_tokens,")
    assert "nothing recorded" in home.ok("report", "tokens", "--since", "1d")
