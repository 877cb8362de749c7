"""The newest place in the cloud's history that this device was told of, be it by a pull or by the answer to a push.

A hello shows it. A cloud that was restored from an older copy does not know it, and says so, even if all it lost is
what was pushed since the last pull; the cursor alone would still be good there, and those changes lost for ever.
"""

from __future__ import annotations

from metricsd.store import state
from metricsd.store.connection import Store

_NEWEST = "sync_newest_rev"


def note(store: Store, rev: str) -> None:
    """Keep the revision that a push was given, if it is the newest; inside the caller's transaction."""
    if _number(rev) > _number(state.get_text(store, _NEWEST)):
        state.put(store, _NEWEST, rev)


def newest(store: Store, cursor: str) -> str:
    """Return the later of the cursor and the revisions noted."""
    return max(cursor, state.get_text(store, _NEWEST), key=_number)


def forget(store: Store) -> None:
    """Forget the revisions noted: they are of a history that the cloud does not have any more."""
    state.delete(store, _NEWEST)


def _number(rev: str) -> int:
    """Return the change number in `<number>-<nonce>`; 0 for anything else, which a hello then does not show."""
    number = rev.partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 20 else 0
