"""Each figure by its formula, with the older one's faults as cases, and laws that hold for any session."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.analytics import tools, trends
from metricsd.analytics.activity_score import activity_score
from metricsd.analytics.anomalies import anomalies
from metricsd.analytics.baseline import DEFAULT, Baseline, baseline
from metricsd.analytics.efficiency import efficiency, success_percent
from metricsd.analytics.focus import covered_us, focus_blocks, focus_minutes
from metricsd.analytics.indicators import indicators
from metricsd.analytics.numbers import number_of, rounded
from metricsd.analytics.periods import daily, total, week_of, weekly
from metricsd.analytics.recommendations import end_notes, recommendations
from metricsd.analytics.score import end_score, mean_percent_score, percent_score, session_score, trend_of
from metricsd.analytics.team import leaderboard, team_summary
from metricsd.analytics.velocity import velocity, velocity_of
from metricsd.totals import Cell, HourCell, SessionTotal, bucket_bounds, bucket_of, percentile_ms

HOUR = 3_600_000_000


def session(hours: float = 1.0, **changes: Any) -> SessionTotal:
    values: dict[str, Any] = {
        "id": "s", "app": "a", "project": None, "branch": None, "model": None, "started_at": HOUR,
        "last_at": HOUR + round(hours * HOUR), "ended_at": HOUR + round(hours * HOUR), "end_reason": None,
    }  # fmt: skip
    return SessionTotal(**(values | changes))


any_session = st.builds(
    session,
    st.floats(0, 100),
    tool_calls=st.integers(0, 10_000),
    tool_failures=st.integers(0, 100),
    agents=st.integers(0, 50),
    lines_added=st.integers(0, 10**6),
    focus_ms=st.none() | st.integers(0, 10**9),
    score=st.none() | st.floats(0, 100),
).map(lambda one: one._replace(tool_failures=min(one.tool_failures, one.tool_calls)))


class TestHistogram:
    @given(st.integers(0, 2**50))
    def test_a_duration_lies_in_its_bucket_and_buckets_are_narrow(self, ms: int) -> None:
        """At most 12.5 % wide, without gap or overlap."""
        low, high = bucket_bounds(bucket_of(ms))
        assert low <= ms <= high
        assert high - low <= low / 8
        assert bucket_of(high + 1) == bucket_of(low) + 1

    @given(st.lists(st.integers(0, 10**6), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.95, 0.99, 1.0]))
    def test_a_percentile_is_within_a_bucket_of_the_exact_one(self, durations: list[int], share: float) -> None:
        """Nearest rank, found in the histogram."""
        histogram: dict[int, int] = {}
        for ms in durations:
            histogram[bucket_of(ms)] = histogram.get(bucket_of(ms), 0) + 1
        exact = sorted(durations)[math.ceil(share * len(durations)) - 1]
        found = percentile_ms(histogram, share)
        low, high = bucket_bounds(bucket_of(exact))
        assert found is not None and low <= found <= high

    def test_calls_without_a_duration_have_no_percentile(self) -> None:
        """They are counted and do not pull it to zero."""
        assert percentile_ms({-1: 5}, 0.5) is None
        assert percentile_ms({-1: 500, 8: 1}, 0.5) == 8


class TestActivityScore:
    @pytest.mark.parametrize(
        ("groups", "expected"),
        [
            ((None, None, None), None),
            (({}, None, None), 50),
            (({}, {}, {}), 70),
            (({"commands_executed": None, "interruptions": "x"}, None, None), 50),
            (
                ({"commands_executed": 500, "tools_invoked": 99, "files_modified": 99, "focus_blocks": 99}, {}, None),
                100,
            ),
            ((None, {"tests_run": 10, "tests_passed": 0, "builds_attempted": 3}, {"context_switches": 30}), 40),
            ((None, {"tests_run": 20, "tests_passed": 9, "builds_attempted": 4, "builds_successful": 1}, None), 58),
        ],
    )
    def test_by_the_formula(self, groups: Any, expected: float | None) -> None:
        """Missing and null numbers count as 0; the original said NaN."""
        assert activity_score(*groups) == expected

    @given(
        st.dictionaries(
            st.sampled_from(["commands_executed", "tests_run", "tests_passed", "git_commits"]),
            st.none() | st.floats() | st.integers() | st.text() | st.lists(st.none()),
        )
    )
    def test_always_of_100(self, metrics: dict[str, object]) -> None:
        """NaN, infinity, texts and lists in, a number between 0 and 100 out."""
        found = activity_score(metrics, metrics, metrics)
        assert found is not None and 0 <= found <= 100


class TestSessionScore:
    def test_the_engines_formula(self) -> None:
        """All parts at their most give 10, and a quiet session has its success and its length."""
        best = session(2, tool_calls=30, lines_added=240, agents=3)
        assert session_score(best) == (10, 2.5, 2.5, 2, 1.5, 1.5)
        quiet = session_score(session(1, tool_calls=0))
        assert (quiet.total, quiet.quality, quiet.focus) == (2.75, 2, 0.75)

    def test_success_of_nothing_is_nothing(self) -> None:
        """The older hooks' `0 || 100` gave full marks to a session in which every call failed."""
        failed = session(1, tool_calls=10, tool_failures=10)
        assert success_percent(failed) == 0
        assert session_score(failed).quality == 0
        assert end_score(failed).quality == 0

    def test_the_hooks_formula_at_the_end(self) -> None:
        """Twice the sum of its factors, at most 10."""
        found = end_score(session(1, tool_calls=15, lines_removed=60, agents=1))
        assert found.total == pytest.approx(2 * (1 + 0.5 + 1 + 1 / 3 + 1))
        assert end_score(session(5, tool_calls=900, agents=9)).total == 10

    def test_a_score_by_hand_is_the_score(self) -> None:
        """Of 100, as the computed one is shown."""
        assert percent_score(session(score=7.5)) == 7.5
        assert percent_score(session(1)) == 27.5
        assert mean_percent_score([]) == 0
        assert [trend_of(total) for total in (8, 7.9, 4, 3.9)] == ["excellent", "good", "average", "needs_improvement"]

    @given(any_session, any_session)
    def test_scores_stay_within_their_bounds(self, one: SessionTotal, other: SessionTotal) -> None:
        """Whatever the baseline is made of."""
        usual = baseline([other])
        for found in (session_score(one, usual).total, end_score(one, usual).total):
            assert 0 <= found <= 10
        assert 0 <= percent_score(one, usual) <= 100


