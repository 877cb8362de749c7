"""Captures straight to the cloud while the mode is `remote_only`: when, how often, and what it says about the cloud.

One delivery at a time. It goes on until nothing is left or the mode is another one; a cloud that asks for patience
gets it. The captures stay in the spool until the store has them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from metricsd.clock import Clock
from metricsd.direct import Sent
from metricsd.errors import CloudBusy, CloudError, StoreUnavailable
from metricsd.health import Outcome, outcome_of
from metricsd.sync.plan import RETRY_AFTER_MAX_S

BUSY_PAUSE_S = 5.0
"""When a cloud asks for patience and does not say how much."""
ANSWERS = 2
"""What a delivery counts for: it is work done, not a probe."""

log = structlog.get_logger("direct")


class Sender(Protocol):
    """Sends one bounded round of captures."""

    async def tick(self) -> Sent:
        """Send, and say what was sent; raises CloudError, StoreUnavailable."""
        ...


class Delivering:
    """The deliveries of one home."""

    def __init__(
        self, sender: Sender, clock: Clock, is_wanted: Callable[[], bool], on_outcome: Callable[[Outcome], None]
    ) -> None:
        """`is_wanted` says whether captures go straight to the cloud now; `on_outcome` is told what a round says of it."""
        self._sender = sender
        self._clock = clock
        self._is_wanted = is_wanted
        self._on_outcome = on_outcome
        self._busy = asyncio.Lock()
        self._not_before_s = 0.0
        self._is_failing = False

    async def deliver(self) -> int:
        """Send what lies in the spool and was not sent yet; return how many events the cloud did not know.

        Raises nothing: what failed is an outcome, and the captures wait.
        """
        stored = 0
        async with self._busy:
            while self._is_wanted() and self._clock.monotonic() >= self._not_before_s:
                sent = await self._round()
                if sent is None:
                    break
                stored += sent.stored
                if not sent.left:
                    break
        return stored

    async def _round(self) -> Sent | None:
        began = self._clock.monotonic()
        try:
            sent = await self._sender.tick()
        except CloudError as error:
            if isinstance(error, CloudBusy):
                pause_s = BUSY_PAUSE_S if error.retry_after_s is None else min(error.retry_after_s, RETRY_AFTER_MAX_S)
                self._not_before_s = self._clock.monotonic() + pause_s
            self._tell_failure(str(error))
            self._note(error, began, 0)
            return None
        except StoreUnavailable as error:
            self._tell_failure(str(error))
            return None
        self._is_failing = False
        if sent.stored or sent.known:
            log.debug("captures.delivered", stored=sent.stored, known=sent.known, left=sent.left)
            self._note(None, began, ANSWERS)
        return sent

    def _note(self, error: CloudError | None, began: float, answers: int) -> None:
        now = self._clock.monotonic()
        self._on_outcome(outcome_of(error, at_s=now, took_s=now - began, answers=answers))

    def _tell_failure(self, reason: str) -> None:
        if not self._is_failing:
            log.warning("delivery.failed", reason=reason)
        self._is_failing = True
