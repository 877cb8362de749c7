"""Names, ids, numbers and subjects, as their descriptions say (docs/architecture.md), written down a second time."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b

from metricsd.decode.subjects import EXTENSIONS, PROGRAMS

OTHER = "other"
CHARS_MAX = 200
NUMBER_MAX = (1 << 63) - 1
COMMAND_CHARS_MAX = 4096
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_IDENTIFIER = _LETTERS | frozenset("0123456789._:-")
_VARIABLE = _LETTERS | frozenset("0123456789_")
_WRAPPERS = {
    "sudo": "-u -g -h -p -C -D -R -T -U",
    "env": "-u -C -S",
    "nice": "-n",
    "time": "-f -o",
    "nohup": "",
    "command": "",
    "exec": "-a",
}
"""Programs that run another one, with the options of theirs that take a value."""
_WRAPPERS_MAX = 8
_DROPPED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_HOMES = ("home", "Users")
# A provider in front, and a window behind, may be or not.
_is_model = re.compile(r"([\w-]{1,40}/)?[\w.:@-]{1,150}(\[[A-Za-z0-9]{1,8}\])?", re.ASCII).fullmatch


@lru_cache(maxsize=4096)
def session_id(text: str) -> str:
    """Return a session's id, its short hash if it does not look like an id."""
    if len(text) <= CHARS_MAX and _IDENTIFIER.issuperset(text):
        return text
    return f"hash-{blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}"


@lru_cache(maxsize=4096)
def tool_name(text: str) -> str:
    """Return a tool's or agent's name, `other` if it does not look like one."""
    return text if len(text) <= CHARS_MAX and _IDENTIFIER.issuperset(text) else OTHER


def model(text: str | None) -> str | None:
    """Return a model's name, `other` if it does not look like one; None for nothing."""
    if not text:
        return None
    return text if len(text) <= CHARS_MAX and _is_model(text) is not None else OTHER


def number(value: object) -> int | None:
    """Return a whole number from 0 of 63 bits, fractions rounded to the even one of two; None for anything else."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    if not -1 <= value <= NUMBER_MAX:
        return None
    whole = round(value)
    return whole if 0 <= whole <= NUMBER_MAX else None


def subject_of(line: Mapping[str, object]) -> str | None:
    """Return the program of a call's command, else the extension of its file, from closed lists."""
    for name in ("command", "command_type"):
        command = line.get(name)
        if isinstance(command, str) and command:
            return program_of(command)
    path = line.get("file_path")
    if not isinstance(path, str) or not path:
        return None
    dot = path.rfind(".")
    extension = path[dot : dot + 16].lower() if dot >= 0 else ""
    return extension if extension in EXTENSIONS else OTHER


def program_of(command: str) -> str:
    """Return the program that a command line runs, behind assignments and programs that run another."""
    first = command.split(None, 1)[:1]
    if first and first[0] in PROGRAMS:
        return first[0]
    text, at = command[:COMMAND_CHARS_MAX], 0
    for _ in range(_WRAPPERS_MAX):
        at = _behind(text, at, _is_blank)
        while (end := _assignment_end(text, at)) is not None:
            at = end
        end = _behind(text, at, _is_solid)
        name = _file_name(text[at:end])
        if name not in _WRAPPERS:
            return name if name in PROGRAMS else OTHER
        at = _options_end(text, end, _WRAPPERS[name].split())
    return OTHER


@lru_cache(maxsize=1024)
def clean(text: str) -> str | None:
    """Return a name without control, format and separator characters, at most 200 of it; None if nothing is left."""
    kept = "".join(char for char in text[: 4 * CHARS_MAX] if unicodedata.category(char) not in _DROPPED)
    return kept.strip()[:CHARS_MAX] or None


def project_of(directory: str | None) -> str | None:
    """Return the name of a folder; None for a home folder, whose name is the user's."""
    parts = [part for part in (directory or "").replace("\\", "/").split("/") if part]
    if not parts or parts == ["root"]:
        return None
    if len(parts) < 3 and (parts[0] in _HOMES or parts[0][-1] == ":"):
        return None
    return clean(parts[-1])


def _behind(text: str, at: int, belongs: Callable[[str], bool]) -> int:
    while at < len(text) and belongs(text[at]):
        at += 1
    return at


def _is_blank(char: str) -> bool:
    return char.isspace() or char in "({!"


def _is_solid(char: str) -> bool:
    return not char.isspace()


def _file_name(word: str) -> str:
    name = word.strip("\"'").replace("\\", "/").split("/")[-1]
    if name.endswith(".exe"):
        name = name[:-4]
    while name and name[-1] in ";&|)":
        name = name[:-1]
    return name


def _assignment_end(text: str, at: int) -> int | None:
    """Return the position behind `NAME=value` and the blanks after it; None where no such thing begins."""
    if at >= len(text) or (text[at] not in _LETTERS and text[at] != "_"):
        return None
    at = _behind(text, at, _VARIABLE.__contains__)
    if at >= len(text) or text[at] != "=":
        return None
    at += 1
    while at < len(text) and not text[at].isspace():
        if text[at] in "\"'":
            close = text.find(text[at], at + 1)
            if close < 0:
                return None
            at = close
        at += 1
    end = _behind(text, at, str.isspace)
    return end if end > at else None


def _options_end(text: str, at: int, with_value: list[str]) -> int:
    """Return the position behind a program's options."""
    while True:
        start = _behind(text, at, _is_blank)
        end = _behind(text, start, _is_solid)
        word = text[start:end]
        if not word.startswith("-"):
            return start
        at = end
        if word in with_value:
            begin = _behind(text, end, _is_blank)
            at = _behind(text, begin, _is_solid) or end
