"""Finds out by itself that the cloud is gone or back: probes, as few as its promises allow.

While all is well the traffic itself is the proof, the stream's heartbeat included, and only silence is probed. A cloud
that has just failed is probed at once, one that is away every few seconds, later less often. A probe has a deadline
and carries nothing but the login's token; without a login, after a refused one and in a forced `local_only` there are
none. One probe at a time; the mode is stepped here too, when its time has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from enum import StrEnum
from random import Random
from typing import NamedTuple, Protocol

import structlog

from metricsd import identity
from metricsd.client import CloudClient
from metricsd.clock import Clock
from metricsd.config import Failover, Paths, Sync
from metricsd.errors import CloudError, CloudUnreachable, ConfigError, Fault, MetricsdError, UsageError
from metricsd.failover import CloudHealth
from metricsd.health import Outcome, outcome_of

CONFIRM_SHARE = 0.2
"""Of the usual pause: after a first failure, and after a first good answer, one more tells which it was."""
JITTER_SHARE = 0.4
"""Up to this share is taken off each pause, so that a fleet does not probe in step."""
MARGIN_SHARE = 0.05
BEAT_MARGIN_SHARE = 0.05
"""A heartbeat may be late by this much before its absence means something."""
TIMEOUT_SHARE_MIN = 0.1
TIMEOUT_SHARE_MAX = 0.4
"""Of `detect_s`: how long a probe of a silent cloud may take, so that silence and probe stay within it together."""
WAIT_S_MAX = 3600.0

log = structlog.get_logger("probe")


class Kind(StrEnum):
    """What is asked."""

    CHEAP = "cheap"
    """Whether anybody is there: costs the cloud no look into its database."""
    FULL = "full"
    """Whether the cloud does its work for this login."""


class Subject(Protocol):
    """The governor, as far as this needs it."""

    @property
    def cloud(self) -> CloudHealth:
        """How the cloud answers."""
        ...

    @property
    def is_suspect(self) -> bool:
        """Whether it failed just now."""
        ...

    @property
    def is_cut_off(self) -> bool:
        """Whether nothing but probes goes to it."""
        ...

    @property
    def is_silent_by_hand(self) -> bool:
        """Whether nothing may be sent."""
        ...

    @property
    def heard_at_s(self) -> float:
        """When something last came from it."""
        ...

    @property
    def outage_s(self) -> float:
        """For how long it has been away."""
        ...

    @property
    def is_promising(self) -> bool:
        """Whether it has just answered well for the first time."""
        ...

    def note(self, outcome: Outcome) -> None:
        """Take an outcome in."""
        ...

    def note_heard(self) -> None:
        """Take in that something came from it."""
        ...

    def note_wake(self) -> None:
        """Take in that this process stood still."""
        ...

    def seconds_to_step(self) -> float | None:
        """When to step."""
        ...

    def step(self) -> bool:
        """Change the mode if the time has come."""
        ...


class Asker(Protocol):
    """Asks the cloud."""

    async def ask(self, kind: Kind, timeout_s: float) -> None:
        """Return when it answered well; raise CloudError else."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


class Quiet(NamedTuple):
    """After how much silence a cloud that seems well is probed, and how long it may take to answer."""

    after_s: float
    timeout_s: float


