"""On which line of a TOML text a key stands; the standard parser does not tell.

Every line found is a hint for a person: on unusual layouts it is the line of the enclosing table, never an error.
"""

from __future__ import annotations

import re

_HEAD = re.compile(r"\s*\[(\[?)\s*([^\]\n]+?)\s*\]")
_KEY = re.compile(r"\s*(\"[^\"\n]*\"|'[^'\n]*'|[A-Za-z0-9_-]+)\s*(?:\.[^=\n]*)?=")
_LONG = ('"""', "'''")


class Lines:
    """The lines of a text's tables and keys, counted from 1."""

    def __init__(self, text: str) -> None:
        self._top: dict[str, int] = {}
        self._tables: dict[str, tuple[int, dict[str, int]]] = {}
        self._rules: list[tuple[int, dict[str, int]]] = []
        keys, inside = self._top, ""
        for number, line in enumerate(text.split("\n"), 1):
            if inside:
                inside = "" if inside in line else inside
                continue
            head, key = _HEAD.match(line), _KEY.match(line)
            if head is not None:
                keys = {}
                name = head[2].strip("\"' ")
                if head[1] and name == "rule":
                    self._rules.append((number, keys))
                self._tables.setdefault(name, (number, keys))
            elif key is not None:
                keys.setdefault(key[1].strip("\"'"), number)
                inside = next((mark for mark in _LONG if line.count(mark) == 1), "")

    def top(self, key: str) -> int:
        """Return the line of a key or table at the top; 1 when it is not there."""
        return self._top.get(key) or self._tables.get(key, (1, {}))[0]

    def table(self, name: str, key: str) -> int:
        """Return the line of a key in `[name]`, else of the table."""
        line, keys = self._tables.get(name, (self._top.get(name, 1), {}))
        return keys.get(key, line)

    def rule(self, number: int, key: str) -> int:
        """Return the line of a key in the n-th `[[rule]]` (from 0), else of its head."""
        if number >= len(self._rules):
            return self._top.get("rule", 1)
        line, keys = self._rules[number]
        return keys.get(key, line)
