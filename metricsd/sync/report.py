"""What one sync round did: the shape that `metricsd sync --now --json` prints. Fields are only ever added."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from metricsd.errors import (
    EXIT_FAILED,
    EXIT_LOGIN,
    EXIT_OK,
    AuthError,
    CloudBusy,
    CloudRefused,
    CloudUnreachable,
    CursorExpired,
    HistoryChanged,
    MetricsdError,
    StreamForked,
)
from metricsd.protocol import WireEvent

REJECTED_LISTED_MAX = 100
"""Rejected items that a report names; all of them are in quarantine."""

_CODES: dict[type[MetricsdError], str] = {
    AuthError: "auth",
    CloudUnreachable: "unreachable",
    CloudBusy: "busy",
    CloudRefused: "refused",
    HistoryChanged: "history_changed",
    CursorExpired: "cursor_expired",
    StreamForked: "stream_fork",
}


class Conflicts(Struct):
    """Conflicts of a round: how many were resolved (and by which strategy), how many are open now."""

    resolved: int = 0
    open: int = 0
    by_strategy: dict[str, int] = field(default_factory=dict)

    def add(self, done: Mapping[str, int]) -> None:
        """Add conflicts that were resolved, by strategy."""
        for strategy, count in done.items():
            self.resolved += count
            self.by_strategy[strategy] = self.by_strategy.get(strategy, 0) + count


class Rejected(Struct, frozen=True):
    """An item that the cloud, or this device, would not take; `id` is the event's or the record's."""

    id: str
    reason: str


class Failure(Struct, frozen=True):
    """Why a round ended early: a stable code and the sentence for the user."""

    code: str
    message: str


class Report(Struct):
    """What one round did. `more` says that a bound ended it before everything was done; `notes` are for the user.

    `mode` is the failover mode after it, which whoever asked for the round fills in.
    """

    ok: bool = False
    mode: str = ""
    pushed_events: int = 0
    pushed_records: int = 0
    pulled_events: int = 0
    pulled_records: int = 0
    conflicts: Conflicts = field(default_factory=Conflicts)
    rejected: list[Rejected] = field(default_factory=list)
    duration_ms: int = 0
    more: bool = False
    error: Failure | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Return what the command line exits with."""
        if self.ok:
            return EXIT_OK
        return EXIT_LOGIN if self.error is not None and self.error.code == "auth" else EXIT_FAILED

    def reject(self, item_id: str, reason: str) -> None:
        """List a rejected item, up to a bound."""
        if len(self.rejected) < REJECTED_LISTED_MAX:
            self.rejected.append(Rejected(item_id, reason))


class DryRun(Struct):
    """What a round would send, without asking the cloud: counts, and the first events exactly as they would go."""

    ok: bool
    url: str | None
    pending_events: int
    pending_records: int
    events: list[WireEvent]


def failure_of(error: MetricsdError) -> Failure:
    """Return the report's form of an error."""
    return Failure(_CODES.get(type(error), "failed"), str(error))
