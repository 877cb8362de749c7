"""The folder of a SQLite cloud: how many files are open, what happens when it cannot be used, what a URL may say."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from metricsd.cloud import sqlite
from metricsd.cloud.backend import FeedQuery, Writer
from metricsd.cloud.problems import busy
from metricsd.cloud.sqlite import SqliteBackend, folder_of
from metricsd.config import Cloud
from metricsd.errors import StoreUnavailable, UsageError
from tests.cloud.support import CloudUnderTest, event, events, statuses

pytestmark = pytest.mark.only_sqlite


async def test_open_files_are_bounded_and_idle_ones_are_reopened(
    cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More tenants than may be open take turns, and lose nothing."""
    monkeypatch.setattr(sqlite, "OPEN_TENANTS_MAX", 3)
    devices = [await cloud.device(tenant=f"tenant {number}") for number in range(7)]
    for round_number in range(3):
        for device in devices:
            reply = await device.push([event(round_number + 1)], base_seq=round_number)
            assert statuses(reply["results"]) == ["stored"]
            assert cloud.backend.gauges()["open_tenants"] <= 3
    assert cloud.backend.gauges()["commits_total"] == 21
    assert len(cloud.tenant_files()) == 7
    assert [(await device.hello())["last_seq"] for device in devices] == [3] * 7


async def test_more_tenants_at_once_than_may_be_open_are_told_to_wait(
    cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with Retry-After, and no file is closed under its users."""
    monkeypatch.setattr(sqlite, "OPEN_TENANTS_MAX", 1)
    first, second = await cloud.device(tenant="one"), await cloud.device(tenant="two")
    one = (await cloud.backend.directory.list_tenants())[0]
    async with cloud.backend.tenant(one) as store:
        reply = await second.try_push(events(1))
        assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
        assert reply.json()["limit"] == "open_tenants_max"
        page = await store.changes(Writer("ann", None), FeedQuery("", 10, False), 0)
        assert page.items == []
    assert (await second.push(events(1)))["acked_through"] == 1
    assert (await first.hello())["last_seq"] == 0


async def test_many_first_requests_open_a_file_once(cloud: CloudUnderTest) -> None:
    """Requests that arrive while a tenant is being opened wait for the same file."""
    device = await cloud.device()
    replies = await asyncio.gather(*[device.hello() for _ in range(20)])
    assert len(replies) == 20
    assert cloud.backend.gauges()["open_tenants"] == 1


async def test_a_tenant_file_that_cannot_be_opened_is_503_and_heals(cloud: CloudUnderTest) -> None:
    """The failure is not remembered: the next request tries again."""
    device = await cloud.device()
    [tenant] = await cloud.backend.directory.list_tenants()
    path = cloud.folder / f"t_{tenant.id}.db"
    path.mkdir()
    reply = await device.try_push(events(1))
    assert reply.status_code == 503
    path.rmdir()
    assert (await device.push(events(1)))["acked_through"] == 1


async def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    """It names the folder and what to do."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnavailable, match="check its permissions"):
        SqliteBackend(tmp_path / "file" / "cloud", Cloud())


@pytest.mark.parametrize("url", ["sqlite:/a/b", "sqlite:///a/b"])
def test_a_database_url_names_a_folder(url: str) -> None:
    """Both usual spellings mean the same."""
    assert folder_of(url) == Path("/a/b")


@pytest.mark.parametrize("url", ["postgresql://host/x", "sqlite:relative", "sqlite:", "/a/b", ""])
def test_other_database_urls_say_what_to_write(url: str) -> None:
    """The message has an example."""
    with pytest.raises(UsageError, match="sqlite:/absolute/folder"):
        folder_of(url)


async def test_readiness_follows_the_database(cloud: CloudUnderTest) -> None:
    """`/healthz` answers while the process runs, `/readyz` only while the database does."""
    assert (await cloud.http.get("/readyz")).status_code == 200

    async def broken() -> None:
        raise busy("gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cloud.backend.directory, "ready", broken)
        assert (await cloud.http.get("/readyz")).status_code == 503
        assert (await cloud.http.get("/healthz")).status_code == 200
