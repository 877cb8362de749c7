"""Follows the folders of both generations of the older hooks, documents before lines.

A call without its session is matched against the sessions that are known, so all documents are read before the first
line is, and new ones are looked for whenever lines were read: the hooks write a session's document before its first
call. A document that is copied here later claims what is its own. The folders need not exist, and may appear later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metricsd.clock import Clock
from metricsd.config import Tail as Settings
from metricsd.older.documents import Documents
from metricsd.older.lines import OlderLines
from metricsd.older.sessions import OlderSessions
from metricsd.shared import SharedFiles
from metricsd.sink import Sink, Ticked, both
from metricsd.store.sources import Checkpoint


class OlderFolders:
    """The older hooks' folders of one home. Belongs to the thread that writes the store."""

    def __init__(
        self,
        sink: Sink,
        roots: Sequence[str],
        settings: Settings,
        clock: Clock,
        checkpoints: Mapping[str, Checkpoint],
    ) -> None:
        sessions = OlderSessions()
        self._documents = Documents(sink, roots, sessions, settings, clock, checkpoints)
        lines = OlderLines(sessions, self._documents.note_new)
        self._files = SharedFiles(sink, roots, lines, settings, clock, checkpoints)

    def tick(self) -> Ticked:
        """Take in one bounded round. Raises StoreError, and nothing is lost then."""
        done = self._documents.tick()
        if not done.more:
            done = both(done, self._files.tick())
        return done._replace(more=done.more or self._documents.waits)

    def close(self) -> None:
        """Let go of the files that are kept open."""
        self._files.close()
