"""The question `POST /have`: which events are here already, asked before a bulk upload. Decoded and checked here. Pure.

A range is compared by the number and a digest of its ids, so that years of history that are here already cost one
small request. Everything is bounded: the ids and ranges of a request, and the rows that all its ranges look at.
"""

from __future__ import annotations

import msgspec

from metricsd.cloud.problems import refuse, too_large
from metricsd.cloud.shape import check_shape
from metricsd.cloud.wiretext import is_event_id
from metricsd.config import Cloud
from metricsd.protocol import HaveRequest

RANGES_MAX = 256
ROWS_MAX = 20_000
"""Rows that one request looks at: some tens of milliseconds."""
_DECODE = msgspec.json.Decoder(HaveRequest).decode


def parse_have(body: bytes, settings: Cloud) -> HaveRequest:
    """Return the question; raise 400 or 413 for what is wrong with it."""
    check_shape(body, settings)
    try:
        asked = _DECODE(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # The text of a decoder names a field and a type, and repeats nothing of the body.
        raise refuse(
            400, "bad_request", str(error) if isinstance(error, msgspec.ValidationError) else "not JSON"
        ) from error
    if len(asked.ids) > settings.items_max:
        raise too_large("items_max", settings.items_max)
    if len(asked.ranges) > RANGES_MAX:
        raise too_large("ranges_max", RANGES_MAX)
    ends = [end for each in asked.ranges for end in (each.first, each.last)]
    if not all(is_event_id(text) for text in (*asked.ids, *ends)):
        raise refuse(400, "bad_request", "ids are 32 hexadecimal characters")
    return asked
