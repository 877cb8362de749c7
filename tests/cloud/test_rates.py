"""What a tenant may ask in a minute and how much it may store, over all processes together."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.cloud import rate
from metricsd.cloud.access import Tenant
from metricsd.cloud.problems import Refused
from metricsd.cloud.rate import PARTS, Amount, Rates, _Left, granted, missing
from metricsd.cloud.sqlite_meter import FILE_NAME, SqliteMeter
from metricsd.config import Cloud
from tests.cloud.support import CloudUnderTest, bearer, event, events, ok, problem
from tests.fakes import FakeClock

ACME = Tenant("a" * 16, "acme", b"", 0)
OTHER = Tenant("b" * 16, "other", b"", 0)
amounts = st.builds(Amount, st.integers(0, 1000), st.integers(0, 100_000))


class CountingMeter:
    """Sums in memory, and how often they were written."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], Amount] = {}
        self.writes = 0

    async def spend(self, tenant: Tenant, minute: int, amount: Amount) -> Amount:
        self.writes += 1
        before = self.sums.get((tenant.id, minute), Amount(0, 0))
        self.sums[tenant.id, minute] = Amount(before.requests + amount.requests, before.size + amount.size)
        await asyncio.sleep(0)
        return before

    async def stored_bytes(self, tenant: Tenant) -> int:
        return 0


def rates(meter: rate.Meter, clock: FakeClock, requests: int = 0, size: int = 0) -> Rates:
    return Rates(meter, Cloud(tenant_requests_per_minute=requests, tenant_bytes_per_minute=size), clock)


async def asked(all_rates: list[Rates], times: int, size: int = 0, tenant: Tenant = ACME) -> int:
    """Ask in turn on every process; return how many were let in."""
    passed = 0
    for number in range(times):
        try:
            await all_rates[number % len(all_rates)].count(tenant, size)
        except Refused as refusal:
            assert refusal.problem.status == 429
        else:
            passed += 1
    return passed


@pytest.fixture
async def meter(tmp_path: Path) -> AsyncIterator[SqliteMeter]:
    made = SqliteMeter(tmp_path)
    yield made
    await asyncio.to_thread(made.close)


@pytest.mark.parametrize("limit", [1, 49, 50, 51, 1000])
async def test_one_process_gets_exactly_the_limit(clock: FakeClock, limit: int) -> None:
    """Neither one less nor one more, and after the minute the same again."""
    one = rates(CountingMeter(), clock, requests=limit)
    for _ in range(2):
        assert await asked([one], limit + 20) == limit
        clock.advance(60)


async def test_a_crowd_at_once_gets_exactly_the_limit(clock: FakeClock) -> None:
    """Requests that wait for the same part of the minute share it; each took one for itself, and refused the rest."""
    meter = CountingMeter()
    one = rates(meter, clock, requests=500)
    answers = await asyncio.gather(*[one.count(ACME, 0) for _ in range(600)], return_exceptions=True)
    assert [type(answer) for answer in answers].count(type(None)) == 500
    assert meter.writes <= PARTS + 1


