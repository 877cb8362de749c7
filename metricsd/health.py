"""How the cloud answers: a sliding window of what was asked of it, and the judgement that follows.

An outcome is one round of sync, one delivery or one probe. Being asked to slow down (429, Retry-After) is neither good
nor bad; what is not our protocol (a captive portal's page) is no answer at all; a refused login is a state of its own
until the login changes. While the judgement is frozen, after sleep or a clock's jump, failures are not counted: the
network takes its time to come back, and says nothing about the cloud. Nothing here asks a clock.
"""

from __future__ import annotations

import math
from collections import deque
from enum import StrEnum
from typing import NamedTuple

from metricsd.errors import AuthError, CloudBusy, CloudError, CloudRefused, CloudUnreachable, Fault
from metricsd.failover import CloudHealth

WINDOW = 20
"""Outcomes that are looked at."""
HORIZON_S = 3600.0
"""Older outcomes say nothing about now. At the longest backoff, a dozen failures lie within."""
IN_A_ROW = 3
"""Failures without any answer in between after which a cloud counts as unreachable, whatever they are."""
GOOD_IN_A_ROW = 2
JUDGED_MIN = 4
"""Outcomes from which on a share of them means something."""
FAILING_SHARE = 0.5
SLOW_QUANTILE = 0.95
SLOW_MIN = 2
"""One slow answer is no slow cloud, however few there are."""

DEFINITE = frozenset({Fault.REFUSED, Fault.NAME, Fault.TLS, Fault.NOT_OURS, Fault.SILENT})
"""Nobody of ours is there: one is enough. A reset, a timeout or a 5xx may pass by itself; a probe follows at once."""


class Verdict(StrEnum):
    """What one outcome says."""

    GOOD = "good"
    NEUTRAL = "neutral"
    BAD = "bad"
    AUTH = "auth"


class Outcome(NamedTuple):
    """One exchange with the cloud.

    at_s       monotonic seconds of its end
    took_s     its slowest answer
    answers    good answers that it held: a whole round holds several
    fault      what kind of failure it was
    message    the sentence for a person
    """

    verdict: Verdict
    at_s: float
    took_s: float = 0.0
    answers: int = 1
    fault: Fault | None = None
    message: str = ""


def outcome_of(error: CloudError | None, *, at_s: float, took_s: float, answers: int) -> Outcome:
    """Return what an exchange says that ended so; `answers` good ones came before its end."""
    match error:
        case None:
            return Outcome(Verdict.GOOD, at_s, took_s, max(answers, 1))
        case AuthError():
            return Outcome(Verdict.AUTH, at_s, took_s, answers, None, str(error))
        case CloudBusy():
            return Outcome(Verdict.NEUTRAL, at_s, took_s, answers, None, str(error))
        case CloudUnreachable():
            return Outcome(Verdict.BAD, at_s, took_s, answers, error.fault, str(error))
        case CloudRefused():
            return Outcome(Verdict.BAD, at_s, took_s, answers + 1, Fault.SERVER, str(error))
        case _:
            # A changed history or a fork: it answered, and the next round heals it.
            return Outcome(Verdict.NEUTRAL, at_s, took_s, answers + 1, None, str(error))


