"""What comes of a record that meets the cloud's version: the table of `record_steps`, without a store."""

from __future__ import annotations

import pytest

from metricsd.conflict import Conflict, Version, resolve
from metricsd.hlc import Stamp
from metricsd.store import outbox, place
from metricsd.store.record_steps import Met, Record, common, is_own, is_past, meet, offered, sending
from tests.sync.world import World


def at(ms: int, device: str = "d1") -> str:
    """Return a stamp's text."""
    return Stamp(ms, 0, device).text()


def says(text: str, ms: int, device: str = "d1") -> Version:
    """Return a version with a description."""
    return Version(fields={"description": text}, stamps={"description": at(ms, device)})


def gone(ms: int, device: str = "d1") -> Version:
    """Return a tombstone of the record that `says("a", 1)` made."""
    return Version(fields={"description": "a"}, stamps={"description": at(1)}, deleted=True, stamp=at(ms, device))


@pytest.mark.parametrize(
    ("local", "base", "remote", "met"),
    [
        (says("a", 1), says("a", 1), says("b", 2), Met.ADOPTED),
        (says("b", 2), says("a", 1), says("a", 1), Met.AHEAD),
        (says("b", 2), says("a", 1), says("c", 3), Met.CONFLICT),
        (says("b", 2), says("a", 1), says("b", 3), Met.SAME),
        # There and back is a change: somebody saw our value and took it back, or we did.
        (says("b", 2), says("a", 1), says("a", 3), Met.CONFLICT),
        (says("a", 3), says("a", 1), says("b", 2), Met.CONFLICT),
        # Brought back and deleted again, while another brought it back too.
        (gone(5), gone(2), says("b", 4), Met.CONFLICT),
        (gone(2), gone(2), says("b", 4), Met.ADOPTED),
        # A second deletion, whatever its stamp, is not the one that we know.
        (says("b", 5), gone(2), gone(4, "d2"), Met.CONFLICT),
        (says("b", 5), gone(4), gone(2, "d2"), Met.CONFLICT),
        (says("b", 5), gone(2), gone(2), Met.AHEAD),
    ],
)
def test_a_version_is_untouched_only_if_its_stamps_say_so(
    local: Version, base: Version, remote: Version, met: Met
) -> None:
    """Equal values are not enough: deletions and edits there and back are changes."""
    assert meet(local, base, remote) is met


def test_a_twin_at_the_same_moment_is_no_past_of_ours() -> None:
    """Two installations with one id made different edits under one stamp: both are asked, and choose the same."""
    one, two, base = says("b", 2), says("c", 2), says("a", 1)
    assert not is_past(two, one) and not is_past(one, two)
    ours = Record(one, base, "1-x", 1, None)
    ours = sending(ours, offered("session", "s", ours))
    assert is_own(ours, one, "d1", "d1") and not is_own(ours, two, "d1", "d1")
    assert meet(one, base, two) is Met.CONFLICT is meet(two, base, one)
    # What local_wins keeps is older than what it won over, and is ours all the same.
    assert meet(says("d", 1), base, two, own=True) is Met.AHEAD
    results = [
        resolve(Conflict("session", "s", base, *sides), {}, fresh=Stamp(9, 0, "d1")).version.fields
        for sides in ((one, two), (two, one))
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("base", "remote", "shared"),
    [
        (says("b", 2), says("a", 1), says("a", 1)),
        (says("b", 2), says("c", 3), says("b", 2)),
        (gone(2), says("a", 1), says("a", 1)),
        # Later than the deletion: whether it knew of it is lost, so the policy has to say.
        (gone(2), says("c", 3), None),
        (says("b", 2), gone(3), says("b", 2)),
    ],
)
def test_after_lost_history_only_later_stamps_are_changes(
    base: Version, remote: Version, shared: Version | None
) -> None:
    """What a restored cloud still has is where our base came from, not what somebody made of it."""
    assert common(Record(base, base, None, 1, None), remote).base == shared
    assert common(Record(base, base, "5-x", 1, None), remote).base == base


async def test_a_hello_shows_the_newest_revision_that_a_push_was_given(world: World) -> None:
    """Of the cursor and the revisions the later one is shown; offering everything again forgets them."""
    one = await world.device("one")
    with one.store.transaction():
        place.note(one.store, "7-aa")
        place.note(one.store, "5-bb")
        place.note(one.store, "nonsense")
    assert place.newest(one.store, "6-cc") == "7-aa"
    assert place.newest(one.store, "8-cc") == "8-cc"
    assert (await one.sync()).ok
    outbox.relist(one.store)
    assert place.newest(one.store, "") == ""