async def test_processes_share_the_minute(clock: FakeClock, tmp_path: Path) -> None:
    """Three processes together never pass the limit, and lose at most what each took in advance."""
    meters = [SqliteMeter(tmp_path) for _ in range(3)]
    processes = [rates(one, clock, requests=500, size=1_000_000) for one in meters]
    passed = await asked(processes, 1200, size=10)
    assert 500 - 3 * (500 // PARTS) <= passed <= 500
    assert await asked(processes, 30, tenant=OTHER) == 30
    for one in meters:
        await asyncio.to_thread(one.close)


async def test_bytes_are_counted_beside_requests(clock: FakeClock) -> None:
    """The refusal names the one that is used up, and says when the next minute begins."""
    one = rates(CountingMeter(), clock, requests=1000, size=10_000)
    assert await asked([one], 20, size=1000) == 10
    with pytest.raises(Refused) as refused:
        await one.count(ACME, 1000)
    said = refused.value.problem
    assert (said.status, said.code, said.limit) == (429, "rate_limited", "tenant_bytes_per_minute")
    rest_s = 60 - clock.now_us() % 60_000_000 / 1e6
    assert said.retry_after_s is not None and rest_s <= said.retry_after_s <= rest_s + rate.SPREAD_S


async def test_a_flood_is_not_a_flood_of_writes(clock: FakeClock) -> None:
    """A minute's requests cost a few writes, and those that are refused cost none."""
    meter = CountingMeter()
    one = rates(meter, clock, requests=1000)
    assert await asked([one], 10_000) == 1000
    assert meter.writes <= PARTS + 1


async def test_both_databases_add_up(cloud: CloudUnderTest) -> None:
    """Each tenant and minute for itself, in one step each, over processes; old minutes are forgotten."""
    await cloud.tenant()
    meter = cloud.backend.meter
    assert await meter.spend(ACME, 101, Amount(3, 30)) == (0, 0)
    async with cloud.another() as other:
        assert await other.backend.meter.spend(ACME, 101, Amount(1, 10)) == (3, 30)
        assert await other.backend.meter.spend(OTHER, 101, Amount(1, 10)) == (0, 0)
        assert await meter.spend(ACME, 102, Amount(1, 1)) == (0, 0)
        both = [one.spend(ACME, 103, Amount(1, 2)) for one in (meter, other.backend.meter) for _ in range(10)]
        seen = await asyncio.gather(*both)
        assert sorted(seen) == [(number, 2 * number) for number in range(20)]


async def test_a_tenants_size_grows_with_what_it_stores(cloud: CloudUnderTest) -> None:
    """And another's does not."""
    device, other = await cloud.device(), await cloud.device(tenant="other")
    await other.push(events(1))
    tenants = {tenant.name: tenant for tenant in await cloud.backend.directory.list_tenants()}
    sizes = {name: await cloud.backend.meter.stored_bytes(tenant) for name, tenant in tenants.items()}
    await device.push(events(3000, call="c" * 180))
    assert await cloud.backend.meter.stored_bytes(tenants["acme"]) > sizes["acme"] + 500_000
    assert await cloud.backend.meter.stored_bytes(tenants["other"]) == sizes["other"]


async def test_without_limits_nothing_is_written(clock: FakeClock) -> None:
    """0 means no limit."""
    meter = CountingMeter()
    assert await asked([rates(meter, clock)], 100, size=10**9) == 100
    assert meter.writes == 0


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3000)), max_size=150),
    st.integers(1, 60),
    st.integers(1, 20_000),
)
async def test_the_limits_hold_whatever_comes(asks: list[tuple[int, int]], requests: int, size: int) -> None:
    """For any requests on any processes: the sums of what was let in stay below both limits."""
    meter, clock = CountingMeter(), FakeClock()
    processes = [rates(meter, clock, requests, size) for _ in range(3)]
    passed = [amount for process, amount in asks if await asked([processes[process]], 1, amount)]
    assert len(passed) <= requests
    assert sum(passed) <= size


@given(amounts, amounts, amounts)
def test_what_is_granted_lies_below_the_limit(before: Amount, wanted: Amount, limit: Amount) -> None:
    """Never more than asked for, never beyond the limit, never negative."""
    got = granted(before, wanted, limit)
    for old, want, most, given_now in zip(before, wanted, limit, got, strict=True):
        assert 0 <= given_now <= want
        assert given_now == 0 or old + given_now <= most
    left = _Left()
    assert all(part >= 0 for part in missing(left, wanted, limit))


async def test_a_damaged_file_is_made_anew(meter: SqliteMeter, tmp_path: Path) -> None:
    """It holds a minute's sums and nothing else."""
    assert await meter.spend(ACME, 1, Amount(3, 30)) == (0, 0)
    await asyncio.to_thread(meter.close)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"{FILE_NAME}{suffix}").unlink(missing_ok=True)
    (tmp_path / FILE_NAME).write_bytes(b"not a database" * 1000)
    again = SqliteMeter(tmp_path)
    assert await again.spend(ACME, 1, Amount(1, 1)) == (0, 0)
    assert await again.spend(ACME, 1, Amount(1, 1)) == (1, 1)
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    await asyncio.to_thread(again.close)


