"""Whether the hook is registered, whether nothing keeps the tool from running it, and whether an event goes the whole way.

The way is tried with a probe: a capture that the tail takes in and lets go of like any other, but that never becomes
an event, so that the user's figures stay what they are. The program itself is run against a folder of its own.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from pathlib import Path

from metricsd import spool
from metricsd.doctor.finding import Facts, Finding, fail, not_used, ok, warn
from metricsd.errors import MetricsdError
from metricsd.hooks import installer, report
from metricsd.hooks.plugin import PROGRAM
from metricsd.hooks.registration import TOOL
from metricsd.hooks.report import PLUGIN_LEVEL, Row

HOOK_TIMEOUT_S = 5.0
ROUND_TRIP_TIMEOUT_S = 10.0
"""Far above a rescan (tail.rescan_s), which finds what the watcher missed."""
SLOW_MS = 100.0
"""A hook that takes this long is felt in the tool; the usual time is a few milliseconds."""
_STEP_S = 0.002


def check_hooks(facts: Facts) -> list[Finding]:
    """Return how the hook stands at each place, and whether its program and the way behind it work."""
    rows = report.rows(facts.paths, facts.places, facts.environ)
    registered = [row for row in rows if _is_ours(row)]
    found = [finding for row in rows for finding in _row(facts, row)]
    notices = dict.fromkeys(notice for row in rows for notice in row.notices)
    found += [warn("hooks", notice.says, _fix_in(notice.says)) for notice in notices]
    if not registered:
        found.append(not_used("hooks", "no tool runs our hook", f"metricsd hooks install {TOOL}"))
    return [*found, *_programs(registered), _round_trip(facts)]


def is_registered(facts: Facts) -> bool:
    """Return whether any tool is set up to run our hook here."""
    return any(_is_ours(row) for row in report.rows(facts.paths, facts.places, facts.environ))


def _is_ours(row: Row) -> bool:
    """Return whether a registration runs this home's program; a plugin runs its own, for whoever it finds."""
    if row.registration is None:
        return row.registered
    return row.registered and str(row.registration.capture) in row.registration.commands


def _row(facts: Facts, row: Row) -> list[Finding]:
    if row.error is not None:
        return [warn("hooks", row.error, f"correct {row.settings}; until then the tool skips it")]
    if not row.registered:
        return []
    where = f"in {row.settings} ({row.level})"
    if row.state == installer.State.INSTALLED:
        return [ok("hooks", f"registered {where}")]
    if row.registration is None:
        return [fail("hooks", f"the plugin differs from this metricsd's {where}", "metricsd hooks export-plugin DIR")]
    if not _is_ours(row):
        # Never repaired by itself: a look from a trial home must not take the hook away from the real one.
        says = f"{row.settings} ({row.level}) runs {row.registration.commands[0]}, which records for another home"
        return [
            warn("hooks", says, "metricsd hooks install, if it is to record here; or set METRICSD_HOME to that home")
        ]
    level = f"--level {row.level}" if row.level != report.FILE_LEVEL else f"--settings {row.settings}"
    target = installer.find_target(facts.paths, row.registration.settings)
    wrong = _differences(row.registration)
    return [
        fail(
            "hooks",
            f"registered {where}, but {wrong}",
            f"metricsd hooks install {level}",
            lambda: installer.install(target),
        )
    ]


def _differences(found: installer.Registration) -> str:
    """Return in a few words what is not as installing leaves it."""
    wrong = [f"{event}: {how}" for event, how in found.events.items() if how != "ok"]
    if found.capture_state != "ok":
        wrong.insert(0, f"{found.capture}: {found.capture_state}")
    wrong += [f"runs {command}" for command in found.commands if command != str(found.capture)]
    return "; ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")


def _fix_in(says: str) -> str:
    """Return the advice that a notice ends with, or that it is the advice."""
    return says.rpartition(": ")[2]


def _programs(registered: list[Row]) -> list[Finding]:
    """Run each registered program once, as the tool does, against a folder of its own."""
    programs = []
    for row in registered:
        if row.registration is not None and row.registration.capture_state == "ok":
            programs.append(row.registration.capture)
        elif row.level == PLUGIN_LEVEL and row.state == installer.State.INSTALLED:
            programs.append(Path(row.settings) / PROGRAM)
    return [_fired(program) for program in dict.fromkeys(programs) if program.is_file()]


def _fired(program: Path) -> Finding:
    with tempfile.TemporaryDirectory(prefix="metricsd-doctor-") as folder:
        aside = Path(folder) / "spool"
        try:
            new = spool.ensure_spool(aside)
            began = time.perf_counter()
            done = subprocess.run(
                [str(program), spool.PROBE_APP, spool.PROBE_EVENT, str(aside)],
                input=b"{}",
                capture_output=True,
                timeout=HOOK_TIMEOUT_S,
                check=False,
            )
            took_ms = (time.perf_counter() - began) * 1000
            written = [file.read_bytes() for file in new.iterdir()]
        except (OSError, subprocess.TimeoutExpired, MetricsdError) as error:
            return fail("hook fires", f"{program} cannot be run ({error})", "metricsd hooks install")
    if done.returncode != 0 or done.stdout or done.stderr:
        return fail("hook fires", f"{program} is not quiet: exit code {done.returncode}", "metricsd hooks install")
    if len(written) != 1 or not written[0].endswith(b"}\n"):
        return fail("hook fires", f"{program} wrote no capture: is there an awk on this machine?", "install awk")
    if took_ms > SLOW_MS:
        return warn("hook fires", f"a capture takes {took_ms:.0f} ms", "see whether the machine is busy, and try again")
    return ok("hook fires", f"a capture takes {took_ms:.0f} ms")


def _round_trip(facts: Facts) -> Finding:
    """Send a probe from the spool through the daemon, and see it taken in."""
    if not facts.runs:
        return not_used("round trip", "the daemon does not run: captures wait in the spool", "metricsd up")
    if not facts.status["store"]["healthy"]:
        return warn(
            "round trip", "captures wait in the spool while the store cannot be used", "see the line about the store"
        )
    try:
        began = time.monotonic()
        probe = spool.append(spool.PROBE_EVENT, {}, app=spool.PROBE_APP, spool=facts.paths.spool)
    except MetricsdError as error:
        return fail("round trip", str(error), f"make {facts.paths.spool} writable")
    while probe.exists():
        if time.monotonic() - began > ROUND_TRIP_TIMEOUT_S:
            with contextlib.suppress(OSError):
                probe.unlink()
            return _stuck(facts)
        time.sleep(_STEP_S)
    return ok("round trip", f"an event is in the daemon's hands after {(time.monotonic() - began) * 1000:.0f} ms")


def _stuck(facts: Facts) -> Finding:
    waiting = facts.status["spool"]["pending_files"]
    says = f"a capture was not taken in within {ROUND_TRIP_TIMEOUT_S:g} s"
    if waiting > 1:
        return warn("round trip", f"{says}: {waiting} wait before it", "metricsd status shows how long they take")
    return fail("round trip", f"{says}; nothing is lost", "metricsd logs")
