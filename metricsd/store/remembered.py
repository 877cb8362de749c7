"""What the figures of the last days were put together of, so that after a write only what it changed is read again.

The totals of a day, and a page of sessions, are the same for as long as their mark in the store is (schema step 9), and
marks are read in the snapshot of what they vouch for. So what is remembered decides what an answer costs, never what it
says. Two threads may ask at once: memory is replaced whole and never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from metricsd.store import session_totals
from metricsd.store.summary import DAY_MAX, Summary
from metricsd.totals import Cell, SessionTotal

PAGES_MAX = 256
"""Pages that are remembered, of 64 sessions of about a kilobyte each; of a span with more of them none is."""
SPANS_MAX = 8
"""Spans whose notes are remembered, as many as there are endpoints that ask for different ones."""
NOTES_MAX = 8192
"""Notes that are remembered in all spans together, of less than a kilobyte as a rule; the newest spans stay."""
DAYS_MAX = 100
"""Days whose totals are remembered: a dozen cells each; the newest stay."""
BY = ("day", "kind", "tool")
_DAY_MARKS = """
SELECT d.day, m.mark FROM (SELECT DISTINCT day FROM day_total WHERE day BETWEEN ? AND ?) AS d
LEFT JOIN day_mark AS m ON m.day = d.day
"""
_SESSION_MARKS = "SELECT page, mark FROM session_mark"
_RECORDS = -1
"""The page of session_mark that stands for all records of sessions, and for which session has which number."""

Marks = Mapping[int, int]


class _Day(NamedTuple):
    mark: int | None
    without: frozenset[int]
    """The batches that do not count in it."""
    cells: list[Cell]


class _Page(NamedTuple):
    mark: int | None
    found: Mapping[str, SessionTotal]
    """Its sessions by their records' ids."""


class _Notes(NamedTuple):
    mark: int | None
    texts: Mapping[str, str]
    pages: frozenset[int]


class Remembered:
    """The memory of one store; `summary` is always one of its snapshots."""

    def __init__(self) -> None:
        self._days: Mapping[int, _Day] = {}
        self._pages: Mapping[int, _Page] = {}
        self._notes: Mapping[int, _Notes] = {}

    def cells(self, summary: Summary, first: int) -> list[Cell]:
        """Return the totals by day, kind and tool from a local day on, as `summary.cells` does."""
        days = (first, DAY_MAX)
        if summary.db is None or not summary.stored_here:
            return summary.cells(*BY, days=days)
        marks, known = dict(summary.db.execute(_DAY_MARKS, days)), self._days
        found = {
            day: known[day]
            for day, mark in marks.items()
            if mark is not None and day in known and known[day][:2] == (mark, summary.retracted)
        }
        for start, end in _stretches(marks.keys() - found.keys()):
            read: dict[int, list[Cell]] = {day: [] for day in range(start, end + 1)}
            for cell in summary.kept_cells(*BY, days=(start, end)):
                if cell.day is not None:
                    read[cell.day].append(cell)
            found |= {day: _Day(marks[day], summary.retracted, cells) for day, cells in read.items()}
        self._days = dict(sorted({**known, **found}.items())[-DAYS_MAX:])
        return summary.cells(*BY, days=days, kept=[cell for day in sorted(found) for cell in found[day].cells])

    def sessions(self, summary: Summary, since_us: int) -> list[SessionTotal]:
        """Return the sessions that were active since a time, as `session_totals.read` does."""
        if summary.db is None:
            return []
        marks: Marks = dict(summary.db.execute(_SESSION_MARKS))
        notes = self._read_notes(summary, since_us, marks.get(_RECORDS))
        pages = {
            page: self._read_page(summary, page, marks.get(page))
            for page in session_totals.active_pages(summary, since_us) | notes.pages
        }
        everything = {**self._pages, **pages}
        self._pages = everything if len(everything) <= PAGES_MAX else pages if len(pages) <= PAGES_MAX else {}
        found: dict[str, SessionTotal] = {}
        for page in pages.values():
            found.update(page.found)
        for record_id in notes.texts.keys() - found.keys():
            one = session_totals.of_note(record_id, notes.texts[record_id])
            if one is not None:
                found[record_id] = one
        return session_totals.finished(summary, found, since_us)

    def _read_page(self, summary: Summary, page: int, mark: int | None) -> _Page:
        known = self._pages.get(page)
        if known is not None and mark is not None and known.mark == mark:
            return known
        return _Page(mark, session_totals.of_page(summary, page))

    def _read_notes(self, summary: Summary, since_us: int, mark: int | None) -> _Notes:
        known = self._notes.get(since_us)
        if known is not None and mark is not None and known.mark == mark:
            return known
        found = _Notes(mark, *session_totals.recent_notes(summary, since_us))
        spans = [*((since, notes) for since, notes in self._notes.items() if since != since_us), (since_us, found)]
        while len(spans) > SPANS_MAX or sum(len(notes.texts) for _, notes in spans) > NOTES_MAX:
            del spans[0]
        self._notes = dict(spans)
        return found


def _stretches(days: Iterable[int]) -> list[tuple[int, int]]:
    """Return days as stretches of consecutive ones, (first, last)."""
    found: list[tuple[int, int]] = []
    for day in sorted(days):
        if found and day == found[-1][1] + 1:
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    return found
