"""One session of everything that its files say of it. Pure.

The rule is the daemon's, who reads the same files while they grow: the first record has the true start, then comes the
summary, then the lines. Field by field the first that says something has the word, so nothing of any file is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from metricsd.decode.older_hooks import SessionNote

T = TypeVar("T")


def merged(notes: Sequence[SessionNote]) -> SessionNote:
    """Return what several files say of one session, the one with the word first."""
    first = notes[0]
    kept: dict[str, Any] = {}
    fields: dict[str, str | int | float | list[str]] = {}
    for note in reversed(notes):
        kept |= note.kept
        fields |= note.fields
    return SessionNote(
        session=first.session,
        start_us=_first(note.start_us for note in notes),
        end_us=_first(note.end_us for note in notes),
        user=_first(note.user for note in notes),
        directory=_first(note.directory for note in notes),
        branch=_first(note.branch for note in notes),
        score=_first(note.score for note in notes),
        kept=kept,
        project=_first(note.project for note in notes),
        fields=fields,
        changes=tuple(dict.fromkeys(change for note in notes for change in note.changes)),
    )


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)