async def test_old_minutes_go(meter: SqliteMeter, tmp_path: Path) -> None:
    """The file stays as small as the tenants of some minutes."""
    for minute in range(10):
        await meter.spend(ACME, minute, Amount(1, 1))
    db = sqlite3.connect(tmp_path / FILE_NAME)
    assert db.execute("SELECT count(*) FROM spent").fetchone()[0] <= rate_minutes_kept()
    db.close()


def rate_minutes_kept() -> int:
    from metricsd.cloud.rate import MINUTES_KEPT

    return MINUTES_KEPT + 1


async def test_a_tenant_that_asks_too_much_gets_429_and_others_do_not(tmp_path: Path, clock: FakeClock) -> None:
    """On every route that takes a token, over two processes of one database."""
    settings = Cloud(tenant_requests_per_minute=20)
    folder = tmp_path / "cloud"
    async with CloudUnderTest(folder, settings, clock) as first, CloudUnderTest(folder, settings, clock) as second:
        device, other = await first.device(), await first.device(tenant="other")
        clock.advance(60)
        codes = []
        for number in range(30):
            on = device.on(first if number % 2 else second)
            codes.append((await on.cloud.get("/capabilities", on.token)).status_code)
        assert codes.count(200) == 20 and codes.count(429) == 10
        refused = await first.get("/changes", device.token)
        assert problem(refused) == (429, "rate_limited")
        assert refused.json()["limit"] == "tenant_requests_per_minute"
        assert 1 <= int(refused.headers["retry-after"]) <= 66
        assert (await other.hello())["last_seq"] == 0
        clock.advance(60)
        assert (await device.hello())["last_seq"] == 0


async def test_a_body_of_unknown_length_counts_as_the_longest(tmp_path: Path, clock: FakeClock) -> None:
    """Otherwise nobody would declare one."""
    settings = Cloud(tenant_bytes_per_minute=100_000, body_bytes_max=60_000)
    async with CloudUnderTest(tmp_path / "cloud", settings, clock) as cloud:
        device = await cloud.device()

        async def chunks() -> AsyncIterator[bytes]:
            yield b"{}"

        async def post() -> int:
            reply = await cloud.http.post("/sync/v1/hello", content=chunks(), headers=bearer(device.token))
            return reply.status_code

        assert [await post(), await post()] == [400, 429]


async def test_a_full_tenant_can_read_and_not_push(tmp_path: Path, clock: FakeClock) -> None:
    """503 that names the quota, for events and records; hello and changes go on; room again, and pushes go on."""
    settings = Cloud(tenant_bytes_max=2 * 1024 * 1024)
    async with CloudUnderTest(tmp_path / "cloud", settings, clock) as cloud:
        device, other = await cloud.device(), await cloud.device(tenant="other")
        seq = 0
        while (reply := await device.try_push(events(500, first=seq + 1, call="c" * 400), base_seq=seq)).is_success:
            seq += 500
            assert seq < 50_000
            clock.advance(31)
        assert problem(reply) == (503, "quota_full")
        assert reply.json()["limit"] == "tenant_bytes_max" and int(reply.headers["retry-after"]) >= 60
        change = {"device_id": device.id, "changes": [{"type": "session", "id": "a"}]}
        assert problem(await cloud.post("/records", change, device.token)) == (503, "quota_full")
        assert (await device.hello())["last_seq"] == seq
        assert (await device.try_changes()).status_code == 200
        assert ok(await other.try_push([event(1)]))["acked_through"] == 1
    async with CloudUnderTest(tmp_path / "cloud", settings._replace(tenant_bytes_max=0), clock) as roomy:
        assert ok(await device.on(roomy).try_push(events(1, first=seq + 1), base_seq=seq))["acked_through"] == seq + 1
