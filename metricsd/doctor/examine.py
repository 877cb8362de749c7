"""The whole examination in the order of the flow: settings, hooks, home, daemon, store, cloud.

A check that fails by a fault of its own is a line like any other: one broken corner must not hide how the rest stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from metricsd.doctor.cloud import check_cloud
from metricsd.doctor.daemon import check_daemon
from metricsd.doctor.finding import Facts, Finding, Level, fail
from metricsd.doctor.home import check_home
from metricsd.doctor.hooks import check_hooks
from metricsd.doctor.store import check_store
from metricsd.errors import MetricsdError

Check = Callable[[Facts], Iterable[Finding]]
CHECKS: dict[str, Check] = {
    "daemon": check_daemon,
    "hooks": check_hooks,
    "home": check_home,
    "store": check_store,
    "cloud": check_cloud,
}


def examine(facts: Facts, checks: dict[str, Check] = CHECKS) -> list[Finding]:
    """Return every finding, in the order of the checks."""
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found += check(facts)
        except (MetricsdError, OSError, ValueError, KeyError) as error:
            found.append(fail(name, f"could not be looked at ({type(error).__name__}: {error})", "metricsd logs"))
    return found


def repair(found: Iterable[Finding]) -> list[str]:
    """Do what can be repaired, and return what was done or why it could not be."""
    done = []
    for finding in found:
        if finding.repair is None:
            continue
        try:
            finding.repair()
        except (MetricsdError, OSError) as error:
            done.append(f"{finding.check}: not repaired: {error}")
        else:
            done.append(f"{finding.check}: repaired (it was: {finding.says})")
    return done


def is_well(found: Iterable[Finding]) -> bool:
    """Return whether nothing that was set up is broken."""
    return all(finding.level is not Level.FAIL for finding in found)
