"""The regular work: due when it should be, each chore once, whatever the machine's time zone."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from datetime import datetime, tzinfo
from pathlib import Path

import apscheduler.schedulers.base
import apscheduler.triggers.interval
import pytest

from metricsd import schedule as schedule_module
from metricsd.clock import US_PER_S
from metricsd.config import Config, find_paths, load_config
from metricsd.schedule import RETENTION_INTERVAL_S, Chore, Schedule
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


YEAR_S = 366 * 86_400.0


class _Wall:
    """The wall clock that the schedule and its scheduler ask; it begins at `at_s` and can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_s: float) -> None:
        self._offset_s = at_s - time.monotonic()
        wall = self

        class Moment(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return datetime.fromtimestamp(time.monotonic() + wall._offset_s, tz)

        for module in (apscheduler.schedulers.base, apscheduler.triggers.interval, schedule_module):
            monkeypatch.setattr(module, "datetime", Moment)

    def jump(self, seconds: float) -> None:
        self._offset_s += seconds


async def _until_due(made: Schedule, *wanted: Chore) -> None:
    """Wait until these chores are due; fail when one does not come in ten real seconds."""
    missing = set(wanted)
    async with asyncio.timeout(10):
        while missing:
            missing.discard(await made.next_chore())


async def test_a_clock_that_jumps_by_years_costs_one_run(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board boots in 1970 and hears of the present: each chore is due once, and the loop is not busy meanwhile."""
    wall = _Wall(monkeypatch, 0.0)
    made = Schedule(config, lambda: None)
    made.start()
    try:
        wall.jump(5 * YEAR_S)
        began = time.monotonic()
        made.look_again()
        await _until_due(made, *Chore)
        assert time.monotonic() - began < 5.0  # going through all minutes of five years takes three times as long
    finally:
        made.stop()


async def test_a_clock_that_is_set_back_does_not_put_chores_off(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned ten years ahead by a wrong clock, they come when they should by the right one."""
    wall = _Wall(monkeypatch, 10 * YEAR_S)
    made = Schedule(config, lambda: None)
    made.start()
    try:
        wall.jump(-10 * YEAR_S)
        made.look_again()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made.next_chore(), 0.2)
        wall.jump(RETENTION_INTERVAL_S + 1.0)
        made.look_again()
        await _until_due(made, Chore.CLOSE_IDLE, Chore.RETENTION)
    finally:
        made.stop()


async def test_a_night_that_was_slept_through_still_has_its_backup(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lid is closed over the hour of the backup, and opened at nine."""
    wall = _Wall(monkeypatch, 22 * 3600.0)
    made = Schedule(config._replace(store=config.store._replace(backup_hour=3)), lambda: None)
    made.start()
    try:
        wall.jump(25 * 3600.0)
        made.look_again()
        await _until_due(made, Chore.BACKUP)
    finally:
        made.stop()


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
