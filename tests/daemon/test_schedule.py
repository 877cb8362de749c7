"""The regular work: due when it should be, each chore once, whatever the machine's time zone."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metricsd.clock import US_PER_S
from metricsd.config import Config, find_paths, load_config
from metricsd.schedule import Chore, Schedule
from tests.homes import opened, tool_use, until


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(find_paths({"METRICSD_HOME": str(tmp_path)}), {})


@pytest.fixture
async def schedule(config: Config) -> AsyncIterator[tuple[Schedule, asyncio.Event]]:
    due = asyncio.Event()
    made = Schedule(config, due.set)
    made.start()
    yield made, due
    made.stop()


async def test_a_planned_sync_is_told_at_its_time(schedule: tuple[Schedule, asyncio.Event]) -> None:
    """Also for a time that has passed already: missed means once, now."""
    made, due = schedule
    for offset_s in (0.05, -3600.0):
        due.clear()
        made.sync_at(int((time.time() + offset_s) * US_PER_S))
        await asyncio.wait_for(due.wait(), 10)


async def test_a_new_plan_replaces_the_old_one(schedule: tuple[Schedule, asyncio.Event]) -> None:
    """There is one next sync, not a queue of them."""
    made, due = schedule
    made.sync_at(int((time.time() + 0.02) * US_PER_S))
    made.sync_at(int((time.time() + 3600) * US_PER_S))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(due.wait(), 0.2)


async def test_chores_do_not_pile_up(schedule: tuple[Schedule, asyncio.Event]) -> None:
    """A chore that became due several times while nobody did it is done once, in the order of becoming due."""
    made, _ = schedule
    for _ in range(5):
        await made._note(Chore.BACKUP)
        await made._note(Chore.RETENTION)
    assert [await made.next_chore(), await made.next_chore()] == [Chore.BACKUP, Chore.RETENTION]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(made.next_chore(), 0.05)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes its zone from elsewhere")
def test_a_broken_time_zone_does_not_stop_the_daemon(tmp_path: Path) -> None:
    """TZ may be anything."""
    with opened(tmp_path / "home", TZ="Nowhere/Land") as home:
        home.start_daemon()


def test_a_silent_session_is_closed_by_the_daemon(tmp_path: Path) -> None:
    """A session without an end is marked as ended after the idle time."""
    with opened(tmp_path / "home", METRICSD_SESSIONS_IDLE_END_S="0.2") as home:
        home.start_daemon()
        home.capture("PostToolUse", tool_use(1))
        until(lambda: home.events() == 1)

        def closed() -> bool:
            db = sqlite3.connect(home.paths.store)
            try:
                return bool(db.execute("SELECT idle_at FROM session_counters WHERE idle_at IS NOT NULL").fetchone())
            finally:
                db.close()

        until(closed)
