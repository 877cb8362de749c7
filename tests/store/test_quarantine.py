"""Quarantine: nothing that was refused is lost or doubled, and its bytes are private, scrubbed and capped."""

from __future__ import annotations

import pytest

from metricsd.clock import US_PER_S
from metricsd.scrubbing import scrub
from metricsd.store import quarantine
from metricsd.store.connection import Store
from tests.fakes import FakeClock

DAY_S = 86400


def put(store: Store, file: str, data: bytes | None, reason: str = "bad_json") -> None:
    with store.transaction():
        quarantine.add(store, file, 3, data, reason, "why", size=0 if data else 99)


def test_an_entry_has_place_reason_size_and_bytes(store: Store) -> None:
    """Everything that a user needs to find the line again."""
    put(store, "events.jsonl", b"{torn")
    (entry,) = quarantine.list_open(store)
    assert (entry.file, entry.offset, entry.bytes, entry.reason, entry.detail) == (
        "events.jsonl",
        3,
        5,
        "bad_json",
        "why",
    )
    assert quarantine.bytes_of(store, entry) == b"{torn"
    assert quarantine.get(store, entry.id) == entry


def test_the_same_line_read_again_is_one_entry(store: Store) -> None:
    """A replay after a crash or a truncation adds nothing."""
    put(store, "a", b"x")
    put(store, "a", b"x")
    put(store, "b", b"x")
    assert quarantine.count_open(store) == 2


def test_bytes_are_private(store: Store) -> None:
    """0600 in a 0700 folder: a capture may hold prompts."""
    put(store, "a", b"secret")
    folder = quarantine.folder_of(store)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [file.stat().st_mode & 0o777 for file in folder.iterdir()] == [0o600]


@pytest.mark.parametrize("field", ["auth_token", "apiKey", "API_KEY", "password", "client_secret", "Authorization"])
def test_values_of_known_secret_fields_are_replaced(field: str) -> None:
    """Escaped quotes inside the value do not end it early."""
    data = b'{"a": 1, "%s" : "s3cr\\"et", "b": "kept"}' % field.encode()
    scrubbed = scrub(data)
    assert b"s3cr" not in scrubbed
    assert b'\\"et"' not in scrubbed
    assert b'"kept"' in scrubbed


def test_a_size_without_bytes_is_kept_as_a_summary(store: Store) -> None:
    """A line over the cap is known by name and size."""
    put(store, "huge", None, "too_long")
    (entry,) = quarantine.list_open(store)
    assert (entry.bytes, entry.stored) == (99, None)
    assert quarantine.bytes_of(store, entry) is None


def test_settled_entries_leave_their_summary_and_no_bytes(store: Store) -> None:
    """Purging twice counts once."""
    put(store, "a", b"x")
    (entry,) = quarantine.list_open(store)
    assert quarantine.settle(store, [entry.id, 777], how="purged") == 1
    assert quarantine.settle(store, [entry.id], how="purged") == 0
    assert quarantine.count_open(store) == 0
    after = quarantine.get(store, entry.id)
    assert after is not None
    assert after.state == "purged"
    assert list(quarantine.folder_of(store).iterdir()) == []


def test_the_sweep_drops_old_bytes_orphans_and_what_is_over_the_cap(store: Store, clock: FakeClock) -> None:
    """Age, then cap with the oldest first; summaries stay, files that no row names go."""
    put(store, "old", b"o" * 10)
    clock.advance(31 * DAY_S)
    put(store, "first", b"f" * 60)
    clock.advance(1)
    put(store, "second", b"s" * 60)
    (quarantine.folder_of(store) / "orphan").write_bytes(b"left by a crash")
    assert quarantine.sweep(store, older_than_us=30 * DAY_S * US_PER_S, bytes_max=100) == 3
    kept = {entry.file: quarantine.bytes_of(store, entry) for entry in quarantine.list_open(store)}
    assert kept == {"old": None, "first": None, "second": b"s" * 60}


def test_the_sweep_of_a_store_without_quarantine_does_nothing(store: Store) -> None:
    """A fresh home has no such folder."""
    assert quarantine.sweep(store, older_than_us=0, bytes_max=0) == 0
