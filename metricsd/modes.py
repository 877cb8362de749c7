"""The mode file: which mode is in force and why, what a person forced, and the latest changes.

It lies beside the store and not in it, because a store that failed could not keep it. It is small, replaced
atomically, and readable with the standard library alone: `metricsd status` reads it within its 60 ms. A file that is
missing, torn or written by somebody else counts as none: the evidence brings the mode back, a forced mode is then no
longer known.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from metricsd.failover import Forced, Mode, Reason

VERSION = 1
HISTORY_MAX = 100
FILE_BYTES_MAX = 512 * 1024
"""Above what a whole history of the longest reasons takes."""
TEXT_CHARS_MAX = 300
_TIME_US_MAX = 253_402_300_799_999_999
"""The last microsecond of the year 9999."""
_PRIVATE = 0o600


class Change(NamedTuple):
    """One row of the history: from when (microseconds UTC) which mode was in force, and why."""

    at: int
    mode: Mode
    reason: Reason
    detail: str = ""


class State(NamedTuple):
    """What the file holds. `history` is oldest first; its last row is the mode in force."""

    history: tuple[Change, ...]
    forced: Forced | None = None

    @property
    def now(self) -> Change:
        """The mode in force."""
        return self.history[-1]

    def entered(self, change: Change) -> State:
        """Return the state after a change of the mode."""
        return self._replace(history=(*self.history, change)[-HISTORY_MAX:])

    def retold(self, detail: str) -> State:
        """Return the state with what is known by now of why its mode is in force."""
        return self._replace(history=(*self.history[:-1], self.now._replace(detail=detail)))

    def forced_at(self, now_us: int) -> Forced | None:
        """Return what is forced then: nothing once its time is over."""
        if self.forced is None or (self.forced.until_us is not None and now_us >= self.forced.until_us):
            return None
        return self.forced


def find_state(file: Path) -> State | None:
    """Return what the file holds; None where there is none, or none that we wrote."""
    try:
        return _state_of(json.loads(_read(file)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def save_state(file: Path, state: State, *, durable: bool = False) -> None:
    """Replace the file atomically, and on the disk itself if `durable`. Raises OSError."""
    draft = file.with_name(f"{file.name}.{os.getpid()}.draft")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _PRIVATE)
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            json.dump(_document(state), stream, ensure_ascii=True)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        draft.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def reason_text(change: Change) -> str:
    """Return the reason in words, as `status` shows it: `unreachable: https://... cannot be reached: ...`."""
    return f"{change.reason.value}: {change.detail}" if change.detail else change.reason.value


def section(change: Change, forced: Forced | None) -> dict[str, Any]:
    """Return the mode as `status --json` shows it."""
    return {
        "current": change.mode.value,
        "reason": reason_text(change),
        "since": time_text(change.at),
        "forced": forced is not None,
        "forced_until": None if forced is None else time_text(forced.until_us),
    }


def time_text(micros: object) -> str | None:
    """Return microseconds UTC as RFC 3339, or None for anything that is no time."""
    if not isinstance(micros, int) or micros <= 0:
        return None
    try:
        return datetime.fromtimestamp(micros / 1_000_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return None


def _read(file: Path) -> bytes:
    # Not blocking, because somebody may have put a pipe there.
    fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError("no regular file")
        raw = stream.read(FILE_BYTES_MAX + 1)
    if len(raw) > FILE_BYTES_MAX:
        raise ValueError("too long")
    return raw


def _document(state: State) -> dict[str, Any]:
    forced = state.forced
    return {
        "v": VERSION,
        "forced": None if forced is None else {"mode": forced.mode.value, "until": forced.until_us},
        "history": [[at, mode.value, reason.value, detail] for at, mode, reason, detail in state.history],
    }


def _state_of(document: Any) -> State:
    if document["v"] != VERSION:
        raise ValueError("another version")
    history = tuple(_change_of(row) for row in document["history"][-HISTORY_MAX:])
    if not history:
        raise ValueError("no mode")
    forced = document["forced"]
    return State(history, None if forced is None else _forced_of(forced))


def _change_of(row: Any) -> Change:
    at, mode, reason, detail = row
    if not isinstance(detail, str):
        raise TypeError("detail is no text")
    return Change(_time(at), Mode(mode), Reason(reason), one_line(detail))


def _forced_of(found: Any) -> Forced:
    until = found["until"]
    return Forced(Mode(found["mode"]), None if until is None else _time(until))


def _time(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _TIME_US_MAX:
        raise ValueError("no time")
    return value


def one_line(text: str) -> str:
    """Return a text that can be shown on one line of a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:TEXT_CHARS_MAX]
