"""What is new in a tenant's schema: read every second while devices listen, so it must cost next to nothing."""

from __future__ import annotations

from collections.abc import Collection

from metricsd.cloud.backend import News
from metricsd.cloud.pg_session import Session

# One statement for all users: for each, the index that ends in the change number is entered behind the last one seen.
_WRITERS = """
SELECT who.text, device.text, max(behind.change) FROM (
    SELECT r.person, r.device, r.change FROM term t JOIN record r ON r.person = t.id AND r.change > $1
    WHERE t.text = ANY($2::bytea[])
    UNION ALL
    SELECT e.person, e.device, e.change FROM term t JOIN event e ON e.person = t.id AND e.change > $1
    WHERE t.text = ANY($2::bytea[])
) AS behind JOIN term who ON who.id = behind.person JOIN term device ON device.id = behind.device
GROUP BY who.text, device.text
"""


async def read_news(session: Session, after: int | None, users: Collection[str]) -> News:
    """Return the newest change number, and who of `users` wrote behind `after`."""
    async with session.reading() as (db, head):
        if after is None or head.change <= after:
            return News(head.change, {})
        rows = await db.fetch(_WRITERS, after, [user.encode() for user in users])
    writers = {(bytes(user).decode(), bytes(device).decode()): int(change) for user, device, change in rows}
    return News(head.change, writers)
