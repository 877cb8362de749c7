"""Log lines: JSON in a bounded private file, text for people, no secrets."""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import structlog

from metricsd import logs
from metricsd.config import Daemon

SMALL = Daemon(log_bytes_max=4096, log_keep=2)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Give the path of a log and put logging back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield tmp_path / "log" / "metricsd.log"
    for handler in root.handlers:
        handler.close()
    root.handlers = handlers
    root.setLevel(level)


def test_a_line_is_one_json_object(file: Path) -> None:
    """Time, level, room and event come first; the caller's fields follow."""
    logs.log_to_file(file, SMALL)
    structlog.get_logger("tail").info("batch.read", events=3)
    fields = json.loads(file.read_text())
    assert list(fields) == ["at", "level", "room", "event", "events"]
    assert (fields["level"], fields["room"], fields["event"], fields["events"]) == ("info", "tail", "batch.read", 3)


def test_secrets_are_masked(file: Path) -> None:
    """Names that say secret and bearer tokens in text never reach the file or the terminal."""
    terminal = io.StringIO()
    logs.log_to_file(file, SMALL, terminal=terminal)
    structlog.get_logger("x").info("a.b", token="s3cret1", api_key="s3cret2", text="Authorization: Bearer s3cret3")
    logging.getLogger("httpx").warning("Bearer s3cret4 refused")
    for text in (file.read_text(), terminal.getvalue()):
        assert "s3cret" not in text
        assert "***" in text


def test_file_is_rotated_bounded_and_private(file: Path) -> None:
    """However much is logged, only the newest few files stay, readable by their owner alone."""
    logs.log_to_file(file, SMALL)
    log = structlog.get_logger("x")
    for number in range(300):
        log.info("it.happened", number=number)
    files = sorted(file.parent.iterdir())
    assert [found.name for found in files] == ["metricsd.log", "metricsd.log.1", "metricsd.log.2"]
    assert sum(found.stat().st_size for found in files) <= 3 * 4096
    assert {stat.S_IMODE(found.stat().st_mode) for found in files} == {0o600}


def test_no_rotated_files_are_kept_when_none_are_wanted(file: Path) -> None:
    """`log_keep = 0` bounds the log to one file."""
    logs.log_to_file(file, Daemon(log_bytes_max=4096, log_keep=0))
    for number in range(200):
        structlog.get_logger("x").info("it.happened", number=number)
    assert [found.name for found in file.parent.iterdir()] == ["metricsd.log"]
    assert file.stat().st_size <= 4096


def test_reading_spans_rotated_files(file: Path) -> None:
    """The last lines are the last lines, wherever they lie; a missing log is empty."""
    assert logs.read_log(file, 10) == []
    logs.log_to_file(file, SMALL)
    for number in range(60):
        structlog.get_logger("x").info("it.happened", number=number)
    assert [json.loads(line)["number"] for line in logs.read_log(file, 45)] == list(range(15, 60))


def test_following_crosses_a_rotation(file: Path) -> None:
    """Each line after the start is seen once, also when the file is replaced under the reader."""
    logs.log_to_file(file, SMALL)
    log = structlog.get_logger("x")
    log.info("before")
    waits: list[float] = []

    def write_more(_: float) -> None:
        waits.append(_)
        assert len(waits) < 100
        for number in range(len(waits) * 10 - 10, len(waits) * 10):
            log.info("it.happened", number=number)

    follower = logs.follow_log(file, sleep=write_more)
    seen = [json.loads(next(follower))["number"] for _ in range(90)]
    follower.close()
    assert seen == list(range(90))
    assert (file.parent / "metricsd.log.1").exists()


def test_following_misses_nothing_at_a_rotation(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that come between the last look at the old file and its rotation are still read from it."""
    logs.log_to_file(file, Daemon(log_bytes_max=1 << 20, log_keep=2))
    log = structlog.get_logger("x")
    log.info("before")
    really = logs._rotated
    rotated: list[bool] = []

    def write_and_rotate(path: Path, stream: IO[str] | None) -> bool:
        if not rotated:
            rotated.append(True)
            log.info("last.words")
            handler = logging.getLogger().handlers[0]
            assert isinstance(handler, logging.handlers.RotatingFileHandler)
            handler.doRollover()
            log.info("first.words")
        return really(path, stream)

    monkeypatch.setattr(logs, "_rotated", write_and_rotate)
    follower = logs.follow_log(file, sleep=lambda _: None)
    assert [json.loads(next(follower))["event"] for _ in range(2)] == ["last.words", "first.words"]
    follower.close()


def test_level_is_honoured(file: Path) -> None:
    """Lines below the level are not written; libraries speak from warnings on."""
    logs.log_to_file(file, Daemon(log_level="warning"))
    structlog.get_logger("x").info("quiet")
    logging.getLogger("apscheduler").info("quiet")
    logging.getLogger("apscheduler").warning("loud %s", "one")
    structlog.get_logger("x").error("loud.two")
    assert [json.loads(line)["level"] for line in file.read_text().splitlines()] == ["warning", "error"]


def test_an_exception_is_shown_whole(file: Path) -> None:
    """The traceback is in the line, and people see it in lines of its own."""
    logs.log_to_file(file, SMALL)
    try:
        raise ValueError("what broke")
    except ValueError:
        structlog.get_logger("x").exception("it.broke")
    [line] = logs.read_log(file, 5)
    assert "ValueError: what broke" in json.loads(line)["exception"]
    assert logs.text_of(line).splitlines()[-1] == "ValueError: what broke"


class _FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_does_not_break_who_logs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Logging is dropped, the caller goes on, and no traceback is printed in between."""
    logs.log_to_file(file, SMALL, terminal=_FullDisk())
    structlog.get_logger("x").info("it.happened")
    assert json.loads(file.read_text())["event"] == "it.happened"
    assert capsys.readouterr() == ("", "")
