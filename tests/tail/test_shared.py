"""Shared files: read from a checkpoint, trusted by hashes, read again on any doubt, never skipped."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd import growing
from metricsd.config import Tail as Settings
from metricsd.store import quarantine, sources
from tests.fakes import FakeClock
from tests.tail.conftest import Rig


def lines(rig: Rig, first: int, last: int) -> bytes:
    return b"".join(rig.line(n) for n in range(first, last))


def test_lines_are_stored_once_across_restarts(rig: Rig) -> None:
    """The checkpoint commits with the rows; what came while nobody ran is read later."""
    rig.shared(lines(rig, 0, 3))
    assert rig.tick().added == 3
    rig.restart()
    rig.shared(lines(rig, 3, 5))
    assert rig.tick() == (2, 0, 0, False)
    assert rig.durations == [0, 1, 2, 3, 4]


def test_a_partial_line_waits_for_its_newline_even_over_a_restart(rig: Rig) -> None:
    """Never flushed by a timer, never cut in two."""
    whole = rig.line(1)
    rig.shared(rig.line(0) + whole[:20])
    assert rig.tick().added == 1
    rig.restart()
    assert rig.tick().added == 0
    rig.shared(whole[20:])
    assert rig.tick().added == 1
    assert rig.durations == [0, 1]


def test_two_equal_lines_are_two_events_and_a_copy_of_the_file_adds_none(rig: Rig) -> None:
    """Occurrence numbers tell them apart; the same content on another path has the same ids."""
    data = rig.line(1) * 3 + rig.line(2)
    rig.shared(data)
    assert rig.tick().added == 4
    rig.shared(data, "copy.jsonl")
    assert rig.tick() == (0, 4, 0, False)


def test_equal_lines_that_span_a_commit_are_two_events(rig: Rig) -> None:
    """The occurrence map is part of the checkpoint."""
    rig.shared(rig.line(1))
    rig.tick()
    rig.restart()
    rig.shared(rig.line(1))
    assert rig.tick().added == 1


def test_a_line_with_its_own_id_is_one_event_wherever_it_appears(rig: Rig) -> None:
    """Retried writers that number their lines are not doubled."""
    rig.shared(rig.line(1, id="x") + rig.line(2, id="y"))
    rig.tick()
    rig.shared(rig.line(1, id="x"), "other.jsonl")
    assert rig.tick() == (0, 1, 0, False)


def test_truncation_to_smaller_is_read_from_the_start(rig: Rig) -> None:
    """copytruncate: the new lines come in, the old ones are known."""
    path = rig.shared(lines(rig, 0, 5))
    rig.tick()
    os.truncate(path, 0)
    rig.shared(lines(rig, 10, 12))
    assert rig.tick().added == 2
    assert rig.durations == [0, 1, 2, 3, 4, 10, 11]


@pytest.mark.parametrize("restart", [False, True])
def test_truncation_and_rewriting_larger_than_the_offset_loses_nothing(rig: Rig, restart: bool) -> None:
    """The bytes before the offset are no longer those that were read, so everything is read again."""
    path = rig.shared(lines(rig, 0, 3))
    rig.tick()
    os.truncate(path, 0)
    rig.shared(lines(rig, 100, 120))
    if restart:
        rig.restart()
    assert rig.tick().added == 20


def test_a_new_file_under_a_reused_inode_is_read_from_its_start(rig: Rig) -> None:
    """ext4 gives the same inode again; head and mark tell the files apart."""
    path = rig.shared(lines(rig, 0, 3))
    rig.tick()
    path.unlink()
    rig.shared(lines(rig, 50, 60))
    assert rig.tick().added == 10


def test_a_file_that_vanishes_keeps_its_checkpoint(rig: Rig) -> None:
    """Gone for a moment is not new when it is back."""
    path = rig.shared(lines(rig, 0, 3))
    rig.tick()
    aside = path.with_suffix(".aside")
    path.rename(aside)
    assert rig.tick() == (0, 0, 0, False)
    aside.rename(path)
    assert rig.tick() == (0, 0, 0, False)
    rig.shared(rig.line(3))
    assert rig.tick() == (1, 0, 0, False)


def test_bad_lines_are_quarantined_with_their_offset_and_only_once(rig: Rig) -> None:
    """The stream goes on behind them, and a second reading adds no entry."""
    good = rig.line(0)
    path = rig.shared(good + b"torn {\n" + rig.line(1) + b"\0\0\0\n\n  \n" + rig.line(2).replace(b"\n", b"\r\n"))
    assert rig.tick() == (3, 0, 2, False)
    entries = {entry.reason: (entry.file, entry.offset) for entry in quarantine.list_open(rig.store)}
    assert entries == {
        "bad_json": ("events.jsonl", len(good)),
        "nul": ("events.jsonl", len(good) + 7 + len(rig.line(1))),
    }
    os.utime(path)
    rig.store.db.execute("DELETE FROM source")
    rig.restart()
    assert rig.tick().known == 3
    assert quarantine.count_open(rig.store) == 2


def test_line_separators_of_unicode_do_not_split_a_line(rig: Rig) -> None:
    """U+2028, U+0085 and vertical tabs are text; only a newline byte ends a line."""
    rig.shared(
        '{"v":1,"app":"claude-code","event":"Stop","ts":1,"payload":{"session_id":"s","x":"\u2028\u0085"}}\n'.encode()
        + rig.line(1)
    )
    assert rig.tick().added == 2


def test_a_byte_order_mark_is_forgiven(rig: Rig) -> None:
    """Editors on other systems write one."""
    rig.shared(b"\xef\xbb\xbf" + rig.line(0))
    assert rig.tick() == (1, 0, 0, False)


def test_a_line_over_the_cap_goes_by_name_and_size_and_its_neighbours_are_kept(rig: Rig) -> None:
    """Memory stays bounded: the line is walked over, never held."""
    huge = b'{"x":"' + b"y" * (rig.settings.line_bytes_max * 5) + b'"}\n'
    rig.shared(rig.line(0) + huge + rig.line(1))
    assert rig.tick() == (2, 0, 1, False)
    (entry,) = quarantine.list_open(rig.store)
    assert (entry.reason, entry.bytes, entry.stored) == ("too_long", len(huge), None)


def test_a_huge_line_without_an_end_is_waited_for(rig: Rig) -> None:
    """Not finished is not wrong; when it ends it is judged."""
    rig.shared(rig.line(0) + b"y" * (rig.settings.line_bytes_max * 5))
    assert rig.tick() == (1, 0, 0, False)
    rig.shared(b"\n" + rig.line(1))
    assert rig.tick() == (1, 0, 1, False)


def test_a_line_longer_than_a_chunk_is_read_whole(rig: Rig) -> None:
    """Up to the cap the chunk grows with the line."""
    big = rig.line(1, payload={"session_id": "s", "tool_response": "z" * (3 * 1024 * 1024), "duration_ms": 1})
    rig.shared(big + rig.line(2))
    assert rig.tick().added == 2


def test_a_line_without_a_time_is_stored_with_the_time_of_reading(rig: Rig) -> None:
    """Its id has no time either, so a second reading knows it."""
    path = rig.shared(rig.line(1, ts=None) * 2)
    assert rig.tick().added == 2
    assert {event.at for event in rig.events} == {rig.clock.now_us()}
    rig.clock.advance(100)
    (rig.spool / "copy.jsonl").write_bytes(path.read_bytes())
    assert rig.tick() == (0, 2, 0, False)


def test_the_checkpoint_does_not_move_when_the_insert_fails(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and offset commit together or not at all."""
    from metricsd.errors import StoreUnavailable
    from metricsd.store import sources as sources_module

    def failing(*_: object) -> None:
        raise StoreUnavailable("disk full")

    rig.shared(lines(rig, 0, 3))
    with monkeypatch.context() as patch:
        patch.setattr(sources_module, "put", failing)
        with pytest.raises(StoreUnavailable):
            rig.tick()
    assert rig.events == []
    assert sources.load_all(rig.store) == {}
    assert rig.tick().added == 3