class TestPace:
    def test_velocity_is_over_real_hours(self) -> None:
        """A running session has a length; the older engine took six minutes for every one."""
        running = session(2, ended_at=None, tool_calls=20, lines_added=10, lines_removed=30)
        assert velocity_of(running) == (10, 20, 2)
        assert velocity_of(session(0, tool_calls=1)).commands_per_hour == 10
        assert velocity([session(1, tool_calls=1), session(3, tool_calls=7)]).commands_per_hour == 2
        assert velocity([]) == (0, 0, 0)

    def test_the_baseline_is_of_the_last_thirty_in_percent(self) -> None:
        """Sums over sums; failed sessions count as they were; nothing gives the default."""
        assert baseline([]) == baseline([session(0)]) == DEFAULT
        assert DEFAULT.success_rate == 92
        old = [session(1, started_at=n, last_at=n, ended_at=n + HOUR, tool_calls=1000) for n in range(5)]
        new = [
            session(
                1, started_at=HOUR + n, ended_at=2 * HOUR + n, tool_calls=10, tool_failures=10 * (n % 2), lines_added=6
            )
            for n in range(30)
        ]
        assert baseline([*old, *new]) == Baseline(10, 6, 50, 60, 3, 30)

    def test_overlapping_sessions_are_focused_once(self) -> None:
        """Two windows side by side are not two hours in one; what was noted counts as noted."""
        assert (
            focus_minutes([session(1), session(0.5), session(2, started_at=HOUR // 2, last_at=HOUR, ended_at=HOUR)])
            == 90
        )
        assert focus_minutes([session(5, focus_ms=1_500_000), session(1)]) == 85
        assert [focus_blocks(minutes) for minutes in (0, 12.4, 12.5, 100)] == [0, 0, 1, 4]

    @given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 20)), max_size=12))
    def test_covered_time_is_what_a_clock_would_say(self, pairs: list[tuple[int, int]]) -> None:
        """Every microsecond once."""
        spans = [(start, start + length) for start, length in pairs]
        assert covered_us(spans) == len({at for start, until in spans for at in range(start, until)})

    def test_efficiency_weighs_by_calls(self) -> None:
        """One failed call beside 99 good ones is 99 %, not the mean of two sessions."""
        assert efficiency([session(tool_calls=99), session(tool_calls=1, tool_failures=1)]) == 0.99
        assert efficiency([]) == 1


