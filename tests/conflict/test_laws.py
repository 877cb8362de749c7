"""Laws of resolving, for every strategy: total, deterministic, harmless to repeat, and no edit loses to what it saw."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.conflict import ANY_FIELD, Clash, Conflict, DeleteRule, FieldRule, Strategy, Version, resolve, same
from metricsd.protocol import FieldValue
from tests.conflict.samples import (
    EDIT_MS,
    FRESH,
    NAMES,
    SYMMETRIC,
    conflicts,
    deletes,
    edited,
    edits,
    rule_sets,
    rules,
    stamp,
    values,
    wild_conflicts,
)

Rules = Mapping[str, FieldRule]
proposals = st.one_of(st.none(), st.dictionaries(st.sampled_from(NAMES), values))
symmetric = st.one_of(
    st.builds(FieldRule, st.just(Strategy.MERGE_FIELDS), st.sampled_from(SYMMETRIC)),
    st.builds(FieldRule, st.just(Strategy.LATEST_WINS), per_record=st.booleans()),
)
three_way = st.one_of(
    st.builds(FieldRule, st.just(Strategy.MERGE_FIELDS), st.sampled_from(Clash)),
    st.builds(FieldRule, st.just(Strategy.LATEST_WINS), per_record=st.just(False)),
    st.builds(FieldRule, st.just(Strategy.CUSTOM), fallback=st.just(Strategy.REMOTE_WINS)),
)


@given(wild_conflicts, rule_sets, deletes, proposals)
def test_any_conflict_has_one_result(
    conflict: Conflict, rules: Rules, delete: DeleteRule, proposals: dict[str, FieldValue] | None
) -> None:
    """Resolving is total and deterministic, and its result can travel."""
    first = resolve(conflict, rules, delete=delete, fresh=FRESH, proposals=proposals)
    assert resolve(conflict, rules, delete=delete, fresh=FRESH, proposals=proposals) == first
    assert first.version.stamps.keys() <= first.version.fields.keys()
    assert msgspec.json.decode(msgspec.json.encode(first.version), type=Version) == first.version
    assert first.changed_local == (not same(first.version, conflict.local))
    assert first.changed_remote == (not same(first.version, conflict.remote))


@given(wild_conflicts, rule_sets, deletes, proposals)
def test_merging_a_result_again_changes_nothing(
    conflict: Conflict, rules: Rules, delete: DeleteRule, proposals: dict[str, FieldValue] | None
) -> None:
    """merge(merge(x)) == merge(x): with the cloud's version as the new base, nothing is left to decide."""
    first = resolve(conflict, rules, delete=delete, fresh=FRESH, proposals=proposals)
    again = conflict._replace(base=conflict.remote, local=first.version)
    second = resolve(again, rules, delete=delete, fresh=FRESH._replace(counter=1), proposals=proposals)
    assert second.version == first.version
    assert not second.changed_local
    assert set(second.decided.values()) <= {"single=local", "local_wins=local", "latest_wins=local"}


@given(conflicts(with_deletes=True), st.dictionaries(st.sampled_from([*NAMES, ANY_FIELD]), symmetric), deletes)
def test_it_does_not_matter_which_side_is_called_local(conflict: Conflict, rules: Rules, delete: DeleteRule) -> None:
    """Under latest_wins, and merge_fields with a symmetric clash, both devices make the same of it, stamps too."""
    swapped = conflict._replace(local=conflict.remote, remote=conflict.local)
    one = resolve(conflict, rules, delete=delete, fresh=FRESH).version
    other = resolve(swapped, rules, delete=delete, fresh=FRESH).version
    assert same(one, other)
    present = {name for name, value in one.fields.items() if value is not None}
    assert {n: one.stamps.get(n) for n in present} == {n: other.stamps.get(n) for n in present}


@given(conflicts(), three_way, proposals)
def test_a_field_that_one_side_changed_takes_that_change(
    conflict: Conflict, rule: FieldRule, proposals: dict[str, FieldValue] | None
) -> None:
    """Three-way: what only one side touched is no clash, whatever the clash rule or a plug-in says."""
    found = resolve(conflict, {ANY_FIELD: rule}, fresh=FRESH, proposals=proposals).version
    base = conflict.base or Version()
    for name in NAMES:
        changed = [
            side for side in (conflict.local, conflict.remote) if side.stamps.get(name, "") != base.stamps.get(name, "")
        ]
        if len(changed) == 1:
            assert found.fields.get(name) == changed[0].fields.get(name)
            assert type(found.fields.get(name)) is type(changed[0].fields.get(name))
        elif not changed:
            assert found.fields.get(name) == base.fields.get(name)


@given(conflicts(with_deletes=True), rules, deletes)
def test_equal_sides_never_change(conflict: Conflict, rule: FieldRule, delete: DeleteRule) -> None:
    """Two sides that say the same are left as they are."""
    found = resolve(conflict._replace(local=conflict.remote), {ANY_FIELD: rule}, delete=delete, fresh=FRESH)
    assert found.version == conflict.remote
    assert not found.changed_local
    assert not found.changed_remote
    assert found.decided == {}


