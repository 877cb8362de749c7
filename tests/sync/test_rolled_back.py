"""A rollback counts everywhere: over real rounds, two devices and the cloud come to the same."""

from __future__ import annotations

import json
from typing import Any

from metricsd import import_batch
from metricsd.ids import EventId
from metricsd.protocol import FieldValue
from metricsd.store import batches, events, records, rollbacks
from metricsd.store.choosing import Choice
from metricsd.store.rollbacks import Wanted
from tests.analytics.support import put
from tests.store.imported import SESSIONS, TOOLS, counting, fact, load
from tests.sync.world import Device, World

FACTS = 14


async def rounds(*devices: Device) -> None:
    """Let everybody hear of everything."""
    for _ in range(3):
        for device in devices:
            report = await device.sync()
            assert report.ok, report


def numbers(device: Device) -> set[int]:
    """Return the numbers of the facts that count here."""
    known = {fact(n).id: n for n in range(FACTS)}
    return {known[EventId(one)] for one in counting(device.store)}


def cloud_batches(world: World) -> set[Any]:
    return {row[0] for row in world._query("SELECT t.text FROM event AS e LEFT JOIN term AS t ON t.id = e.batch")}


def cloud_counting(world: World) -> int:
    """Count in the cloud alone what no inactive record covers."""
    sql = "SELECT id, fields, deleted FROM record WHERE type = 'import_batch'"
    inactive = {}
    records_there: list[Any] = world._query(sql)
    for name, fields, deleted in records_there:
        found = json.loads(fields)
        if import_batch.is_inactive(found, deleted=bool(deleted)):
            inactive[str(name)] = set(import_batch.named_by(found))
    rows: list[Any] = world._query("SELECT e.id, t.text FROM event AS e LEFT JOIN term AS t ON t.id = e.batch")
    return sum(
        batch not in inactive and not any(bytes(one) in named for named in inactive.values()) for one, batch in rows
    )


async def test_a_rollback_and_its_undoing_count_on_every_device(world: World) -> None:
    """Whole, from a part on, and chosen by a tool; the events in the cloud never change."""
    first, second = await world.device("first"), await world.device("second")
    load(first.store, "a", 1, range(7))
    load(first.store, "a", 2, range(7, FACTS))
    await rounds(first, second)
    everything = set(range(FACTS))
    assert numbers(second) == everything
    done = []
    for wanted, left in (
        (Wanted("a", choice=Choice(tools=("Bash",))), {n for n in everything if n < SESSIONS or TOOLS[n % 2] != "Bash"}),
        (Wanted("a", first_part=2), {n for n in range(7) if n < SESSIONS or TOOLS[n % 2] != "Bash"}),
        (Wanted("a"), set()),
    ):  # fmt: skip
        done.append(rollbacks.run(first.store, wanted).id)
        await rounds(first, second)
        assert (numbers(first), numbers(second), cloud_counting(world)) == (left, left, len(left))
    assert cloud_batches(world) == {"a.1", "a.2"}
    record = records.get(second.store, "session", "claude-code/s1")
    assert record is not None and record.version.fields["score"] is None
    for one in reversed(done):
        rollbacks.run(first.store, Wanted("a", undo=one))
    await rounds(first, second)
    assert (numbers(first), numbers(second), cloud_counting(world)) == (everything, everything, FACTS)
    record = records.get(second.store, "session", "claude-code/s1")
    assert record is not None and record.version.fields["score"] == 51


async def test_what_was_taken_back_before_it_was_ever_sent_never_counts_elsewhere(world: World) -> None:
    """Events and the word about them may come in any order; the live tail brings nothing back."""
    first, second = await world.device("first"), await world.device("second")
    load(first.store, "a", 1, range(FACTS))
    rollbacks.run(first.store, Wanted("a", choice=Choice(sessions=("s0",))))
    put(first.store, [fact(n) for n in range(FACTS)])
    await rounds(first, second)
    left = {n for n in range(FACTS) if n % SESSIONS}
    assert (numbers(first), numbers(second), cloud_counting(world)) == (left, left, len(left))


async def test_two_devices_that_take_back_at_once_come_to_both(world: World) -> None:
    """Each offline, each its own choice: selections add up, and nothing is in conflict."""
    first, second = await world.device("first"), await world.device("second")
    load(first.store, "a", 1, range(FACTS))
    await rounds(first, second)
    rollbacks.run(first.store, Wanted("a", choice=Choice(tools=("Bash",))))
    with second.store.transaction():
        ids = [fact(n).id for n in (0, 3, 6)]
        fields: dict[str, FieldValue] = {"active": False, **batches.selection_fields(ids)}
        records.edit(second.store, "import_batch", batches.selection_name("a.1", ids), fields)
    await rounds(second, first)
    left = {n for n in range(FACTS) if n not in (0, 3, 6) and (n < SESSIONS or TOOLS[n % 2] != "Bash")}
    assert (numbers(first), numbers(second)) == (left, left)
    assert first.store.db.execute("SELECT count(*) FROM conflict_log").fetchone() == (0,)


async def test_two_devices_that_imported_one_folder_agree_on_whose_import_it_is(world: World) -> None:
    """The cloud has each event once, under the first one's import: taking back that one counts on both."""
    first, second = await world.device("first"), await world.device("second")
    load(first.store, "a", 1, range(FACTS))
    load(second.store, "b", 1, range(FACTS))
    await rounds(first, second)
    rollbacks.run(first.store, Wanted("a"))
    await rounds(first, second)
    assert (numbers(first), numbers(second), cloud_counting(world)) == (set(), set(), 0)
    assert events.last_pos(second.store) == FACTS
