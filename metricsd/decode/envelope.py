"""The wrapper around every payload: one JSON line of a capture or of a shared file.

`parse_line` turns bytes into a `Line` or says with a stable reason why it cannot; the payload stays raw bytes, to
be read once by the decoder of its app. It forgives what editors and tools do to good lines (a byte order mark,
CRLF, spaces, halves of surrogate pairs) and nothing else. Nothing here keeps or logs a line's content.
"""

from __future__ import annotations

import codecs
import math
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NoReturn

import msgspec
from msgspec import Raw, Struct

from metricsd.clock import US_PER_MS, US_PER_S
from metricsd.errors import LineRejected

LINE_VERSION = 1
LINE_BYTES_MAX = 256 * 1024 * 1024
"""Longest line that is parsed: the highest `tail.line_bytes_max`. The tail refuses lines above its own setting."""
WRAPPER_CHARS_MAX = 128
"""Longest `app` and `event`: both are words that the hook's registration chose."""
OWN_ID_CHARS_MAX = 512
AT_US_MAX = 10_000_000_000 * US_PER_S
"""2286-11-20: the last second of ten digits. A stamp behind it is in another unit or wrong."""

_BOM = codecs.BOM_UTF8
_UTF8_CHUNK_BYTES = 1024 * 1024
_STAMPS_CACHED = 512
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US_PER_DAY = 86_400 * US_PER_S
_US_PER_MINUTE = 60 * US_PER_S
_HOURS_CACHED = 1024
# What nearly every program writes: UTC with milli- or microseconds. Its hour is known from the lines before.
_in_utc = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:)([0-5][0-9]):([0-5][0-9])\.([0-9]{3}|[0-9]{6})(?:Z|\+00:00)"
).fullmatch
_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)
# Every escape is consumed whole, so that the `\u` of an escaped backslash is never taken for one.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[dD][c-fC-F][0-9a-fA-F]{2})?|u[dD][c-fC-F][0-9a-fA-F]{2}|.)", re.DOTALL
)
_ESCAPE_BYTES = 6


class Line(Struct, frozen=True, gc=False):
    """One line of input.

    v         version of the wrapper
    app       the tool that ran the hook; event the name it gave
    payload   what the tool said, as raw JSON
    s         second since 1970 at which the hook ran (captures)
    ts        RFC 3339 text or milliseconds since 1970 (shared files)
    id        the writer's own id of the line: `id`, or the older hooks' `enhanced_activity.id`
    oversize  bytes of a payload that was too long to write; such a line is always rejected
    enhanced_activity   the older hooks' own account, read for its id alone
    """

    v: int
    app: str
    event: str
    payload: Raw = Raw(b"")
    s: int | None = None
    ts: int | float | str | None = None
    id: str | None = None
    oversize: int | None = None
    enhanced_activity: Raw = Raw(b"")


class _Activity(Struct):
    id: str | None = None


class _Version(Struct):
    v: int


_decode = msgspec.json.Decoder(Line).decode
_decode_activity = msgspec.json.Decoder(_Activity).decode
_decode_version = msgspec.json.Decoder(_Version).decode


def parse_line(data: bytes) -> Line:
    """Return the line in `data` (with or without its newline).

    Raise LineRejected with reason `oversize`, `nul`, `bad_utf8`, `bad_json`, `too_deep`, `newer_version`,
    `bad_fields` or `bad_time`.
    """
    if len(data) > LINE_BYTES_MAX:
        raise LineRejected("oversize", f"{len(data)} bytes, at most {LINE_BYTES_MAX}")
    if 0 in data:
        raise LineRejected("nul", f"a NUL byte at {data.index(0)}: the file was truncated or copied while written")
    if not data.isascii():
        data = data.removeprefix(_BOM)
        _check_utf8(data)
    try:
        line = _decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        line = _second_chance(data, error)
    _check(line)
    return _with_older_id(line) if line.id is None and len(line.enhanced_activity) else line


def stamp_us(line: Line) -> int | None:
    """Return the line's own time as microseconds since 1970 UTC, None without one.

    Raise LineRejected with reason `bad_time` for what is neither RFC 3339 with an offset nor milliseconds, or lies
    outside 1970 to 2286. Digits beyond microseconds are cut.
    """
    stamp = line.ts
    if stamp is None:
        return None
    if isinstance(stamp, str):
        found = _in_utc(stamp)
        if found is not None:
            hour, minute, second, fraction = found.groups()
            at_us = _hour_us(hour) + int(minute) * _US_PER_MINUTE
            at_us += int(second + fraction) * (US_PER_MS if len(fraction) == 3 else 1)
        else:
            at_us = _text_us(stamp) if len(stamp) <= 64 else _reject_time("text is too long")
    elif isinstance(stamp, int):
        at_us = stamp * US_PER_MS
    else:
        at_us = round(stamp * US_PER_MS) if math.isfinite(stamp) else _reject_time("not a finite number")
    if not 0 <= at_us < AT_US_MAX:
        _reject_time("outside 1970 to 2286; numbers are milliseconds since 1970")
    return at_us


