"""Whether the home's folders are ours, private and on a disk that can hold them, and what waits in the spool."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from metricsd.disk import floor_bytes, measure
from metricsd.doctor.finding import Facts, Finding, Repair, fail, not_used, ok, size_text, warn
from metricsd.filesystem import NETWORK, is_shared, kind_of
from metricsd.growing import folders_of, place_of
from metricsd.spool import captures_folder

OLD_CAPTURE_S = 60.0
"""A capture that waits longer while the daemon runs is stuck, or stands in a long row."""
SHARED_BYTES_MAX = 1024**3
"""Shared files belong to those who write them; beyond this somebody should look at their rotation."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def check_home(facts: Facts) -> list[Finding]:
    """Return how folders, spool and disk stand."""
    return [*_private(facts), *_spool(facts), *_shared_files(facts), _disk(facts), _filesystem(facts)]


def _private(facts: Facts) -> Iterator[Finding]:
    """Look whether everything is this user's, closed to others, and can be written."""
    paths = facts.paths
    places = [
        paths.state_dir, paths.spool, captures_folder(paths.spool), paths.log_file.parent, paths.quarantine,
        paths.backups, paths.store, paths.identity, paths.credentials,
    ]  # fmt: skip
    wrong = 0
    for place in places:
        try:
            status = place.stat()
        except OSError:
            continue
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid():
            wrong += 1
            says = f"{place} belongs to another user ({status.st_uid}); was metricsd run with sudo?"
            yield fail("permissions", says, f"sudo chown -R {os.geteuid()} {place}")
        elif mode & _OTHERS and place != paths.state_dir:
            wrong += 1
            says = f"{place} is open to other users (mode {mode:03o})"
            fix = f"chmod {'700' if place.is_dir() else '600'} {place}"
            # A login that others could read is refused, so sync stands still.
            make = fail if place == paths.credentials else warn
            yield make("permissions", says, fix, _closer(place))
        elif not os.access(place, os.W_OK):
            wrong += 1
            yield fail("permissions", f"{place} cannot be written", f"chmod u+w {place}")
    if not wrong:
        yield ok("permissions", f"private and writable ({paths.state_dir})")


def _closer(place: Path) -> Repair:
    def close() -> None:
        place.chmod(0o700 if place.is_dir() else 0o600)

    return close


def _spool(facts: Facts) -> Iterator[Finding]:
    spool = facts.status["spool"]
    if "error" in spool:
        yield fail("spool", f"cannot be read ({spool['error']})", f"chmod u+rwx {spool['dir']}")
        return
    files, oldest_s = spool["pending_files"], spool["oldest_pending_s"] or 0.0
    if not files:
        yield ok("spool", f"nothing waits ({spool['dir']})")
        return
    says = f"{files} captures wait, {size_text(spool['pending_bytes'])}, the oldest for {oldest_s:.0f} s"
    if not facts.runs:
        yield warn("spool", f"{says}: the daemon does not run", "metricsd up", facts.start)
    elif oldest_s > OLD_CAPTURE_S:
        yield warn("spool", says, "metricsd logs")
    else:
        yield ok("spool", says)


def _shared_files(facts: Facts) -> Iterator[Finding]:
    """Look at files that others append to: their size, and whether those that settings name are there."""
    size = 0
    for file in facts.paths.spool.glob("*.jsonl"):
        try:
            size += file.stat().st_size
        except OSError:
            continue
    if size > SHARED_BYTES_MAX:
        says = f"files that others append to in {facts.paths.spool} have {size_text(size)}"
        yield warn("spool", says, "rotate or delete the old ones; what was read of them is in the store")
    for source in facts.config.tail.sources:
        if not Path(source).expanduser().exists():
            yield warn("sources", f"{source} does not exist", "create it, or take it out of tail.sources")
    for folder in folders_of(map(place_of, facts.config.tail.older_hooks)):
        try:
            os.scandir(folder).close()
        except PermissionError:
            says = f"{folder} of the older hooks cannot be read, and what they write into it is not taken in"
            yield warn("older hooks", says, "give yourself permission, or take it out of tail.older_hooks")
        except OSError:
            # They are not used here.
            continue


def _disk(facts: Facts) -> Finding:
    nearest = next(folder for folder in (facts.paths.state_dir, *facts.paths.state_dir.parents) if folder.exists())
    try:
        used = measure(facts.paths._replace(state_dir=nearest), store_bytes=0, spare_bytes=0)
    except OSError as error:
        return fail("disk", f"{nearest} cannot be asked ({error.strerror})", "check the disk")
    floor = floor_bytes(used, facts.config.store)
    says = f"{size_text(used.free_bytes)} of {size_text(used.total_bytes)} free"
    if used.free_bytes < floor:
        return fail("disk", f"{says}, less than store.free_bytes_min leaves ({size_text(floor)})", "free some space")
    if used.free_bytes < 2 * floor:
        return warn("disk", f"{says}; the store stops growing at {size_text(floor)}", "free some space")
    return ok("disk", says)


def _filesystem(facts: Facts) -> Finding:
    kind = kind_of(facts.paths)
    if not kind:
        return not_used("file system", "its kind cannot be told here")
    if kind in NETWORK:
        says = f"the home lies on {kind}, where SQLite may lose data"
        return fail("file system", says, "set METRICSD_HOME to a folder on a local disk")
    if is_shared(kind):
        return ok("file system", f"{kind}: folders are polled, because changes may come without an event")
    return ok("file system", kind)
