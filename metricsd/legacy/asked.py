"""A request of the older API and its answer, without a transport: paths, queries and bodies as that API read them.

JSON and urlencoded bodies are parsed, any other type counts as an empty object. Ids in paths are data: they are
decoded once, and never become the name of anything. Whatever is wrong with a request is an `ApiError`, which becomes
the API's own error envelope.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from metricsd.errors import MetricsdError

PREFIX = "/api/v1"
DEPTH_MAX = 64
FORM_FIELDS_MAX = 1000
QUERY_CHARS_MAX = 16 * 1024
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_leading_number = re.compile(r"\s*([+-]?\d{1,18})").match
_CHARSETS = frozenset(("", "utf-8", "utf8", "us-ascii"))
_decode = msgspec.json.Decoder().decode


class ApiError(MetricsdError):
    """A request of the older API that is answered with its error envelope."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Invalid(ApiError):
    """A body that one of the current hooks' endpoints refuses, in the words of their application."""


class Request(NamedTuple):
    """One request. `path` and `query` are as they came, escaped; `body` is whole and bounded by the transport."""

    method: str
    path: str
    query: str = ""
    content_type: str = ""
    body: bytes = b""

    def parsed(self) -> Any:
        """Return the body as JSON values; raise ApiError 400 or 415."""
        kind, _, rest = self.content_type.partition(";")
        match kind.strip().lower():
            case "application/json":
                return self._json(rest)
            case "application/x-www-form-urlencoded":
                return self._form(rest)
            case _:
                return {}

    def fields(self) -> dict[str, Any]:
        """Return the body as an object; anything else counts as an empty one."""
        found = self.parsed()
        return found if isinstance(found, dict) else {}

    def queried(self) -> Mapping[str, str | None]:
        """Return the query's values by name; None where a name was given more than once, which equals nothing."""
        if len(self.query) > QUERY_CHARS_MAX:
            raise ApiError(400, f"The query has more than {QUERY_CHARS_MAX} characters")
        found: dict[str, str | None] = {}
        for name, value in _pairs(self.query):
            # `user[]` and `user[x]` made lists and objects, which equal no text either.
            plain, bracket, _ = name.partition("[")
            found[plain] = None if bracket or plain in found else value
        return found

    def _json(self, parameters: str) -> Any:
        _check_charset(parameters)
        if not self.body.strip():
            return {}
        if self.body.count(b"[") + self.body.count(b"{") > DEPTH_MAX and _depth(self.body) > DEPTH_MAX:
            raise ApiError(400, f"The body is nested deeper than {DEPTH_MAX} levels")
        try:
            found = _decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
            raise ApiError(400, "The body is not valid JSON") from None
        # As its parser had it: only an object or an array is a body.
        if not isinstance(found, dict | list):
            raise ApiError(400, "The body is not a JSON object or array")
        return found

    def _form(self, parameters: str) -> dict[str, Any]:
        _check_charset(parameters)
        found: dict[str, Any] = {}
        for name, value in _pairs(self.body.decode("utf-8", "replace")):
            if name in found:
                known = found[name]
                found[name] = [*known, value] if isinstance(known, list) else [known, value]
            else:
                found[name] = value
        return found


class Answer(NamedTuple):
    """What goes back, as JSON."""

    status: int
    document: Mapping[str, Any]

    def encoded(self) -> bytes:
        """Return the body."""
        return msgspec.json.encode(self.document)


def segments(path: str) -> list[str]:
    """Return the decoded parts of a path below the prefix; raise ApiError 404 or 400.

    Decoded part by part: an escaped slash belongs to the id that it stands in.
    """
    if path != PREFIX and not path.startswith(f"{PREFIX}/"):
        raise no_route(path)
    raw = path[len(PREFIX) + 1 :].encode("latin-1", "replace")
    parts = raw.split(b"/")
    if len(parts) > 1 and parts[-1] == b"":
        parts.pop()
    found = []
    for part in parts:
        if _BAD_ESCAPE.search(part):
            raise ApiError(400, "Failed to decode the path")
        try:
            found.append(unquote_to_bytes(part).decode("utf-8"))
        except UnicodeDecodeError:
            raise ApiError(400, "Failed to decode the path") from None
    return found


def no_route(path: str) -> ApiError:
    """Return the answer for a path, or a method of one, that there is not."""
    return ApiError(404, f"Route {path[:200]} not found")


def leading_number(text: str | None, default: int) -> int | None:
    """Return the whole number that a text begins with, as that API read numbers; None where there is none."""
    if text == "" or text is None:
        return default if text is None else None
    found = _leading_number(text)
    return int(found[1]) if found is not None else None


def _pairs(text: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=FORM_FIELDS_MAX, errors="replace")
    except ValueError:
        raise ApiError(400, f"More than {FORM_FIELDS_MAX} fields") from None


def _check_charset(parameters: str) -> None:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip('"').lower() not in _CHARSETS:
            raise ApiError(415, "Unsupported charset: send UTF-8")


def _depth(body: bytes) -> int:
    """Return how deep brackets are nested at most, those in texts not counted."""
    deepest = depth = 0
    for text in re.findall(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', body):
        if text in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif text in (b"]", b"}"):
            depth -= 1
    return deepest
