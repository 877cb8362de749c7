"""Calls that wait for the store: none is lost or taken for another, whatever happens to their file."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from metricsd import legacy_journal
from metricsd.errors import StoreUnavailable
from metricsd.legacy.kept import Edit, SessionId, Writes
from metricsd.legacy_journal import Journal, Waiting
from metricsd.model import Event
from metricsd.protocol import FieldValue
from tests.legacy.local import local_api


def call(number: int) -> Waiting:
    event = Event(at=1_790_000_000_000_000 + number, kind="tool_used", name="tool_execution", app="legacy", tool="Read")
    return Waiting(f"{number:032x}", event, {"parameters": number})


def waits(journal: Journal) -> bool:
    return not journal.is_empty


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "waiting.jsonl"


def test_what_was_begun_stays_until_its_end_and_what_comes_meanwhile_stays_longer(path: Path) -> None:
    """A second begin, as after a kill, gives the same calls; a call that came in between is in the next round."""
    journal = Journal(path)
    assert not waits(journal)
    journal.append([call(1), call(2)])
    assert journal.begin() == [call(1), call(2)]
    journal.append([call(3)])
    assert Journal(path).begin() == [call(1), call(2)]
    journal.end()
    assert waits(journal)
    assert journal.begin() == [call(3)]
    journal.end()
    assert not waits(journal)
    assert path.parent.exists() and list(path.parent.iterdir()) == []


def test_a_torn_line_spoils_no_other(path: Path) -> None:
    """What a crash left half written was never acknowledged; the next call begins a line of its own."""
    journal = Journal(path)
    journal.append([call(1)])
    with path.open("ab") as file:
        file.write(b'{"id": "00", "event": {"at": 1')
    journal.append([call(2)])
    with path.open("ab") as file:
        file.write(b'not json\n{"id":"xyz","event":{"at":1,"kind":"k","name":"n","app":"a"}}\n{"id": "00"')
    assert journal.begin() == [call(1), call(2)]


def test_the_file_is_private_and_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0600; beyond the bound calls are refused, and what was acknowledged stays; a link is not followed."""
    journal = Journal(path)
    journal.append([call(1)])
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(legacy_journal, "BYTES_MAX", path.stat().st_size + 10)
    with pytest.raises(StoreUnavailable, match="wait already"):
        journal.append([call(2)])
    assert journal.begin() == [call(1)]
    journal.end()
    path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(StoreUnavailable):
        journal.append([call(3)])
    assert not (path.parent / "elsewhere").exists()


async def test_a_request_that_cannot_be_stored_fails_alone(tmp_path: Path) -> None:
    """Requests share a commit; one that the store refuses takes none of the others with it."""
    async with local_api(tmp_path / "home") as local:
        good = [Writes(events=[(call(n).event_id, call(n).event)]) for n in (1, 2)]
        fields: dict[str, FieldValue] = {f"f{n}": n for n in range(100)}
        bad = Writes(edits=[Edit(SessionId("legacy", "x"), fields)])
        found = await asyncio.gather(*map(local.shelf.write, [good[0], bad, good[1]]), return_exceptions=True)
        assert found[0] is None and isinstance(found[1], StoreUnavailable) and found[2] is None
        assert await local.count("SELECT count(*) FROM event") == 2
