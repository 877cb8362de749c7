"""Versions, conflicts and rules for the laws: edits of a common base as devices make them, and anything at all."""

from __future__ import annotations

from hypothesis import strategies as st

from metricsd.conflict import ANY_FIELD, Clash, Conflict, DeleteRule, FieldRule, Strategy, Version
from metricsd.fields import ENTITIES
from metricsd.hlc import Stamp
from metricsd.protocol import FieldValue

NAMES = ("description", "tags", "score", "session_type", "focus_time_ms", "unheard_of")
BASE_MS, EDIT_MS, FRESH_MS = 1_000, 2_000, 9_000_000
FRESH = Stamp(FRESH_MS, 0, "fresh")
SYMMETRIC = [clash for clash in Clash if clash not in (Clash.LOCAL, Clash.REMOTE)]
TAGS = ["a", "b", "c", "d", "e"]

values: st.SearchStrategy[FieldValue] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.lists(st.sampled_from(TAGS), max_size=4),
)
rules = st.builds(
    FieldRule,
    strategy=st.sampled_from(Strategy),
    clash=st.sampled_from(Clash),
    per_record=st.booleans(),
    fallback=st.sampled_from(Strategy),
)
rule_sets = st.dictionaries(st.sampled_from([*NAMES, ANY_FIELD]), rules)
deletes = st.sampled_from(DeleteRule)


def stamp(ms: int, device: str = "d") -> str:
    """Return the text of a stamp."""
    return Stamp(ms, 0, device).text()


def version(at: int = BASE_MS, device: str = "d", **fields: FieldValue) -> Version:
    """Return a version whose fields were all edited at one time."""
    return Version(fields=fields, stamps=dict.fromkeys(fields, stamp(at, device)))


def edited(base: Version, at: int, device: str, **changes: FieldValue) -> Version:
    """Return the base with changes made later."""
    return Version(
        fields=base.fields | changes, stamps=base.stamps | dict.fromkeys(changes, stamp(at, device)), stamp=base.stamp
    )


def deleted(base: Version, at: int, device: str = "d") -> Version:
    """Return the base as a tombstone."""
    return Version(fields=base.fields, stamps=base.stamps, deleted=True, stamp=stamp(at, device))


@st.composite
def wild_versions(draw: st.DrawFn) -> Version:
    """Anything that the wire lets through: fields without stamps, stamps in any order, tombstones."""
    fields = draw(st.dictionaries(st.sampled_from(NAMES), values))
    times = st.one_of(st.none(), st.builds(stamp, st.integers(0, 5), st.sampled_from(["x", "y"])))
    stamps = {name: found for name in fields if (found := draw(times)) is not None}
    fields = {name: value for name, value in fields.items() if value is not None or name in stamps}
    gone = draw(st.booleans())
    return Version(fields=fields, stamps=stamps, deleted=gone, stamp=draw(times) if gone else None)


wild_conflicts = st.builds(
    Conflict,
    type=st.sampled_from([*ENTITIES, "unheard_of"]),
    id=st.just("x"),
    base=st.one_of(st.none(), wild_versions()),
    local=wild_versions(),
    remote=wild_versions(),
)


@st.composite
def edits(draw: st.DrawFn, device: str) -> dict[str, tuple[int, FieldValue]]:
    """What one device did since the base: field -> (when, value)."""
    names = draw(st.sets(st.sampled_from(NAMES)))
    return {name: (draw(st.integers(EDIT_MS, EDIT_MS + 3)), draw(values)) for name in names}


@st.composite
def conflicts(draw: st.DrawFn, with_deletes: bool = False) -> Conflict:
    """Two devices that edited what they had agreed on, or made the same record."""
    agreed = draw(st.dictionaries(st.sampled_from(NAMES), values))
    base = Version(fields=agreed, stamps=dict.fromkeys(agreed, stamp(BASE_MS))) if draw(st.booleans()) else None
    sides = []
    for device in ("one", "two"):
        side = base or Version()
        for name, (at, value) in sorted(draw(edits(device)).items()):
            side = edited(side, at, device, **{name: value})
        if with_deletes and draw(st.booleans()):
            side = deleted(side, draw(st.integers(EDIT_MS, EDIT_MS + 4)), device)
        sides.append(side)
    return Conflict("session", "x", base, sides[0], sides[1])
