"""Keeps the mode of one home: gathers the evidence, asks the state machine, and enters what it answers.

Entering a mode has effects here and nowhere else: the time and the reason are kept in the mode file, one log line is
written, and whoever runs the parts is told. What a person forces is on the disk before it is said to be in force. It
never asks the cloud itself, and a mode file that cannot be written changes nothing but what a restart remembers.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from metricsd import modes
from metricsd.clock import US_PER_S, Clock
from metricsd.config import Failover, Paths
from metricsd.errors import StoreUnavailable
from metricsd.failover import CloudHealth, Forced, Health, Limits, Mode, Reason, StoreHealth, next_mode
from metricsd.health import CloudWatch, Outcome, Verdict
from metricsd.identity import LoginMark, find_login_mark
from metricsd.modes import Change, State

OnEnter = Callable[[Change, Change], None]
"""Told of the mode before and the mode now. Called too when only the reason changed."""

_OUTAGE = frozenset({Reason.UNREACHABLE, Reason.STORE_AND_CLOUD})

log = structlog.get_logger("failover")


class Governor:
    """The mode of one home. Belongs to one thread; the caller holds the instance lock."""

    def __init__(self, paths: Paths, settings: Failover, clock: Clock, *, on_enter: OnEnter | None = None) -> None:
        self._file = paths.mode
        self._paths = paths
        self._settings = settings
        self._clock = clock
        self._on_enter = on_enter
        self._limits = Limits(dwell_s=settings.dwell_s)
        self._watch = CloudWatch(settings.slow_s)
        self._store_reason: str | None = None
        self._backlog = 0
        self._relapses = 0
        self._is_unproved = False
        self._outage_since_s: float | None = None
        self._is_kept = True
        self._login: LoginMark | None = None
        self._state = self._begin()

    @property
    def now(self) -> Change:
        """The mode in force, since when and why."""
        return self._state.now

    @property
    def mode(self) -> Mode:
        """The mode in force."""
        return self._state.now.mode

    @property
    def forced(self) -> Forced | None:
        """What a person forced."""
        return self._state.forced_at(self._clock.now_us())

    @property
    def history(self) -> tuple[Change, ...]:
        """The latest changes, oldest first."""
        return self._state.history

    @property
    def cloud(self) -> CloudHealth:
        """How the cloud answers."""
        return self._watch.judge(self._clock.monotonic())

    @property
    def allows_rounds(self) -> bool:
        """Whether rounds of sync may run by themselves."""
        has_cloud = self.cloud not in (CloudHealth.NO_LOGIN, CloudHealth.AUTH)
        return self.mode in (Mode.HYBRID, Mode.DEGRADED) and has_cloud and self._store_reason is None

    @property
    def is_gentle(self) -> bool:
        """Whether the cloud is to be spared: small batches, twice the interval."""
        return self.mode is Mode.DEGRADED

    @property
    def is_cut_off(self) -> bool:
        """Whether nothing but probes goes to the cloud, so that nothing else can tell that it is back."""
        is_blocked = self.mode is Mode.DEGRADED and self._store_reason is not None
        return self.cloud is CloudHealth.UNREACHABLE or is_blocked

    @property
    def is_convalescent(self) -> bool:
        """Whether one more good round would end an impairment."""
        return self.now.reason in (Reason.ERRORS, Reason.SLOW) and self._watch.is_improving

    @property
    def is_silent_by_hand(self) -> bool:
        """Whether a person wants nothing sent at all."""
        return self.forced is not None and self.mode is Mode.LOCAL_ONLY

    @property
    def is_suspect(self) -> bool:
        """Whether the cloud failed just now, and a probe would tell more."""
        return self._watch.is_suspect

    @property
    def heard_at_s(self) -> float:
        """When something last came from the cloud, on the monotonic clock."""
        return self._watch.heard_at_s

    @property
    def is_promising(self) -> bool:
        """Whether the cloud has just answered well for the first time, and one more answer would prove it."""
        return self._watch.is_promising

    @property
    def outage_s(self) -> float:
        """For how long the cloud has been away; a change of the network begins it anew."""
        return 0.0 if self._outage_since_s is None else self._clock.monotonic() - self._outage_since_s

    def note(self, outcome: Outcome) -> None:
        """Take an outcome in, and change the mode if it calls for that."""
        self._watch.note(outcome)
        if outcome.verdict is Verdict.GOOD and outcome.answers > 1:
            # Not a probe, which a cloud may answer that can do nothing else.
            self._is_unproved = False
            self._relapses = 0
        self.step()

    def note_heard(self) -> None:
        """Take in that something came from the cloud."""
        self._watch.note_heard(self._clock.monotonic())

    def note_store(self, reason: str | None) -> None:
        """Take in why the store cannot be written, None when it can."""
        if reason != self._store_reason:
            self._store_reason = reason
            self.step()

    def note_backlog(self, events: int) -> None:
        """Take in how many events wait to be sent."""
        if events != self._backlog:
            self._backlog = events
            self.step()

    def look_at_login(self) -> None:
        """Forget what another login met, if the login changed."""
        mark = find_login_mark(self._paths)
        if mark != self._login:
            self._login = mark
            self._watch.note_login(has_login=mark is not None)
            self._relapses = 0
            self.step()

    def note_network(self) -> None:
        """Take in that the network changed: what is known of an outage is about another network."""
        self._relapses = 0
        if self._outage_since_s is not None:
            self._outage_since_s = self._clock.monotonic()

    def note_wake(self) -> None:
        """Take in that the machine slept or its clock jumped: for a while failures say nothing."""
        self._watch.freeze(self._clock.monotonic() + self._settings.settle_s)
        self.note_network()

    def force(self, mode: Mode, until_us: int | None = None) -> None:
        """Put a mode in force until it is released, or until then. Raises StoreUnavailable if that cannot be kept."""
        self._keep_forced(self._state._replace(forced=Forced(mode, until_us)))

    def release(self) -> None:
        """Let the evidence decide again. Raises StoreUnavailable if that cannot be kept."""
        self._keep_forced(self._state._replace(forced=None))

    def seconds_to_step(self) -> float | None:
        """Return when to `step` though nothing new is known: the dwell ends, or what was forced. None: never."""
        forced = self.forced
        if forced is not None:
            if forced.until_us is None:
                return None
            return max((forced.until_us - self._clock.now_us()) / US_PER_S, 0.0)
        left_s = self._limits.dwell_s - self._since_switch_s()
        later = self.health()._replace(since_switch_s=self._limits.dwell_s)
        is_due = next_mode(self.mode, later, None, self._limits)
        if left_s <= 0 or is_due == (self.mode, self.now.reason):
            return None
        return left_s

    def health(self) -> Health:
        """Return the evidence."""
        at_s = self._clock.monotonic()
        return Health(
            store=StoreHealth.WRITABLE if self._store_reason is None else StoreHealth.BLOCKED,
            cloud=self._watch.judge(at_s),
            reason=self.now.reason,
            since_switch_s=self._since_switch_s(),
            good_probes=self._watch.good_probes,
            relapses=self._relapses,
            backlog_long=self._backlog > self._settings.backlog_events,
            frozen=self._watch.is_frozen(at_s),
        )

    def step(self) -> bool:
        """Ask what the evidence calls for and enter it; return whether that changed anything."""
        forced = self.forced
        health = self.health()
        if health.cloud is not CloudHealth.UNREACHABLE:
            self._outage_since_s = None
        elif self._outage_since_s is None:
            self._outage_since_s = self._clock.monotonic()
        mode, reason = next_mode(self.mode, health, forced, self._limits)
        if (mode, reason) == (self.mode, self.now.reason):
            self._retell(reason)
            return False
        if forced is None:
            self._state = self._state._replace(forced=None)
        self.enter_mode(Change(self._clock.now_us(), mode, reason, self._detail(reason)))
        return True

    def enter_mode(self, change: Change) -> None:
        """Put a mode in force: keep it with its time and reason, log it once, tell whoever runs the parts."""
        before = self.now
        self._state = self._state.entered(change)
        if change.mode is not before.mode:
            self._note_relapse(before, change)
            self._switched_s = self._clock.monotonic()
            log.info(
                "mode.entered",
                mode=change.mode.value,
                before=before.mode.value,
                reason=modes.reason_text(change),
                after_s=round((change.at - before.at) / US_PER_S, 1),
            )
        self._keep()
        if self._on_enter is not None:
            self._on_enter(before, change)

    def _retell(self, reason: Reason) -> None:
        """Tell what fails now: there was no network, and then there is one that shows a page to log in."""
        detail = self._detail(reason) if reason in (Reason.UNREACHABLE, Reason.ERRORS) else ""
        if detail not in ("", self.now.detail):
            self._state = self._state.retold(detail)
            self._keep()

    def _begin(self) -> State:
        """Return the state that the last process left, or a first one."""
        self._login = find_login_mark(self._paths)
        self._watch.note_login(has_login=self._login is not None)
        found = modes.find_state(self._file)
        now_us = self._clock.now_us()
        if found is None:
            first = Change(
                now_us, *((Mode.HYBRID, Reason.NOT_YET) if self._login else (Mode.LOCAL_ONLY, Reason.NO_LOGIN))
            )
            self._switched_s = self._clock.monotonic() - self._limits.dwell_s
            return State((first,))
        self._switched_s = self._clock.monotonic() - max((now_us - found.now.at) / US_PER_S, 0.0)
        if found.now.reason in _OUTAGE:
            self._watch.note_down(found.now.detail)
        elif found.now.reason is Reason.AUTH and not self._is_newer(found.now.at):
            self._watch.note(Outcome(Verdict.AUTH, self._clock.monotonic(), message=found.now.detail))
        return found

    def _is_newer(self, at_us: int) -> bool:
        """Return whether the login was written after then."""
        return self._login is not None and self._login[1] // 1000 > at_us

    def _since_switch_s(self) -> float:
        return self._clock.monotonic() - self._switched_s

    def _note_relapse(self, before: Change, change: Change) -> None:
        """Count recoveries that came to nothing: the next one is believed later."""
        if change.reason in _OUTAGE and before.reason not in _OUTAGE:
            self._backlog = 0
            self._relapses = self._relapses + 1 if self._is_unproved else 0
        elif before.reason in _OUTAGE and change.reason not in _OUTAGE:
            self._is_unproved = True

    def _detail(self, reason: Reason) -> str:
        match reason:
            case Reason.UNREACHABLE | Reason.ERRORS:
                return modes.one_line(self._watch.message)
            case Reason.SLOW:
                return f"answers take over {self._settings.slow_s:g} s"
            case Reason.BACKLOG:
                return f"{self._backlog} events wait"
            case Reason.STORE:
                return modes.one_line(self._store_reason or "")
            case Reason.STORE_AND_CLOUD:
                return modes.one_line(f"{self._store_reason}; {self._watch.message}")
            case _:
                return ""

    def _keep_forced(self, state: State) -> None:
        try:
            modes.save_state(self._file, state, durable=True)
        except OSError as error:
            raise StoreUnavailable(
                f"{self._file}: cannot be written ({error.strerror}): the mode stays as it is; free disk space or "
                "repair the folder's permissions"
            ) from error
        self._state = state
        self.step()

    def _keep(self) -> None:
        try:
            modes.save_state(self._file, self._state)
        except OSError as error:
            if self._is_kept:
                log.warning("mode.not_kept", file=str(self._file), reason=error.strerror)
            self._is_kept = False
        else:
            self._is_kept = True
