"""Sending history straight to the cloud: once, whatever gets lost on the way, and nothing of folders and names."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from metricsd import identity
from metricsd.errors import AuthError, CloudUnreachable
from metricsd.migration.load_cloud import CloudSink, Connection
from metricsd.migration.model import Counts, Part, Rejected
from metricsd.migration.parse import START, Parser
from metricsd.migration.people import CREATE, make_people
from metricsd.migration.transform import Transform
from metricsd.migration.work import Work
from metricsd.store import records
from metricsd.store.quarantine import Reject
from tests.fakes import FakeClock
from tests.migration.sources import bring, call, surveyed, write_lines
from tests.sync.world import SETTINGS, Device, World


@pytest.fixture
async def world(tmp_path: Path, clock: FakeClock) -> AsyncIterator[World]:
    made = World(tmp_path, clock)
    await made.start()
    yield made
    await made.close()


class Sent:
    """A run of the cloud's sink over a source."""

    def __init__(self, world: World, device: Device, work: Work, *, batch: int = 100) -> None:
        login = identity.get_credentials(device.paths)
        self.kept: list[Reject] = []
        self.work = work
        self.sink = CloudSink(
            Connection(login, SETTINGS, world.connect), work, world.clock, batch=batch, label="test", keep=self.kept.extend,
            is_hooked=lambda planned: False,
        )  # fmt: skip

    async def load(self, run: str = "m1", part_rows: int = 5000, parts_max: int = 10**9) -> Counts:
        transform = Transform(self.work, make_people(CREATE, None, None))
        progress = self.sink.progress()
        after = progress.after if progress.part else START
        pieces = Parser(self.work, part_rows=part_rows).parts(after)
        counts = progress.counts
        for number, piece in enumerate(pieces, start=progress.part + 1):
            if number > parts_max:
                break
            planned = [transform.plan(row, f"{run}.{number}") for row in piece.rows]
            stored = await self.sink.send(Part(run, number, planned, piece.rejected, piece.after), _no_ledger)
            counts += stored.counts
        assert counts.reconciles
        await self.sink.leave()
        return counts


def _no_ledger(refused: Sequence[Rejected]) -> int:
    return 0


def events_in(world: World) -> int:
    return sum(world.event_ids().values())


def fields_in(world: World, kind: str) -> list[dict[str, Any]]:
    return [json.loads(row[0]) for row in world._query(f"SELECT fields FROM record WHERE type = '{kind}'")]


async def test_six_sessions_reach_the_cloud_and_nothing_is_sent_twice(tmp_path: Path, world: World) -> None:
    """Events and scores arrive; a second run asks once for each part and sends no event."""
    laptop = await world.device("laptop")
    source = bring("six", tmp_path)
    counts = await Sent(world, laptop, surveyed(tmp_path / "run", source)).load()
    assert (counts.sessions.loaded, counts.tool_events.loaded) == (6, 54)
    assert events_in(world) == 66
    scores = [fields["score"] for fields in fields_in(world, "session")]
    assert len(scores) == 6 and all(scores)
    assert {fields["active"] for fields in fields_in(world, "import_batch")} == {True}
    world.network.requests.clear()
    again = await Sent(world, laptop, surveyed(tmp_path / "run-2", source)).load(run="m2")
    assert (again.total.loaded, again.total.skipped) == (0, counts.total.source)
    assert "POST /sync/v1/events" not in world.network.requests
    assert len(fields_in(world, "import_batch")) == 1
    assert world.network.requests.count("POST /sync/v1/have") == 1


async def test_no_name_and_no_folder_leaves(tmp_path: Path, world: World) -> None:
    """What the older tools noted of people and places is for this machine alone; the project travels as a hash."""
    laptop = await world.device("laptop")
    await Sent(world, laptop, surveyed(tmp_path / "run", bring("second", tmp_path))).load()
    assert events_in(world) == 17
    held = b"".join(file.read_bytes() for file in world.folder.iterdir() if file.is_file())
    assert b"tool_execution" in held
    for word in (b"dev1", b"/home", b"example.test", b"feature/demo", b"exit 1", b"default-session"):
        assert word not in held