class TestTrends:
    def test_weeks_are_of_days(self) -> None:
        """The last seven days against the seven before; both need a session."""
        assert trends.week_over_week([(20, 60.0), (14, 60.0), (13, 50.0), (7, 50.0), (6, 99.0)], 20) == (
            20,
            "improving",
        )
        assert trends.week_over_week([(20, 49.5), (13, 50.0)], 20) == (-1, "stable")
        assert trends.week_over_week([(20, 40.0), (13, 50.0)], 20).direction == "declining"
        assert trends.week_over_week([(n, 50.0) for n in range(20, 13, -1)], 20) == (0, "stable")
        assert trends.week_over_week([(20, 5.0), (13, 0.0)], 20) == (0, "stable")

    def test_days_come_newest_first_with_their_tools(self) -> None:
        """A mean of the day's sessions."""
        found = trends.daily_trend([(3, 50.0), (4, 70.0), (3, 60.5)], {3: ["Read", "Bash", "Read"]})
        assert found == [(4, 70, 1, ()), (3, 55.3, 2, ("Bash", "Read"))]

    @given(st.lists(st.floats(-100, 100), max_size=20))
    def test_a_slope_is_finite_and_of_a_line_its_own(self, values: list[float]) -> None:
        """Least squares."""
        assert math.isfinite(trends.slope(values))
        assert trends.slope([2.5 * n + 1 for n in range(2 + len(values))]) == pytest.approx(2.5)


class TestAdvice:
    def test_anomalies_compare_with_the_past(self) -> None:
        """Nothing without a past; both directions of pace; success; agents only in a busy session."""
        past = [session(1, tool_calls=20) for _ in range(3)]

        def kinds(current: SessionTotal, history: list[SessionTotal]) -> list[str]:
            return [one.type for one in anomalies(current, history)]

        assert kinds(session(1, tool_calls=20), []) == []
        assert kinds(session(1, tool_calls=9), past) == ["low_velocity"]
        assert kinds(session(1, tool_calls=31), past) == ["high_velocity", "no_agent_usage"]
        assert kinds(session(1, tool_calls=31, agents=1), past) == ["high_velocity"]
        assert kinds(session(1, tool_calls=20, tool_failures=5, agents=1), past) == ["low_success_rate"]
        assert kinds(session(1, tool_calls=20, agents=1), past) == []

    def test_recommendations_follow_the_figures(self) -> None:
        """Each rule by itself."""

        def names(current: SessionTotal, calls: dict[str, int], scores: list[float]) -> list[str]:
            return [one.category for one in recommendations(current, calls, scores)]

        good = session(1, tool_calls=20, agents=3)
        assert names(good, {"Read": 3, "Edit": 1}, []) == []
        assert names(good._replace(agents=2), {}, []) == ["agent_usage"]
        assert names(good, {"Read": 4, "Edit": 1}, []) == ["workflow"]
        assert names(good._replace(tool_failures=3), {}, []) == ["quality"]
        assert names(good, {}, [9, 8, 7, 6, 5]) == ["trend"]
        assert names(good, {}, [8, 7, 6, 5]) == names(good, {}, [5, 6, 7, 8, 9]) == []
        assert names(session(0.4, tool_calls=4), {}, []) == ["efficiency"]

    def test_notes_at_the_end(self) -> None:
        """The hooks' five rules."""
        slow = end_notes(session(1, tool_calls=1, tool_failures=1))
        assert [one.category for one in slow] == ["productivity", "automation", "quality", "efficiency"]
        fast = end_notes(session(1, tool_calls=30, lines_added=200, agents=3))
        assert [(one.priority, one.category) for one in fast] == [("info", "achievement")]

    @given(any_session, st.lists(any_session, max_size=4))
    def test_any_session_has_an_answer(self, one: SessionTotal, past: list[SessionTotal]) -> None:
        """No division by zero anywhere, and everything is JSON."""
        answers = (
            anomalies(one, past),
            recommendations(one, {}, [1.0] * 5),
            end_notes(one),
            team_summary([one, *past]),
            indicators(one, baseline(past)),
        )
        json.dumps(answers, allow_nan=False)


class TestTogether:
    def test_a_team_is_summed_before_it_is_divided(self) -> None:
        """Seven figures, one decimal."""
        found = team_summary([session(1, tool_calls=10, lines_added=7), session(3, tool_calls=2)])
        assert found[0] == 2
        assert found[2:] == (12, 4, 7, 3, 1.8)
        assert team_summary([]) == (0, 0, 0, 0, 0, 0, 0)

    def test_the_leaderboard_is_counted(self) -> None:
        """Highest first, equal ones by name, at most ten."""
        assert leaderboard({"b": 2, "a": 2, "c": 9, "none": 0}) == [("c", 9), ("a", 2), ("b", 2)]
        assert len(leaderboard({str(n): n for n in range(20)})) == 10

    def test_indicators_begin_at_zero(self) -> None:
        """No session and a session without calls are starting; the first call counts."""
        assert indicators(None, DEFAULT).trend == indicators(session(tool_calls=0), DEFAULT).trend == "starting"
        found = indicators(
            session(2, tool_calls=30, tool_failures=10, lines_added=240, agents=3, interruptions=2), DEFAULT
        )
        assert (found.commands_executed, found.success_rate, found.focus_blocks, found.interruptions) == (
            30,
            66.7,
            5,
            2,
        )
        assert (found.productivity_score, found.trend) == (9.3, "excellent")


