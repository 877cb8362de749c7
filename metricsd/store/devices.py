"""The devices whose events are here, as small integers: this installation's ids, before and after forks, and others."""

from __future__ import annotations

from metricsd.store import state
from metricsd.store.connection import Store


def own_device(store: Store) -> int:
    """Return the device row of this installation, making a provisional one before the first enrolment."""
    row = state.get_int(store, "own_device")
    if row:
        return row
    row = int(store.db.execute("INSERT INTO device (device_id, own) VALUES ('', 1) RETURNING id").fetchone()[0])
    state.put(store, "own_device", row)
    return row


def device_row(store: Store, device_id: str, *, own: bool = False) -> int:
    """Return the row of a device, adding it when new; `own` marks it as one of this installation's ids."""
    row = store.terms.device(device_id)
    if own:
        store.db.execute("UPDATE device SET own = 1 WHERE id = ?", (row,))
    return row


def device_id_of(store: Store, row: int) -> str:
    """Return the device id of a row; empty before the first enrolment."""
    found = store.db.execute("SELECT device_id FROM device WHERE id = ?", (row,)).fetchone()
    return str(found[0]) if found else ""
