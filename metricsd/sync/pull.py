"""The fetching half of a round: pages of the feed, each applied together with the cursor behind it."""

from __future__ import annotations

import msgspec

from metricsd.store import feed
from metricsd.store.connection import Store
from metricsd.sync.round import Round

PAGES_MAX = 2000
"""Pages of the feed that one round fetches; what is left comes with the next, which follows at once."""
PAGE_ITEMS_MAX = 1000


async def pull(sync: Round) -> None:
    """Fetch pages of the feed until there is no more, or the round's bound is reached."""
    only_records = sync.settings.pull == "records"
    limit = min(sync.capabilities.page_max, PAGE_ITEMS_MAX)
    cursor = await sync.run(_begin_feed, sync.store, only_records)
    for _ in range(PAGES_MAX):
        page = await sync.client.changes(cursor, limit, only_records=only_records)
        applied = await sync.run(_apply_page, sync.store, page.items, page.cursor, sync.client.url, only_records)
        sync.report.pulled_events += applied.events
        sync.report.pulled_records += applied.records
        if not page.more or page.cursor == cursor:
            return
        cursor = page.cursor
    sync.report.more = True


def _begin_feed(store: Store, only_records: bool) -> str:
    return feed.begin(store, only_records=only_records)


def _apply_page(store: Store, items: list[msgspec.Raw], cursor: str, origin: str, only_records: bool) -> feed.Applied:
    return feed.apply(store, items, cursor, origin=origin, only_records=only_records)
