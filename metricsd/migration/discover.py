"""Finds the files of a source and says how each is read. Nothing is written, and links are not followed.

A name alone does not tell a transcript from a history of sessions, so the first lines decide. What is no source of data
is listed too, with what it is, so that a plan leaves no file unexplained. Hidden folders are entered only where one of
the tools that are read keeps its data in one.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import msgspec

from metricsd import growing
from metricsd.errors import UsageError
from metricsd.migration.model import FileKind, SourceFile

DEFAULT_FOLDERS = (".agent-os/metrics", ".ai-mesh/metrics")
"""Where the two generations of older hooks keep their files, below the home folder."""
SNIFFED_BYTES = 64 * 1024
SNIFFED_LINES = 20
DOCUMENT_BYTES_MAX = 64 * 1024 * 1024
"""A document is read whole; an array of sessions may be a large one."""
DEPTH_MAX = 32
READ_ERRORS = (OSError, EOFError, zlib.error)
"""What reading a file raises that is torn, unreadable, or no gzip after all."""

_HIDDEN_ENTERED = frozenset((".agent-os", ".ai-mesh", ".claude", ".codex", ".cursor"))
_LINES = re.compile(r".+\.jsonl(?:[.-][0-9]{1,14})*(?:\.gz)?").fullmatch
_DOCUMENT = re.compile(r".+\.json(?:\.gz)?").fullmatch
_NO_SOURCE = {
    "productivity-indicators.json": "live counters, derived from the calls",
    "current-baseline.json": "averages, derived from the sessions",
    "historical-baseline.json": "averages, derived from the sessions",
    "dashboard-data.json": "a page's figures, derived from the sessions",
    "realtime.log": "text for people",
    "user.json": "the person's profile and token",
}
_EXPORTED = frozenset(("event", "session_counters", "session", "tool_metric", "import_batch"))
_TRANSCRIBED = frozenset(
    ("user", "assistant", "system", "summary", "attachment", "file-history-snapshot", "queue-operation")
)
_decode = msgspec.json.Decoder().decode


def default_sources(home: Path) -> list[Path]:
    """Return the folders of the older hooks that there are."""
    return [home / name for name in DEFAULT_FOLDERS if (home / name).is_dir()]


def find_files(roots: Sequence[Path]) -> Iterator[SourceFile]:
    """Yield every file of a source, in no order: the order of reading is `reading_group`, then the name.

    Raises UsageError for a root that is not there or cannot be read.
    """
    top = common_root(roots)
    for root in roots:
        names = [(str(root), root.name)] if _is_file(root) else _walk(root, top)
        for path, name in names:
            is_lines = _LINES(os.path.basename(name)) is not None  # noqa: PTH119
            kind, why = (kind_of_lines(path), "") if is_lines else _kind_of_document(path, name)
            yield _file(path, name, kind, why)


def reading_group(file: SourceFile) -> int:
    """Return which files come first: documents, then lines of single sessions, then lines of all: as the daemon reads."""
    if file.kind in (FileKind.OLDER_DOCUMENT, FileKind.IGNORED):
        return 0
    folder = os.path.basename(os.path.dirname(file.name))  # noqa: PTH119, PTH120
    return 1 if folder in growing.OLDER_FOLDERS else 2


def common_root(roots: Sequence[Path]) -> Path:
    """Return the folder below which the names of a source's files are told."""
    if len(roots) == 1:
        return roots[0].parent if _is_file(roots[0]) else roots[0]
    return Path(os.path.commonpath(roots))


def open_content(path: str, *, packed: bool) -> BufferedReader | gzip.GzipFile:
    """Open a file's content for reading, unpacked; raise OSError, also for what is no plain file."""
    raw = os.fdopen(growing.open_plain(path), "rb")
    return _Unpacked(raw) if packed else raw


def is_packed(name: str) -> bool:
    """Return whether a file of this name is gzip."""
    return name.endswith(".gz")