def stamp_ms(line: Line) -> int | None:
    """Return the line's own time as milliseconds since 1970 UTC, rounded down; see `stamp_us`."""
    at_us = stamp_us(line)
    return None if at_us is None else at_us // US_PER_MS


def _check_utf8(data: bytes) -> None:
    # msgspec does not look at the text that it skips, and a payload is mostly skipped. Chunks keep a long line
    # from costing four times its size in memory.
    try:
        if len(data) <= _UTF8_CHUNK_BYTES:
            data.decode()
            return
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, len(data), _UTF8_CHUNK_BYTES):
            decoder.decode(data[start : start + _UTF8_CHUNK_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise LineRejected("bad_utf8", error.reason) from None


def _second_chance(data: bytes, error: Exception) -> Line:
    """Return the line in the repaired bytes, or raise LineRejected for the first `error`.

    JavaScript cuts text between the halves of a surrogate pair and writes the half as an escape. Such a line is
    real; the half becomes U+FFFD, which is as long, so that no size changes.
    """
    repaired = _ESCAPE.sub(_whole_escape, data) if b"\\u" in data else data
    if repaired != data:
        try:
            return _decode(repaired)
        except (msgspec.MsgspecError, RecursionError) as again:
            error = again
    raise _rejection(repaired, error) from None


def _whole_escape(found: re.Match[bytes]) -> bytes:
    text = found[0]
    is_half = len(text) == _ESCAPE_BYTES and text[2:3] in b"dD"
    return b"\\ufffd" if is_half else text


def _rejection(data: bytes, error: Exception) -> LineRejected:
    if isinstance(error, RecursionError):
        return LineRejected("too_deep", "arrays or objects nested too deep")
    if not isinstance(error, msgspec.ValidationError):
        return LineRejected("bad_json", str(error))
    try:
        version = _decode_version(data).v
    except msgspec.MsgspecError:
        return LineRejected("bad_fields", "`v` must be a whole number")
    return _newer(version) if version > LINE_VERSION else LineRejected("bad_fields", str(error))


def _newer(version: int) -> LineRejected:
    return LineRejected("newer_version", f"version {version}, this metricsd reads {LINE_VERSION}; upgrade metricsd")


def _check(line: Line) -> None:
    if line.v > LINE_VERSION:
        raise _newer(line.v)
    if line.v < LINE_VERSION:
        raise LineRejected("bad_fields", f"`v` must be {LINE_VERSION}")
    if not 0 < len(line.app) <= WRAPPER_CHARS_MAX:
        raise LineRejected("bad_fields", f"`app` must have 1 to {WRAPPER_CHARS_MAX} characters")
    if not 0 < len(line.event) <= WRAPPER_CHARS_MAX:
        raise LineRejected("bad_fields", f"`event` must have 1 to {WRAPPER_CHARS_MAX} characters")
    if line.oversize is not None:
        raise LineRejected("oversize", f"a payload of {line.oversize} bytes was too long to capture")
    if not len(line.payload):
        raise LineRejected("bad_fields", "`payload` is missing")
    if line.s is not None and not 0 <= line.s < AT_US_MAX // US_PER_S:
        raise LineRejected("bad_time", "`s` must be a second from 1970 to 2286")
    if line.id is not None:
        _check_own_id(line.id)


def _check_own_id(own_id: str) -> None:
    if not 0 < len(own_id) <= OWN_ID_CHARS_MAX:
        raise LineRejected("bad_fields", f"`id` must have 1 to {OWN_ID_CHARS_MAX} characters")


def _with_older_id(line: Line) -> Line:
    try:
        own_id = _decode_activity(line.enhanced_activity).id
    except (msgspec.MsgspecError, RecursionError):
        return line
    if own_id is None:
        return line
    _check_own_id(own_id)
    return msgspec.structs.replace(line, id=own_id)


def _reject_time(detail: str) -> NoReturn:
    raise LineRejected("bad_time", f"`ts`: {detail}")


@lru_cache(maxsize=_HOURS_CACHED)
def _hour_us(hour: str) -> int:
    return _text_us(hour + "00:00Z")


@lru_cache(maxsize=_STAMPS_CACHED)
def _text_us(text: str) -> int:
    if _RFC3339.fullmatch(text) is None:
        _reject_time("not RFC 3339 with an offset")
    text = text.upper()
    leap_us = 0
    if text[17:19] == "60":
        text, leap_us = f"{text[:17]}59{text[19:]}", US_PER_S
    try:
        since: timedelta = datetime.fromisoformat(text) - _EPOCH
    except (ValueError, OverflowError):
        _reject_time("no such date, time or offset")
    return since.days * _US_PER_DAY + since.seconds * US_PER_S + since.microseconds + leap_us
