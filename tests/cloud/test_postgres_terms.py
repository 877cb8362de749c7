"""Interned texts on PostgreSQL: a text has one number whoever learns it, and numbers are used up by new texts alone."""

from __future__ import annotations

import asyncio

import pytest

from metricsd.cloud import pg_terms
from metricsd.cloud.pg_session import Session
from tests.cloud.support import CloudUnderTest
from tests.cloud.test_postgres_isolation import connected

TEXTS = [f"text {number}" for number in range(50)]


async def sessions(cloud: CloudUnderTest, count: int) -> list[Session]:
    """The tenant as so many processes see it, each with a memory of its own."""
    await cloud.tenant()
    [tenant] = await cloud.backend.directory.list_tenants()
    pool = cloud.backend.pool(None)  # type: ignore[attr-defined]
    return [Session(pool, tenant.id) for _ in range(count)]


async def test_known_texts_use_up_no_numbers(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A big tenant's texts do not fit into the memory of a process, which asks again and again: the numbers, of which
    there are two billions, are not spent by that."""
    monkeypatch.setattr(pg_terms, "TERMS_MAX", 10)
    async with CloudUnderTest(postgres_url) as cloud:
        first, *others = await sessions(cloud, 4)
        numbers = await first.terms.learn(TEXTS)
        for session in others:
            for _ in range(5):
                assert await session.terms.learn(TEXTS) == numbers
        async with connected(postgres_url) as db:
            used = await db.fetchval(f"SELECT last_value FROM {first.name}.term_id_seq")
            assert await db.fetchval(f"SELECT count(*) FROM {first.name}.term") == len(TEXTS)
        assert used == len(TEXTS)


async def test_processes_that_learn_the_same_at_once_agree(postgres_url: str) -> None:
    """In whatever order each of them met the texts; nobody waits in a circle."""
    async with CloudUnderTest(postgres_url) as cloud:
        made = await sessions(cloud, 4)
        orders = [TEXTS, TEXTS[::-1], TEXTS[25:] + TEXTS[:25], TEXTS[::2] + TEXTS[1::2]]
        learned = await asyncio.gather(
            *[session.terms.learn(order) for session, order in zip(made, orders, strict=True)]
        )
        assert all(numbers == learned[0] for numbers in learned)
        assert len(set(learned[0].values())) == len(TEXTS)
