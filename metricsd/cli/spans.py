"""Spans of time as people write them on the command line: `90s`, `15m`, `12h`, `7d`."""

from __future__ import annotations

from datetime import timedelta

from metricsd.errors import UsageError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_span(text: str, option: str) -> timedelta:
    """Return the span; raise UsageError, which names the option, for anything else."""
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit()) or unit not in _SECONDS:
        raise UsageError(f"{option} {text!r}: write a whole number and s, m, h or d, for example 30d")
    try:
        return timedelta(seconds=int(number) * _SECONDS[unit])
    except (OverflowError, ValueError) as error:
        raise UsageError(f"{option} {text[:40]!r}: too long") from error
