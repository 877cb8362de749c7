"""Every conversion between the older formats by its name, one value in and one value out.

A conversion answers what the recordings of the older converter show. With `lossless`, its result also carries what
the other form has no place for, under one key of its own, and converting it back gives the original, with what was
changed in between. Hostile values raise LineRejected, which names the field; nothing else is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import msgspec

from metricsd.errors import LineRejected
from metricsd.legacy import answers, sessions, tool_metrics
from metricsd.legacy.values import Json, kind_of, record_of

LOCAL_RECORD = "localRecord"
"""Key of a cloud record that carries the local record which it was made of."""
CLOUD_RECORD = "cloud_record"
"""Key of a local record that carries the cloud record which it was made of."""
BATCH_ITEMS_MAX = 10_000

One = Callable[[object], Json]

_encode = msgspec.json.Encoder(order="sorted").encode


class Converter:
    """The conversions at one moment: `now_ms` is the time of records that have none."""

    def __init__(self, now_ms: int, *, lossless: bool = False) -> None:
        self._now_ms = now_ms
        self._lossless = lossless
        session_up, session_down = self._pair(sessions.to_cloud, sessions.to_local)
        tool_up, tool_down = self._pair(tool_metrics.to_cloud, self._tool_to_local)
        self._by_name: dict[str, Callable[[object], object]] = {
            "session:local->cloud": session_up,
            "session:cloud->local": session_down,
            "session:local->cloud->local": lambda value: session_down(session_up(value)),
            "session:cloud->local->cloud": lambda value: session_up(session_down(value)),
            "session:validate local": lambda value: _verdict(sessions.problems(value)),
            "sessions:local->cloud": _each(session_up),
            "sessions:cloud->local": _each(session_down),
            "tool:local->cloud": tool_up,
            "tool:cloud->local": tool_down,
            "tool:local->cloud->local": lambda value: tool_down(tool_up(value)),
            "tool:cloud->local->cloud": lambda value: tool_up(tool_down(value)),
            "tool:validate local": lambda value: _verdict(tool_metrics.problems(value)),
            "tools:local->cloud": _each(tool_up),
            "tools:cloud->local": _each(tool_down),
            "tools:aggregate local->cloud": lambda value: tool_metrics.aggregate(_items(value)),
            "analytics:cloud->local": answers.analytics,
            "dashboard:cloud->local": answers.dashboard,
            "response:wrap": lambda value: answers.envelope(value, now_ms=now_ms),
        }

    def convert(self, direction: str, value: object) -> object:
        """Return the conversion of one JSON value. Raises LineRejected; KeyError for a direction that there is not."""
        step = self._by_name[direction]
        try:
            return step(value)
        except RecursionError as error:
            raise LineRejected("bad_record", "it is nested too deeply") from error
        except (ValueError, OverflowError) as error:
            # A number of thousands of digits: it parses as JSON and cannot be computed with.
            raise LineRejected("bad_record", "it holds a number that is too large") from error

    def directions(self) -> tuple[str, ...]:
        """Return the name of every conversion."""
        return tuple(self._by_name)

    def _tool_to_local(self, value: object) -> Json:
        return tool_metrics.to_local(value, now_ms=self._now_ms)

    def _pair(self, up: One, down: One) -> tuple[One, One]:
        """Return both steps of one kind of record, which understand and, if asked, leave what they could not keep."""

        def to_cloud(value: object) -> Json:
            return _step(value, (up, down), (CLOUD_RECORD, LOCAL_RECORD), keep=self._lossless)

        def to_local(value: object) -> Json:
            return _step(value, (down, up), (LOCAL_RECORD, CLOUD_RECORD), keep=self._lossless)

        return to_cloud, to_local


def _step(value: object, steps: tuple[One, One], keys: tuple[str, str], *, keep: bool) -> Json:
    """Convert one record. `steps` are this conversion and its reverse, `keys` what is read and what is left."""
    there, back = steps
    read, left = keys
    record = dict(record_of(value, "record"))
    origin = record.pop(read, None)
    found = there(record)
    if origin is not None:
        found = _restored(found, record_of(origin, read), there, back)
    # As text, because 1, 1.0 and true are equal to Python and different to whoever reads the line.
    if keep and _encode(back(found)) != _encode(record):
        found[left] = record
    return found


def _restored(found: Json, origin: Json, there: One, back: One) -> Json:
    """Return the record that `found`'s source was made of, with what was changed since.

    A field that still has the value which the origin alone would give is the origin's, byte for byte.
    """
    untouched = MappingProxyType(there(back(origin)))
    names = dict.fromkeys([*origin, *found])
    missing = object()
    restored: Json = {}
    for name in names:
        now, then = found.get(name, missing), untouched.get(name, missing)
        value = origin.get(name, missing) if now is missing or now == then else now
        if now is missing and then is not missing:
            value = missing
        if value is not missing:
            restored[name] = value
    return restored


def _each(one: One) -> Callable[[object], list[Json]]:
    return lambda value: [one(item) for item in _items(value)]


def _items(value: object) -> list[object]:
    if not isinstance(value, list):
        raise LineRejected("bad_record", f"expected a list of records, not {kind_of(value)}")
    if len(value) > BATCH_ITEMS_MAX:
        raise LineRejected("bad_record", f"a list of {len(value)} records, more than {BATCH_ITEMS_MAX}")
    return value


def _verdict(found: list[str]) -> Json:
    return {"isValid": not found, "errors": found}


DIRECTIONS = Converter(0).directions()
