"""The failover state machine: which mode the evidence calls for, and why.

Everything here is pure: no clock, no I/O, no log. `next_mode` is the matrix of docs/failover.md with its brakes: a
mode lasts for a dwell at least, recovery takes two good probes, and a cloud that fails again after each recovery is
believed later and later. Whoever gathers the evidence and acts on the answer is elsewhere (governor.py).
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, assert_never


class Mode(StrEnum):
    """How the daemon works."""

    HYBRID = "hybrid"
    """Everything: the store takes in, the cloud is synced with, news come at once."""
    LOCAL_ONLY = "local_only"
    """The store takes in; nothing goes to the cloud but probes."""
    REMOTE_ONLY = "remote_only"
    """The store cannot be written: captures go straight to the cloud, and stay in the spool until it is back."""
    DEGRADED = "degraded"
    """Slower on purpose, with the reason: smaller batches, twice the interval, no stream of news."""


class StoreHealth(StrEnum):
    """Whether the store takes anything in."""

    WRITABLE = "writable"
    BLOCKED = "blocked"


class CloudHealth(StrEnum):
    """How the cloud answers."""

    UNKNOWN = "unknown"
    """It was not asked yet, and counts as well until it is."""
    HEALTHY = "healthy"
    FAILING = "failing"
    """It answers, and half of what is asked fails."""
    SLOW = "slow"
    UNREACHABLE = "unreachable"
    AUTH = "auth"
    """It refuses this login."""
    NO_LOGIN = "no_login"


class Reason(StrEnum):
    """Why a mode is in force. The words stand in `status` and are stable."""

    NOT_YET = "not synced yet"
    SYNCED = "synced"
    NO_LOGIN = "not logged in"
    AUTH = "auth"
    UNREACHABLE = "unreachable"
    ERRORS = "errors"
    SLOW = "slow"
    BACKLOG = "backlog"
    STORE = "store"
    STORE_AND_CLOUD = "store and cloud"
    FORCED = "forced"


class Health(NamedTuple):
    """The evidence.

    since_switch_s   how long the mode has been in force
    reason           why it is in force
    good_probes      answers of the cloud in a row, since it last failed
    relapses         recoveries in a row after which the cloud failed again before a single round went through
    backlog_long     so much waits that a cloud which has only just come back should not get it at full speed
    frozen           the machine slept or its clock jumped: what failed just now says nothing about the cloud
    """

    store: StoreHealth = StoreHealth.WRITABLE
    cloud: CloudHealth = CloudHealth.UNKNOWN
    reason: Reason = Reason.NOT_YET
    since_switch_s: float = 0.0
    good_probes: int = 0
    relapses: int = 0
    backlog_long: bool = False
    frozen: bool = False


class Forced(NamedTuple):
    """A mode that a person chose; `until_us` None holds until it is taken back."""

    mode: Mode
    until_us: int | None = None


class Limits(NamedTuple):
    """The brakes."""

    dwell_s: float = 5.0
    good_probes: int = 2
    distrust_s_max: float = 600.0
    """Longest that a cloud which keeps failing right after its recovery is left alone."""


DEFAULT = Limits()
BY_HAND = frozenset({Reason.FORCED, Reason.NO_LOGIN, Reason.AUTH})
"""States that a person brings about and ends: by `metricsd mode`, a login, a token. They begin and end at once."""
_OUTAGE = frozenset({Reason.UNREACHABLE, Reason.STORE_AND_CLOUD})
_BLAMES_CLOUD = _OUTAGE | {Reason.ERRORS, Reason.SLOW}
_DOUBLINGS_MAX = 32


def next_mode(mode: Mode, health: Health, forced: Forced | None, limits: Limits = DEFAULT) -> tuple[Mode, Reason]:
    """Return the mode the evidence calls for, and why. Pure: no clock, no I/O, no log."""
    if forced is not None:
        return forced.mode, Reason.FORCED
    wanted, why = called_for(health)
    if health.reason in BY_HAND or why in BY_HAND:
        return wanted, why
    if wanted is mode:
        return mode, why
    if health.since_switch_s < limits.dwell_s or (health.frozen and why in _BLAMES_CLOUD):
        return mode, health.reason
    if wanted in (Mode.HYBRID, Mode.REMOTE_ONLY) and not _is_proven(health, limits):
        return mode, health.reason
    if wanted is Mode.HYBRID and health.backlog_long and _comes_back(mode, health):
        # Not at full speed into a server that has only just come back.
        return Mode.DEGRADED, Reason.BACKLOG
    return wanted, why


def called_for(health: Health) -> tuple[Mode, Reason]:
    """Return the cell of the matrix that the evidence lies in, without the brakes. Pure."""
    is_writable = health.store is StoreHealth.WRITABLE
    match health.cloud:
        case CloudHealth.NO_LOGIN:
            return Mode.LOCAL_ONLY, Reason.NO_LOGIN
        case CloudHealth.AUTH:
            return Mode.LOCAL_ONLY, Reason.AUTH
        case CloudHealth.UNKNOWN:
            return (Mode.HYBRID, Reason.NOT_YET) if is_writable else (Mode.REMOTE_ONLY, Reason.STORE)
        case CloudHealth.HEALTHY:
            return (Mode.HYBRID, Reason.SYNCED) if is_writable else (Mode.REMOTE_ONLY, Reason.STORE)
        case CloudHealth.FAILING:
            return Mode.DEGRADED, Reason.ERRORS if is_writable else Reason.STORE_AND_CLOUD
        case CloudHealth.SLOW:
            return Mode.DEGRADED, Reason.SLOW if is_writable else Reason.STORE_AND_CLOUD
        case CloudHealth.UNREACHABLE:
            return (Mode.LOCAL_ONLY, Reason.UNREACHABLE) if is_writable else (Mode.DEGRADED, Reason.STORE_AND_CLOUD)
        case _:
            assert_never(health.cloud)


def distrust_s(relapses: int, limits: Limits = DEFAULT) -> float:
    """Return how long an outage lasts at least when the last recoveries came to nothing. Pure."""
    return min(limits.dwell_s * 2.0 ** min(relapses, _DOUBLINGS_MAX), max(limits.distrust_s_max, limits.dwell_s))


def _is_proven(health: Health, limits: Limits) -> bool:
    """Return whether a cloud that was away has answered often enough, and for long enough, to be believed."""
    if health.reason not in _OUTAGE:
        return True
    return health.good_probes >= limits.good_probes and health.since_switch_s >= distrust_s(health.relapses, limits)


def _comes_back(mode: Mode, health: Health) -> bool:
    return mode is Mode.LOCAL_ONLY or health.reason in (Reason.BACKLOG, Reason.STORE_AND_CLOUD)
