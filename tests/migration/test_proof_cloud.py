"""A run into the cloud is compared with what the cloud answers, in the form in which rows leave this machine."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import asyncpg
import httpx
import msgspec
import pytest

from metricsd import identity
from metricsd.cli.app import run_command
from metricsd.config import Sync
from metricsd.migration import proving
from metricsd.migration.compare import Comparer, Comparison
from metricsd.migration.digest import new_key
from metricsd.migration.proving import RunProof
from metricsd.migration.second.books import Books
from metricsd.migration.second.files import File
from metricsd.migration.second.reader import BOOKS, Reader, Task
from metricsd.migration.second.wire import Sent as SentForm
from metricsd.migration.second.wire import Wire
from metricsd.migration.second_process import as_told
from metricsd.migration.side import Side
from metricsd.migration.target_cloud import open_cloud
from metricsd.migration.work import Work
from metricsd.model import Event
from metricsd.sync.outgoing import LEVEL_NAMES, Outgoing
from tests.fakes import FakeClock
from tests.migration.rows_of import NOW_US
from tests.migration.sources import bring, call, surveyed, write_lines
from tests.migration.test_load_cloud import Sent
from tests.migration.test_load_database import VARIABLE, make_tenant
from tests.migration.test_second_reader_others import row_of
from tests.sync.world import SETTINGS, Device, World


@pytest.fixture
async def world(tmp_path: Path, clock: FakeClock) -> AsyncIterator[World]:
    made = World(tmp_path, clock)
    await made.start()
    yield made
    await made.close()


async def compared(world: World, device: Device, work: Work, folder: Path, run: str = "m1") -> Comparison:
    """Return what a comparison of a source with the cloud finds."""
    folder.mkdir()
    login, key = identity.get_credentials(device.paths), new_key()
    form = SentForm(login.tenant_key.hex(), SETTINGS.level == LEVEL_NAMES, tuple(SETTINGS.share_projects))
    reader = Reader(folder, Task(key.hex(), NOW_US, form))
    files = [as_told(number, file) for number, file in enumerate(work.files()) if file.kind.value != "ignored"]
    reader.read(File(*file) for file in files)
    comparer, books = Comparer(), Books(folder / BOOKS)
    with open_cloud(folder, run, login, SETTINGS, world.connect, world.clock) as target:
        side = Side(folder / "target")
        await target.read(side, key)
        comparer.rows(reader.side, side)
        comparer.records(books, target, key, NOW_US)
    books.close()
    return comparer.finish(file.name for file in work.files())


@pytest.mark.parametrize("name", ["first", "second", "six"])
async def test_a_recorded_folder_is_whole_in_the_cloud(name: str, tmp_path: Path, world: World) -> None:
    """Every event and every field of a record is equal; names of projects and branches as hashes."""
    laptop = await world.device("laptop")
    work = surveyed(tmp_path / "run", bring(name, tmp_path))
    counts = await Sent(world, laptop, work).load()
    found = await compared(world, laptop, work, tmp_path / "proof")
    assert found.rows.equal == counts.tool_events.loaded + 2 * counts.sessions.loaded
    assert (found.rows.unfaithful, found.records.unfaithful, found.differing) == (0, 0, [])
    assert found.records.equal == counts.sessions.loaded
    assert found.calls_ours == counts.tool_events.loaded


async def test_tools_of_ones_own_and_other_devices_do_not_disturb(tmp_path: Path, world: World) -> None:
    """A custom tool is compared as its hash; what another device wrote is no row of this run."""
    laptop, other = await world.device("laptop"), await world.device("other")
    lines = [call(f"2026-01-05T08:00:{n:02}Z", tool=f"mcp__{n % 3}__x") for n in range(20)]
    theirs = [call(f"2026-01-06T08:00:{n:02}Z") for n in range(5)]
    await Sent(world, other, surveyed(tmp_path / "b", write_lines(tmp_path / "s2" / "t.jsonl", theirs))).load("m0")
    work = surveyed(tmp_path / "a", write_lines(tmp_path / "s1" / "t.jsonl", lines))
    await Sent(world, laptop, work).load()
    found = await compared(world, laptop, work, tmp_path / "proof")
    assert (found.rows.equal, found.rows.ours, found.rows.unfaithful) == (20, 20, 0)


@pytest.mark.parametrize("fault", ["429", "503", "before", "after"])
async def test_a_cloud_that_is_busy_or_away_is_asked_again(fault: str, tmp_path: Path, world: World) -> None:
    """Every second answer is none: all pages come in the end, each once."""
    laptop = await world.device("laptop")
    lines = [call(f"2026-01-05T08:{n // 60:02}:{n % 60:02}Z") for n in range(1300)]
    work = surveyed(tmp_path / "a", write_lines(tmp_path / "s1" / "t.jsonl", lines))
    await Sent(world, laptop, work).load()
    asked = 0

    def every_second(request: httpx.Request) -> str | None:
        nonlocal asked
        asked += 1
        return fault if asked % 2 else None

    world.network.fault = every_second
    found = await compared(world, laptop, work, tmp_path / "proof")
    assert (found.rows.equal, found.rows.unfaithful) == (1300, 0)
    assert asked >= 4


async def test_what_the_cloud_lost_or_altered_is_found(tmp_path: Path, world: World) -> None:
    """One event gone, one with another duration: both are named."""
    laptop = await world.device("laptop")
    lines = [call(f"2026-01-05T08:00:{n:02}Z") for n in range(20)]
    work = surveyed(tmp_path / "a", write_lines(tmp_path / "s1" / "t.jsonl", lines))
    await Sent(world, laptop, work).load()
    await world.stop()
    [file] = [path for path in world.folder.rglob("*.db") if _has_events(path)]
    db = sqlite3.connect(file)
    db.execute("UPDATE event SET duration_ms = 77 WHERE change = (SELECT min(change) FROM event)")
    db.execute("DELETE FROM event WHERE change = (SELECT max(change) FROM event)")
    db.commit()
    db.close()
    await world.start()
    found = await compared(world, laptop, work, tmp_path / "proof")
    assert sorted((one.how, one.line) for one in found.mismatches) == [("different", 1), ("missing", 20)]


def _has_events(path: Path) -> bool:
    db = sqlite3.connect(path)
    try:
        return bool(db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'event'").fetchone()[0])
    finally:
        db.close()


EVENTS = [
    Event(at=1, kind="tool_used", name="X", app="legacy", session="s", tool="Bash", outcome="ok", duration_ms=1),
    Event(
        at=2,
        kind="tool_used",
        name="a b",
        app="über",
        session="a b",
        tool="mine",
        agent="bot",
        project="shop",
        branch="main",
    ),
    Event(
        at=3,
        kind="x" * 70,
        name="X",
        app="a",
        call="t y",
        model="a b",
        subject="two words",
        reason="two words",
        outcome="od d",
    ),
    Event(
        at=4,
        kind="k",
        name="n",
        app="a",
        extra={"ok": 1, "Bad": 2, "text": "a b", "word": "w"},
        project="open",
        branch="b",
    ),
    Event(at=5, kind="k", name="n", app="a", tool="other", project=None, branch="lone", model="openai/gpt-5[1m]"),
]


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: str(event.at))
def test_both_make_the_same_wire_form(event: Event, names: bool) -> None:
    """Of names, ids, words, and what fits none of them."""
    key = bytes(range(32))
    settings = Sync(level=LEVEL_NAMES if names else "metrics", share_projects=("open",))
    wire = Outgoing(key, settings).event(b"\0" * 16, 0, event)  # type: ignore[arg-type]
    sent = Event(**{name: getattr(wire, name) for name in msgspec.structs.asdict(event) if hasattr(wire, name)})
    assert Wire(SentForm(key.hex(), names, ("open",)))(row_of(event)) == row_of(sent)


def test_a_run_into_a_database_proves_itself(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line into PostgreSQL: every row is compared, and what changes there afterwards is found."""
    monkeypatch.setenv("METRICSD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(VARIABLE, postgres_url)
    monkeypatch.setattr(proving, "RunProof", partial(RunProof, faults=0))
    asyncio.run(make_tenant(postgres_url))
    source = str(bring("six", tmp_path))
    run_command(
        [
            "migrate",
            "run",
            source,
            "--to",
            "cloud",
            "--dsn-from",
            VARIABLE,
            "--tenant",
            "team",
            "--user",
            "ann",
            "--json",
        ]
    )
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["tool_events"]["loaded"] == 54
    told = (summary["confidence"][name] for name in ("reconciled", "coverage", "accuracy_lb"))
    assert list(told) == [True, 1, 1]
    assert summary["reason"].count("faults put in on purpose") == 1 and ";" not in summary["reason"]
    asyncio.run(lose_an_event(postgres_url))
    run_command(["migrate", "verify", summary["migration_id"], "--json"])
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["confidence"]["accuracy_lb"] == 1 - 1 / 72
    assert "1 rows are missing" in again["reason"]


async def lose_an_event(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        schemas = await connection.fetch("SELECT nspname FROM pg_namespace WHERE nspname ~ '^t_[0-9a-f]{16}$'")
        newest = 'DELETE FROM "{0}".event WHERE change = (SELECT max(change) FROM "{0}".event) RETURNING 1'
        gone = [await connection.fetch(newest.format(schema)) for (schema,) in schemas]
        assert [len(rows) for rows in gone] == [1]
    finally:
        await connection.close()
