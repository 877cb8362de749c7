"""What each clash rule, each strategy and each delete rule makes of one conflict, as tables."""

from __future__ import annotations

import pytest

from metricsd.conflict import (
    ANY_FIELD,
    Clash,
    Conflict,
    DeleteRule,
    FieldRule,
    Resolution,
    Strategy,
    Version,
    clashing,
    resolve,
    tags_of,
)
from metricsd.fields import NUMBER_MAX
from metricsd.protocol import FieldValue
from tests.conflict.samples import FRESH, deleted, edited, stamp, version

EARLY, LATE = 2_000, 3_000
NO_BASE = object()


def clash(
    rule: FieldRule, base: object, local: FieldValue, remote: FieldValue, *, name: str = "f", later: str = "remote"
) -> Resolution:
    """Return what becomes of one field that both sides changed."""
    old = None if base is NO_BASE else version(1, "base", **{name: base})  # type: ignore[arg-type]
    here = version(LATE if later == "local" else EARLY, "one", **{name: local})
    there = version(LATE if later == "remote" else EARLY, "two", **{name: remote})
    return resolve(Conflict("session", "x", old, here, there), {ANY_FIELD: rule}, fresh=FRESH)


@pytest.mark.parametrize(
    ("rule", "base", "local", "remote", "result", "how"),
    [
        ("latest", "o", "l", "r", "r", "latest=remote"),
        ("max", 1, 5, 3, 5, "max=local"),
        ("max", 1, 3, 5.5, 5.5, "max=remote"),
        ("min", 9, 5, 3, 3, "min=remote"),
        ("union", ["a"], ["a", "b"], ["a", "c"], ["a", "b", "c"], "union=merged"),
        ("union", ["a", "b"], ["b"], ["a", "b", "c"], ["b", "c"], "union=merged"),
        ("union", ["a", "b"], ["a"], ["b"], [], "union=merged"),
        ("union", ["a"], ["a", "b"], ["b", "a"], ["b", "a"], "union=remote"),
        ("union", ["a"], ["z", "a", "b"], ["a", "b"], ["z", "a", "b"], "union=local"),
        ("union", NO_BASE, ["a"], ["b"], ["a", "b"], "union=merged"),
        ("union", ["a"], None, ["a", "b"], ["b"], "union=merged"),
        ("sum_delta", 10, 13, 12, 15, "sum_delta=merged"),
        ("sum_delta", 10, 8, 12, 10, "sum_delta=merged"),
        ("sum_delta", None, 2, 3, 5, "sum_delta=merged"),
        ("sum_delta", NO_BASE, 2, 3, 3, "sum_delta=remote"),
        ("sum_delta", 0, 1.5, 2, 3.5, "sum_delta=merged"),
        ("local", "o", "l", "r", "l", "local=local"),
        ("remote", "o", "l", "r", "r", "remote=remote"),
        # A rule that does not fit the values falls back to the later one.
        ("max", "o", "l", "r", "r", "latest=remote"),
        ("max", 1, True, 3, 3, "latest=remote"),
        ("min", 1, None, 3, 3, "latest=remote"),
        ("union", "o", "l", ["r"], ["r"], "latest=remote"),
        ("sum_delta", 1, "2", 3, 3, "latest=remote"),
        ("sum_delta", 1, True, 3, 3, "latest=remote"),
        # On the wire true is not 1.
        ("latest", 0, True, 1, 1, "latest=remote"),
    ],
)
def test_clash_rules(
    rule: str, base: object, local: FieldValue, remote: FieldValue, result: FieldValue, how: str
) -> None:
    """One row a case; a merged value gets the fresh stamp, a side's value keeps its own."""
    found = clash(FieldRule(clash=Clash(rule)), base, local, remote)
    assert found.version.fields["f"] == result
    assert type(found.version.fields["f"]) is type(result)
    assert found.decided == {"f": how}
    expected = {"merged": FRESH.text(), "local": stamp(EARLY, "one"), "remote": stamp(LATE, "two")}
    assert found.version.stamps["f"] == expected[how.split("=")[1]]