class Prober:
    """The daemon's probe task."""

    def __init__(
        self,
        subject: Subject,
        asker: Asker,
        settings: Failover,
        clock: Clock,
        *,
        beat_s: Callable[[], float | None] = lambda: None,
        before_good: Callable[[], Awaitable[None]] | None = None,
        rng: Random | None = None,
    ) -> None:
        """`beat_s` says how often a living stream of news is heard of, None without one.

        `before_good` gathers what should be known before a good answer is judged.
        """
        self._subject = subject
        self._asker = asker
        self._settings = settings
        self._clock = clock
        self._beat_s = beat_s
        self._before_good = before_good
        self._rng = rng or Random()  # noqa: S311  it spreads load, it keeps no secret
        self._wake = asyncio.Event()
        self._anew = asyncio.Event()
        self._is_asked = False
        self._last_s = -math.inf
        self._began_s = self._clock.monotonic()
        self._pause_share = 1.0

    def soon(self, *, anew: bool = False) -> None:
        """Probe at once: something makes the cloud suspect, or (`anew`) the network is another one.

        A probe that is under way goes on, unless it went out through the network of before.
        """
        self._is_asked = True
        if anew:
            self._anew.set()
            self._last_s = -math.inf
        self._wake.set()

    def look_again(self) -> None:
        """Reckon anew when the next probe is due, because the evidence changed."""
        self._wake.set()

    async def loop(self) -> None:
        """Probe when it is time, for ever."""
        while True:
            self._wake.clear()
            await self.tick()
            wait_s = self.wait_s()
            began = self._clock.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            if self._clock.monotonic() - began - wait_s > max(self._settings.settle_s, self._settings.dwell_s):
                # This process was stopped, or starved: whatever timed out meanwhile says nothing about the cloud.
                self._subject.note_wake()

    async def close(self) -> None:
        """Close the connection to the cloud."""
        await self._asker.close()

    async def tick(self) -> Kind | None:
        """Step the mode, and probe if that is due; return what was asked."""
        self._subject.step()
        if self._probe_wait_s() > 0:
            return None
        return await self._probe()

    def wait_s(self) -> float:
        """Return how long nothing is to be done."""
        step_s = self._subject.seconds_to_step()
        return min(self._probe_wait_s(), WAIT_S_MAX if step_s is None else max(step_s, 0.001), WAIT_S_MAX)

    def quiet(self) -> Quiet:
        """Return when silence is probed: silence and probe together take `detect_s` at most."""
        detect_s = self._settings.detect_s
        usable_s = detect_s * (1 - MARGIN_SHARE)
        beat_s = self._beat_s()
        if beat_s is not None:
            after_s = beat_s * (1 + BEAT_MARGIN_SHARE)
            timeout_s = min(usable_s - after_s, self._settings.probe_timeout_s)
            if timeout_s >= TIMEOUT_SHARE_MIN * detect_s:
                return Quiet(usable_s - timeout_s, timeout_s)
        timeout_s = min(self._settings.probe_timeout_s, TIMEOUT_SHARE_MAX * detect_s)
        return Quiet(usable_s - timeout_s, timeout_s)

    def _probe_wait_s(self) -> float:
        """Return in how many seconds the next probe is due: zero or less for now."""
        subject, now = self._subject, self._clock.monotonic()
        if subject.cloud in (CloudHealth.NO_LOGIN, CloudHealth.AUTH) or subject.is_silent_by_hand:
            self._is_asked = False
            return WAIT_S_MAX
        shortest_s = CONFIRM_SHARE * self._settings.probe_s
        if self._is_asked or subject.is_suspect:
            # At once, unless it was probed just now.
            return self._last_s + shortest_s - now
        if subject.is_cut_off:
            is_late = subject.outage_s >= self._settings.late_after_s
            pause_s = self._settings.probe_late_s if is_late else self._settings.probe_s
            return self._last_s + (shortest_s if subject.is_promising else pause_s * self._pause_share) - now
        return max(subject.heard_at_s, self._last_s, self._began_s) + self.quiet().after_s - now

    async def _probe(self) -> Kind | None:
        is_calm = not (self._subject.is_cut_off or self._is_asked or self._subject.is_suspect)
        kind = Kind.CHEAP if is_calm else Kind.FULL
        timeout_s = self.quiet().timeout_s if is_calm else self._settings.probe_timeout_s
        self._is_asked = False
        self._anew.clear()
        self._pause_share = 1.0 - self._rng.uniform(0.0, JITTER_SHARE)
        began = self._clock.monotonic()
        try:
            answered = await self._unless_anew(self._asker.ask(kind, timeout_s))
        except CloudError as error:
            self._fail(kind, error, began)
            return kind
        except MetricsdError as error:
            log.debug("probe.impossible", reason=str(error))
            return kind
        finally:
            # A probe that was given up for another network is followed by one through that at once.
            self._last_s = -math.inf if self._anew.is_set() else self._clock.monotonic()
        if answered:
            await self._succeed(kind, began)
        return kind

    async def _succeed(self, kind: Kind, began: float) -> None:
        now = self._clock.monotonic()
        log.debug("probe.answered", kind=kind.value, took_ms=round((now - began) * 1000))
        if kind is Kind.CHEAP:
            # It says that somebody is there, and nothing about the work: it must not outweigh failed rounds.
            self._subject.note_heard()
        else:
            if self._before_good is not None:
                await self._before_good()
            self._subject.note(outcome_of(None, at_s=now, took_s=now - began, answers=1))

    def _fail(self, kind: Kind, error: CloudError, began: float) -> None:
        now = self._clock.monotonic()
        log.debug("probe.failed", kind=kind.value, reason=str(error))
        if isinstance(error, CloudUnreachable) and error.fault is Fault.TIMEOUT:
            error = CloudUnreachable(str(error), Fault.SILENT)
        self._subject.note(outcome_of(error, at_s=now, took_s=now - began, answers=0))

    async def _unless_anew(self, work: Awaitable[None]) -> bool:
        """Wait for `work`; return False if it was given up for another network."""
        task = asyncio.ensure_future(work)
        anew = asyncio.ensure_future(self._anew.wait())
        try:
            await asyncio.wait({task, anew}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return False
            task.result()
            return True
        finally:
            task.cancel()
            anew.cancel()
            await asyncio.gather(task, anew, return_exceptions=True)


class CloudAsker:
    """Asks the cloud that this home is logged in to, over a connection of its own."""

    def __init__(
        self,
        paths: Paths,
        settings: Sync,
        *,
        connect: Callable[[str, str, Sync], CloudClient] = CloudClient,
    ) -> None:
        """`connect(url, token, settings)` makes clients."""
        self._paths = paths
        self._settings = settings
        self._connect = connect
        self._client: CloudClient | None = None
        self._client_of: tuple[str, str, float] | None = None

    async def ask(self, kind: Kind, timeout_s: float) -> None:
        """Return when the cloud answered well; raise CloudError, or ConfigError for settings that allow no asking."""
        try:
            credentials = identity.get_credentials(self._paths)
            client = await self._client_for((credentials.url, credentials.token, timeout_s))
            if kind is Kind.CHEAP:
                await client.healthz()
            else:
                await client.capabilities()
        except (ConfigError, UsageError):
            raise
        except CloudError:
            # The next probe makes a connection of its own: this one may be the fault.
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connection."""
        client, self._client, self._client_of = self._client, None, None
        if client is not None:
            await client.close()

    async def _client_for(self, wanted: tuple[str, str, float]) -> CloudClient:
        if self._client is None or self._client_of != wanted:
            await self.close()
            url, token, timeout_s = wanted
            limits = self._settings._replace(
                request_timeout_s=timeout_s, connect_timeout_s=min(timeout_s, self._settings.connect_timeout_s)
            )
            self._client = self._connect(url, token, limits)
            self._client_of = wanted
        return self._client
