"""`legacy convert`: JSON lines of one older format in, JSON lines of the other out.

A line that cannot be converted is an error on stderr with its number, and the stream goes on; the exit code says at
the end whether there was one. Memory is bounded by the longest line, which has a cap.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from metricsd.errors import EXIT_FAILED, EXIT_OK, LineRejected, UsageError

if TYPE_CHECKING:
    from metricsd.legacy.convert import Converter

LINE_BYTES_MAX = 16 * 1024 * 1024
_DIRECTIONS_HELP = "`metricsd legacy convert --list` shows them"


@click.group()
def legacy() -> None:
    """Formats of the older system."""


@legacy.command()
@click.argument("direction", required=False)
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(allow_dash=True), default="-")
@click.option("--lossless", is_flag=True, help="Carry along what the other form has no place for, under one more key.")
@click.option("--list", "as_list", is_flag=True, help="List the directions.")
def convert(direction: str | None, file: str, lossless: bool, as_list: bool) -> int:
    """Convert JSON lines in DIRECTION, for example `session:local->cloud`, from FILE or stdin to stdout."""
    from metricsd.clock import SystemClock
    from metricsd.legacy.convert import DIRECTIONS, Converter

    if as_list:
        click.echo("\n".join(DIRECTIONS))
        return EXIT_OK
    if direction not in DIRECTIONS:
        raise UsageError(f"no direction {(direction or '')[:60]!r}: {_DIRECTIONS_HELP}")
    converter = Converter(SystemClock().now_us() // 1000, lossless=lossless)
    bad = 0
    with _opened(file) as stream:
        for number, line in _lines(stream):
            try:
                sys.stdout.write(_converted(converter, direction, line) + "\n")
            except LineRejected as error:
                bad += 1
                click.echo(f"metricsd: line {number}: {error.detail or error.reason}", err=True)
    if bad:
        click.echo(f"metricsd: {bad} line{'' if bad == 1 else 's'} could not be converted", err=True)
    return EXIT_FAILED if bad else EXIT_OK


@contextlib.contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        # Opened here, so that a missing file does not look like a failed conversion.
        stream = Path(file).open("rb")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    with stream:
        yield stream


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number, line) of every line that is not empty; None for one that is longer than the cap."""
    number = 0
    while line := stream.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) <= LINE_BYTES_MAX:
            if line.strip():
                yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(LINE_BYTES_MAX)
        yield number, None


def _converted(converter: Converter, direction: str, line: bytes | None) -> str:
    import msgspec

    if line is None:
        raise LineRejected("bad_record", f"longer than {LINE_BYTES_MAX} bytes")
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LineRejected("bad_record", f"not valid JSON: {error}") from error
    found = converter.convert(direction, value)
    try:
        return msgspec.json.encode(found).decode()
    except (RecursionError, ValueError, UnicodeEncodeError, OverflowError) as error:
        raise LineRejected("bad_record", f"the result cannot be written as JSON: {error}") from error