class TestPeriods:
    def cells(self) -> list[Cell]:
        return [
            Cell(day, None, kind, None, None, bucket, n, failed, ms, 0, 0)
            for day, kind, bucket, n, failed, ms in (
                (4, "tool_used", 10, 3, 1, 30), (4, "tool_used", -1, 1, 0, 0), (10, "tool_used", 12, 1, 0, 12),
                (10, "prompt_submitted", -1, 2, 0, 0), (11, "turn_ended", -1, 1, 0, 0), (11, "tool_used", 5, 1, 0, 5),
                (11, "tool_used", 5, -1, 0, -5),
            )
        ]  # fmt: skip

    def test_days_and_weeks(self) -> None:
        """Monday to Sunday; what is taken back does not show; a day on which only a session began does."""
        days = daily(self.cells(), {4: 1, 20: 2})
        assert [(one.day, one.events, one.tool_calls, one.sessions) for one in days] == [
            (4, 4, 4, 1), (10, 3, 1, 0), (11, 1, 0, 0), (20, 0, 0, 2),
        ]  # fmt: skip
        assert (days[0].error_rate, days[0].mean_ms, days[0].p50_ms) == (0.25, 10, 10)
        weeks = weekly(self.cells(), {4: 1, 20: 2})
        assert [(one.day, one.events, one.prompts, one.sessions) for one in weeks] == [
            (4, 7, 2, 1),
            (11, 1, 0, 0),
            (18, 0, 0, 2),
        ]
        whole = total(self.cells(), {4: 1, 20: 2})
        assert whole is not None and (whole.events, whole.sessions, whole.turns) == (8, 3, 1)
        assert total([], {}) is None

    @given(st.integers(-10_000, 1_000_000))
    def test_a_week_begins_on_its_monday(self, day: int) -> None:
        """Of days before 1970 too."""
        assert 0 <= day - week_of(day) < 7
        assert (week_of(day) - 4) % 7 == 0

    def test_hours_and_weekdays(self) -> None:
        """Tool calls alone; Monday is first."""
        hours = [
            HourCell(4, 23, "tool_used", 2, 0),
            HourCell(10, 0, "tool_used", 1, 0),
            HourCell(4, 9, "prompt_submitted", 9, 0),
        ]
        assert tools.calls_by_hour(hours) == [1, *[0] * 22, 2]
        assert tools.calls_by_weekday(hours) == [2, 0, 0, 0, 0, 0, 1]

    def test_tools_by_use(self) -> None:
        """Shares, rates and percentiles; what is taken back whole is gone."""
        cells = [
            Cell(None, None, "tool_used", name, None, bucket, n, failed, ms, 1, 2)
            for name, bucket, n, failed, ms in (
                ("Read", 8, 3, 0, 24),
                ("Read", 9, 1, 1, 9),
                ("Bash", -1, 4, 1, 0),
                ("x", 1, 2, 0, 2),
                ("x", 1, -2, 0, -2),
            )
        ]
        cells.append(Cell(None, None, "prompt_submitted", None, None, -1, 50, 0, 0, 0, 0))
        uses = tools.by_tool(cells)
        assert [(use.name, use.calls, use.share, use.mean_ms, use.p95_ms) for use in uses] == [
            ("Bash", 4, 0.5, None, None),
            ("Read", 4, 0.5, 8.25, 9),
        ]
        assert tools.usage_shares(uses) == {"Bash": 50, "Read": 50}
        assert tools.error_rates(uses) == {"Bash": 0.25, "Read": 0.25}
        assert tools.efficiencies(uses) == {"Bash": 0.75, "Read": 0.75}
        assert tools.by_project([]) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, 1),
        ("12", 12),
        (" 7 ", 7),
        ("x", 0),
        (None, 0),
        ([], 0),
        ({}, 0),
        (math.nan, 0),
        (math.inf, 0),
        ("1e400", 0),
        (10**400, 0),
        ("9" * 5000, 0),
    ],
)
def test_numbers_of_strangers(value: object, expected: float) -> None:
    """What is no finite number counts as 0."""
    assert number_of(value) == expected


def test_rounding_is_half_up() -> None:
    """As the older tools rounded, also where binary floats lie just below a half."""
    assert [rounded(value) for value in (0.05, 0.25, 1.05, -0.25)] == [0.1, 0.3, 1.1, -0.2]
    assert rounded(2.675, 2) == 2.68
    assert all(
        abs(rounded(value) - value) <= 0.0500001 for value in (random.Random(1).uniform(-1e3, 1e3) for _ in range(200))
    )
