"""`record`: write one event into the spool, by the same rule as the hooks."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

import click

from metricsd import spool
from metricsd.errors import UsageError


@click.command()
@click.option("--app", default="metricsd", show_default=True, help="The program that the event is of.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
@click.argument("event")
@click.argument("payload", metavar="[JSON|-]", required=False)
def record(app: str, as_json: bool, event: str, payload: str | None) -> None:
    """Write EVENT with a JSON object (`-` reads it from stdin) into the spool and print the capture's path."""
    path = spool.append(event, None if payload is None else _parse(payload), app=app)
    click.echo(json.dumps({"path": str(path), "app": app, "event": event}) if as_json else str(path))


def _parse(payload: str) -> dict[str, Any]:
    where = "stdin" if payload == "-" else "JSON"
    try:
        text = _read_stdin() if payload == "-" else payload
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{where}: must be a JSON object {{...}}")
    return value


def _read_stdin() -> str:
    """Return the text of stdin; raise UsageError when no capture could hold it."""
    raw = sys.stdin.buffer.read(spool.PAYLOAD_BYTES_MAX + 1)
    if len(raw) > spool.PAYLOAD_BYTES_MAX:
        raise UsageError(f"stdin has more than {spool.PAYLOAD_BYTES_MAX} bytes, the most that fits into a capture")
    return raw.decode("utf-8")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
