"""Whether the daemon runs, is of this version, is started at login if that was asked for, and in which mode it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from metricsd import __version__
from metricsd.doctor.finding import Facts, Finding, fail, not_used, ok, warn
from metricsd.doctor.hooks import is_registered
from metricsd.service.find import Absent, find_installed, find_manager
from metricsd.service.manager import Manager
from metricsd.service.systemd import serves_cloud

CALM_MODES = ("hybrid",)


def check_daemon(facts: Facts) -> list[Finding]:
    """Return how daemon, version, service, mode and policy stand."""
    return [_daemon(facts), *_version(facts), _service(facts), *_mode(facts), *_policy(facts)]


def _daemon(facts: Facts) -> Finding:
    daemon = facts.status["daemon"]
    if facts.runs:
        return ok("daemon", f"runs (pid {daemon['pid']})")
    if daemon["state"] == "starting":
        return warn("daemon", f"is starting (pid {daemon['pid']})", "metricsd status")
    if daemon["state"] == "silent":
        return fail("daemon", f"does not answer (pid {daemon['pid']})", "metricsd down, metricsd up")
    wanted = find_installed(facts.paths, facts.environ) is not None or facts.logged_in or is_registered(facts)
    if wanted:
        return fail("daemon", "does not run; captures wait in the spool", "metricsd up", facts.start)
    return not_used("daemon", "does not run, and nothing is set up for it", "metricsd up")


def _version(facts: Facts) -> Iterator[Finding]:
    """Compare what runs with what was asked; an upgrade does not replace a process that runs."""
    running = facts.status["daemon"]["version"]
    if not facts.runs or not running:
        return
    if running == __version__:
        yield ok("version", f"{__version__}, daemon and command line")
    else:
        says = f"the daemon runs version {running}, this is {__version__}"
        yield warn("version", says, "metricsd up replaces an older daemon", facts.start)


def _service(facts: Facts) -> Finding:
    installed = find_installed(facts.paths, facts.environ)
    manager = find_manager(facts.paths, facts.environ)
    if isinstance(manager, Absent):
        if installed is not None:
            return warn("service", f"a unit is installed, but {manager.reason}", "metricsd service uninstall")
        return not_used("service", f"{manager.reason}: {manager.instead}")
    if installed is None:
        return not_used("service", "not started at login", "metricsd service install")
    return _standing(manager)


def _standing(manager: Manager) -> Finding:
    found = manager.standing()
    if not found.current:
        says = f"{found.file} is not what this metricsd would write"

        def renew() -> None:
            manager.install(with_cloud=serves_cloud(found.file))
            manager.start()

        return warn("service", says, "metricsd service install", renew)
    if found.enabled is False:
        return fail("service", f"{found.name} is not started at login", "metricsd service install")
    if not found.running:
        return fail(
            "service", f"{found.name} is {found.state}", "metricsd service logs, then metricsd up", manager.start
        )
    if found.lingers is False:
        return ok("service", f"{found.name} runs; it ends at logout (loginctl enable-linger changes that)")
    return ok("service", f"{found.name} runs")


def _mode(facts: Facts) -> Iterator[Finding]:
    """Say why sync is held back, where the user wants sync."""
    mode = facts.status["mode"]
    if not facts.logged_in or not facts.runs:
        return
    reason = str(mode["reason"])
    if mode["forced"]:
        yield ok("mode", f"{mode['current']}, because you said so (metricsd mode auto ends it)")
    elif mode["current"] in CALM_MODES:
        yield ok("mode", f"{mode['current']} ({reason})")
    else:
        fix = "metricsd login URL" if reason == "auth" else "metricsd sync --now"
        fix = "what the line `store` says" if reason.startswith("store") else fix
        yield warn("mode", f"{mode['current']}: {reason}", fix)


def _policy(facts: Facts) -> Iterator[Finding]:
    policy = facts.status["policy"]
    if policy["error"]:
        yield warn("policy", f"{policy['error']}; the last good one is in force", "metricsd policy lint")
    elif (mistake := _find_mistake(facts)) is not None:
        yield warn("policy", f"in force, but {mistake}", "metricsd policy lint")
    else:
        yield ok("policy", f"{policy['name']} ({policy['source']})")


def _find_mistake(facts: Facts) -> str | None:
    """Return the first thing that lint finds wrong with a policy in force: a rule with a typo never applies."""
    from metricsd.policy import lint_file, load, places_of

    for policy in load(places_of(facts.paths)).policies:
        for found in lint_file(Path(policy.source), layer=policy.layer)[1]:
            if found.severity == "error":
                return f"{found.source}:{found.line}: {found.message}"
    return None
