"""Interned texts of one tenant on PostgreSQL: numbers for the strings that repeat in its events and records.

New texts are committed in a transaction of their own before the one that uses them begins, so whatever is remembered
here lasts, whatever becomes of that one. What is remembered is forgotten when the server may have been exchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from metricsd.cloud.pg_pool import Db, Pool

TERMS_MAX = 20_000
"""Texts that are remembered for one tenant: some megabytes at most."""
_FIND = "SELECT text, id FROM term WHERE text = ANY($1::bytea[])"
# In one order, so that two processes that learn the same texts wait for each other and never in a circle. Texts that
# are there are left out first, because each row that meets a conflict would use up a number all the same.
_LEARN = """
INSERT INTO term (text) SELECT text FROM unnest($1::bytea[]) AS new (text)
WHERE NOT EXISTS (SELECT 1 FROM term WHERE term.text = new.text) ORDER BY text ON CONFLICT (text) DO NOTHING
"""
_TEXTS = "SELECT id, text FROM term WHERE id = ANY($1::int[])"


class Terms:
    """What this process knows of a tenant's terms."""

    def __init__(self, pool: Pool, opening: str) -> None:
        self._pool = pool
        self._opening = opening
        self._ids: dict[str, int] = {}
        self._texts: dict[int, str] = {}
        self._losses = pool.losses

    async def learn(self, texts: Collection[str]) -> dict[str, int]:
        """Return the numbers of texts, giving new ones theirs. Do not call it inside a transaction."""
        self._look_out()
        found = {text: self._ids[text] for text in texts if text in self._ids}
        unknown = [text.encode() for text in texts if text not in found]
        if unknown:
            async with self._pool.transaction(self._opening) as db:
                await db.execute(_LEARN, unknown)
                rows = await db.fetch(_FIND, unknown)
            self._remember(found, rows)
        return found

    async def find(self, db: Db, *texts: str) -> list[int | None]:
        """Return the numbers of texts, None for those that have none."""
        self._look_out()
        found = {text: self._ids[text] for text in texts if text in self._ids}
        unknown = [text.encode() for text in texts if text not in found]
        if unknown:
            self._remember(found, await db.fetch(_FIND, unknown))
        return [found.get(text) for text in texts]

    async def texts(self, db: Db, numbers: Iterable[int | None]) -> dict[int, str]:
        """Return the texts of numbers that rows hold."""
        self._look_out()
        wanted = {number for number in numbers if number is not None}
        found = {number: self._texts[number] for number in wanted if number in self._texts}
        unknown = [number for number in wanted if number not in found]
        if unknown:
            read = {number: bytes(text).decode() for number, text in await db.fetch(_TEXTS, unknown)}
            if len(self._texts) + len(read) > TERMS_MAX:
                self._texts = {}
            self._texts |= read
            found |= read
        return found

    def forget(self) -> None:
        """Forget everything: this database is not the one that was learned from."""
        self._ids, self._texts = {}, {}

    def _look_out(self) -> None:
        if self._losses != self._pool.losses:
            self._losses = self._pool.losses
            self.forget()

    def _remember(self, found: dict[str, int], rows: list[tuple[bytes, int]]) -> None:
        read = {bytes(text).decode(): number for text, number in rows}
        if len(self._ids) + len(read) > TERMS_MAX:
            self._ids = {}
        self._ids |= read
        found |= read