@given(conflicts(), st.sampled_from(NAMES), values, st.sampled_from([Strategy.LATEST_WINS, Strategy.MERGE_FIELDS]))
def test_an_edit_made_after_seeing_another_does_not_lose_to_it(
    conflict: Conflict, name: str, value: FieldValue, strategy: Strategy
) -> None:
    """A later stamp wins, also with an old base, with none, and when it puts the old value back."""
    seen = edited(conflict.remote, EDIT_MS + 10, "two", **{name: "seen"})
    after = edited(conflict.local, EDIT_MS + 11, "one", **{name: value})
    found = resolve(conflict._replace(local=after, remote=seen), {ANY_FIELD: FieldRule(strategy)}, fresh=FRESH).version
    assert found.fields.get(name) == value
    back = edited(conflict.local, EDIT_MS + 11, "one", **{name: (conflict.base or Version()).fields.get(name)})
    found = resolve(conflict._replace(local=back, remote=seen), {ANY_FIELD: FieldRule(strategy)}, fresh=FRESH).version
    assert found.fields.get(name) == (conflict.base or Version()).fields.get(name)


@given(conflicts(), rules)
def test_the_values_of_a_side_keep_its_stamp(conflict: Conflict, rule: FieldRule) -> None:
    """Only a value that neither side has gets the fresh stamp, or a clearing that had none."""
    found = resolve(conflict, {ANY_FIELD: rule}, fresh=FRESH).version
    for name, value in found.fields.items():
        if found.stamps[name] == FRESH.text() and value is not None:
            sides = (conflict.local.fields.get(name), conflict.remote.fields.get(name))
            assert all(side != value or isinstance(side, bool) != isinstance(value, bool) for side in sides)


@pytest.mark.parametrize("side", ["local", "remote"])
@given(conflict=conflicts())
def test_the_winning_side_holds_as_a_whole(side: str, conflict: Conflict) -> None:
    """local_wins and remote_wins take everything from their side, also what only the other side changed."""
    found = resolve(conflict, {ANY_FIELD: FieldRule(Strategy(f"{side}_wins"))}, fresh=FRESH)
    assert same(found.version, conflict.local if side == "local" else conflict.remote)


class Replica:
    """A device in the smallest world that has conflicts: a cloud that compares and sets, and nothing else."""

    def __init__(self, version: Version) -> None:
        self.version = self.base = version


def sync(replicas: list[Replica], order: list[int], rules: Rules) -> Version:
    """Let devices sync in this order, then all until it is quiet; return what all of them have."""
    cloud = replicas[0].base
    for number, index in enumerate([*order, *range(len(replicas)), *range(len(replicas))]):
        device = replicas[index]
        if same(device.version, device.base):
            # Nothing of ours is at stake: the cloud's version is taken, no policy asked.
            device.version = cloud
        elif not same(device.base, cloud):
            subject = Conflict("session", "x", device.base, device.version, cloud)
            fresh = FRESH._replace(counter=number)
            device.version = resolve(subject, rules, fresh=fresh).version
        cloud = device.base = device.version
    assert all(same(device.version, cloud) for device in replicas)
    return cloud


@given(
    st.data(),
    st.lists(st.integers(0, 2), max_size=5),
    st.permutations([0, 1, 2]),
    st.dictionaries(st.sampled_from([*NAMES, ANY_FIELD]), rules),
)
def test_replicas_converge(data: st.DataObject, order: list[int], last: list[int], rules: Rules) -> None:
    """Whatever the policy, devices that share it end up equal, because the cloud compares before it sets."""
    base = data.draw(conflicts()).base or Version()
    replicas = [Replica(base) for _ in range(3)]
    for number, device in enumerate(replicas):
        for name, (at, value) in data.draw(edits(str(number))).items():
            device.version = edited(device.version, at, str(number), **{name: value})
    sync(replicas, [*order, *last], rules)


NUMBERS = st.integers(0, 100)
BY_FIELD = {
    "tags": FieldRule(clash=Clash.UNION),
    "execution_count": FieldRule(clash=Clash.SUM_DELTA),
    "focus_time_ms": FieldRule(clash=Clash.MAX),
    "started_at": FieldRule(clash=Clash.MIN),
    "description": FieldRule(Strategy.LATEST_WINS),
}


@given(st.data(), st.permutations([0, 1, 2]), st.permutations([0, 1, 2]))
def test_order_of_arrival_does_not_matter(data: st.DataObject, one: list[int], other: list[int]) -> None:
    """Union, sum_delta, max, min and latest come to the same in every order of three devices."""
    old = ["x", "y"]
    fields: dict[str, FieldValue] = {
        "tags": old, "execution_count": 10, "focus_time_ms": 10, "started_at": 50, "description": "old",
    }  # fmt: skip
    base = Version(fields=fields, stamps=dict.fromkeys(fields, stamp(1)))
    versions = []
    for number in range(3):
        device = base
        for name in data.draw(st.sets(st.sampled_from(sorted(BY_FIELD)))):
            value: FieldValue
            match name:
                case "tags":
                    kept = data.draw(st.lists(st.sampled_from(old), unique=True))
                    value = kept + data.draw(st.lists(st.sampled_from(["p", "q", "r"]), unique=True))
                case "description":
                    value = data.draw(st.text(max_size=3))
                case "execution_count":
                    # Sides that hold the same number count as one that agrees, so the sums here never meet.
                    value = 10 + data.draw(st.integers(1, 999)) * 1000**number
                case _:
                    value = data.draw(NUMBERS)
            device = edited(device, EDIT_MS + data.draw(st.integers(0, 2)), str(number), **{name: value})
        versions.append(device)
    results = []
    for order in (one, other):
        replicas = [Replica(base) for _ in versions]
        for replica, found in zip(replicas, versions, strict=True):
            replica.version = found
        result = sync(replicas, order, BY_FIELD).fields
        results.append({**result, "tags": sorted(result["tags"])})  # type: ignore[arg-type]
    assert results[0] == results[1]
    added = sum(v.fields["execution_count"] - 10 for v in versions)  # type: ignore[operator, misc]
    assert results[0]["execution_count"] == 10 + added
