"""`export`: everything that the store holds, streamed as JSON lines or CSV.

Memory does not grow with the store. A file appears under its name only when it is whole, readable by its owner alone.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import click

from metricsd.cli.spans import parse_span
from metricsd.cli.table import csv_cell
from metricsd.config import find_paths
from metricsd.errors import EXIT_OK, UsageError
from metricsd.store import dump

ALL = "all"
_US_PER_S = 1_000_000
_COLUMNS = ("type", *dump.EVENT_FIELDS, "deleted", "fields")
_DAYS_MAX = 36_500


@click.command()
@click.option(
    "--since", metavar="SPAN", default=ALL, help="Only what happened within this time, for example 30d; or `all`."
)
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV, one table for everything, in place of JSON lines.")
@click.option("--output", metavar="FILE", default="-", help="Write to FILE (0600), which appears when it is whole.")
def export(since: str, as_csv: bool, output: str) -> int:
    """Write every event, session and record, of all devices, as JSON lines; fields are only added.

    What is retracted or deleted is written too, and says so.
    """
    since_us = _since_us(since)
    with dump.opened(find_paths().store) as db, _written(output) as out:
        documents = dump.documents(db, since_us) if db is not None else iter(())
        count = _write_csv(documents, out) if as_csv else _write_lines(documents, out)
    click.echo(f"{count} document{'' if count == 1 else 's'}", err=True)
    return EXIT_OK


def _since_us(text: str) -> int | None:
    if text == ALL:
        return None
    span = parse_span(text, "--since")
    return None if span.days > _DAYS_MAX else int((datetime.now(UTC) - span).timestamp() * _US_PER_S)


def _write_lines(documents: Iterable[dump.Document], out: TextIO) -> int:
    count = 0
    for document in documents:
        # Half a surrogate pair has no UTF-8: escaped, it is still JSON.
        out.write(json.dumps(document) + "\n")
        count += 1
    return count


def _write_csv(documents: Iterable[dump.Document], out: TextIO) -> int:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    count = 0
    for document in documents:
        writer.writerow([_encodable(csv_cell(document.get(name))) for name in _COLUMNS])
        count += 1
    return count


def _encodable(cell: object) -> object:
    return cell.encode("utf-8", "replace").decode() if isinstance(cell, str) else cell


@contextlib.contextmanager
def _written(output: str) -> Iterator[TextIO]:
    """Give the stream to write to; a file gets its name when the block has ended well."""
    if output == "-":
        yield sys.stdout
        return
    target = Path(output)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"--output {output}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as out:
            yield out
            out.flush()
            os.fsync(descriptor)
        partial.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
