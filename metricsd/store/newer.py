"""Refuses a store that a newer metricsd wrote, before anything else is started, with every way out.

Going back to an older metricsd is a person's decision, and they are at the terminal when it is refused; a daemon that
ran on without its store would only hide it. The file is read here and never written.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from metricsd.errors import SchemaTooNew
from metricsd.schema import load_steps, pending_steps

_STEPS_PACKAGE = "metricsd.store.schema"
_READ_TIMEOUT_S = 1.0


def refuse_newer(store: Path, backups: Path) -> None:
    """Raise SchemaTooNew, with what to do, for a store of a newer major version; anything else is not looked at."""
    if not store.exists():
        return
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True, timeout=_READ_TIMEOUT_S)) as db,
    ):
        steps = load_steps(_STEPS_PACKAGE)
        copy = find_copy(backups, steps[-1].number)
        try:
            pending_steps(db, steps, what=str(store))
        except SchemaTooNew as error:
            other = f", or put {copy} in its place, which lacks what came since" if copy else ""
            raise SchemaTooNew(f"{error}{other}") from None


def find_copy(backups: Path, newest: int) -> Path | None:
    """Return the latest copy that an upgrade left and a metricsd of step `newest` can open, or None.

    A copy is named by the step that came after it (see connection.copy_before_upgrade).
    """
    numbered = {copy.stem.rpartition("-")[2]: copy for copy in backups.glob("before-schema-*.db")}
    fitting = [int(number) for number in numbered if number.isdecimal() and int(number) <= newest + 1]
    return numbered[f"{max(fitting):04d}"] if fitting else None