@pytest.mark.parametrize("fault", ["before", "after", "twice", "html", "503", "429"])
async def test_answers_that_get_lost_cost_nothing(tmp_path: Path, world: World, clock: FakeClock, fault: str) -> None:
    """Every third request meets a fault: everything is there once, and the counts say what they say without."""
    laptop = await world.device("laptop")
    lines = [call(f"2026-01-05T08:{n // 60:02}:{n % 60:02}Z", tool=f"T{n % 5}") for n in range(120)]
    path = write_lines(tmp_path / "src" / "tool-metrics.jsonl", [*lines, "torn"])
    number = 0

    def every_third(request: httpx.Request) -> str | None:
        nonlocal number
        number += 1
        return fault if number % 3 == 0 else None

    world.network.fault = every_third
    sent = Sent(world, laptop, surveyed(tmp_path / "run", path), batch=10)
    counts = await sent.load(part_rows=40)
    assert (counts.tool_events.loaded, counts.tool_events.rejected, counts.tool_events.skipped) == (120, 1, 0)
    assert events_in(world) == 120
    assert [(one.file, one.reason) for one in sent.kept] == [("tool-metrics.jsonl", "bad_json")]


async def test_a_run_that_was_cut_off_counts_what_it_sent_as_its_own(
    tmp_path: Path, world: World, clock: FakeClock
) -> None:
    """The cloud took a part and the answer never came: the run that goes on knows the events for its own."""
    laptop = await world.device("laptop")
    lines = [call(f"2026-01-05T08:{n // 60:02}:{n % 60:02}Z", tool=f"T{n % 5}") for n in range(100)]
    path = write_lines(tmp_path / "src" / "tool-metrics.jsonl", lines)
    whole = Sent(world, await world.device("other"), surveyed(tmp_path / "whole", path))
    work = surveyed(tmp_path / "run", path)
    sent = Sent(world, laptop, work, batch=10)
    await sent.load(part_rows=30, parts_max=1)
    world.network.fault = lambda request: "after" if request.url.path.endswith("/events") else None
    with pytest.raises(CloudUnreachable):
        await Sent(world, laptop, work, batch=10).load(part_rows=30)
    world.network.fault = lambda request: None
    counts = await Sent(world, laptop, work, batch=10).load(part_rows=30)
    assert (counts.tool_events.loaded, counts.tool_events.skipped) == (100, 0)
    digest = Sent(world, laptop, work).sink.digest()
    assert digest.startswith("100:")
    assert (await whole.load(run="m9")).tool_events.loaded == 0


async def test_a_login_that_ended_stops_the_run(tmp_path: Path, world: World) -> None:
    """Nothing is tried again: somebody has to log in."""
    laptop = await world.device("laptop")
    path = write_lines(tmp_path / "src" / "tool-metrics.jsonl", [call("2026-01-05T08:00:00Z")])
    world.network.canned["401"] = httpx.Response(
        401,
        json={"status": 401, "code": "bad_token", "title": "no"},
        headers={"content-type": "application/problem+json"},
    )
    world.network.fault = lambda request: "401"
    with pytest.raises(AuthError):
        await Sent(world, laptop, surveyed(tmp_path / "run", path)).load()


async def test_what_somebody_wrote_stands_over_what_an_older_tool_noted(tmp_path: Path, world: World) -> None:
    """A score set by hand stays; fields that nobody set are added to the same record."""
    laptop = await world.device("laptop")
    with laptop.store.transaction():
        records.edit(laptop.store, "session", "legacy/a", {"score": 33})
    await laptop.sync()
    note = {"session_id": "a", "start_time": "2026-01-05T08:00:00Z", "productivity_score": 9, "user": "dev1"}
    path = write_lines(tmp_path / "src" / "sessions" / "a.json", [json.dumps(note)])
    await Sent(world, laptop, surveyed(tmp_path / "run", path.parents[1])).load()
    (fields,) = fields_in(world, "session")
    assert fields["score"] == 33 and fields["user_id"]