@pytest.mark.parametrize(
    ("name", "base", "local", "remote", "result"),
    [
        ("execution_count", 10, 2, 3, 0),
        ("execution_count", 0, NUMBER_MAX, 5, NUMBER_MAX),
        ("score", 50, 90, 95, 100),
        ("unheard_of", 10, 2, 3, -5),
        ("unheard_of", 0.0, 1.7e308, 1.6e308, NUMBER_MAX),
    ],
)
def test_a_sum_stays_within_what_its_field_can_hold(
    name: str, base: float, local: float, remote: float, result: float
) -> None:
    """Bounds are the field's own, for a field that this version does not know those of the wire."""
    entity = "tool_metric" if name == "execution_count" else "session"
    old, here, there = (version(at, "d", **{name: value}) for at, value in ((1, base), (2, local), (3, remote)))
    found = resolve(Conflict(entity, "x", old, here, there), {name: FieldRule(clash=Clash.SUM_DELTA)}, fresh=FRESH)
    assert found.version.fields[name] == result


def test_a_union_that_no_field_can_hold_is_the_later_list() -> None:
    """Two long lists do not become one that cannot travel."""
    local, remote = [f"l{n}" for n in range(100)], [f"r{n}" for n in range(100)]
    found = clash(FieldRule(clash=Clash.UNION), [], list(local), list(remote))
    assert found.version.fields["f"] == remote


@pytest.mark.parametrize("later", ["local", "remote"])
@pytest.mark.parametrize("strategy", list(Strategy))
def test_strategies(strategy: Strategy, later: str) -> None:
    """Who wins a plain clash; `custom` without an answer goes to its fallback, which is named in the result."""
    winner = {"local_wins": "local", "remote_wins": "remote"}.get(strategy, later)
    found = clash(FieldRule(strategy, fallback=Strategy.LATEST_WINS), "o", "local", "remote", later=later)
    assert found.version.fields == {"f": winner}
    assert found.strategy == ("latest_wins" if strategy is Strategy.CUSTOM else strategy)
    assert (found.changed_local, found.changed_remote) == (winner == "remote", winner == "local")


def test_equal_stamps_are_decided_by_value() -> None:
    """Two different values with one stamp cannot be; if they are, all devices choose the same."""
    one, other = version(5, "d", f="a"), version(5, "d", f="b")
    found = {
        str(resolve(Conflict("session", "x", None, *sides), {}, fresh=FRESH).version.fields["f"])
        for sides in ((one, other), (other, one))
    }
    assert found == {"b"}


def test_per_record_takes_all_fields_from_the_side_with_the_latest_edit() -> None:
    """The side that edited last wins the fields under such rules, and no others."""
    base = version(1, "d", a="o", b="o", c="o")
    local = edited(edited(base, 2, "one", a="l", c="l"), 5, "one", b="l")
    remote = edited(base, 4, "two", a="r", c="r")
    whole = FieldRule(Strategy.LATEST_WINS, per_record=True)
    found = resolve(Conflict("session", "x", base, local, remote), {"a": whole, "b": whole}, fresh=FRESH)
    assert found.version.fields == {"a": "l", "b": "l", "c": "r"}


def test_a_plugins_proposal_decides_its_fields_alone() -> None:
    """A proposal is taken for clashing custom fields; a field without one goes to the fallback."""
    base = version(1, "d", a="o", b="o", c="o")
    local, remote = edited(base, 2, "one", a="l", b="l"), edited(base, 3, "two", a="r", b="r", c="r")
    rule = FieldRule(Strategy.CUSTOM, fallback=Strategy.LOCAL_WINS)
    found = resolve(
        Conflict("session", "x", base, local, remote),
        {ANY_FIELD: rule},
        fresh=FRESH,
        proposals={"a": "p", "c": "not asked"},
    )
    assert found.version.fields == {"a": "p", "b": "l", "c": "r"}
    assert found.version.stamps["a"] == FRESH.text()
    assert found.decided == {"a": "custom=merged", "b": "local_wins=local", "c": "single=remote"}


