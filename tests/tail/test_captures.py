"""Captures: taken in once, deleted only after a durable commit, never lost, never followed astray."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metricsd.errors import StoreUnavailable
from metricsd.store import quarantine
from metricsd.store.connection import Store
from metricsd.tail import CAPTURES_PER_TICK
from tests.tail.conftest import Rig


def test_a_capture_becomes_an_event_and_is_deleted(rig: Rig) -> None:
    """The file's time is the event's time when it lies near the second in the line."""
    path = rig.capture(7)
    assert rig.tick().added == 1
    (event,) = rig.events
    assert (event.tool, event.duration_ms, event.call, event.at) == ("Bash", 7, "toolu_0007", rig.clock.now_us())
    assert not path.exists()


def test_a_capture_read_again_after_a_crash_is_known(rig: Rig) -> None:
    """A kill between commit and unlink leaves the file; the next daemon takes it for what it is."""
    path = rig.capture(1)
    data = path.read_bytes()
    rig.tick()
    rig.restart()
    path.write_bytes(data)
    assert rig.tick() == (0, 1, 0, False)
    assert len(rig.events) == 1
    assert not path.exists()


def test_a_copied_capture_that_lost_its_time_keeps_its_id(rig: Rig) -> None:
    """The id depends on name and bytes; the time then comes from the line's second."""
    path = rig.capture(1, tool_use_id=None)
    data = path.read_bytes()
    rig.tick()
    path.write_bytes(data)
    os.utime(path, (0, 0))
    assert rig.tick().known == 1


def test_captures_stay_when_the_store_cannot_take_them(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is deleted before a commit; nothing is lost after a failed one."""
    path = rig.capture(1)

    def full(*_: object, **__: object) -> object:
        raise StoreUnavailable("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "transaction", full)
        with pytest.raises(StoreUnavailable):
            rig.tick()
    assert path.exists()
    assert rig.tick().added == 1


def test_captures_are_deleted_only_after_a_full_commit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the unlink the row is committed, and with synchronous=FULL."""
    path = rig.capture(1)
    seen: list[tuple[bool, int, int]] = []
    real = os.unlink

    def spying(name: str) -> None:
        if name == str(path):
            synchronous = rig.store.db.execute("PRAGMA synchronous").fetchone()[0]
            seen.append((rig.store.db.in_transaction, synchronous, len(rig.events)))
        real(name)

    monkeypatch.setattr(os, "unlink", spying)
    rig.tick()
    assert seen == [(False, 2, 1)]


def test_an_unfinished_capture_is_left_alone_until_it_is_old(rig: Rig) -> None:
    """No newline yet: its hook may still write. After the limit it goes to quarantine with its bytes."""
    path = rig.new / "PostToolUse-9-1-0.jsonl"
    path.write_bytes(b'{"v":1,"s":1')
    os.utime(path, ns=(0, rig.clock.now_us() * 1000))
    assert rig.tick() == (0, 0, 0, False)
    assert path.exists()
    rig.clock.advance(rig.settings.incomplete_after_s + 1)
    assert rig.tick().rejected == 1
    assert not path.exists()
    (entry,) = quarantine.list_open(rig.store)
    assert entry.reason == "incomplete"
    assert quarantine.bytes_of(rig.store, entry) == b'{"v":1,"s":1'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not json\n", "bad_json"),
        (b'{"v":1,"s":1,"app":"claude-code","event":"Stop","payload":{}}\0\n', "nul"),
        (b'{"v":9,"s":1,"app":"claude-code","event":"Stop","payload":{}}\n', "newer_version"),
        (b'{"v":1,"s":1,"app":"claude-code","event":"Stop","payload":{"session_id":"\xff"}}\n', "bad_utf8"),
        (b'{"v":1,"s":1,"app":"claude-code","event":"Stop","payload":[]}\n', "bad_fields"),
    ],
)
def test_what_cannot_be_accepted_is_quarantined_and_the_rest_goes_on(rig: Rig, data: bytes, reason: str) -> None:
    """P10: file, reason and bytes are kept, and the capture behind it is stored."""
    (rig.new / "Stop-1-1-0.jsonl").write_bytes(data)
    rig.capture(2)
    assert rig.tick() == (1, 0, 1, False)
    (entry,) = quarantine.list_open(rig.store)
    assert (entry.reason, entry.file) == (reason, "new/Stop-1-1-0.jsonl")
    assert quarantine.bytes_of(rig.store, entry) == data
    assert not list(rig.new.iterdir())


def test_links_and_pipes_are_never_followed(rig: Rig, tmp_path: Path) -> None:
    """A planted link costs the link; its target is neither read nor deleted. A FIFO does not block."""
    target = tmp_path / "outside.jsonl"
    target.write_bytes(rig.line(1))
    (rig.new / "a-1-1-0.jsonl").symlink_to(target)
    os.mkfifo(rig.new / "b-1-1-0.jsonl")
    assert rig.tick() == (0, 0, 2, False)
    assert target.exists()
    assert rig.events == []


def test_one_event_that_the_database_refuses_does_not_hold_up_the_others(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by halving and quarantined with its bytes; the others are stored."""
    from metricsd.store import events as events_module

    real = events_module.pack_call

    def refusing(call: str | None) -> bytes | None:
        if call == "toolu_0003":
            raise OverflowError
        return real(call)

    monkeypatch.setattr(events_module, "pack_call", refusing)
    for n in range(6):
        rig.capture(n)
    assert rig.tick() == (5, 0, 1, False)
    (entry,) = quarantine.list_open(rig.store)
    assert entry.reason == "store_refused"
    assert b"toolu_0003" in (quarantine.bytes_of(rig.store, entry) or b"")


def test_a_burst_is_taken_in_bounded_rounds(rig: Rig) -> None:
    """One tick takes at most so many, and says that more is left."""
    for n in range(CAPTURES_PER_TICK + 5):
        rig.capture(n)
    first = rig.tail.tick()
    assert first.added == CAPTURES_PER_TICK
    assert first.more
    assert rig.tick().added == 5


def test_a_capture_without_permission_waits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """No permission or no descriptors left is not the capture's fault: it is neither deleted nor quarantined."""
    path = rig.capture(1)
    real = os.open

    def denied(name: object, *rest: object, **more: object) -> int:
        if name == str(path):
            raise PermissionError(13, "Permission denied")
        return real(name, *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        assert rig.tick() == (0, 0, 0, False)
    assert rig.reasons == []
    assert rig.tick().added == 1