class CloudWatch:
    """The window, and what follows from it."""

    def __init__(self, slow_s: float) -> None:
        """`slow_s`: answers that take longer are slow."""
        self._slow_s = slow_s
        self._window: deque[Outcome] = deque(maxlen=WINDOW)
        self._has_login = True
        self._refused = False
        self._down = False
        self._unanswered = 0
        self._fine = 0
        self._asked = False
        self._frozen_until_s = -math.inf
        self._last = Verdict.NEUTRAL
        self.good_probes = 0
        self.heard_at_s = -math.inf
        self.message = ""

    def note(self, outcome: Outcome) -> None:
        """Take an outcome in."""
        frozen = self.is_frozen(outcome.at_s)
        if outcome.verdict is not Verdict.BAD or outcome.answers:
            self.heard_at_s = max(self.heard_at_s, outcome.at_s)
        if outcome.verdict is not Verdict.BAD or not frozen:
            self._last = outcome.verdict
        match outcome.verdict:
            case Verdict.AUTH:
                self._refused = True
                self.message = outcome.message
            case Verdict.GOOD:
                self._note_good(outcome)
            case Verdict.BAD if not frozen:
                self._note_bad(outcome)
            case _:
                return

    def _note_good(self, outcome: Outcome) -> None:
        self._asked = True
        self._refused = False
        self._unanswered = 0
        self.good_probes += outcome.answers
        self._fine = self._fine + 1 if outcome.took_s <= self._slow_s else 0
        self._window.append(outcome)
        if self._down and self.good_probes >= GOOD_IN_A_ROW:
            # What failed during the outage is no measure of what has come back.
            self._down = False
            self._window.clear()
        elif not self._down and self._fine >= GOOD_IN_A_ROW:
            self._window.clear()

    def _note_bad(self, outcome: Outcome) -> None:
        self._asked = True
        self.good_probes = self._fine = 0
        self.message = outcome.message
        self._window.append(outcome)
        self._unanswered = 0 if outcome.answers else self._unanswered + 1
        is_definite = outcome.fault in DEFINITE
        self._down = self._down or is_definite or self._unanswered >= IN_A_ROW

    @property
    def is_suspect(self) -> bool:
        """Whether it failed at last, and not so that it is sure to be away. One that asks for patience has answered."""
        return not self._down and self._last is Verdict.BAD

    @property
    def is_promising(self) -> bool:
        """Whether its last answer was good, for the first time since it failed."""
        return self._last is Verdict.GOOD and self.good_probes == 1

    @property
    def is_improving(self) -> bool:
        """Whether the last outcome was as it should be."""
        return self._fine > 0

    def note_heard(self, at_s: float) -> None:
        """Take in that something came from the cloud: a heartbeat, a piece of news."""
        self.heard_at_s = max(self.heard_at_s, at_s)

    def note_login(self, *, has_login: bool) -> None:
        """Forget what was known of another login, or of none."""
        self._has_login = has_login
        self._window.clear()
        self._refused = self._down = self._asked = False
        self._unanswered = self._fine = self.good_probes = 0
        self._last = Verdict.NEUTRAL
        self.message = ""

    def note_down(self, message: str) -> None:
        """Begin with a cloud that was away when somebody last looked."""
        self._down = True
        self.message = message

    def freeze(self, until_s: float) -> None:
        """Do not count failures until then."""
        self._frozen_until_s = max(self._frozen_until_s, until_s)

    def is_frozen(self, at_s: float) -> bool:
        """Return whether failures are not counted now."""
        return at_s < self._frozen_until_s

    def judge(self, at_s: float) -> CloudHealth:
        """Return how the cloud answers."""
        if not self._has_login:
            return CloudHealth.NO_LOGIN
        if self._refused:
            return CloudHealth.AUTH
        if self._down:
            return CloudHealth.UNREACHABLE
        recent = [outcome for outcome in self._window if at_s - outcome.at_s <= HORIZON_S]
        if len(recent) >= JUDGED_MIN:
            failed = sum(outcome.verdict is Verdict.BAD for outcome in recent)
            if failed >= FAILING_SHARE * len(recent):
                return CloudHealth.FAILING
            if self._is_slow([outcome.took_s for outcome in recent]):
                return CloudHealth.SLOW
        return CloudHealth.HEALTHY if self._asked else CloudHealth.UNKNOWN

    def _is_slow(self, took_s: list[float]) -> bool:
        slow = sum(seconds > self._slow_s for seconds in took_s)
        at_quantile = sorted(took_s)[math.ceil(SLOW_QUANTILE * len(took_s)) - 1]
        return slow >= SLOW_MIN and at_quantile > self._slow_s