def test_the_checkpoint_is_not_committed_before_its_rows(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An offset without its rows would skip them for ever."""
    from metricsd.errors import StoreUnavailable
    from metricsd.store import events as events_module

    def failing(*_: object, **__: object) -> None:
        raise StoreUnavailable("disk full")

    rig.shared(lines(rig, 0, 3))
    with monkeypatch.context() as patch:
        patch.setattr(events_module, "insert", failing)
        with pytest.raises(StoreUnavailable):
            rig.tick()
    assert sources.load_all(rig.store) == {}
    rig.restart()
    assert rig.tick().added == 3


def test_one_line_that_the_database_refuses_does_not_hold_up_the_file(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunk is taken line by line; the refused one is named, the offset moves on once."""
    from metricsd.store import events as events_module

    real = events_module.pack_call

    def refusing(call: str | None) -> bytes | None:
        if call == "toolu_bad":
            raise OverflowError
        return real(call)

    monkeypatch.setattr(events_module, "pack_call", refusing)
    bad = rig.line(1, payload={"session_id": "s", "tool_use_id": "toolu_bad", "tool_name": "Bash"})
    rig.shared(rig.line(0) + bad + rig.line(2))
    assert rig.tick() == (2, 0, 1, False)
    assert rig.reasons == ["store_refused"]
    assert rig.tick() == (0, 0, 0, False)


@given(st.lists(st.integers(0, 400), max_size=12), st.integers(1, 8))
@settings(max_examples=30)
def test_any_cutting_of_the_writes_and_any_restarts_give_the_same_events(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], every: int
) -> None:
    """However writers tear their writes and wherever the daemon stops: each line once, the same ids."""
    rig = Rig(tmp_path_factory.mktemp("rig"), FakeClock(), Settings())
    data = b"".join(rig.line(n % 3) for n in range(8))
    edges = sorted({min(cut * 3, len(data)) for cut in cuts} | {0, len(data)})
    for index, (start, end) in enumerate(pairwise(edges)):
        rig.shared(data[start:end])
        rig.tick()
        if index % every == 0:
            rig.restart()
    assert len(rig.events) == 8
    whole = Rig(tmp_path_factory.mktemp("whole"), FakeClock(), Settings())
    whole.shared(data)
    whole.tick()
    read = "SELECT id FROM event ORDER BY pos"
    assert rig.store.db.execute(read).fetchall() == whole.store.db.execute(read).fetchall()
    rig.close()
    whole.close()


def test_a_tick_reads_a_bounded_amount(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of any size is read in rounds, so that captures and other files are not starved."""
    monkeypatch.setattr(growing, "CHUNK_BYTES", 600)
    rig.shared(lines(rig, 0, 100))
    first = rig.tail.tick()
    assert first.more
    assert 0 < first.added < 100
    assert rig.tick().added == 100 - first.added


def test_files_that_are_not_jsonl_are_left_alone(rig: Rig, tmp_path: Path) -> None:
    """Neither rotated copies nor compressed ones are read."""
    rig.shared(rig.line(0), "events.jsonl.1")
    rig.shared(rig.line(0), "events.jsonl.gz")
    rig.shared(rig.line(0), ".hidden.jsonl")
    (rig.spool / "folder.jsonl").mkdir()
    assert rig.tick() == (0, 0, 0, False)
