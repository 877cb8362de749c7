"""Chooses the decoder of a line: by its app, and by marks in the payload where another tool runs Claude's hooks.

The one function of this package that callers need beside `parse_line`. It adds nothing to what decoders return.
"""

from __future__ import annotations

from metricsd.decode import claude_code
from metricsd.decode.claude_code import decode_claude_code
from metricsd.decode.envelope import Line
from metricsd.decode.generic import CURSOR, clean_name, decode_generic
from metricsd.decode.payload import read_payload
from metricsd.decode.repository import Repositories
from metricsd.model import Event


def decode_line(line: Line, at_us: int, repositories: Repositories) -> Event:
    """Return the event of a parsed line.

    `at_us` is its time in microseconds since 1970 UTC (a capture's file time, or `stamp_us`); `repositories` finds
    project and branch. Raise LineRejected with reason `bad_fields` when the payload is not an object, `too_deep` or
    `bad_json` when it cannot be read.
    """
    payload = read_payload(line.payload)
    if line.app != claude_code.APP:
        return decode_generic(payload, line.app, line.event, at_us, repositories)
    # Cursor loads Claude Code's settings and runs its hooks; its payloads carry marks of its own.
    if payload.conversation_id is not None or len(payload.cursor_version):
        return decode_generic(payload, CURSOR, line.event, at_us, repositories)
    return decode_claude_code(payload, clean_name(line.event), at_us, repositories)
