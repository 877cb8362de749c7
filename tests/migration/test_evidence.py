"""The arithmetic behind a proof: digests, bounds, likenesses, and matching of sides of any size."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.migration import side as sides
from metricsd.migration.baseline import PSI_MAX, ks, likenesses, metrics, psi
from metricsd.migration.compare import Comparer
from metricsd.migration.confidence import Evidence, accuracy_lb, floor_percent, judge, lower_bound
from metricsd.migration.digest import ALL_TOOLS, CELLS_MAX, NOTHING, Cell, Cells, Digest, RowHash, new_key
from metricsd.migration.figures import Figures
from metricsd.migration.rows import flat
from metricsd.migration.side import Side

KEY = bytes(range(16))
hashes = st.integers(0, 2**64 - 1)
cells = st.builds(Cell, st.sampled_from(["event", "session"]), st.integers(0, 3), st.sampled_from(["Bash", "Read", ""]))
digests = st.builds(Digest, st.integers(0, 5), hashes)


@given(st.lists(st.tuples(cells, digests)))
def test_a_digest_does_not_depend_on_the_order(rows: list[tuple[Cell, Digest]]) -> None:
    """And what was added can be taken away again."""
    one, other = Cells(), Cells()
    for cell, digest in rows:
        one.add(cell, digest)
    for cell, digest in sorted(rows, key=str):
        other.add(cell, digest)
    assert one.differing(other) == []
    one.subtract(other)
    assert list(one.items()) == []
    assert one.total() == NOTHING


@given(digests, digests)
def test_digests_add_and_subtract(one: Digest, other: Digest) -> None:
    """Modulo 2^64."""
    assert one.plus(other).minus(other) == one


def test_too_many_tools_are_added_together_and_no_row_is_lost() -> None:
    """Memory is bounded, and two sides at different levels still compare equal, or not."""
    fine, coarse = Cells(), Cells()
    for number in range(CELLS_MAX + 10):
        coarse.add(Cell("event", number % 7, f"tool{number}"), Digest(1, number))
    for day in range(7):
        rows = range(day, CELLS_MAX + 10, 7)
        fine.add(Cell("event", day, "x"), Digest(len(rows), sum(rows)))
    assert not coarse.by_tool
    assert sum(1 for _ in coarse.items()) == 7
    assert coarse.total() == fine.total()
    assert coarse.differing(fine) == fine.differing(coarse) == []
    fine.add(Cell("event", 3, "y"), Digest(0, 1))
    assert [cell for cell, _, _ in coarse.differing(fine)] == [Cell("event", 3, ALL_TOOLS)]


def test_different_values_have_different_hashes() -> None:
    """None, an empty text, zero and false are four things; the key decides."""
    row_hash = RowHash(KEY)
    rows: list[tuple[object, ...]] = [
        (None,),
        ("",),
        (0,),
        (False,),
        ("0",),
        (1,),
        (True,),
        (1.5,),
        ((),),
        ("", ""),
        ((None,),),
    ]
    assert len({row_hash(row) for row in rows}) == len(rows)
    assert row_hash((1,)) == RowHash(KEY)((1,)) != RowHash(new_key())((1,))


def test_a_mapping_is_flat_in_the_order_of_its_names() -> None:
    """However it was written; whole floats are whole numbers, empty is nothing."""
    assert flat({"b": 2.0, "a": {"y": [1, None], "x": ""}}) == flat({"a": {"x": "", "y": [1, None]}, "b": 2})
    assert flat({}) is flat(None) is None
    assert flat({"a": None}) != flat({"a": ""})


@pytest.mark.parametrize(
    ("found", "trials", "bound"),
    [(300, 300, 0.98477), (1000, 1000, 0.99541), (10_000, 10_000, 0.99954), (999, 1000, 0.99338), (500, 1000, 0.46278), (0, 10, 0.0),
     (0, 0, 0.0)],
)  # fmt: skip
def test_the_bound_is_that_of_clopper_and_pearson(found: int, trials: int, bound: float) -> None:
    """At 99 %, one-sided; values beside those of the literature."""
    assert lower_bound(found, trials) == pytest.approx(bound, abs=1e-5)


@given(st.integers(1, 200), st.data())
def test_the_bound_is_where_so_many_successes_become_unlikely(trials: int, data: st.DataObject) -> None:
    """At the bound, as many or more are seen with a probability of 1 %, summed term by term."""
    found = data.draw(st.integers(1, trials))
    p = lower_bound(found, trials)
    tail = sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(found, trials + 1))
    assert tail == pytest.approx(0.01, rel=1e-6)


def evidence(**more: object) -> Evidence:
    values: dict[str, object] = {
        "reconciled": True,
        "expected": 1000,
        "compared": 1000,
        "unfaithful": 0,
        "seeded": 1000,
        "found": 1000,
    }
    return Evidence(**(values | more))  # type: ignore[arg-type]


def test_a_clean_run_passes_with_the_smaller_of_both_bounds() -> None:
    """Which is what 1,000 faults of 1,000 show."""
    found, reasons = judge(evidence())
    assert (found.verdict, found.score, found.accuracy_lb, found.coverage, reasons) == ("pass", 99.54, 1.0, 1.0, ())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"reconciled": False}, "do not reconcile"),
        ({"unfaithful": 1}, "1 rows are missing, doubled or different"),
        ({"compared": 999}, "only 999 of 1,000 rows were compared"),
        ({"found": 990}, "990 of 1,000 faults"),
        ({"seeded": 0, "found": 0}, "0 of 0 faults"),
        ({"failures": ("the gate is closed",)}, "the gate is closed"),
    ],
)
def test_whatever_is_wrong_fails_whatever_the_numbers_say(more: dict[str, object], said: str) -> None:
    """With its reason."""
    found, reasons = judge(evidence(**more))
    assert found.verdict == "fail"
    assert len(reasons) == 1
    assert said in reasons[0]


def test_the_share_of_faithful_rows_is_exact_when_all_are_compared_and_a_bound_otherwise() -> None:
    """One wrong row of a thousand is 99.9 %, of a sample it may be more."""
    assert accuracy_lb(1000, 1000, 1) == 0.999
    assert accuracy_lb(1000, 300, 0) == pytest.approx(0.98477, abs=1e-5)
    assert (accuracy_lb(0, 0, 0), accuracy_lb(0, 0, 1)) == (1.0, 0.0)


def test_percentages_are_cut_and_not_rounded() -> None:
    """99.999 % is not 100."""
    assert [floor_percent(share) for share in (0.99999, 1.0, 0.29, 0.0)] == [99.99, 100.0, 29.0, 0.0]


rows = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=120)


@given(source=rows, target=rows)
def test_matching_counts_every_row_once(source: list[tuple[int, int]], target: list[tuple[int, int]]) -> None:
    """Against plain dictionaries; a target has each identity once, a source may tell of one several times."""
    there = dict(target)
    one, other = Side(Path("/nonexistent")), Side(Path("/nonexistent"))
    cell = one.number(Cell("event", 1, "Bash"))
    other.number(Cell("event", 1, "Bash"))
    first: dict[int, int] = {}
    for place, (identity, value) in enumerate(source):
        one.add(identity << 32, value, cell, place)
        first.setdefault(identity, value)
    for identity, value in there.items():
        other.add(identity << 32, value, 0, identity << 1 | 1)
    comparer = Comparer()
    comparer.rows(one, other)
    found = comparer.finish(()).rows
    assert found.merged == len(source) - len(first)
    assert found.equal == sum(there.get(identity) == value for identity, value in first.items())
    assert found.missing == len(first.keys() - there.keys())
    assert found.extra == len(there.keys() - first.keys())
    assert found.different == len(first) - found.equal - found.missing


def test_sides_on_disk_are_dealt_out_until_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row comes once, equal identities in the same part, with no part larger than the limit."""
    monkeypatch.setattr(sides, "FLUSH_ROWS", 800)
    monkeypatch.setattr(sides, "PART_BYTES_MAX", 20 * 32)
    one, other = Side(tmp_path / "one"), Side(tmp_path / "other")
    for side in (one, other):
        cell = side.number(Cell("event", 1, "Bash"))
        for number in range(1500):
            side.add(number * 0x9E3779B97F4A7C15 % 2**64, number, cell, number)
    seen = 0
    for ours, theirs in sides.pairs(one, other):
        mine, its = list(ours), list(theirs)
        assert sorted(mine) == sorted(its)
        assert len(mine) <= 20
        seen += len(mine)
    assert seen == 1500
    one.drop()
    other.drop()
    assert list(tmp_path.iterdir()) == []


