"""Rows of a report as people, programs and spreadsheets read them: aligned text, a JSON array, CSV.

Values come from strangers: what could steer a terminal is not shown, and what a spreadsheet would take for a formula
is quoted.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

Row = Mapping[str, Any]

CELL_CHARS_MAX = 40
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_json(rows: Iterable[Row], out: TextIO) -> None:
    """Write a JSON array, one object a line."""
    out.write("[")
    for number, row in enumerate(rows):
        out.write(",\n " if number else "\n ")
        out.write(json.dumps(row, ensure_ascii=False, allow_nan=False))
    out.write("\n]\n")


def write_csv(rows: Iterable[Row], columns: Sequence[str], out: TextIO) -> None:
    """Write CSV with a header; lists are joined by a semicolon, nothing is an empty cell."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([csv_cell(row.get(name)) for name in columns])


def csv_cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    if isinstance(value, list | tuple):
        value = ";".join(map(str, value))
    if isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False) if value else ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value


def text_table(rows: Sequence[Sequence[str]], headers: Sequence[str], *, left: int = 1) -> str:
    """Return aligned columns; the first `left` ones are texts, the others numbers."""
    shown = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in [headers, *shown]) for index in range(len(headers))]
    lines = []
    for row in [list(headers), *shown]:
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def clean(text: str) -> str:
    """Return a text cut to a cell, without what could steer the terminal or what it cannot show."""
    plain = "".join(char if char.isprintable() else " " for char in text[: CELL_CHARS_MAX + 1])
    plain = plain if len(plain) <= CELL_CHARS_MAX else plain[: CELL_CHARS_MAX - 1] + "…"
    encoding = sys.stdout.encoding or "utf-8"
    return plain.encode(encoding, "replace").decode(encoding)


def duration_text(ms: float | None) -> str:
    """Return a duration for people; `-` for none."""
    if ms is None:
        return "-"
    if ms < 1000:
        return f"{ms:.0f} ms"
    for unit, length in (("h", 3_600_000), ("min", 60_000)):
        if ms >= length:
            return f"{ms / length:.1f} {unit}"
    return f"{ms / 1000:.1f} s"


def percent_text(share: float) -> str:
    """Return a share of 1 in percent."""
    return f"{share * 100:.1f} %"
