"""The failover's table, cell by cell, and the laws of its brakes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.failover import (
    BY_HAND,
    CloudHealth,
    Forced,
    Health,
    Limits,
    Mode,
    Reason,
    StoreHealth,
    called_for,
    distrust_s,
    next_mode,
)

WRITABLE, BLOCKED = StoreHealth.WRITABLE, StoreHealth.BLOCKED
HYBRID, LOCAL, REMOTE, DEGRADED = Mode.HYBRID, Mode.LOCAL_ONLY, Mode.REMOTE_ONLY, Mode.DEGRADED
LIMITS = Limits(dwell_s=5.0)

MATRIX = {
    (WRITABLE, CloudHealth.UNKNOWN): (HYBRID, Reason.NOT_YET),
    (WRITABLE, CloudHealth.HEALTHY): (HYBRID, Reason.SYNCED),
    (WRITABLE, CloudHealth.FAILING): (DEGRADED, Reason.ERRORS),
    (WRITABLE, CloudHealth.SLOW): (DEGRADED, Reason.SLOW),
    (WRITABLE, CloudHealth.UNREACHABLE): (LOCAL, Reason.UNREACHABLE),
    (WRITABLE, CloudHealth.AUTH): (LOCAL, Reason.AUTH),
    (WRITABLE, CloudHealth.NO_LOGIN): (LOCAL, Reason.NO_LOGIN),
    (BLOCKED, CloudHealth.UNKNOWN): (REMOTE, Reason.STORE),
    (BLOCKED, CloudHealth.HEALTHY): (REMOTE, Reason.STORE),
    (BLOCKED, CloudHealth.FAILING): (DEGRADED, Reason.STORE_AND_CLOUD),
    (BLOCKED, CloudHealth.SLOW): (DEGRADED, Reason.STORE_AND_CLOUD),
    (BLOCKED, CloudHealth.UNREACHABLE): (DEGRADED, Reason.STORE_AND_CLOUD),
    (BLOCKED, CloudHealth.AUTH): (LOCAL, Reason.AUTH),
    (BLOCKED, CloudHealth.NO_LOGIN): (LOCAL, Reason.NO_LOGIN),
}
STATES = sorted(
    {*MATRIX.values(), (DEGRADED, Reason.BACKLOG), *((mode, Reason.FORCED) for mode in Mode)},
    key=lambda state: (state[0].value, state[1].value),
)
PAIRS = list(itertools.product(STATES, MATRIX))
BY_PERSON = {CloudHealth.NO_LOGIN, CloudHealth.AUTH}
OUTAGE = {Reason.UNREACHABLE, Reason.STORE_AND_CLOUD}

healths = st.builds(
    Health,
    store=st.sampled_from(StoreHealth),
    cloud=st.sampled_from(CloudHealth),
    reason=st.sampled_from(Reason),
    since_switch_s=st.floats(0, 10_000),
    good_probes=st.integers(0, 5),
    relapses=st.integers(0, 40),
    backlog_long=st.booleans(),
    frozen=st.booleans(),
)


def _evidence(store: StoreHealth, cloud: CloudHealth, reason: Reason, **more: object) -> Health:
    settled: dict[str, object] = {"since_switch_s": 3600.0, "good_probes": 2}
    return Health(store=store, cloud=cloud, reason=reason, **{**settled, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("cell", MATRIX, ids=lambda cell: f"{cell[0].value}-{cell[1].value}")
def test_the_matrix(cell: tuple[StoreHealth, CloudHealth]) -> None:
    """Each cell is called for, whatever the mode was."""
    assert called_for(Health(store=cell[0], cloud=cell[1])) == MATRIX[cell]
    assert len(MATRIX) == len(StoreHealth) * len(CloudHealth)


@pytest.mark.parametrize(("state", "cell"), PAIRS, ids=lambda value: "-".join(part.value for part in value))
def test_the_whole_table_without_brakes(state: tuple[Mode, Reason], cell: tuple[StoreHealth, CloudHealth]) -> None:
    """From every state, every cell is reached once the dwell is over and the cloud has answered twice."""
    mode, reason = state
    assert next_mode(mode, _evidence(*cell, reason), None, LIMITS) == MATRIX[cell]


@pytest.mark.parametrize(("state", "cell"), PAIRS, ids=lambda value: "-".join(part.value for part in value))
def test_the_whole_table_within_the_dwell(state: tuple[Mode, Reason], cell: tuple[StoreHealth, CloudHealth]) -> None:
    """Within the dwell no mode changes by itself; what a person did (a login, a revoked token, the end of a force) counts at once."""
    mode, reason = state
    found = next_mode(mode, _evidence(*cell, reason, since_switch_s=4.9), None, LIMITS)
    if reason in BY_HAND or cell[1] in BY_PERSON or MATRIX[cell][0] is mode:
        assert found == MATRIX[cell]
    else:
        assert found == (mode, reason)


@pytest.mark.parametrize("mode", Mode)
@given(before=st.sampled_from(Mode), health=healths)
def test_a_forced_mode_is_always_respected(mode: Mode, before: Mode, health: Health) -> None:
    """No evidence and no brake weighs more than what a person said."""
    assert next_mode(before, health, Forced(mode), LIMITS) == (mode, Reason.FORCED)


@given(mode=st.sampled_from(Mode), health=healths)
def test_an_answer_is_stable(mode: Mode, health: Health) -> None:
    """Asked again with the same evidence right after a switch, the machine stays where it is."""
    after, reason = next_mode(mode, health, None, LIMITS)
    again = health._replace(reason=reason, since_switch_s=0.0 if after is not mode else health.since_switch_s)
    assert next_mode(after, again, None, LIMITS)[0] is after


@given(mode=st.sampled_from(Mode), health=healths)
def test_no_switch_within_the_dwell_but_by_hand(mode: Mode, health: Health) -> None:
    """At most one switch a dwell."""
    by_hand = health.reason in BY_HAND or health.cloud in BY_PERSON
    if health.since_switch_s < LIMITS.dwell_s and not by_hand:
        assert next_mode(mode, health, None, LIMITS)[0] is mode


outages = st.builds(
    _evidence,
    st.sampled_from(StoreHealth),
    st.sampled_from([CloudHealth.HEALTHY, CloudHealth.UNKNOWN]),
    st.sampled_from(sorted(OUTAGE)),
    since_switch_s=st.floats(0, 700),
    good_probes=st.integers(0, 3),
    relapses=st.integers(0, 7),
    backlog_long=st.booleans(),
)


@given(mode=st.sampled_from([LOCAL, DEGRADED]), health=outages)
def test_an_outage_ends_after_two_good_probes(mode: Mode, health: Health) -> None:
    """One good answer brings nothing back, and neither do two of a cloud that has just failed after its recoveries."""
    after, _ = next_mode(mode, health, None, LIMITS)
    proven = health.good_probes >= 2 and health.since_switch_s >= distrust_s(health.relapses, LIMITS)
    if proven:
        assert after is not LOCAL
    else:
        assert after is mode


@given(mode=st.sampled_from(Mode), health=healths)
def test_while_frozen_nothing_gets_worse_because_of_the_cloud(mode: Mode, health: Health) -> None:
    """A closed lid is no outage."""
    after, reason = next_mode(mode, health._replace(frozen=True), None, LIMITS)
    if after is not mode and health.reason not in BY_HAND:
        assert reason not in OUTAGE | {Reason.ERRORS, Reason.SLOW}


@pytest.mark.parametrize(
    ("mode", "reason", "backlog_long", "expected"),
    [
        (LOCAL, Reason.UNREACHABLE, True, (DEGRADED, Reason.BACKLOG)),
        (LOCAL, Reason.UNREACHABLE, False, (HYBRID, Reason.SYNCED)),
        (DEGRADED, Reason.BACKLOG, True, (DEGRADED, Reason.BACKLOG)),
        (DEGRADED, Reason.BACKLOG, False, (HYBRID, Reason.SYNCED)),
        (DEGRADED, Reason.STORE_AND_CLOUD, True, (DEGRADED, Reason.BACKLOG)),
        (DEGRADED, Reason.ERRORS, True, (HYBRID, Reason.SYNCED)),
        (HYBRID, Reason.SYNCED, True, (HYBRID, Reason.SYNCED)),
        (REMOTE, Reason.STORE, True, (HYBRID, Reason.SYNCED)),
    ],
)
def test_recovery_goes_through_degraded_only_with_a_long_backlog(
    mode: Mode, reason: Reason, backlog_long: bool, expected: tuple[Mode, Reason]
) -> None:
    """A cloud that has just come back is not given two weeks at full speed; one that never left is."""
    health = _evidence(WRITABLE, CloudHealth.HEALTHY, reason, backlog_long=backlog_long)
    assert next_mode(mode, health, None, LIMITS) == expected


def test_a_cloud_that_keeps_failing_is_believed_later_and_later() -> None:
    """5, 10, 20, ... seconds, up to ten minutes."""
    assert [distrust_s(count, LIMITS) for count in (0, 1, 2, 6, 7, 10_000)] == [5.0, 10.0, 20.0, 320.0, 600.0, 600.0]
    assert distrust_s(0, Limits(dwell_s=3600.0)) == 3600.0