def test_likeness_is_zero_for_equals_and_large_for_strangers() -> None:
    """PSI and KS on counts, against values worked out by hand."""
    assert psi([(10, 20), (30, 60)]) == 0.0
    assert psi([(50, 25), (50, 75)]) == pytest.approx(0.25 * math.log(2) + 0.25 * math.log(1.5))
    assert psi([(1, 0)]) == PSI_MAX
    assert ks({1: 5, 2: 5}, {1: 50, 2: 50}) == 0.0
    assert ks({1: 10}, {2: 10}) == 1.0
    assert ks({1: 1, 2: 3}, {1: 2, 2: 2}) == pytest.approx(0.25)


def figures(calls: int = 100, failed: int = 0, sessions: int = 10, hours: int = 1) -> Figures:
    found = Figures()
    for number in range(calls):
        found.call("Bash" if number % 2 else "Read", number < failed, 10 + number)
    for number in range(sessions):
        start = (number * 24 + 8) * 3_600_000_000
        found.session(start, start + hours * 3_600_000_000, f"dev{number % 3}", 70, "shop")
    return found


def test_equal_sides_raise_no_alarm() -> None:
    """Eleven metrics, all without a deviation."""
    found = metrics(figures(), figures())
    assert len(found) == 11
    assert {(one.level, one.deviation) for one in found} == {("ok", 0.0)}
    assert {one.level for one in likenesses(figures(), figures(), {1: (5, 5)})} == {"ok"}


@pytest.mark.parametrize(
    ("target", "alarms"),
    [
        (figures(sessions=8), {"sessions_per_day": "ok", "tool_metrics_per_session": "warning"}),
        (figures(calls=50), {"tool_metrics_per_session": "error"}),
        (figures(hours=2), {"session_duration_minutes": "error"}),
        (figures(failed=20), {"success_rate": "error"}),
        (
            figures(sessions=0),
            {"sessions_per_day": "error", "total_users": "error", "peak_hours_similarity": "warning"},
        ),
    ],
)
def test_a_metric_that_moves_beyond_its_threshold_is_an_alarm(target: Figures, alarms: dict[str, str]) -> None:
    """By the older system's thresholds, from what the target holds."""
    levels = {one.id: one.level for one in metrics(figures(), target)}
    assert {name: levels[name] for name in alarms} == alarms


def test_a_side_that_moved_looks_unlike() -> None:
    """Durations a tenth longer, a tool that is gone, a day that is empty."""
    other = Figures()
    for number in range(100):
        other.call("Bash", False, 200 + number)
    levels = {one.name: one.level for one in likenesses(figures(), other, {1: (50, 50), 2: (50, 0)})}
    assert levels["durations"] == "warning"
    assert levels["calls by tool"] == "error"
    assert levels["events by day"] == "error"
