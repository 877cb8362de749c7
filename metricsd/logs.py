"""Where log lines go: JSON into a rotated file for the daemon, short text on stderr for people.

`log.info("batch.pushed", events=n)` anywhere ends up here; libraries' own logging is taken in from warnings on.
Values whose names say secret are masked whatever the caller passes, and a full disk never breaks the program that
logs. Only the holder of the instance lock writes the file, so rotation has one owner.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, MutableMapping
from pathlib import Path
from typing import IO, Any

import structlog

from metricsd.config import Daemon

READ_BYTES_MAX = 64 * 1024 * 1024
"""Most that `read_log` looks at, newest files first."""
FOLLOW_STEP_S = 0.25
_SECRET_NAME = re.compile(r"token|secret|password|authorization|cookie|api_?key|prompt|credential", re.IGNORECASE)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[^\s\"',]+")
_VALUE_CHARS_MAX = 4000
_MASK = "***"
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

EventDict = MutableMapping[str, Any]


def log_to_file(file: Path, settings: Daemon, *, terminal: IO[str] | None = None) -> None:
    """Send log lines to `file`, and to `terminal` too if given. For the holder of the instance lock."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handlers: list[logging.Handler] = [_file_handler(file, settings)]
    if terminal is not None:
        handlers.append(_text_handler(terminal, _LEVELS[settings.log_level]))
    _install(handlers, _LEVELS[settings.log_level])


def log_to_terminal(level: str = "warning", terminal: IO[str] | None = None) -> None:
    """Send warnings and worse to stderr. For commands that work in the foreground."""
    _install([_text_handler(terminal or sys.stderr, _LEVELS[level])], _LEVELS[level])


def read_log(file: Path, lines: int) -> list[str]:
    """Return the last `lines` lines, oldest first, across rotated files; an absent log is an empty one."""
    found: deque[str] = deque(maxlen=lines)
    for part in reversed(_files_newest_first(file)):
        try:
            with part.open(encoding="utf-8", errors="replace") as stream:
                found.extend(line.rstrip("\n") for line in stream)
        except FileNotFoundError:
            continue
    return list(found)


def follow_log(file: Path, *, sleep: Callable[[float], None] = time.sleep) -> Generator[str, None, None]:
    """Yield each line that is written from now on, across rotations, until the caller stops asking."""
    stream: IO[str] | None = None
    try:
        stream = _open_at_end(file)
        partial = ""
        while True:
            line = stream.readline() if stream is not None else ""
            if line.endswith("\n"):
                yield partial + line.rstrip("\n")
                partial = ""
                continue
            partial += line
            if _rotated(file, stream):
                if stream is not None:
                    # What came between the last look and the rotation.
                    yield from (late.rstrip("\n") for late in stream)
                    stream.close()
                stream, partial = _open_or_none(file), ""
                continue
            sleep(FOLLOW_STEP_S)
    finally:
        if stream is not None:
            stream.close()


def text_of(line: str) -> str:
    """Return a JSON log line as people read it; a line that is not JSON stays as it is."""
    try:
        event = json.loads(line)
    except ValueError:
        return line
    if not isinstance(event, dict):
        return line
    return _text(event)


def _install(handlers: list[logging.Handler], level: int) -> None:
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    # Libraries speak from warnings on; our own loggers do not pass through their levels.
    root.setLevel(max(level, logging.WARNING))
    logging.raiseExceptions = False
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            _mask_secrets,
            _hand_over,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_OurLogger,
        cache_logger_on_first_use=False,
    )


class _OurLogger:
    """What structlog calls last; `_hand_over` gives the finished event to the handlers through it."""

    def __init__(self, name: str = "metricsd", *_: object) -> None:
        self.name = name

    def _emit(self, record: logging.LogRecord) -> None:
        for handler in logging.getLogger().handlers:
            if record.levelno >= handler.level:
                handler.handle(record)

    debug = info = warning = error = critical = _emit


def _hand_over(logger: _OurLogger, method: str, event: EventDict) -> tuple[tuple[logging.LogRecord], dict[str, Any]]:
    level = logging.getLevelName(method.upper())
    record = logging.LogRecord(logger.name, level if isinstance(level, int) else logging.ERROR, "", 0, "", None, None)
    head = {"at": event.pop("at"), "level": event.pop("level"), "room": logger.name, "event": event.pop("event")}
    record.fields = {**head, **event}
    return (record,), {}


def _mask_secrets(_: object, __: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if _SECRET_NAME.search(key):
            event[key] = _MASK
        elif isinstance(value, str):
            event[key] = _BEARER.sub(rf"\g<1>{_MASK}", value)[:_VALUE_CHARS_MAX]
    return event


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    if isinstance(fields, dict):
        return fields
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
    text = record.getMessage()
    if record.exc_info:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    masked = _BEARER.sub(rf"\g<1>{_MASK}", text)[:_VALUE_CHARS_MAX]
    return {"at": at, "level": record.levelname.lower(), "room": record.name, "event": "library.said", "text": masked}


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields_of(record), ensure_ascii=False, default=str)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _text(_fields_of(record))


def _text(fields: dict[str, Any]) -> str:
    rest = dict(fields)
    at, level, room, event = (str(rest.pop(key, "")) for key in ("at", "level", "room", "event"))
    trace = str(rest.pop("exception", ""))
    words = " ".join(f"{key}={value}" for key, value in rest.items())
    head = f"{at[11:19] or '-'} {level:7} {room} {event} {words}".rstrip()
    return f"{head}\n{trace}" if trace else head


def _file_handler(file: Path, settings: Daemon) -> logging.Handler:
    handler = _PrivateRotatingHandler(
        file, maxBytes=settings.log_bytes_max, backupCount=settings.log_keep, encoding="utf-8", delay=True
    )
    handler.setFormatter(_JsonFormatter())
    return handler


def _text_handler(stream: IO[str], level: int) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setLevel(level)
    handler.setFormatter(_TextFormatter())
    return handler


class _PrivateRotatingHandler(logging.handlers.RotatingFileHandler):
    """Rotates by size into files that only their owner reads; keeps nothing when `backupCount` is 0."""

    def _open(self) -> Any:
        fd = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return os.fdopen(fd, "a", encoding="utf-8", errors="replace")

    def doRollover(self) -> None:  # noqa: N802 - the name of the method that is overridden
        if self.backupCount == 0 and self.stream is not None:
            self.stream.truncate(0)
            return
        super().doRollover()


def _files_newest_first(file: Path) -> list[Path]:
    """Return the log and its rotated files, newest first, as far as READ_BYTES_MAX reaches."""
    rotated = sorted(
        (part for part in file.parent.glob(f"{file.name}.*") if part.suffix[1:].isdigit()),
        key=lambda part: int(part.suffix[1:]),
    )
    chosen: list[Path] = []
    size = 0
    for part in [file, *rotated]:
        try:
            size += part.stat().st_size
        except FileNotFoundError:
            continue
        chosen.append(part)
        if size > READ_BYTES_MAX:
            break
    return chosen


def _open_or_none(file: Path) -> IO[str] | None:
    try:
        return file.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _open_at_end(file: Path) -> IO[str] | None:
    stream = _open_or_none(file)
    if stream is not None:
        stream.seek(0, os.SEEK_END)
    return stream


def _rotated(file: Path, stream: IO[str] | None) -> bool:
    """Return whether `file` is another file than the open one, or shorter than what was read of it."""
    try:
        now = file.stat()
    except FileNotFoundError:
        return False
    if stream is None:
        return True
    then = os.fstat(stream.fileno())
    return (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino) or now.st_size < stream.tell()