def kind_of_lines(path: str) -> FileKind:
    """Return how a file of lines is read, by its first lines; what says nothing is read as the older hooks' lines."""
    try:
        with open_content(path, packed=is_packed(path)) as file:
            start = file.read(SNIFFED_BYTES)
    except READ_ERRORS:
        return FileKind.OLDER_LINES
    for raw in start.split(b"\n")[:SNIFFED_LINES]:
        try:
            line = _decode(raw)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            continue
        kind = _kind_of_line(line) if isinstance(line, dict) else None
        if kind is not None:
            return kind
    return FileKind.OLDER_LINES


class _Unpacked(gzip.GzipFile):
    """The content of a gzip file; closing it closes the file below, which gzip alone would leave open."""

    def __init__(self, raw: BufferedReader) -> None:
        self._below = raw
        super().__init__(fileobj=raw, mode="rb")

    def close(self) -> None:
        super().close()
        self._below.close()


def _kind_of_line(line: Mapping[str, Any]) -> FileKind | None:
    if "event_type" in line or "tool_name" in line or "session_id" in line:
        return FileKind.OLDER_LINES
    kind = line.get("type")
    if kind in _EXPORTED and ("fields" in line or ("kind" in line and "at" in line)):
        return FileKind.EXPORT
    if kind in _TRANSCRIBED and ("sessionId" in line or "uuid" in line or "messageId" in line or "leafUuid" in line):
        return FileKind.TRANSCRIPT
    return None


def _kind_of_document(path: str, name: str) -> tuple[FileKind, str]:
    """Return how a file is read that is not one of lines, and what it is if it is not read."""
    base = os.path.basename(name)  # noqa: PTH119
    if base in _NO_SOURCE:
        return FileKind.IGNORED, _NO_SOURCE[base]
    if not _DOCUMENT(base):
        return FileKind.IGNORED, "a log without sessions" if base.endswith((".log", ".log.gz")) else "not JSON"
    if os.path.basename(os.path.dirname(name)) in growing.OLDER_FOLDERS:  # noqa: PTH119, PTH120
        return FileKind.OLDER_DOCUMENT, ""
    try:
        with open_content(path, packed=is_packed(path)) as file:
            data = file.read(DOCUMENT_BYTES_MAX)
        found = _decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, *READ_ERRORS):
        return FileKind.IGNORED, "no session: not JSON"
    items = found if isinstance(found, list) else [found]
    if items and isinstance(items[0], dict) and _is_told_of(items[0]):
        return FileKind.OLDER_DOCUMENT, ""
    return FileKind.IGNORED, "no session"


def _is_told_of(item: Mapping[str, Any]) -> bool:
    names = item.keys()
    has_id = "session_id" in names or "sessionId" in names or "id" in names
    return has_id and bool(names & {"start_time", "startTime", "sessionStart", "created_at", "toolName", "end_time"})


def _file(path: str, name: str, kind: FileKind, why: str) -> SourceFile:
    try:
        stamp = growing.stamp_of(os.stat(path))  # noqa: PTH116
    except OSError:
        # Gone between two looks: the survey says so.
        stamp = ()
    # A name that is no UTF-8 is told with its odd bytes spelt out; the path stays as the system takes it.
    told = os.fsencode(name).decode("utf-8", "backslashreplace")
    return SourceFile(name=told, path=path, kind=kind, packed=is_packed(name), why=why, stamp=stamp)


def _is_file(root: Path) -> bool:
    try:
        found = root.stat()
    except OSError as error:
        raise UsageError(f"{root}: {error.strerror}: name a folder or file of the older hooks") from error
    return stat.S_ISREG(found.st_mode)


def _walk(root: Path, top: Path) -> Iterator[tuple[str, str]]:
    """Yield path and name of every plain file below a folder."""
    waiting = [(str(root), 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if depth < DEPTH_MAX and (not entry.name.startswith(".") or entry.name in _HIDDEN_ENTERED):
                            waiting.append((entry.path, depth + 1))
                    elif entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
                        yield entry.path, os.path.relpath(entry.path, top)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be listed ({error.strerror}): repair its permissions") from error