def test_a_side_without_the_field_clears_it_by_winning() -> None:
    """local_wins also where the field is only the cloud's: the clearing travels, as a change of now."""
    found = resolve(
        Conflict("session", "x", None, version(2, "one", a=1), version(3, "two", a=1, b=2)),
        {ANY_FIELD: FieldRule(Strategy.LOCAL_WINS)},
        fresh=FRESH,
    )
    assert found.version.fields == {"a": 1, "b": None}
    assert found.version.stamps["b"] == FRESH.text()
    assert found.changed_remote


BASE = version(1, "d", f="o")
EDITED, GONE = edited(BASE, 5, "one", f="e"), deleted(BASE, 4, "two")


@pytest.mark.parametrize(
    ("rule", "base", "local", "remote", "is_deleted", "decided"),
    [
        ("delete_wins", BASE, EDITED, GONE, True, "delete_wins=remote"),
        ("delete_wins", BASE, GONE, EDITED, True, "delete_wins=local"),
        ("edit_wins", BASE, EDITED, GONE, False, "edit_wins=local"),
        ("latest_wins", BASE, EDITED, GONE, False, "latest_wins=local"),
        ("latest_wins", BASE, edited(BASE, 3, "one", f="e"), GONE, True, "latest_wins=remote"),
        # Who did not touch the record does not stand against its deletion.
        ("edit_wins", BASE, BASE, GONE, True, "single=remote"),
        # Brought back after both knew of the deletion, with the deletion still in the cloud.
        (
            "delete_wins",
            GONE,
            Version(fields=GONE.fields, stamps=GONE.stamps, stamp=stamp(9)),
            GONE,
            False,
            "single=local",
        ),
        # Deleted again by somebody else meanwhile.
        ("delete_wins", GONE, EDITED, deleted(BASE, 6, "two"), True, "delete_wins=remote"),
        ("delete_wins", None, EDITED, GONE, True, "delete_wins=remote"),
        ("edit_wins", None, EDITED, GONE, False, "edit_wins=local"),
    ],
)
def test_deletes(
    rule: str, base: Version | None, local: Version, remote: Version, is_deleted: bool, decided: str
) -> None:
    """Deletion against edit, by rule; what comes back is later than the deletion that it undoes."""
    found = resolve(Conflict("session", "x", base, local, remote), {}, delete=DeleteRule(rule), fresh=FRESH)
    assert found.version.deleted is is_deleted
    assert found.decided == {"deleted": decided}
    assert is_deleted or (found.version.stamp or "") > (remote.stamp or "")
    assert found.strategy == ("merge_fields" if decided.startswith("single") else rule)


def test_two_tombstones_are_one() -> None:
    """Nothing is left to decide, and both devices keep the same one."""
    one, other = deleted(BASE, 3, "one"), deleted(EDITED, 4, "two")
    found = [resolve(Conflict("session", "x", BASE, *sides), {}, fresh=FRESH) for sides in ((one, other), (other, one))]
    assert found[0].version == found[1].version == other
    assert found[0].decided == {}


def test_clashing_names_what_both_sides_changed() -> None:
    """Plug-ins are asked about these fields alone; rules match on the tags of either side."""
    base = version(1, "d", a="o", b="o", tags=["x"])
    local, remote = edited(base, 2, "one", a="l", b="same", tags=["l"]), edited(base, 3, "two", a="r", b="same")
    conflict = Conflict("session", "x", base, local, remote)
    assert clashing(conflict) == ["a"]
    assert tags_of(conflict) == {"x", "l"}
    assert clashing(conflict._replace(remote=deleted(remote, 9))) == []
