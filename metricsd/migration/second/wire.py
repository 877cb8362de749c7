"""The form in which rows leave this machine, worked out a second time (docs/security.md: what is sent).

Names become keyed hashes: of tools that do not ship with an AI tool, of agents, projects and branches. Only the closed
list of built-in tools is common with the code that sends, because it is data.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b

import msgspec

from metricsd.migration.digest import Row
from metricsd.migration.rows import EVENT_COLUMNS
from metricsd.migration.second.words import OTHER
from metricsd.sync.outgoing import BUILT_IN_TOOLS

HASH_BYTES = 12
_HASHES_MAX = 4096
_is_word = re.compile(r"[A-Za-z0-9_.:-]{1,64}").fullmatch
_is_id = re.compile(r"[A-Za-z0-9._:@-]{1,200}").fullmatch
_is_model = re.compile(r"[A-Za-z0-9._:@/\[\]-]{1,200}").fullmatch
_is_subject = re.compile(r"\.?[A-Za-z0-9_+.-]{1,40}").fullmatch
_is_key = re.compile(r"[a-z][a-z0-9_]{0,39}").fullmatch
_AT = {name: place for place, name in enumerate(EVENT_COLUMNS)}


class Sent(msgspec.Struct, frozen=True):
    """The tenant's key (hexadecimal), whether names are sent, and the projects that the user shares."""

    key: str
    names: bool
    shared: tuple[str, ...]


class Wire:
    """Turns rows of events into the form in which they are sent."""

    def __init__(self, sent: Sent) -> None:
        self._names = sent.names
        self._shared = frozenset(sent.shared)
        key = bytes.fromhex(sent.key)

        @lru_cache(maxsize=_HASHES_MAX)
        def keyed(what: str, text: str) -> str:
            return blake2b(
                f"{what}\0{text}".encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES, key=key
            ).hexdigest()

        self._hash = keyed

    def __call__(self, row: Row) -> Row:
        """Return a row as it is sent."""
        values = list(row)
        for name in ("kind", "app", "name"):
            values[_AT[name]] = self._word(str(row[_AT[name]]))
        for name in ("session", "call"):
            values[_AT[name]] = self._unless(_is_id, "h", "id", row[_AT[name]])
        for name in ("outcome", "reason"):
            values[_AT[name]] = self._or_other(_is_word, row[_AT[name]])
        values[_AT["subject"]] = self._or_other(_is_subject, row[_AT["subject"]])
        values[_AT["model"]] = self._unless(_is_model, "custom", "model", row[_AT["model"]])
        tool, project = row[_AT["tool"]], row[_AT["project"]]
        if tool is not None and tool not in BUILT_IN_TOOLS and tool != OTHER:
            values[_AT["tool"]] = self._named("custom", "tool", tool)
        values[_AT["agent"]] = self._named("custom", "agent", row[_AT["agent"]])
        if project not in self._shared:
            values[_AT["project"]] = self._named("h", "project", project)
            values[_AT["branch"]] = self._named("h", "branch", row[_AT["branch"]])
        values[_AT["extra"]] = _extra(row[_AT["extra"]])
        return tuple(values)

    def _word(self, text: str) -> str:
        return text if _is_word(text) else f"custom:{self._hash('word', text)}"

    def _named(self, prefix: str, what: str, name: object) -> object:
        return name if name is None or self._names else f"{prefix}:{self._hash(what, str(name))}"

    def _unless(self, fits: object, prefix: str, what: str, text: object) -> object:
        return text if text is None or fits(str(text)) else f"{prefix}:{self._hash(what, str(text))}"  # type: ignore[operator]

    def _or_other(self, fits: object, text: object) -> object:
        return text if text is None or fits(str(text)) else OTHER  # type: ignore[operator]


def _extra(extra: object) -> Row | None:
    """Return further numbers and categories: a row of names and values in turns."""
    if not isinstance(extra, tuple | list):
        return None
    kept: list[object] = []
    for name, value in zip(extra[::2], extra[1::2], strict=True):
        if _is_key(str(name)) and (isinstance(value, int) or _is_id(str(value))):
            kept += (name, value)
    return tuple(kept) or None
