"""What only an all-seeing observer knows: which edit saw which, and what every run must keep.

The model carries these marks beside the product's data and never shows them to it. An action is a number; what an
action or a version has seen is a set of actions as the bits of one integer.
"""

from __future__ import annotations

from typing import NamedTuple

from metricsd.conflict import Version

NONE = -1


class Violation(AssertionError):
    """An invariant does not hold."""


class Mark(NamedTuple):
    """What a version knows: the actions it has seen, and the deletion that made it a tombstone (NONE: it lives)."""

    seen: int = 0
    tomb: int = NONE

    def join(self, other: Mark, *, deleted: bool) -> Mark:
        """Return the mark of what came of two versions."""
        tomb = (other.tomb if other.tomb != NONE else self.tomb) if deleted else NONE
        return Mark(self.seen | other.seen, tomb)


UNSEEN = Mark()


class Ghosts:
    """The observer of one history."""

    def __init__(self) -> None:
        self.past: list[int] = []
        """By action: what its device had seen of that record."""
        self.writer: dict[object, int] = {}
        """By value: the action that wrote it; texts are unique."""
        self.ordered = True
        """No policy of this history lets an edit lose to what it was made after."""
        self.delete_wins = True
        self.twins = False
        self.lost = False
        """The cloud lost history: whoever brought a record back cannot be told which deletion that was about."""
        self.remembered = True
        """No disk was copied or put back: each device knows all that it ever saw and sent."""
        self.revivals = 0
        self.buried: set[tuple[str, str]] = set()
        """Records that were ever deleted: who brings one back brings back what that device had."""

    def act(self, mark: Mark, *, deletes: bool = False) -> tuple[int, Mark]:
        """Note an action by a device that has seen `mark`; return its number and the mark after it."""
        number = len(self.past)
        self.past.append(mark.seen)
        self.revivals += mark.tomb != NONE and not deletes
        return number, Mark(mark.seen | 1 << number, number if deletes else NONE)

    def changed(
        self, where: str, address: tuple[str, str], old: Version, new: Version, before: Mark, after: Mark
    ) -> None:
        """Check a step by which a replica went from one version to another without an edit of its own."""
        if old.deleted:
            checked = self.delete_wins and not (self.lost and self.revivals)
            if not new.deleted and checked and not self._revived(before.tomb, after.seen):
                raise Violation(f"{where} {address}: what action {before.tomb} deleted lives again")
            return
        if new.deleted or not self.ordered or address in self.buried:
            return
        was, now = old.fields.get("description"), new.fields.get("description")
        if was != now and was is not None and now is not None:
            loser, winner = self.writer[was], self.writer[now]
            if self.past[loser] >> winner & 1:
                raise Violation(f"{where} {address}: edit {loser} lost to {winner}, which it had seen")

    def overwritten(self, where: str, current: Mark, pushed: Mark) -> None:
        """Check that whoever overwrites a version had seen all of it."""
        # Of two installations with one id each may be told that the other's push was its own replay.
        if current.seen & ~pushed.seen and not self.twins:
            raise Violation(f"{where}: overwritten by somebody who had not seen it")

    def _revived(self, tomb: int, seen: int) -> bool:
        """Return whether some action in `seen` was made after the deletion `tomb`."""
        return any(seen >> number & 1 and self.past[number] >> tomb & 1 for number in range(tomb + 1, len(self.past)))
